"""Any failures, any saving: every second is booked once, and nothing is trained that the clock has no room for."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.engine.failures import Failure
from simtrain.engine.ledger import PARTS
from simtrain.engine.save_path import SavePath, Saving
from simtrain.engine.training_job import Events, JobSetup, TrainingJob
from simtrain.graph.grid import to_run_grid
from simtrain.hardware.failure import Branch, Slowdown
from simtrain.policy.recovery import copies_survive

NODES, SPARES, END = 6, 2, 5000.0
SLOW = Slowdown(compute=0.7, lasts=(Branch(median=1.0),))
times = st.floats(0, END).map(to_run_grid)
durations = st.floats(0, 900).map(to_run_grid)


@st.composite
def failures(draw: st.DrawFn) -> list[Failure]:
    found: list[Failure] = []
    for time in sorted(draw(st.lists(times, max_size=12))):
        first = draw(st.integers(-1, NODES + SPARES - 1))
        nodes = range(0) if first < 0 else range(first, min(NODES + SPARES, first + draw(st.integers(1, 3))))
        is_slow = draw(st.booleans()) and len(nodes) > 0
        found.append(Failure(time, "x", nodes, draw(st.booleans()) and len(nodes) > 0, draw(durations), draw(durations), SLOW if is_slow else None))
    return found


class Policy:
    """Waits for nodes, or trains on with what it has."""

    def __init__(self, is_elastic: bool) -> None:
        self.is_elastic = is_elastic

    def recover(self, job: TrainingJob, failure: Failure) -> Events:
        yield from job.detect(failure)
        job.take_spares()
        if self.is_elastic and job.can_train:
            job.start_aside(failure)
        if not job.can_train or not self.is_elastic:
            yield from job.wait_for_nodes()
            yield from job.restart()

    def rejoin(self, job: TrainingJob) -> Events:
        job.take_spares()
        yield from job.spend("restart", 10.0)

    def speed(self, job: TrainingJob) -> float:
        whole = 1 - len(job.missing) / NODES if self.is_elastic or not job.missing else 0.0
        return min([whole, *(slow.compute for _, slow in job.slow)])


savings = st.builds(Saving, st.floats(5, 600), st.integers(1, 5), st.floats(0, 3), st.floats(0, 20), st.floats(0, 700))


@settings(max_examples=100, deadline=None)
@given(failures(), savings, st.booleans(), st.booleans(), st.booleans())
def test_every_second_is_booked_once(events: list[Failure], saving: Saving, is_elastic: bool, has_memory: bool, isolate: bool) -> None:
    def survives(lost: Collection[int]) -> bool:
        return copies_survive(lost, NODES, 2)

    restart = {"same": 30.0, "spare": 45.0}
    setup = JobSetup(END, NODES, SPARES, saving, restart, isolate_slow=isolate, memory_survives=survives if has_memory else None)
    job = TrainingJob(setup, Policy(is_elastic), events)
    job.run()
    parts = job.ledger.parts()
    assert sum(parts.values()) == END and all(parts[part] >= 0 for part in PARTS)
    edges = [0.0, *(span.end for span in job.ledger.spans)]
    assert edges[-1] == END and all(span.start == edge for span, edge in zip(job.ledger.spans, edges, strict=False))
    assert parts["productive"] <= SavePath(saving, 1.0).at(END).work + 1e-3
    assert sum(loss.seconds for loss in job.losses) == parts["lost_work"]
