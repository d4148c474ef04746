"""Writing messages block by block, and the two patterns that algorithms are made of: around a ring, and along a chain."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from simtrain.engine.arrays import Floats, Integers
from simtrain.engine.messages.message import Messages

SLOTS = 8
"""Messages under way on one connection of a ring: NCCL's NCCL_STEPS (recalled: src/include/device.h)."""

NONE = -1
"""In place of the number of a message: nothing to wait for."""


@dataclass
class Writer:
    """Collects messages block by block; numbers are handed out in the order of writing.

    Algorithms are made of three verbs: a block of messages, rounds :meth:`around` rings, and a chunk sent :meth:`along` chains.
    """

    count: int = 0
    _columns: list[tuple[Integers, Integers, Floats, Integers]] = field(default_factory=list[tuple[Integers, Integers, Floats, Integers]])
    _dep_counts: list[Integers] = field(default_factory=list[Integers])
    _deps: list[Integers] = field(default_factory=list[Integers])

    def numbers(self, *shape: int) -> Integers:
        """Return the numbers that the next block of this shape will get."""
        return self.count + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)

    def write(self, src: Integers, dst: Integers, nbytes: float, channel: Integers | int, after: Integers) -> None:
        """Write a block of messages.

        Parameters
        ----------
        src, dst, channel
            Arrays that broadcast to the shape of the block.
        nbytes
            Of each message. [B]
        after
            Numbers of messages awaited, along one more axis; -1 for none.
        """
        shape = after.shape[:-1]
        size = int(np.prod(shape))
        flat = [np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(-1) for x in (src, dst, np.asarray(channel, dtype=np.int64))]
        self._columns.append((flat[0], flat[1], np.full(size, nbytes), flat[2]))
        rows = after.reshape(size, after.shape[-1])
        is_real = rows != NONE
        self._dep_counts.append(is_real.sum(axis=1))
        self._deps.append(rows[is_real])
        self.count += size

    def messages(self) -> Messages:
        """Return everything written."""
        src, dst, nbytes, channel = (np.concatenate(column) for column in zip(*self._columns))
        dep_ptr = np.concatenate([[0], np.cumsum(np.concatenate(self._dep_counts))]).astype(np.int64)
        return Messages(src, dst, nbytes, channel, dep_ptr, np.concatenate(self._deps))

    def around(self, rings: Integers, nbytes: float, steps: int, channel: Integers | int, first: Integers | None = None) -> tuple[Integers, Integers]:
        """Write ``steps`` rounds in which everybody sends to the next; return what each member has got and sent at the end.

        Parameters
        ----------
        rings
            Ranks; the last axis is the order, the others are rings side by side.
        nbytes
            Of each message. [B]
        steps
            Rounds; 0 writes nothing.
        channel
            Of each ring, or of all.
        first
            What the first round of each member waits for, along one more axis.
        """
        shape = (steps, *rings.shape)
        if not steps or rings.shape[-1] == 1:
            nothing = np.full(rings.shape, NONE, dtype=np.int64)
            return nothing if first is None else first[..., 0], nothing
        number = self.numbers(*shape)
        width = 2 if first is None else max(2, first.shape[-1])
        after = np.full((*shape, width), NONE, dtype=np.int64)
        after[1:, ..., 0] = np.roll(number, 1, axis=-1)[:-1]
        after[SLOTS:, ..., 1] = number[:-SLOTS]
        if first is not None:
            after[0, ..., : first.shape[-1]] = first
        self.write(rings, np.roll(rings, -1, axis=-1), nbytes, channel, after)
        return np.roll(number[-1], 1, axis=-1), number[-1]

    def along(self, chains: Integers, nbytes: float, channel: Integers | int, first: Integers, previous: Integers) -> tuple[Integers, Integers]:
        """Write one chunk sent down each chain; return what each member has got (the head: what it waited for) and the messages sent.

        Parameters
        ----------
        chains
            Ranks; the last axis is the order.
        nbytes
            Of each message. [B]
        channel
            Of each chain, or of all.
        first
            What the head waits for, without that axis.
        previous
            Messages sent by all but the last member for the chunk before, -1 for none.
        """
        shape = (*chains.shape[:-1], chains.shape[-1] - 1)
        if not shape[-1]:
            return first[..., None], np.full(shape, NONE, dtype=np.int64)
        number = self.numbers(*shape)
        got = np.concatenate([first[..., None], number], axis=-1)
        self.write(chains[..., :-1], chains[..., 1:], nbytes, channel, stack(got[..., :-1], previous, shape=shape))
        return got, number


def stack(*columns: Integers | int, shape: tuple[int, ...]) -> Integers:
    """Put several columns of awaited messages side by side."""
    return np.stack([np.broadcast_to(np.asarray(c, dtype=np.int64), shape) for c in columns], axis=-1)
