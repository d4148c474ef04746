"""Pools of asynchronous systems: generation servers, reward workers, a trainer, and what passes between them."""

from simtrain.engine.pools.buffer import ReplayBuffer
from simtrain.engine.pools.outcome import RolloutRun, Snapshot
from simtrain.engine.pools.reward import RewardService
from simtrain.engine.pools.rollout import Rollout
from simtrain.engine.pools.rollout_pool import RolloutPool
from simtrain.engine.pools.server import Limits, Server, ServerTimes
from simtrain.engine.pools.tickets import Tickets
from simtrain.engine.pools.trainer import Trainer

__all__ = ["Limits", "ReplayBuffer", "RewardService", "Rollout", "RolloutPool", "RolloutRun", "Server", "ServerTimes", "Snapshot", "Tickets", "Trainer"]
