"""The search: candidates in the order of their bounds, simulated until no bound is left that could win."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simtrain.cost.model import CostModel
from simtrain.errors import InfeasibleError, InputError, UnsupportedError
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Cluster
from simtrain.model import Transformer
from simtrain.study.evaluate import Evaluator
from simtrain.study.plan.bound import Bounds
from simtrain.study.plan.space import Candidate, Space, check_fixed, fixed_of
from simtrain.study.result import Result
from simtrain.study.settings import Scenario, scenario
from simtrain.systems.registry import find, name_of
from simtrain.systems.training import Microbatch, TransformerTraining
from simtrain.workload import Pretraining

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str], None]
_MARGIN = 1e-9
"""Relative slack of a bound: times lie on a grid, sums do not."""


@dataclass(frozen=True)
class Plan:
    """A candidate that was simulated."""

    candidate: Candidate
    settings: Mapping[str, Any]
    """As ``--set`` takes them."""
    metrics: Mapping[str, float]
    bound: float
    """What it was known to take at least before it was simulated. [s]"""

    @property
    def step_time(self) -> float:
        """[s]"""
        return self.metrics["step_time"]


@dataclass(frozen=True)
class PlanResult:
    """The best plans, and what became of all others.

    Parameters
    ----------
    plans
        The ``top`` fastest, the best first.
    counts
        Candidates by what became of them.
    """

    scenario: Scenario
    plans: tuple[Plan, ...]
    counts: Mapping[str, int]

    @property
    def best(self) -> Plan:
        """The fastest plan."""
        return self.plans[0]

    def why(self, plan: Plan) -> str:
        """Return in a few words why a plan is slower than the best."""
        from simtrain.study.plan.reasons import why

        return why(plan, self.best)

    def table(self) -> pd.DataFrame:
        """Return a row per plan, the best first, with the reason why each loses."""
        import pandas as pd

        shown = ("step_time", "tokens_per_s", "mfu", "peak_memory", "exposed_comm", "bubble_fraction")
        known = Space(self.scenario.system, self.scenario.workload, self.scenario.cluster, {}, frozenset()).known  # pyright: ignore[reportArgumentType]
        return pd.DataFrame([{**p.candidate.settings(known), **{name: p.metrics[name] for name in shown}, "why": self.why(p)} for p in self.plans])


def plan(
    model: str | Transformer | Pretraining,
    cluster: str | Cluster,
    global_batch_size: int,
    *,
    seq_len: int | None = None,
    system: str | type[TransformerTraining] | None = None,
    settings: Mapping[str, Any] | None = None,
    top: int = 5,
    fidelity: str = "fair",
    progress: Progress | None = None,
) -> PlanResult:
    """Find the fastest degrees, recomputation, ZeRO stage and microbatch that fit into memory.

    Parameters
    ----------
    model
        Name of a model, the model, or a workload for other number formats.
    cluster
        Name, path or object.
    global_batch_size
        Sequences per step.
    seq_len
        Tokens per sequence; the model's longest by default.
    system
        What runs the step; ``dense/megatron_lm`` by default, or ``moe/megatron_moe`` for a model with experts.
    settings
        Dotted keys that hold for all candidates. A planned one, such as ``tp``, is fixed, or chosen from a list.
    top
        How many plans come back; these are the fastest of all candidates.
    fidelity
        As in :func:`simtrain.run`.
    progress
        Called with a line now and then.

    Raises
    ------
    InputError
        If nothing fits, or something cannot be used.

    Notes
    -----
    Branch and bound: candidates are simulated in the order of a lower bound on their step time
    (:mod:`simtrain.study.plan.bound`), until the bound of the next is no better than the ``top``-th best step found.

    Examples
    --------
    >>> import simtrain
    >>> found = simtrain.plan("gpt_tiny", "dgx_a100_40gb_ib", 64, settings={"num_nodes": 1})
    >>> found.best.candidate.tp
    1
    """
    if top < 1:
        raise InputError(f"top {top}: at least 1 plan is needed")
    space, base = _space(model, cluster, global_batch_size, seq_len, system, settings or {})
    return search(space, base, top, fidelity, progress)


Model = str | Transformer | Pretraining


def _space(
    model: Model, cluster: str | Cluster, batch: int, seq_len: int | None, system: str | type[TransformerTraining] | None, settings: Mapping[str, Any]
) -> tuple[Space, Scenario]:
    loaded = model if isinstance(model, Pretraining) else Transformer.load(model) if isinstance(model, str) else model
    moe = (loaded.model if isinstance(loaded, Pretraining) else loaded).moe
    system = system or ("moe/megatron_moe" if moe else "dense/megatron_lm")
    cls = find(system) if isinstance(system, str) else system
    if not issubclass(cls, TransformerTraining):
        raise UnsupportedError(f"{name_of(cls)}: cannot be planned, it has no degrees of a transformer; choose e.g. dense/megatron_lm")
    fixed, rest = fixed_of(settings)
    if isinstance(loaded, Pretraining):
        workload = loaded.model_copy(update={"global_batch_size": batch, **({"seq_len": seq_len} if seq_len else {})})
    else:
        workload = Pretraining(name=loaded.name, model=loaded, seq_len=seq_len or loaded.max_seq_len, global_batch_size=batch)
    base = scenario(cls, workload, cluster, rest)
    assert isinstance(base.system, TransformerTraining), "checked above"
    space = Space(base.system, base.workload, base.cluster, fixed, _axes(base.system, base.workload, base.cluster))
    check_fixed(fixed, space.known, name_of(cls))
    return space, base


def _axes(system: TransformerTraining, workload: Pretraining, cluster: Cluster) -> frozenset[str]:
    """Return over which axes a layer talks: one that shards by ``cp`` has to exchange keys, values or heads over it."""
    probe, model = system.model_copy(update={"tp": 1, "cp": 2}), workload.model
    mesh = Mesh((("tp", 1), ("cp", 2), ("dp", 1), ("pp", 1)), probe.folds(1))
    r = Recorder(mesh, CostModel(cluster, system.software, workload.dtype, model), {"pp": 0})
    try:
        probe.layer_of_kind(r, model, Microbatch(1, workload.seq_len, workload.seq_len / 2), probe.layer_kind(model, 0))
    except InputError:  # it cannot spread this model over cp
        return frozenset()
    return frozenset(op.axis for op in r.forward("probe").ops if op.axis)


def search(space: Space, base: Scenario, top: int, fidelity: str, progress: Progress | None = None) -> PlanResult:
    """Find the fastest candidates of a space; see :func:`plan`."""
    counts: Counter[str] = Counter()
    reason, evaluator = "", Evaluator(base.system, base.workload, base.cluster, fidelity=fidelity)
    queue, capacity, bounds = list[tuple[float, Candidate]](), space.cluster.node.accelerator.memory_capacity, Bounds(space, evaluator.reuse)
    for candidate in space.candidates():
        try:
            if bounds.nbytes(candidate) > capacity:
                counts["do not fit (bound)"] += 1
            else:
                queue.append((bounds.seconds(candidate), candidate))
        except InputError as error:
            counts["cannot run"] += 1
            reason = reason or str(error).splitlines()[0]
    queue.sort()
    best: list[tuple[float, int, Plan]] = []
    for number, (bound, candidate) in enumerate(queue):
        if len(best) == top and bound * (1 - _MARGIN) > -best[0][0]:
            counts["slower by their bound"] += len(queue) - number
            break
        if progress:
            progress(f"{number} simulated of {len(queue)} that may fit: {candidate.text()}")
        try:
            result = simulate(space, base, candidate, evaluator)
        except InputError as error:
            counts["do not fit (simulated)" if isinstance(error, InfeasibleError) else "cannot run"] += 1
            reason = reason or str(error).splitlines()[0]
            continue
        counts["simulated"] += 1
        made = Plan(candidate, candidate.settings(space.known), result.metrics, bound)
        heapq.heappush(best, (-made.step_time, -number, made))
        if len(best) > top:
            heapq.heappop(best)
    if not best:
        if set(counts) == {"cannot run"}:
            raise InputError(f"no plan for {base.workload.name} on {base.cluster.name}: none of {counts.total():,} candidates can run ({reason})")
        fate = ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "no degrees divide accelerators and batch"
        raise InputError(f"no plan for {base.workload.name} on {base.cluster.name}: {fate}{f' ({reason})' if reason else ''}; change the cluster or the batch")
    ordered = [made for _, _, made in sorted(best, key=lambda entry: (-entry[0], -entry[1]))]
    return PlanResult(base, tuple(ordered), dict(counts))


def simulate(space: Space, base: Scenario, candidate: Candidate, evaluator: Evaluator) -> Result:
    """Simulate one candidate; what candidates have in common is worked out once."""
    system = space.system.model_copy(update=candidate.settings(space.known))
    return evaluator.run(Scenario(base.name, system, space.workload, space.cluster))
