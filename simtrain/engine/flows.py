"""Coupled flows: when does each finish if all share their links max-min fairly at every instant?

The rates are those of progressive filling, re-solved exactly whenever a flow starts or ends (:mod:`simtrain.engine.maxmin`).
Flows may wait for others, which carries collectives as the messages of their algorithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from simtrain.engine.arrays import Floats, Integers, Numbers
from simtrain.errors import InputError
from simtrain.graph.grid import GRID, LONGEST

if TYPE_CHECKING:
    from simtrain.engine.flow_classes import Classes
    from simtrain.engine.flow_loop import Clock, Timing
    from simtrain.engine.maxmin import Network


@dataclass(frozen=True)
class FlowResult:
    """When each flow started and finished, and how much work that was."""

    finish: Floats
    """[s]"""
    start: Floats
    """When its start and the flows it waits for allowed it; bytes move after the latency. [s]"""
    events: int
    """Arrivals and completions simulated."""
    changed_rates: int
    """Rates that changed as an integer."""
    classes: int
    """Flows simulated: one per class, or all of them."""
    is_approximate: bool
    """Whether events were batched in windows."""

    @property
    def makespan(self) -> float:
        """When the last flow finishes. [s]"""
        return float(self.finish.max(initial=0.0))


def simulate_flows(
    start: ArrayLike,
    nbytes: ArrayLike,
    link_ptr: ArrayLike,
    links: ArrayLike,
    capacity: ArrayLike,
    *,
    rate_cap: ArrayLike | None = None,
    latency: ArrayLike | None = None,
    dep_ptr: ArrayLike | None = None,
    deps: ArrayLike | None = None,
    window: float = 0.0,
    use_classes: bool | Literal["auto"] = "auto",
) -> FlowResult:
    """Simulate flows that share links.

    A flow starts at its ``start`` or when the last flow it waits for finishes, whichever is later; its bytes move a latency
    after that. Times lie on a grid of 2^-40 s and rates are integers in units of 2^-20 B/s.

    Parameters
    ----------
    start
        Earliest start of each flow. [s]
    nbytes
        Size of each flow; a flow of no bytes ends after its latency and loads no link. [B]
    link_ptr, links
        Flow ``f`` crosses ``links[link_ptr[f]:link_ptr[f + 1]]``, a link named twice carries it twice. A flow without links moves at its
        cap, or in no time.
    capacity
        Of each link. [B/s]
    rate_cap
        Rate of each flow when alone; infinite where only links limit it. [B/s]
    latency
        Of each flow, or one for all. [s]
    dep_ptr, deps
        Flow ``f`` waits for the flows ``deps[dep_ptr[f]:dep_ptr[f + 1]]``.
    window
        Treat events within this time as one: a flow that arrives inside a window begins to move, and the bandwidth of one that
        ends is passed on, at its end. Errors of single flows have no bound; the result is marked approximate. [s]
    use_classes
        Simulate one flow of each class of equal flows; the times are the same to the bit. ``auto`` does so where at least
        two flows fall to a class on average, ``True`` does as ``auto`` but raises an error where that is not possible.

    Returns
    -------
    FlowResult
        Times of each flow.

    Raises
    ------
    InputError
        If an array does not fit, a number is out of range, or flows wait for each other in a circle.

    Examples
    --------
    Two flows share a link of 1 GB/s; the second one finishes first and leaves the link to the first.

    >>> simulate_flows([0, 0], [3e9, 1e9], [0, 1, 2], [0, 0], [1e9]).finish.round(9).tolist()
    [4.0, 2.0]
    """
    from simtrain.engine.flow_loop import run
    from simtrain.engine.flow_network import as_rates, build_network, reorder

    count = len(np.atleast_1d(np.asarray(start)))
    pointer = _pointer(link_ptr, "link_ptr", count)
    link_capacity = as_rates(_column(capacity, "capacity", None), "capacity")
    crossed = _rows(links, pointer, "links", len(link_capacity))
    cap = as_rates(_column(np.inf if rate_cap is None else rate_cap, "rate_cap", count), "rate_cap")
    if len(link_capacity) and link_capacity.max() > 2**62:
        raise InputError("capacity: a link cannot be infinitely fast; leave it out of the flows' links")
    waits = _pointer(np.zeros(count + 1) if dep_ptr is None else dep_ptr, "dep_ptr", count)
    awaited = _rows([] if deps is None else deps, waits, "deps", count)
    traits = [_times(start, "start", count), _column(nbytes, "nbytes", count), _times(0.0 if latency is None else latency, "latency", count)]
    if not 0 <= window < LONGEST:
        raise InputError(f"window: {window} s is not a time from zero to {LONGEST:.0f} s")

    net = build_network(pointer, crossed, link_capacity, cap)
    classes = _classes(net, traits, waits, awaited, use_classes)
    of_flow, first_flow = None, np.arange(count)
    if classes is not None:
        from simtrain.engine.flow_classes import quotient

        net, waits, awaited = quotient(net, classes, waits, awaited)
        of_flow, first_flow = classes.of_flow, classes.first_flow.astype(np.int64)
        traits = [trait[first_flow] for trait in traits]
    # Flows that move at the same time lie next to each other in memory; results do not depend on the numbering.
    order = np.argsort(traits[0], kind="stable")
    net, waits, awaited = reorder(net, waits, awaited, order)
    clock = run(_timing([trait[order] for trait in traits], waits, awaited), net, math.ceil(window * GRID) / GRID)
    return _result(clock, first_flow[order], _ranks(order) if of_flow is None else _ranks(order)[of_flow], window)


def _classes(net: Network, traits: list[Floats], dep_ptr: Integers, deps: Numbers, use_classes: bool | str) -> Classes | None:
    if use_classes not in (True, False, "auto"):
        raise InputError(f"use_classes: {use_classes!r} is none of True, False, 'auto'")
    if not use_classes or not len(net.cap):
        return None
    from simtrain.engine.flow_classes import find_classes

    classes = find_classes(net, traits, dep_ptr, deps)
    if classes is None and use_classes is True:
        raise InputError("use_classes: these flows have no classes worth using; leave it at 'auto'")
    return classes


def _timing(traits: list[Floats], dep_ptr: Integers, deps: Numbers) -> Timing:
    from simtrain.engine.flow_loop import Timing

    start, nbytes, latency = traits
    missing = np.diff(dep_ptr).astype(np.int32)
    waiting = np.repeat(np.arange(len(start), dtype=np.int32), missing)
    next_ptr = np.zeros(len(start) + 1, np.int64)
    np.cumsum(np.bincount(deps, minlength=len(start)), out=next_ptr[1:])
    next_flow = waiting[np.argsort(deps, kind="stable")]
    free = np.flatnonzero(missing == 0)
    order = free[np.argsort((start + latency)[free], kind="stable")].astype(np.int32)
    return Timing(start, latency, nbytes, next_ptr, next_flow, missing, order)


def _ranks(order: Integers) -> Integers:
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _result(clock: Clock, names: Integers, of_flow: Integers | Numbers, window: float) -> FlowResult:
    """Give each flow the times of the simulated one that stands for it."""
    from simtrain.engine.flow_loop import CHANGES, EVENTS

    stuck = names[np.isnan(clock.finish)]
    if len(stuck):
        shown = ", ".join(map(str, np.sort(stuck)[:8])) + (", ..." if len(stuck) > 8 else "")
        raise InputError(f"these flows never finish: {shown}; they wait for each other in a circle, or a link has less than 2^-20 B/s for each of its flows")
    return FlowResult(
        clock.finish[of_flow], clock.begin[of_flow], int(clock.sizes[EVENTS]), int(clock.sizes[CHANGES]), len(clock.finish), window > 0
    )  # fmt: skip


def _column(values: ArrayLike, name: str, count: int | None) -> Floats:
    """Return an array of non-negative numbers of this length; a single number stands for all."""
    column = np.asarray(values, np.float64)
    if column.ndim == 0 and count is not None:
        column = np.full(count, column)
    if column.ndim != 1 or (count is not None and len(column) != count):
        raise InputError(f"{name}: an array of {'any number of' if count is None else count} numbers is needed, not one of shape {column.shape}")
    if not (column >= 0).all():
        raise InputError(f"{name}: {column[~(column >= 0)][0]} is not a number from zero upwards")
    return column


def _times(values: ArrayLike, name: str, count: int) -> Floats:
    column = np.rint(_column(values, name, count) * GRID) / GRID
    if not (column < LONGEST).all():
        raise InputError(f"{name}: times must be below {LONGEST:.0f} s, where the grid of 2^-40 s ends")
    return column


def _pointer(values: ArrayLike, name: str, count: int) -> Integers:
    pointer = _whole(values, name, np.int64)
    if len(pointer) != count + 1 or pointer[0] != 0 or (np.diff(pointer) < 0).any():
        raise InputError(f"{name}: {count + 1} numbers that start at 0 and never fall are needed, one more than there are flows")
    return pointer


def _rows(values: ArrayLike, pointer: Integers, name: str, limit: int) -> Numbers:
    rows = _whole(values, name, np.int32)
    if len(rows) != pointer[-1]:
        raise InputError(f"{name}: {len(rows)} entries, but the pointers end at {pointer[-1]}")
    if len(rows) and not (rows.min() >= 0 and rows.max() < limit):
        raise InputError(f"{name}: numbers from 0 to {limit - 1} are allowed, not {rows.min() if rows.min() < 0 else rows.max()}")
    return rows


def _whole(values: ArrayLike, name: str, dtype: Any) -> Any:
    given = np.asarray(values)
    if given.ndim != 1:
        raise InputError(f"{name}: a flat array is needed, not one of shape {given.shape}")
    whole = given.astype(dtype)
    if given.dtype.kind not in "iu" and not np.array_equal(whole, given):
        raise InputError(f"{name}: whole numbers are needed")
    return np.ascontiguousarray(whole)
