"""Systems whose unit is one training step: a program per rank, replayed."""

from __future__ import annotations

from typing import ClassVar, cast

from simtrain.engine.execute import execute
from simtrain.engine.executors import ENGINES, Engine, StepFidelity
from simtrain.engine.outcome import Outcome
from simtrain.errors import UnsupportedError
from simtrain.graph.step import Step
from simtrain.hardware import Cluster
from simtrain.systems.base import Options, System
from simtrain.workload import Pretraining


class StepSystem(System):
    """A system that states the programs of one step; every step is like it."""

    heeds: ClassVar[tuple[str, ...]] = ("fidelity", "unfold", "seed")
    engines: ClassVar[tuple[str, ...]] = ENGINES

    def build(self, workload: Pretraining, cluster: Cluster) -> Step:
        """Return the programs of one step.

        Raises
        ------
        InputError
            If the parameters do not fit the workload or the cluster.
        InfeasibleError
            If it does not fit into memory.
        """
        raise NotImplementedError

    def simulate(self, workload: Pretraining, cluster: Cluster, options: Options) -> Outcome:
        """Replay one step; see :meth:`System.simulate`."""
        fidelity = cast("StepFidelity", options.fidelity)
        if cluster.degradations and fidelity != "flow":
            raise UnsupportedError(f"cluster {cluster.name}: degradations need messages on links, which {fidelity!r} does not know; use --fidelity flow")
        step, engine, slowdown = self.build(workload, cluster), cast("Engine", options.engine), self.software.overlap_slowdown
        return execute(step, cluster, fidelity=fidelity, engine=engine, slowdown=slowdown, unfold=options.unfold)
