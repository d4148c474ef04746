"""Sets of coupled flows, and a plain simulation of them to compare with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simtrain.engine.fairshare import RATE_UNIT, progressive_filling, to_rate
from simtrain.engine.flows import FlowResult, simulate_flows
from simtrain.graph.grid import ceil_grid, to_grid

LINK = 12.5e9
"""100 Gbit/s. [B/s]"""


@dataclass
class Flows:
    """Arguments of :func:`simulate_flows`."""

    start: Any
    nbytes: Any
    link_ptr: Any
    links: Any
    capacity: Any
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def __len__(self) -> int:
        return len(self.start)

    def run(self, **options: Any) -> FlowResult:
        return simulate_flows(self.start, self.nbytes, self.link_ptr, self.links, self.capacity, **(self.options | options))


def from_rows(capacity: Sequence[float], rows: Sequence[tuple[float, float, float, Sequence[int]]], **options: Any) -> Flows:
    """Build from rows of (start, bytes, cap, links)."""
    links = [link for row in rows for link in row[3]]
    pointer = np.cumsum([0, *(len(row[3]) for row in rows)])
    caps = [row[2] for row in rows]
    return Flows([row[0] for row in rows], [row[1] for row in rows], pointer, links, capacity, {"rate_cap": caps} | options)


def fat_tree_routes(source: Any, target: Any, hosts: int, per_leaf: int) -> tuple[Any, Any, int]:
    """Route over a non-blocking two-level fat tree by destination, as SimGrid does: spine = target mod hosts per leaf."""
    leaf, other, spine = source // per_leaf, target // per_leaf, target % per_leaf
    leaves = hosts // per_leaf
    up, down = 2 * hosts + leaf * per_leaf + spine, 2 * hosts + (leaves + other) * per_leaf + spine
    path = np.stack([source, up, down, hosts + target], 1)
    is_crossed = np.ones(path.shape, bool)
    is_crossed[leaf == other, 1:3] = False
    return np.concatenate([[0], np.cumsum(is_crossed.sum(1))]), path[is_crossed], 2 * hosts + 2 * leaves * per_leaf


def random_pairs(count: int, hosts: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    source = random.integers(0, hosts, count)
    return source, (source + random.integers(1, hosts, count)) % hosts


def fat_tree_flows(count: int, span: float, *, hosts: int = 1024, per_leaf: int = 32, mean: float = 50e6, seed: int = 1) -> Flows:
    """Random pairs of hosts, exponential sizes (whole bytes), starts spread evenly over the span."""
    source, target = random_pairs(count, hosts, seed)
    random = np.random.default_rng(seed + 1)
    pointer, links, num_links = fat_tree_routes(source, target, hosts, per_leaf)
    return Flows(random.uniform(0, span, count), np.rint(random.exponential(mean, count)), pointer, links, np.full(num_links, LINK))


def all_to_all(hosts: int, nbytes: float, *, slow: Sequence[int] = (), hot: int = 0, per_leaf: int = 32) -> Flows:
    """Every host sends to every other; slow hosts have half the bandwidth, the first ``hot`` destinations get four times the bytes."""
    source, target = np.divmod(np.arange(hosts * hosts), hosts)
    source, target = source[source != target], target[source != target]
    pointer, links, num_links = fat_tree_routes(source, target, hosts, per_leaf)
    capacity = np.full(num_links, LINK)
    for host in slow:
        capacity[[host, hosts + host]] /= 2
    return Flows(np.zeros(len(source)), np.where(target < hot, 4.0, 1.0) * nbytes, pointer, links, capacity)


def ring_all_reduce(ranks: int, nbytes: float, *, latency: float = 1e-6, unevenness: float = 0.0) -> Flows:
    """Send 2 (n - 1) chunks to the right neighbour, each after the one before it and after that step's chunk from the left."""
    steps = 2 * (ranks - 1)
    messages = steps * ranks
    step, rank = np.divmod(np.arange(messages), ranks)
    before = np.stack([(step - 1) * ranks + (rank - 1) % ranks, (step - 1) * ranks + rank], 1)[ranks:].ravel()
    pointer = np.concatenate([np.zeros(ranks, np.int64), 2 * np.arange(messages - ranks + 1)])
    links = np.stack([rank, ranks + (rank + 1) % ranks], 1).ravel()
    capacity = LINK * np.random.default_rng(0).uniform(1 - unevenness, 1 + unevenness, 2 * ranks)
    options = {"latency": latency, "dep_ptr": pointer, "deps": before}
    return Flows(np.zeros(messages), np.full(messages, nbytes / ranks), 2 * np.arange(messages + 1), links, capacity, options)


