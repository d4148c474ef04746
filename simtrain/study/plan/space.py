"""The candidates of a plan: every way to spread a model over a cluster that its numbers allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from simtrain.errors import InputError, did_you_mean
from simtrain.hardware import Cluster
from simtrain.systems.training import TransformerTraining
from simtrain.workload import Pretraining

KEYS = ("tp", "pp", "vpp", "cp", "ep", "zero", "recompute", "microbatch_size")
"""What is planned, as the system's parameters are called; ``dp`` follows."""
MICROBATCHES = 16
"""Largest microbatch tried. [sequences]"""
LEAST_SHARD = 128
"""Fewest tokens of a sequence that context parallelism leaves a rank: one tile of an attention kernel. [tokens]"""
_ZERO, _RECOMPUTE = (0, 1, 3), ("none", "selective", "full")
"""ZeRO-2 is left out: with several microbatches it would reduce gradients once for each, which a step does not model."""


class Candidate(NamedTuple):
    """One choice of everything that is planned."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    zero: int = 0
    recompute: str = "none"
    microbatch_size: int = 1

    def settings(self, known: Sequence[str]) -> dict[str, Any]:
        """Return the parameters that a system knows."""
        return {key: value for key, value in self._asdict().items() if key in known}

    def text(self) -> str:
        """Write what is not at its smallest.

        Examples
        --------
        >>> Candidate(tp=8, pp=4, zero=1).text()
        'tp 8, pp 4, ZeRO-1, microbatch 1'
        """
        degrees = [f"{key} {value}" for key, value in self._asdict().items() if key in ("tp", "pp", "vpp", "cp", "ep") and value > 1]
        extra = [*([f"ZeRO-{self.zero}"] if self.zero else []), *([f"{self.recompute} recomputation"] if self.recompute != "none" else [])]
        return ", ".join([*(degrees or ["data parallel"]), *extra, f"microbatch {self.microbatch_size}"])


@dataclass(frozen=True)
class Space:
    """What is tried.

    Parameters
    ----------
    system
        With the parameters that are not planned.
    fixed
        Values of planned keys that the user has chosen: one, or several to choose among.
    axes
        Mesh axes over which the system spreads a layer; others stay at 1.
    """

    system: TransformerTraining
    workload: Pretraining
    cluster: Cluster
    fixed: Mapping[str, Sequence[Any]]
    axes: frozenset[str]

    @property
    def known(self) -> tuple[str, ...]:
        """Planned keys that the system has."""
        return tuple(key for key in KEYS if key in type(self.system).model_fields)

    def candidates(self) -> Iterator[Candidate]:
        """Yield every candidate whose degrees divide what they have to.

        Degrees divide the accelerators; tp also the heads, pp x vpp the layers when vpp > 1, cp the sequence into parts of at least
        :data:`LEAST_SHARD`, ep the experts and the ranks of a stage, and data-parallel ranks times the microbatch the global batch. What
        divides but does not fit or run is found out later.
        """
        model, world, batch = self.workload.model, self.cluster.num_accelerators, self.workload.global_batch_size
        for tp in self._among("tp", divisors(_gcd(model.heads, model.ffn, world))):
            for cp in self._among("cp", [n for n in divisors(_gcd(world // tp, self.workload.seq_len)) if self._may_shard(n)]):
                for pp in self._among("pp", [n for n in divisors(world // (tp * cp)) if n <= model.layers]):
                    dp = world // (tp * cp * pp)
                    if tp * cp * pp * dp != world or batch % dp:
                        continue
                    for ep in self._among("ep", divisors(_gcd(self._experts, tp * cp * dp))):
                        for microbatch in self._among("microbatch_size", [n for n in divisors(batch // dp) if n <= MICROBATCHES]):
                            if batch % (dp * microbatch) == 0 and (tp * cp * dp) % ep == 0:
                                yield from self._inner(Candidate(tp, pp, 1, cp, ep, microbatch_size=microbatch), dp)

    def _inner(self, outer: Candidate, dp: int) -> Iterator[Candidate]:
        count = self.workload.global_batch_size // (dp * outer.microbatch_size)
        for vpp in self._among("vpp", self._chunks(outer.pp, count)):
            for zero in self._among("zero", _ZERO if dp * outer.cp > 1 else (0,)):
                for recompute in self._among("recompute", _RECOMPUTE):
                    yield outer._replace(vpp=vpp, zero=zero, recompute=recompute)

    @property
    def _experts(self) -> int:
        return self.workload.model.moe.experts if self.workload.model.moe else 1

    def _may_shard(self, cp: int) -> bool:
        return cp == 1 or ("cp" in self.axes and self.workload.seq_len // cp >= LEAST_SHARD)

    def _chunks(self, pp: int, count: int) -> list[int]:
        layers = self.workload.model.layers
        if pp == 1 or count % pp:
            return [1]
        return [1, *(n for n in divisors(layers // pp) if n > 1)] if layers % pp == 0 else [1]

    def _among(self, key: str, values: Sequence[Any]) -> Sequence[Any]:
        if key not in self.known:
            return values[:1] if key in ("zero",) else [v for v in values if v in (1, "none")] or values[:1]
        return self.fixed.get(key, values)


def fixed_of(settings: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    """Split settings into planned keys that the user fixes, and all others.

    Raises
    ------
    InputError
        If ``dp`` is set, which follows from the rest.
    """
    if "dp" in settings:
        raise InputError("--set dp: follows from the other degrees and the cluster; fix some of those instead")
    fixed = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in settings.items() if key in KEYS}
    return fixed, {key: value for key, value in settings.items() if key not in KEYS}


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the smallest first.

    Examples
    --------
    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [n for n in range(1, number + 1) if number % n == 0]


def _gcd(*numbers: int) -> int:
    import math

    return math.gcd(*numbers)


def check_fixed(fixed: Mapping[str, Sequence[Any]], known: Sequence[str], name: str) -> None:
    """Refuse a fixed key that the system does not have.

    Raises
    ------
    InputError
        With the near names.
    """
    for key in fixed:
        if key not in known:
            raise InputError(f"--set {key}: {name} has no such parameter; {did_you_mean(key, known)}")
