"""From the programs of a step to a trace and its budget: composes, replays, repeats where a composite was disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simtrain.engine.collector import collector_paused
from simtrain.engine.composite import Composer, Composites, disturbed
from simtrain.engine.executors import Engine, StepFidelity, replay_with, what_simpy_alone_knows
from simtrain.engine.metrics import Budget, measure_ranks, step_metrics
from simtrain.engine.trace import Trace
from simtrain.graph.assembly import assemble
from simtrain.graph.graph import Shapes
from simtrain.graph.step import Step
from simtrain.hardware import Cluster


@dataclass
class Execution:
    """A trace with the time budget of each represented rank."""

    trace: Trace
    composites: Composites
    busy: Budget
    rounds: int
    """Replays until no composite was disturbed."""

    @property
    def engine(self) -> str:
        """Executor that replayed it."""
        return self.trace.engine

    @property
    def memory(self) -> dict[str, float]:
        """Peak bytes by part on the fullest rank class. [B]"""
        return max((c.memory for c in self.trace.graph.step.classes), key=lambda m: sum(m.values()))

    @property
    def notes(self) -> list[str]:
        """Assumptions that the user should see."""
        return self.trace.graph.step.notes

    def metrics(self, cluster: Cluster) -> dict[str, float]:
        """Return every metric of the step in SI units."""
        return step_metrics(self.trace, self.busy, cluster)

    def digest(self) -> str:
        """Return the hash of the trace."""
        return self.trace.digest()


def execute(
    step: Step,
    cluster: Cluster,
    *,
    fidelity: StepFidelity = "fair",
    engine: Engine = "auto",
    slowdown: float = 0.0,
    unfold: Sequence[str] = (),
    use_composites: bool = True,
    composer: Composer | None = None,
    shapes: Shapes | None = None,
) -> Execution:
    """Replay one step.

    Parameters
    ----------
    step
        Programs of the rank classes.
    cluster
        Gives the capacities of links.
    fidelity, engine, slowdown
        As in :func:`simtrain.engine.executors.replay_with`. ``flow`` switches composites off: what the fabric does to a call depends on its ranks.
    unfold
        Mesh axes whose copies are executed one by one.
    use_composites
        Use composites where they are exact; ``False`` executes every operation.
    composer, shapes
        Composites made, and rows stamped, by runs before; they change no result.
    """
    with collector_paused():
        composites = Composites()
        if use_composites and fidelity != "flow" and not what_simpy_alone_knows(cluster):
            composites = (composer or Composer(cluster, fidelity, slowdown)).compose(step, unfold)
        expanded: dict[int, frozenset[int]] = {}
        rounds = 0
        while True:
            rounds += 1
            graph = assemble(step, unfold=unfold, stand_in=composites.stand_ins, expanded=expanded, shapes=shapes)
            trace = replay_with(engine, graph, cluster, fidelity, slowdown)
            hit = disturbed(trace, composites, fidelity, slowdown) if composites.by_template and fidelity != "flow" else {}
            if not hit:
                break
            expanded = {i: expanded.get(i, frozenset()) | hit.get(i, frozenset()) for i in {*expanded, *hit}}
    inside = {key: c.inside for key, c in composites.by_stand_in.items()}
    return Execution(trace, composites, measure_ranks(trace, inside), rounds)
