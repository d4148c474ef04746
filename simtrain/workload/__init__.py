"""Workloads: what is to be computed, with no ranks and no seconds."""

from simtrain.workload.job_traces import JobTrace
from simtrain.workload.pretraining import Pretraining
from simtrain.workload.rollouts import Rollouts

__all__ = ["JobTrace", "Pretraining", "Rollouts"]
