"""The SimPy executor: in-order streams, rendezvous, shared links, compute slowed by communication.

A timestamp has two phases. First all completions take effect, in order of row number; then one arbitration
starts what became ready, adds transfers to the network, solves the shares once and re-anchors whatever
changed its rate. Operations of zero length complete in a further round of the same timestamp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import simpy
from simpy.events import NORMAL, Event

from simtrain.engine.buckets import Buckets
from simtrain.engine.fairshare import RATE_UNIT, FairShare, to_rate
from simtrain.engine.lanes import Lanes, lanes_of
from simtrain.engine.links import LinkTable, link_table
from simtrain.engine.trace import Trace
from simtrain.errors import SimtrainError
from simtrain.graph.graph import Graph
from simtrain.graph.grid import ceil_grid
from simtrain.graph.template import LINK_CLASSES, Kind
from simtrain.hardware import Cluster

Fidelity = Literal["analytic", "fair", "isolated"]
_ARBITRATION = NORMAL + 1


def replay(graph: Graph, cluster: Cluster, *, fidelity: Fidelity = "fair", slowdown: float = 0.0) -> Trace:
    """Execute a graph.

    Parameters
    ----------
    graph
        Rows to execute.
    cluster
        Gives the capacities of links.
    fidelity
        ``isolated``: every transfer runs at its own rate, as if no other were there.
        ``fair``: transfers share links max-min fairly. ``analytic``: a transfer holds its ranks' shares of
        the links alone, in order of readiness.
    slowdown
        Share of compute rate lost on a rank while a collective holds its SMs.

    Raises
    ------
    SimtrainError
        If the graph cannot finish because rows wait for each other.
    """
    return _Replay(graph, link_table(graph, cluster), fidelity, slowdown, cluster.ranks_per_accelerator).run()


class _Replay:
    """State of one execution. A *unit* is what completes as a whole: a single row, or all rows of a rendezvous."""

    def __init__(self, graph: Graph, links: LinkTable, fidelity: Fidelity, slowdown: float, ranks_per_device: int) -> None:
        self.graph, self.links, self.fidelity = graph, links, fidelity
        self.compute_rate = 1.0 - slowdown
        devices = [rank // ranks_per_device for rank in graph.ranks]
        self.sharing = [[other for other, device in enumerate(devices) if device == own] for own in devices]
        """Represented ranks on the same device as each, itself included."""
        self.is_shared = ranks_per_device > 1
        world = graph.step.mesh.world_size
        present = [min(ranks_per_device, world - device * ranks_per_device) for device in devices]
        self.crowd = [count / len(ranks) for count, ranks in zip(present, self.sharing, strict=True)]
        """Ranks on the device over the represented ones: folded ranks do the same at the same time."""
        self.buckets = Buckets(links) if fidelity == "fair" and any(links.burst) else None
        self.env = simpy.Environment()
        self._columns(graph)
        n = len(graph)
        self.ready: list[float] = [0.0] * n
        self.start: list[float] = [0.0] * n
        self.end: list[float] = [-1.0] * n
        self.last: list[int] = list(range(n))
        self.eta: dict[int, float] = {}
        self.left: dict[int, float] = {}
        self.anchor: dict[int, float] = {}
        self.rate: dict[int, float] = {}
        self.network = FairShare(links.capacity)
        self.loads: dict[tuple[tuple[int, int], ...], Mapping[int, int]] = {}
        self.lanes = Lanes(len(graph.ranks) * len(LINK_CLASSES))
        self.moving: set[int] = set()
        self.waits: dict[int, tuple[float, int]] = {}
        """Of the running transfers that compute delays: bytes to move beside it (see :meth:`_delay`), and members that wait for their processor."""
        self.computing: list[set[int]] = [set() for _ in graph.ranks]
        self.holding = [0] * len(graph.ranks)
        self.device_rate = [1.0] * len(graph.ranks)
        self.touched: set[int] = set()
        self.done: list[int] = []
        self.fresh: list[int] = []
        self.is_arbitration_due = False

    def _columns(self, g: Graph) -> None:
        """Turn the columns into lists: single items of numpy arrays are slow to read."""
        t, n = g.table, len(g)
        self.is_compute: list[bool] = (t.kind[g.op] == Kind.COMPUTE).tolist()
        self.seconds: list[float] = t.seconds[g.op].tolist()
        self.nbytes: list[float] = t.nbytes[g.op].tolist()
        self.cap: list[int] = [to_rate(r) if r else 0 for r in t.rate.tolist()]
        self.op: list[int] = g.op.tolist()
        self.uses: list[int] = t.links[g.op].tolist()
        self.holds: list[bool] = t.holds_sms[g.op].tolist()
        self.under_compute: list[float] = t.under_compute.tolist()
        self.delays = bool(t.under_compute.any())
        self.rank: list[int] = g.rank.tolist()
        self.group: list[int] = g.group.tolist()
        has_previous = g.previous >= 0
        source = np.concatenate([g.dep_from, g.previous[has_previous]])
        target = np.concatenate([g.dep_to, np.flatnonzero(has_previous)])
        order = np.lexsort((target, source))
        self.successor: list[int] = target[order].tolist()
        self.first: list[int] = np.searchsorted(source[order], np.arange(n + 1)).tolist()
        self.missing: list[int] = np.bincount(target, minlength=n).tolist()
        members: list[list[int]] = [[] for _ in range(int(g.group.max(initial=-1)) + 1)]
        for row in np.flatnonzero(g.group >= 0).tolist():
            members[self.group[row]].append(row)
        self.members = members
        self.absent = [len(rows) for rows in members]

    def run(self) -> Trace:
        self.fresh = [row for row, count in enumerate(self.missing) if count == 0]
        self._request_arbitration()
        self.env.run()
        stuck = [row for row, end in enumerate(self.end) if end < 0]
        if stuck:
            raise SimtrainError(deadlock(self.graph, stuck))
        return Trace(self.graph, np.array(self.ready), np.array(self.start), np.array(self.end), np.array(self.last, np.int64), self.fidelity, "simpy")

    # -- events ------------------------------------------------------------------------------------------

    def _schedule(self, delay: float, callback: Callable[[Any], None], priority: int = NORMAL) -> None:
        event = Event(self.env)
        event._ok = True  # pyright: ignore[reportPrivateUsage]
        event._value = None  # pyright: ignore[reportPrivateUsage]
        event.callbacks.append(callback)
        self.env.schedule(event, priority, delay)  # pyright: ignore[reportArgumentType]

    def _request_arbitration(self) -> None:
        if not self.is_arbitration_due:
            self.is_arbitration_due = True
            self._schedule(0.0, self._arbitrate, _ARBITRATION)

    def _complete_at(self, unit: int, eta: float) -> None:
        if self.eta.get(unit) == eta:
            return
        self.eta[unit] = eta

        def completed(_: Any) -> None:
            if self.eta.get(unit) == eta:
                del self.eta[unit]
                self.done.append(unit)
                self._request_arbitration()

        self._schedule(eta - self.env.now, completed)

    # -- the two phases ----------------------------------------------------------------------------------

    def _arbitrate(self, _: Any) -> None:
        self.is_arbitration_due = False
        done, self.done = self.done, []
        for unit in sorted(done):
            self._finish_phase(unit)
        fresh, self.fresh = self.fresh, []
        for row in sorted(fresh):
            self._row_ready(row)
        for unit in self.lanes.granted():
            self._start_unit(unit)
        for unit in self.waits:
            self._delay(unit)
        for unit in self.network.resolve():
            self._re_anchor(unit, self.network.rate[unit] / RATE_UNIT)
        for rank in sorted(self.touched):
            self._slow_compute(rank)
        self.touched.clear()

    def _rows(self, unit: int) -> list[int]:
        group = self.group[unit]
        return self.members[group] if group >= 0 else [unit]

    def _finish_phase(self, unit: int) -> None:
        """A latency that ends starts its transfer; everything else ends the unit."""
        if unit in self.moving or self.group[unit] < 0 or not self.nbytes[unit]:
            self._finish(unit)
            return
        self.moving.add(unit)
        self.left[unit], self.anchor[unit], self.rate[unit] = self.nbytes[unit], self.env.now, 0.0
        loads = self._links_of(unit) if self.fidelity == "fair" else {}
        if self.buckets:
            self.left[unit] -= self.buckets.join(loads, self.env.now)
        self.network.add(unit, loads, self.cap[self.op[unit]])
        if self.under_compute[self.op[unit]] and self.left[unit] > 0:
            self.waits[unit] = self.left[unit], 0
        if self.network.rate[unit]:
            self._re_anchor(unit, self.network.rate[unit] / RATE_UNIT)

    def _links_of(self, unit: int) -> Mapping[int, int]:
        """Return the links that a unit loads, with the number of its members on each."""
        key = tuple((self.rank[row], self.uses[row]) for row in self._rows(unit))
        if key not in self.loads:
            self.loads[key] = Counter(link for rank, classes in key for link in self.links.of(rank, classes))
        return self.loads[key]

    def _finish(self, unit: int) -> None:
        now = self.env.now
        if unit in self.moving:
            self.moving.discard(unit)
            self.network.remove(unit)
            self.waits.pop(unit, None)
            if self.buckets:
                self.buckets.leave(self._links_of(unit), now)
        self.left.pop(unit, None)
        for row in self._rows(unit):
            self.end[row] = now
            if self.is_compute[row]:
                self.computing[self.rank[row]].discard(row)
                if self.is_shared:
                    self.touched.add(self.rank[row])
            elif self.holds[row]:
                self.holding[self.rank[row]] -= 1
                self.touched.add(self.rank[row])
            for index in range(self.first[row], self.first[row + 1]):
                successor = self.successor[index]
                self.missing[successor] -= 1
                if not self.missing[successor]:
                    self.fresh.append(successor)
        if self.fidelity == "analytic" and self.group[unit] >= 0:
            self.lanes.release(unit)

    def _row_ready(self, row: int) -> None:
        self.ready[row] = self.env.now
        group = self.group[row]
        if group < 0:
            self._start_unit(row)
            return
        self.absent[group] -= 1
        if self.absent[group]:
            return
        rows = self.members[group]
        for member in rows:
            self.last[member] = row
        if self.fidelity == "analytic" and self.nbytes[rows[0]]:
            self.lanes.request(rows[0], [k for r in rows for k in lanes_of(self.rank[r], self.uses[r])])
        else:
            self._start_unit(rows[0])

    def _start_unit(self, unit: int) -> None:
        now = self.env.now
        for row in self._rows(unit):
            self.start[row] = now
            if self.holds[row]:
                self.holding[self.rank[row]] += 1
                self.touched.add(self.rank[row])
        if self.is_compute[unit] and (self.compute_rate < 1.0 or self.is_shared or self.delays):
            rank = self.rank[unit]
            self.computing[rank].add(unit)
            self.left[unit], self.anchor[unit], self.rate[unit] = self.seconds[unit], now, 0.0
            self._re_anchor(unit, self.device_rate[rank])
            if self.is_shared:
                self.touched.add(rank)
            return
        self._complete_at(unit, now + self.seconds[unit])

    # -- changing rates ----------------------------------------------------------------------------------

    def _re_anchor(self, unit: int, rate: float) -> None:
        """Account for the work done at the old rate and predict the end at the new one."""
        now = self.env.now
        self.left[unit] -= self.rate[unit] * (now - self.anchor[unit])
        self.anchor[unit], self.rate[unit] = now, rate
        # The duration is rounded, not the end: now + left / rate would round differently at another start, and then
        # composite and expanded templates would differ by a tick.
        self._complete_at(unit, now if self.left[unit] <= 0 else now + ceil_grid(self.left[unit] / rate))

    def _delay(self, unit: int) -> None:
        """Let a transfer move at the rate that makes it last ``under_compute`` longer, in the proportion of its members whose processor is full.

        A processor is full if every rank on it computes: each has then used its share, and what a transfer wants of it waits for a turn. If one of them
        does not compute, its share is there for the asking.
        """
        members = [self.rank[row] for row in self._rows(unit)]
        waiting = sum(1 for rank in members if all(self.computing[other] for other in self.sharing[rank]))
        nbytes, before = self.waits[unit]
        if waiting != before:
            op = self.op[unit]
            self.waits[unit] = nbytes, waiting
            alone = nbytes * RATE_UNIT / self.cap[op]
            self.network.limit(unit, max(1, round(nbytes * RATE_UNIT / (alone + self.under_compute[op] * waiting / len(members)))))

    def _slow_compute(self, rank: int) -> None:
        """Give the compute of every rank on this one's device the rate that is left: slowed by communication, shared among those that compute."""
        ranks = self.sharing[rank]
        computing = sum(1 for r in ranks if self.computing[r])
        rate = (self.compute_rate if any(self.holding[r] for r in ranks) else 1.0) / max(computing * self.crowd[rank], 1.0)
        for other in ranks:
            if rate != self.device_rate[other]:
                self.device_rate[other] = rate
                for row in sorted(self.computing[other]):
                    self._re_anchor(row, rate)


def deadlock(graph: Graph, stuck: list[int]) -> str:
    """Return what to say about a graph of which these rows never end."""
    shown = ", ".join(f"rank {graph.ranks[graph.rank[r]]} {op.stream}: {op.name}" for r in stuck[:4] for op in [graph.table.ops[graph.op[r]]])
    why = "sends and receives are posted in an order that waits on itself"
    return f"the graph cannot finish: {len(stuck)} of {len(graph)} rows never start ({shown}, ...); {why}"
