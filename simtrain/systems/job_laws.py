"""Laws that every scheduler of jobs obeys."""

from __future__ import annotations

from simtrain.engine.job_audit import audit
from simtrain.engine.job_outcome import JobOutcome
from simtrain.hardware import Cluster
from simtrain.systems.job_scheduling import JobScheduling
from simtrain.systems.law import law
from simtrain.workload import JobTrace


def job_laws(system: type[JobScheduling], case: JobScheduling, trace: JobTrace, place: Cluster, outcome: JobOutcome) -> None:
    """Run the laws of a trace of jobs: what its log says is possible, and nothing is lost."""
    for broken in audit(outcome.run):
        law(False, system, broken)
