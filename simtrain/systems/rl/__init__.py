"""Reinforcement learning from rollouts: synchronous, one step off-policy, asynchronous."""
