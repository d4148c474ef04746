"""Messages of rings: every member sends to the next, one ring per member of a node.

References
----------
.. [1] Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", IJHPCA 19(1), 2005.
"""

from __future__ import annotations

import numpy as np

from simtrain.engine.messages.message import Messages
from simtrain.engine.messages.placement import Placement
from simtrain.engine.messages.writer import NONE, Writer


def ring_all_reduce(nbytes: float, group: Placement, rounds: int | None = None) -> Messages:
    """Return a ring all-reduce: message (round, i) carries one block to the next member, after (round - 1, i - 1) brought it [1]_.

    Parameters
    ----------
    nbytes
        Buffer of each member. [B]
    group
        Members.
    rounds
        Write only the first of the :func:`all_reduce_rounds`.

    Examples
    --------
    >>> from simtrain.engine.messages.placement import place
    >>> messages = ring_all_reduce(4e6, place([0, 1, 2, 3], 8))
    >>> len(messages), messages.sent()
    (24, {0: 6000000.0, 1: 6000000.0, 2: 6000000.0, 3: 6000000.0})
    """
    return _rings(nbytes, group, all_reduce_rounds(group.size) if rounds is None else rounds)


def ring_all_gather(nbytes: float, group: Placement, rounds: int | None = None) -> Messages:
    """Return a ring all-gather to ``nbytes`` per member, or a ring reduce-scatter from them: half an all-reduce [1]_."""
    return _rings(nbytes, group, all_gather_rounds(group.size) if rounds is None else rounds)


def all_gather_rounds(members: int) -> int:
    """Return how often every member sends before each has met all blocks: ``n - 1``."""
    return members - 1


def all_reduce_rounds(members: int) -> int:
    """Return the rounds of a reduce-scatter and an all-gather after it: ``2 (n - 1)``."""
    return 2 * (members - 1)


def _rings(nbytes: float, group: Placement, rounds: int) -> Messages:
    writer = Writer()
    writer.around(group.rings, nbytes / group.rings.size, rounds, channel=np.arange(len(group.rings))[:, None])
    return writer.messages()


def ring_broadcast(nbytes: float, group: Placement, chunks: int = 8) -> Messages:
    """Return a broadcast from the first member, pipelined along the rings in chunks."""
    root = group.rings[0, 0]
    chains = np.stack([np.roll(ring, -int(np.flatnonzero(ring == root)[0])) for ring in group.rings])
    writer = Writer()
    nothing = np.full(len(chains), NONE, dtype=np.int64)
    sent = np.full((len(chains), group.size - 1), NONE, dtype=np.int64)
    for _ in range(chunks):
        _, sent = writer.along(chains, nbytes / chunks / len(chains), np.arange(len(chains))[:, None], nothing, sent)
    return writer.messages()