def ring_time(ranks: int, nbytes: float, latency: float) -> float:
    """Return 2 (n - 1) steps of a chunk each. [s]"""
    return 2 * (ranks - 1) * (nbytes / ranks / LINK + latency)


class PlainSimulation:
    """Solves all rates from scratch at every event, with nothing but dictionaries; the oracle of the compiled simulator."""

    def __init__(self, flows: Flows) -> None:
        count, options = len(flows), flows.options
        links = [int(k) for k in flows.links]
        self.nbytes = [float(b) for b in flows.nbytes]
        self.start = [to_grid(float(s)) for s in flows.start]
        latency = np.broadcast_to(np.asarray(options.get("latency", 0.0), float), count)
        self.latency = [to_grid(float(x)) for x in latency]
        caps = [float(c) for c in options.get("rate_cap", [math.inf] * count)]
        capacity = [to_rate(float(c)) for c in flows.capacity]
        self.capacity = capacity
        self.flow = {f: (Counter(links[flows.link_ptr[f] : flows.link_ptr[f + 1]]), 2**80 if math.isinf(caps[f]) else to_rate(caps[f])) for f in range(count)}
        pointer = options.get("dep_ptr", [0] * (count + 1))
        self.waits = [{int(g) for g in options.get("deps", [])[pointer[f] : pointer[f + 1]]} for f in range(count)]
        self.begin: dict[int, float] = {}
        self.finish: dict[int, float] = {}
        self.left: dict[int, float] = {}
        self.anchor: dict[int, float] = {}
        self.rate: dict[int, int] = {}
        self.eta: dict[int, float] = {}
        self.loads: list[dict[int, int]] = []
        """Sum of rates on each link after each event. [rate units]"""

    def run(self) -> tuple[list[float], list[float]] | None:
        """Return when flows finish and start, or None where some never finish."""
        pending = set(self.flow)
        while len(self.finish) < len(self.flow):
            now = min([*self.eta.values(), *(self._moves(f) for f in pending)], default=math.inf)
            if now == math.inf:
                return None
            while self._complete(now) or self._arrive(pending, now):
                pass
            self._share(now)
        order = range(len(self.flow))
        return [self.finish[f] for f in order], [self.begin[f] for f in order]

    def _moves(self, f: int) -> float:
        if not self.waits[f] <= self.finish.keys():
            return math.inf
        return max([self.start[f], *(self.finish[g] for g in self.waits[f])]) + self.latency[f]

    def _complete(self, now: float) -> bool:
        ended = [f for f, eta in self.eta.items() if eta <= now]
        for f in ended:
            self.finish[f] = self.eta.pop(f)
            del self.left[f]
        return bool(ended)

    def _arrive(self, pending: set[int], now: float) -> bool:
        arrived = [f for f in pending if self._moves(f) <= now]
        for f in arrived:
            pending.discard(f)
            self.begin[f] = max([self.start[f], *(self.finish[g] for g in self.waits[f])])
            links, cap = self.flow[f]
            if self.nbytes[f] == 0 or (not links and cap == 2**80):
                self.finish[f] = self.begin[f] + self.latency[f]
            else:
                self.left[f], self.anchor[f], self.rate[f] = self.nbytes[f], now, 0
        return bool(arrived)

    def _share(self, now: float) -> None:
        rates = progressive_filling({f: self.flow[f] for f in sorted(self.left)}, self.capacity) if self.left else {}
        load = Counter[int]()
        for f, rate in rates.items():
            load.update({k: rate * times for k, times in self.flow[f][0].items()})
            if rate != self.rate[f]:
                self.left[f] -= self.rate[f] / RATE_UNIT * (now - self.anchor[f])
                self.anchor[f], self.rate[f] = now, rate
                self.eta[f] = math.inf if not rate else now if self.left[f] <= 0 else now + ceil_grid(self.left[f] / (rate / RATE_UNIT))
        self.loads.append(load)
