"""Templates: a piece of a rank's program recorded once and stamped many times.

A template is the list of operations of, say, the forward pass of one model chunk, with dependencies
between them by position. ``entries`` wait for whatever precedes the piece, ``exits`` are what follows waits for.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """What an operation occupies."""

    COMPUTE = 0
    """A kernel on a compute stream; slowed while a collective holds SMs."""
    COLLECTIVE = 1
    """Starts when all members of its group are ready."""
    SEND = 2
    RECV = 3
    HOST = 4
    """Host threads: launching, data loading."""
    COPY = 5
    """Host-device or storage copies on their own engine."""
    COMPOSITE = 6
    """A whole template that nothing outside can disturb, replayed once and used as one operation."""


COMMUNICATION = (Kind.COLLECTIVE, Kind.SEND, Kind.RECV)


class Link(IntFlag):
    """Link classes of a rank that an operation loads; each direction is a link of its own."""

    NONE = 0
    SCALE_UP_OUT = 1
    SCALE_UP_IN = 2
    NIC_OUT = 4
    NIC_IN = 8
    ROOT_OUT = 16
    ROOT_IN = 32


LINK_CLASSES = (Link.SCALE_UP_OUT, Link.SCALE_UP_IN, Link.NIC_OUT, Link.NIC_IN)
ROOT_CLASSES = (Link.ROOT_OUT, Link.ROOT_IN)
"""PCIe roots, crossed by peer copies and by NIC traffic on the way to ports and cards."""

LINKS_OF = {
    "scale_up": Link.SCALE_UP_OUT | Link.SCALE_UP_IN,
    "nic": Link.NIC_OUT | Link.NIC_IN,
    "pcie": Link.SCALE_UP_OUT | Link.SCALE_UP_IN | Link.ROOT_OUT | Link.ROOT_IN,
    "pcie_nic": Link.NIC_OUT | Link.NIC_IN | Link.ROOT_OUT | Link.ROOT_IN,
}
"""Links that a transfer loads, by what :class:`~simtrain.cost.collective.Transfer` calls its bottleneck."""

OUTWARD = Link.SCALE_UP_OUT | Link.NIC_OUT | Link.ROOT_OUT
"""Links that leave a rank."""


@dataclass(slots=True)
class Op:
    """One operation of a template.

    Parameters
    ----------
    name
        What it is, such as ``qkv`` or ``all_gather``.
    kind, stream
        What it occupies and in which queue.
    seconds
        Fixed part on the time grid: compute time, or latency of a communication. [s]
    nbytes, rate
        Bytes each member moves over its bottleneck link, and the rate when alone. [B], [B/s]
    axis
        Mesh axis of a communication.
    links
        Link classes that the transfer loads.
    flops, payload
        Useful work: FLOPs of a compute operation [FLOP]; bytes sent by this rank [B].
    deps
        Positions of operations on other streams that must have ended.
    holds_sms
        Whether compute on the rank is slowed while this runs.
    under_compute
        What a transfer takes longer if the processors of all its members are full from its first byte to its last: every rank that shares them
        computes, and whoever forwards the next message waits for its turn. Part of the members or of the time count in proportion. [s]
    """

    name: str
    kind: Kind
    stream: str
    seconds: float
    nbytes: float = 0.0
    rate: float = 0.0
    axis: str = ""
    links: Link = Link.NONE
    flops: float = 0.0
    payload: float = 0.0
    deps: tuple[int, ...] = ()
    holds_sms: bool = False
    under_compute: float = 0.0


@dataclass(eq=False)
class Template:
    """Operations in issue order, with the places where the piece begins and ends."""

    name: str
    ops: list[Op] = field(default_factory=list[Op])
    exits: tuple[int, ...] = ()
    """Operations that the next piece waits for; empty when the template has no operations."""
    left_open: tuple[int, ...] = ()
    """Asynchronous operations that nobody inside waits for, to be waited on later."""

    @property
    def parts(self) -> tuple[tuple[Template, int], ...]:
        """What it is a sequence of, with repetitions: of itself alone, unless it was joined."""
        return ((self, 1),)

    def __len__(self) -> int:
        return len(self.ops)

    def __bool__(self) -> bool:
        return True

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Operations that wait for what precedes the template: those without any predecessor inside it."""
        seen: set[str] = set()
        found: list[int] = []
        for i, op in enumerate(self.ops):
            if not op.deps and op.stream not in seen:
                found.append(i)
            seen.add(op.stream)
        return tuple(found)

    @cached_property
    def amounts(self) -> NDArray[np.float64]:
        """Seconds [s], bytes [B], rate [B/s], time that compute adds [s], FLOPs and payload [B] of all operations, a row each."""
        rows = [(op.seconds, op.nbytes, op.rate, op.under_compute, op.flops, op.payload) for op in self.ops]
        return np.array(rows, np.float64).reshape(-1, 6).T.copy()

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """Kind, links and whether SMs are held, of all operations, a row each."""
        return np.array([(int(op.kind), int(op.links), op.holds_sms) for op in self.ops], np.int64).reshape(-1, 3).T.copy()

    @cached_property
    def shape(self) -> Hashable:
        """All that decides which rows it is stamped into, whatever they cost."""
        return (tuple((op.kind, op.stream, op.axis, op.deps) for op in self.ops), self.exits, self.left_open)

    @property
    def flops(self) -> float:
        """Work of all operations. [FLOP]"""
        return sum(op.flops for op in self.ops)

    @property
    def alone(self) -> float:
        """Duration of all operations one after another, without other traffic. [s]"""
        return sum(op.seconds + (op.nbytes / op.rate if op.nbytes else 0.0) for op in self.ops)

    def sent(self, axis: str) -> float:
        """Bytes this rank sends along one axis. [B]"""
        return sum(op.payload for op in self.ops if op.axis == axis)


class Joined(Template):
    """Templates one after another, each starting when all of the one before has ended.

    Parameters
    ----------
    name
        Name of the whole.
    parts
        Templates with repetitions. All that happens in a part has to be over at its exits, so that nothing reaches from one
        part into the next: a part may leave nothing open.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Template, int]]) -> None:
        self.name = name
        self._parts = tuple((template, count) for template, count in parts if count and len(template))
        if any(template.left_open for template, _ in self._parts):
            raise AssertionError(f"{name}: a part of a sequence leaves operations open")
        self.left_open = ()
        self._length = sum(count * len(template) for template, count in self._parts)

    @property
    def parts(self) -> tuple[tuple[Template, int], ...]:
        """Templates with repetitions."""
        return self._parts

    def __len__(self) -> int:
        return self._length

    @cached_property
    def exits(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Exits of the last part."""
        if not self._parts:
            return ()
        last = self._parts[-1][0]
        return tuple(len(self) - len(last) + i for i in last.exits)

    @cached_property
    def ops(self) -> list[Op]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The operations of all parts, written out when somebody asks."""
        ops: list[Op] = []
        exits: tuple[int, ...] = ()
        for template, count in self._parts:
            entries = set(template.entries)
            for _ in range(count):
                base = len(ops)
                for i, op in enumerate(template.ops):
                    deps = tuple(base + d for d in op.deps)
                    if i in entries:
                        deps = tuple(e for e in exits if ops[e].stream != op.stream)
                    ops.append(replace(op, deps=deps) if deps != op.deps else op)
                exits = tuple(base + i for i in template.exits)
        return ops

    @property
    def flops(self) -> float:
        """Work of all parts. [FLOP]"""
        return sum(count * template.flops for template, count in self._parts)
