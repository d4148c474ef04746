"""Device meshes: axes such as tp and dp laid over ranks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from simtrain.cost.placement import Group
from simtrain.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Mesh:
    """Named axes over consecutive ranks, the innermost (fastest) first.

    Parameters
    ----------
    axes
        Axis name and size, innermost first; Megatron-LM's order is tp, cp, dp, pp.

    Examples
    --------
    >>> mesh = Mesh((("tp", 8), ("dp", 4), ("pp", 2)))
    >>> mesh.world_size, mesh.stride("pp"), mesh.rank({"dp": 1, "pp": 1})
    (64, 32, 40)
    >>> Mesh((("tp", 2), ("dp", 4)), folds=(("ep", 4, 1),)).group("ep", {"dp": 2})
    [4, 5, 6, 7]

    References
    ----------
    .. [1] Liu et al., "MoE Parallel Folding: Heterogeneous Parallelism Mappings for Efficient Large-Scale MoE Model Training with Megatron Core",
       arXiv 2504.14960, 2025.
    """

    axes: tuple[tuple[str, int], ...]
    folds: tuple[tuple[str, int, int], ...] = ()
    """Further groups as (name, size, stride): every ``stride``-th rank, ``size`` of them, whatever the axes; experts are spread so [1]_."""
    _strides: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict[str, int])
    _asked: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict[str, int])
    """Sizes of what was asked for."""

    def __post_init__(self) -> None:
        stride = 1
        for name, size in self.axes:
            if size < 1:
                raise InputError(f"{name}: a degree is at least 1 (got {size})")
            self._strides[name] = stride
            stride *= size
        for name, size, step in self.folds:
            if size < 1 or step < 1 or stride % (size * step):
                raise InputError(f"{name}: {size} ranks at a distance of {step} do not divide {stride} ranks")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Degree of each axis."""
        return dict(self.axes)

    @property
    def world_size(self) -> int:
        """Ranks in the mesh."""
        total = 1
        for _, size in self.axes:
            total *= size
        return total

    def size(self, axis: str) -> int:
        """Return the degree of an axis, or of several joined by ``_`` such as ``dp_cp``.

        Raises
        ------
        InputError
            If an axis is not in the mesh.
        """
        if axis not in self._asked:
            self._asked[axis] = self._size(axis)
        return self._asked[axis]

    def _size(self, axis: str) -> int:
        fold = self._fold(axis)
        if fold is not None:
            return fold[0]
        total = 1
        for name in split_axes(axis):
            if name not in self.sizes:
                raise InputError(f"unknown mesh axis {name!r}; {did_you_mean(name, self.sizes)}")
            total *= self.sizes[name]
        return total

    def stride(self, axis: str) -> int:
        """Return the distance in ranks between neighbours on an axis."""
        return self._strides[axis]

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Return the rank at the given coordinates; axes not given are 0."""
        return sum(self._strides[name] * index for name, index in coordinates.items())

    def block(self, axis: str, coordinates: Mapping[str, int] | None = None) -> Group:
        """Return :meth:`group` as its first rank and the axes laid over it, without listing the members."""
        fold = self._fold(axis)
        if fold is not None:
            size, stride = fold
            rank = self.rank(coordinates or {})
            return Group(rank - rank // stride % size * stride, ((stride, size),) if size > 1 else ())
        names = split_axes(axis)
        base = self.rank({k: v for k, v in (coordinates or {}).items() if k not in names})
        return Group(base, tuple((self._strides[name], self.sizes[name]) for name in names if self.sizes[name] > 1))

    def group(self, axis: str, coordinates: Mapping[str, int] | None = None) -> list[int]:
        """Return the ranks that differ from the given coordinates only along ``axis``."""
        fold = self._fold(axis)
        if fold is not None:
            size, stride = fold
            rank = self.rank(coordinates or {})
            first = rank - rank // stride % size * stride
            return [first + i * stride for i in range(size)]
        names = split_axes(axis)
        base = {k: v for k, v in (coordinates or {}).items() if k not in names}
        ranges = [range(self.sizes[name]) for name in reversed(names)]
        return [self.rank({**base, **dict(zip(reversed(names), index, strict=True))}) for index in itertools.product(*ranges)]

    def _fold(self, axis: str) -> tuple[int, int] | None:
        return next(((size, stride) for name, size, stride in self.folds if name == axis), None)


def split_axes(axis: str) -> list[str]:
    """Return the axes that a joined name such as ``dp_cp`` stands for."""
    return axis.split("_")
