"""Collectives in which nobody passes on what others have sent: exchanges and single messages."""

from __future__ import annotations

import numpy as np

from simtrain.engine.messages.message import Messages
from simtrain.engine.messages.placement import Placement
from simtrain.engine.messages.writer import NONE, Writer
from simtrain.errors import InputError


def pairwise_all_to_all(nbytes: float, group: Placement) -> Messages:
    """Return an all-to-all of grouped sends: every member to every other at once, ``nbytes / n`` each."""
    ranks, n = group.rings[0], group.size
    offset = np.arange(1, n)[:, None]
    writer = Writer()
    writer.write(ranks, ranks[(np.arange(n) + offset) % n], nbytes / n, 0, np.full((n - 1, n, 1), NONE, dtype=np.int64))
    return writer.messages()


def shift(nbytes: float, group: Placement) -> Messages:
    """Return a ring exchange: each member sends ``nbytes`` to the next."""
    ranks = group.rings[0]
    writer = Writer()
    writer.write(ranks, np.roll(ranks, -1), nbytes, 0, np.full((group.size, 1), NONE, dtype=np.int64))
    return writer.messages()


def send_recv(nbytes: float, group: Placement) -> Messages:
    """Return one message from the first member to the second."""
    if group.size != 2:
        raise InputError(f"send_recv: group of {group.size} members; a message has 2 ends (use shift for a ring exchange)")
    ranks = group.rings[0]
    writer = Writer()
    writer.write(ranks[:1], ranks[1:], nbytes, 0, np.full((1, 1), NONE, dtype=np.int64))
    return writer.messages()
