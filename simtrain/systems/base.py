"""What a system is: parameters, how it runs, a baseline, and the paper's claims. Kinds of systems derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, field_validator

from simtrain.engine.outcome import Outcome
from simtrain.hardware import Cluster, Software
from simtrain.spec import NamedSpec, Spec
from simtrain.workload import Pretraining


@dataclass(frozen=True)
class Options:
    """How to simulate, as the command line says it."""

    fidelity: str = "fair"
    engine: str = "auto"
    unfold: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 1
    """Runs under this many seeds, from ``seed`` on."""


@dataclass(frozen=True)
class Case:
    """A set-up of a paper: what runs where, and with which settings."""

    name: str
    workload: str
    cluster: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Dotted keys of system, workload or cluster, as ``--set`` takes them."""
    baseline_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the baseline alone."""
    system_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the system alone."""
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    """Settings that the paper tuned without printing them: the fastest feasible combination is taken, for each system."""
    has_baseline: bool = True
    """Whether the baseline runs here too; rows of an ablation are compared with each other."""
    group: str = ""
    """Part of the paper, where it has several; ``compare`` shows the first."""
    baseline_search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    """The same for the baseline."""
    is_slow: bool = False
    """Whether its simulation takes more than about a second, so that the default tests leave it out."""
    over: str = ""
    """Name of another case of the system that ratios are taken over; empty: its baseline in this one."""

    def settings_of(self, is_baseline: bool) -> dict[str, Any]:
        """Return all fixed settings of the system or of its baseline."""
        return {**self.settings, **(self.baseline_settings if is_baseline else self.system_settings)}


@dataclass(frozen=True)
class Claim:
    """A number that a paper publishes, with its place. A claim is compared, never an input.

    Parameters
    ----------
    source
        Reference and place, such as ``[1] Table 2``.
    metric
        Metric of the result that it is compared with; ``ratio.METRIC`` is that over the baseline's, or over the case that ``case.over`` names.
    case
        Set-up.
    value, baseline_value
        Published for the system and for its baseline, in the metric's unit; None where not published; infinity in
        ``peak_memory`` for a cell that the paper prints as out of memory.
    tolerance
        Relative error that the tests accept.
    is_ratio
        Whether the paper's claim is the ratio of system to baseline, their values being set-up dependent.
    missed
        Reason why the prediction is known to lie outside, shown wherever the claim is.
    """

    source: str
    metric: str
    case: Case
    value: float | None
    baseline_value: float | None = None
    tolerance: float = 0.15
    evidence: str = "printed"
    is_ratio: bool = False
    missed: str = ""


class System(Spec):
    """A way to schedule a workload on a cluster. Fields are its parameters, reachable by ``--set``.

    A kind of system derives from this, says how its systems are simulated, and names the class of workload that they take:
    :class:`simtrain.systems.step.StepSystem` replays the graph of one training step.
    """

    workload_type: ClassVar[type[NamedSpec]] = Pretraining
    """Class of the workloads that it runs."""
    heeds: ClassVar[tuple[str, ...]] = ("seed",)
    """Options that change its result; others are refused unless they are left at their default."""
    engines: ClassVar[tuple[str, ...]] = ("auto", "simpy")
    """Executors that it can use."""
    objective: ClassVar[str] = "tokens_per_s"
    """Metric that is largest for the best of several settings."""

    headline: ClassVar[tuple[str, ...]] = ("step_time", "tokens_per_s", "mfu", "peak_memory", "exposed_comm", "bubble_fraction")
    """Metrics that a comparison shows where nothing is published; the first, a time, also as a ratio."""
    beside: ClassVar[tuple[str, ...]] = ("exposed_comm", "bubble_fraction")
    """Metrics that a comparison shows beside the published ones."""

    baseline: ClassVar[type[System] | None] = None
    """The system that the paper compares with."""
    changes_math: ClassVar[str] = ""
    """Why its FLOPs may differ from the baseline's; empty when they must not."""
    title: ClassVar[str] = ""
    """Paper and year."""
    claims: ClassVar[tuple[Claim, ...]] = ()
    example: ClassVar[Mapping[str, Any]] = {}
    """Parameters of a small run on 32 accelerators, for the checks."""
    example_workload: ClassVar[str] = "gpt_tiny"
    """Workload of that run."""
    example_cluster: ClassVar[str] = "dgx_a100_40gb_ib"
    """Cluster of that run, cut to 4 nodes."""

    software: Software = Field(default="megatron_2023", validate_default=True)  # pyright: ignore[reportAssignmentType]
    """Training stack that runs it; a name from ``hardware/software``."""

    @field_validator("software", mode="before")
    @classmethod
    def _load_software(cls, value: Any) -> Any:
        return Software.load(value) if isinstance(value, str) else value

    def simulate(self, workload: Any, cluster: Cluster, options: Options) -> Outcome:
        """Run it.

        Parameters
        ----------
        workload
            An instance of :attr:`workload_type`.
        cluster
            Where it runs.
        options
            Those that :attr:`heeds` names, and the engine, have been checked to apply.

        Raises
        ------
        InputError
            If the parameters do not fit the workload or the cluster.
        InfeasibleError
            If it does not fit into memory.
        """
        raise NotImplementedError
