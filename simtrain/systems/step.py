"""Systems whose unit is one training step: a program per rank, replayed."""

from __future__ import annotations

import inspect
from functools import cache
from typing import ClassVar, cast

from simtrain.engine.execute import execute
from simtrain.engine.executors import ENGINES, Engine, StepFidelity
from simtrain.engine.outcome import Outcome
from simtrain.errors import UnsupportedError
from simtrain.graph.step import Step
from simtrain.hardware import Cluster
from simtrain.systems.base import Options, System
from simtrain.systems.reuse import Reuse
from simtrain.workload import Pretraining


class StepSystem(System):
    """A system that states the programs of one step; every step is like it."""

    heeds: ClassVar[tuple[str, ...]] = ("fidelity", "unfold", "seed")
    engines: ClassVar[tuple[str, ...]] = ENGINES

    def build(self, workload: Pretraining, cluster: Cluster, reuse: Reuse | None = None) -> Step:
        """Return the programs of one step.

        Parameters
        ----------
        workload, cluster
            What runs where.
        reuse
            What runs before have left; it changes no result. A system that makes no use of it may leave it out.

        Raises
        ------
        InputError
            If the parameters do not fit the workload or the cluster.
        InfeasibleError
            If it does not fit into memory.
        """
        raise NotImplementedError

    def simulate(self, workload: Pretraining, cluster: Cluster, options: Options, reuse: Reuse | None = None) -> Outcome:
        """Replay one step; see :meth:`System.simulate`. ``reuse`` is as in :meth:`build`."""
        fidelity = cast("StepFidelity", options.fidelity)
        if cluster.degradations and fidelity != "flow":
            raise UnsupportedError(f"cluster {cluster.name}: degradations need messages on links, which {fidelity!r} does not know; use --fidelity flow")
        reuse, engine, slowdown = reuse or Reuse(), cast("Engine", options.engine), self.software.overlap_slowdown
        step = self.build(workload, cluster, reuse) if _takes_reuse(type(self)) else self.build(workload, cluster)
        composer = None if fidelity == "flow" else reuse.composer(cluster, fidelity, slowdown)
        return execute(
            step, cluster, fidelity=fidelity, engine=engine, slowdown=slowdown, unfold=options.unfold, composer=composer, shapes=reuse.shapes
        )  # fmt: skip


@cache
def _takes_reuse(cls: type[StepSystem]) -> bool:
    return "reuse" in inspect.signature(cls.build).parameters
