"""Which jobs of a cluster run, and on which GPUs: plain functions from a state to a plan, without a clock."""
