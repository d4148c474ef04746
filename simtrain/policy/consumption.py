"""Which finished rollouts a training batch takes. Functions of a rollout's number; no clock.

Rollouts are numbered as they are admitted. An order has two parts: which rollouts may be taken at all, and which of these come first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """A consumption order."""

    rank: Callable[[int, int], int]
    """Of a rollout's number and the number of rollouts that finished before it: the lowest ranks are taken first."""
    limit: Callable[[int, int], float]
    """Of the version and the batch size: only rollouts with lower numbers may be taken, so the batch waits for them."""


def oldest_first() -> Order:
    """Take whatever has finished, the earliest admitted first. Stragglers are overtaken: their staleness has no bound."""
    return Order(lambda number, _: number, lambda version, batch_size: math.inf)


def first_finished() -> Order:
    """Take rollouts as they finish. Short ones come first, and the staleness of long ones has no bound."""
    return Order(lambda _, finished: finished, lambda version, batch_size: math.inf)


def newest_first() -> Order:
    """Take the latest admitted first: least stale on average; some are left until nothing newer has finished."""
    return Order(lambda number, _: -number, lambda version, batch_size: math.inf)


def in_order() -> Order:
    """Take rollouts exactly as they were admitted: batch ``i`` consists of the numbers from ``i B`` to ``(i + 1) B - 1``.

    Under :func:`simtrain.policy.admission.bounded_staleness` no rollout is then staler than ``max_staleness``: number ``k`` was admitted at a
    version of at least ``floor(k / B) - max_staleness``, and is consumed at version ``floor(k / B)``. The price is that the trainer waits for the
    slowest rollout of each batch.
    """
    return Order(lambda number, _: number, lambda version, batch_size: (version + 1) * batch_size)


ORDERS: dict[str, Callable[[], Order]] = {"oldest_first": oldest_first, "first_finished": first_finished, "newest_first": newest_first, "in_order": in_order}
