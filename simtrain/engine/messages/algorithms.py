"""Which algorithms each collective has, and how their number of messages can be chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from simtrain.engine.messages.direct import pairwise_all_to_all, send_recv, shift
from simtrain.engine.messages.hierarchical import (
    hierarchical_all_gather,
    hierarchical_all_reduce,
    hierarchical_all_to_all,
    hierarchical_broadcast,
    hierarchical_reduce_scatter,
)
from simtrain.engine.messages.message import Messages
from simtrain.engine.messages.rings import all_gather_rounds, all_reduce_rounds, ring_all_gather, ring_all_reduce, ring_broadcast
from simtrain.engine.messages.trees import tree_all_reduce
from simtrain.errors import InputError, UnsupportedError, did_you_mean


@dataclass(frozen=True)
class Algorithm:
    """One way to carry out a collective.

    Parameters
    ----------
    write
        ``f(nbytes, placement)`` returns the messages.
    is_chunked
        Whether chunks of the buffer follow each other through a pipeline; ``write`` then takes their number, ``chunks=``.
    rounds
        Number of rounds of so many members, where all rounds are alike; ``write`` then takes ``rounds=``, to write only the first of them.
    """

    write: Callable[..., Messages]
    is_chunked: bool = False
    rounds: Callable[[int], int] | None = None


ALGORITHMS: dict[str, dict[str, Algorithm]] = {
    "all_reduce": {
        "ring": Algorithm(ring_all_reduce, rounds=all_reduce_rounds),
        "tree": Algorithm(tree_all_reduce, is_chunked=True),
        "hierarchical": Algorithm(hierarchical_all_reduce, is_chunked=True),
    },
    "all_gather": {
        "ring": Algorithm(ring_all_gather, rounds=all_gather_rounds),
        "hierarchical": Algorithm(hierarchical_all_gather, is_chunked=True),
    },
    "reduce_scatter": {
        "ring": Algorithm(ring_all_gather, rounds=all_gather_rounds),
        "hierarchical": Algorithm(hierarchical_reduce_scatter, is_chunked=True),
    },
    "all_to_all": {"pairwise": Algorithm(pairwise_all_to_all), "hierarchical": Algorithm(hierarchical_all_to_all)},
    "broadcast": {"ring": Algorithm(ring_broadcast, is_chunked=True), "hierarchical": Algorithm(hierarchical_broadcast, is_chunked=True)},
    "send_recv": {"direct": Algorithm(send_recv)},
    "shift": {"direct": Algorithm(shift)},
    "barrier": {"ring": Algorithm(ring_all_reduce, rounds=all_reduce_rounds), "tree": Algorithm(partial(tree_all_reduce, chunks=1))},
}
"""Algorithms of each kind of collective."""


def algorithms_of(kind: str) -> dict[str, Algorithm]:
    """Return the algorithms of a kind.

    Raises
    ------
    InputError
        If the kind is unknown.
    """
    if kind not in ALGORITHMS:
        raise InputError(f"unknown collective {kind!r}; {did_you_mean(kind, ALGORITHMS)}")
    return ALGORITHMS[kind]


def algorithm_of(kind: str, name: str) -> Algorithm:
    """Return an algorithm of a kind.

    Raises
    ------
    InputError
        If the kind is unknown.
    UnsupportedError
        If the algorithm has no messages, as in-switch reduction.
    """
    known = algorithms_of(kind)
    if name not in known:
        raise UnsupportedError(f"{kind}: algorithm {name!r} is not made of messages; {did_you_mean(name, known)}")
    return known[name]
