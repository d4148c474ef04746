"""Synchronous restart: on any failure the whole job stops, gets its nodes together again, and starts from the last save.

References
----------
.. [1] Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", HPCA 2025, arXiv 2410.21680.
"""

from __future__ import annotations

from typing import ClassVar

from simtrain.engine.failures import Failure
from simtrain.engine.training_job import Events, TrainingJob
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training_run import TrainingRun


class SynchronousRestart(TrainingRun, MegatronLM):
    """Notice, replace what is lost or wait for its repair, restart all processes, load the last save [1]_."""

    title: ClassVar[str] = "Synchronous restart"

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        yield from job.detect(failure)
        yield from job.wait_for_nodes()
        yield from job.restart()
