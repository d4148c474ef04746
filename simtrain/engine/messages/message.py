"""Messages of collectives: who sends how much to whom, and after which other messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simtrain.engine.arrays import Floats, Integers


class Messages(NamedTuple):
    """Messages and what each waits for: message ``m`` starts after ``deps[dep_ptr[m]:dep_ptr[m + 1]]``, which have lower numbers."""

    src: Integers
    """Sending rank."""
    dst: Integers
    """Receiving rank."""
    nbytes: Floats
    """[B]"""
    channel: Integers
    """Number of the connection between the two ranks; ECMP hashes it."""
    dep_ptr: Integers
    deps: Integers

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.src)

    def sent(self) -> dict[int, float]:
        """Return what each rank sends. [B]"""
        ranks, place = np.unique(self.src, return_inverse=True)
        return dict(zip(ranks.tolist(), np.bincount(place, weights=self.nbytes).tolist()))


def join(parts: Sequence[Messages]) -> Messages:
    """Put the messages of several collectives that run at the same time into one list."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    ends = np.cumsum([0, *(len(part.deps) for part in parts)])
    return Messages(
        src=np.concatenate([part.src for part in parts]),
        dst=np.concatenate([part.dst for part in parts]),
        nbytes=np.concatenate([part.nbytes for part in parts]),
        channel=np.concatenate([part.channel for part in parts]),
        dep_ptr=np.concatenate([[0], *(part.dep_ptr[1:] + end for part, end in zip(parts, ends))]).astype(np.int64),
        deps=np.concatenate([part.deps + start for part, start in zip(parts, starts)]),
    )


def split(messages: Messages, connections: int) -> Messages:
    """Divide every message over several connections; what waits for a message waits for all its parts.

    Notes
    -----
    NCCL does so with several queue pairs (``NCCL_IB_QPS_PER_CONNECTION``), which spreads one message over planes or ECMP ways.
    """
    if connections == 1:
        return messages
    parts = np.arange(connections)
    counts = np.repeat(np.diff(messages.dep_ptr), connections)
    dep_ptr = np.concatenate([[0], np.cumsum(counts * connections)]).astype(np.int64)
    row = np.repeat(np.arange(len(counts)) // connections, counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    awaited = messages.deps[messages.dep_ptr[row] + within]
    return Messages(
        np.repeat(messages.src, connections),
        np.repeat(messages.dst, connections),
        np.repeat(messages.nbytes / connections, connections),
        (messages.channel[:, None] * connections + parts).reshape(-1),
        dep_ptr,
        (awaited[:, None] * connections + parts).reshape(-1),
    )
