"""Max-min fair shares of links among concurrent transfers, with integer rates.

Rates are integers in units of 2^-20 B/s and a link's level is a floor division, so that sums are exact and do
not depend on the order of flows or links: whether a rate changed is an exact question, which is what lets
equal graphs give equal traces to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RATE_UNIT = 2.0**20
"""Rate units per B/s."""


def to_rate(bytes_per_second: float) -> int:
    """Return a rate as an integer, at least one unit."""
    return max(1, round(bytes_per_second * RATE_UNIT))


Flow = tuple[Mapping[int, int], int]
"""Links of a transfer with the number of its members on each, and the rate of each member when alone. [rate units]"""


def progressive_filling(flows: Mapping[int, Flow], capacity: Mapping[int, int] | Sequence[int]) -> dict[int, int]:
    """Return the max-min fair rates by filling all flows evenly until a link or a cap stops them. [1]_

    Parameters
    ----------
    flows
        Links (with the flow's members on each) and cap of each flow. [rate units]
    capacity
        Of each link. [rate units]

    Returns
    -------
    dict
        Rate of each member of each flow. [rate units]

    References
    ----------
    .. [1] Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2.

    Examples
    --------
    >>> progressive_filling({0: ({0: 1}, 100), 1: ({0: 1, 1: 1}, 100), 2: ({1: 1}, 100)}, [30, 100])
    {0: 15, 1: 15, 2: 85}
    """
    on_link: dict[int, dict[int, int]] = {}
    for flow, (links, _) in flows.items():
        for link, members in links.items():
            on_link.setdefault(link, {})[flow] = members
    left = {link: capacity[link] for link in on_link}
    caps = sorted((cap, flow) for flow, (_, cap) in flows.items())
    rates: dict[int, int] = {}
    while len(rates) < len(flows):
        levels = {k: left[k] // sum(held.values()) for k, held in on_link.items() if held}
        level = min(levels.values(), default=-1)
        cap = next(c for c, flow in caps if flow not in rates)
        if level < 0 or cap <= level:
            rate, frozen = cap, [flow for c, flow in caps if c == cap and flow not in rates]
        else:  # all links of this level at once: one after another, the units lost in rounding would make equal links unequal
            rate, frozen = level, sorted({flow for k, at in levels.items() if at == level for flow in on_link[k]})
        for flow in frozen:
            rates[flow] = rate
            for k, members in flows[flow][0].items():
                del on_link[k][flow]
                left[k] -= rate * members
    return {flow: rates[flow] for flow in sorted(rates)}


class FairShare:
    """Transfers that share links; rates are solved anew only where demand exceeds a link.

    Parameters
    ----------
    capacity
        Of each link. [rate units]
    """

    def __init__(self, capacity: Sequence[int]) -> None:
        self.capacity = list(capacity)
        self.flows: dict[int, Flow] = {}
        self.rate: dict[int, int] = {}
        self._on_link: list[set[int]] = [set() for _ in self.capacity]
        self._demand = [0] * len(self.capacity)
        self._dirty: set[int] = set()
        self._limited: set[int] = set()

    def add(self, flow: int, links: Mapping[int, int], cap: int) -> None:
        """Start a transfer; if a link of it saturates, its rate is 0 until :meth:`resolve`, else it is its cap at once."""
        self.flows[flow] = (links, cap)
        is_contended = False
        for link, members in links.items():
            self._on_link[link].add(flow)
            self._demand[link] += cap * members
            is_contended |= self._demand[link] > self.capacity[link]
        self.rate[flow] = 0 if is_contended else cap
        if is_contended:
            self._dirty.update(links)

    def remove(self, flow: int) -> None:
        """End a transfer."""
        links, cap = self.flows.pop(flow)
        del self.rate[flow]
        self._limited.discard(flow)
        for link, members in links.items():
            self._on_link[link].discard(flow)
            if self._demand[link] > self.capacity[link]:  # only there could others be waiting for its share
                self._dirty.add(link)
            self._demand[link] -= cap * members

    def limit(self, flow: int, cap: int) -> None:
        """Give a running transfer another cap; its rate follows at :meth:`resolve`."""
        links, old = self.flows[flow]
        self.flows[flow] = links, cap
        self._limited.add(flow)
        for link, members in links.items():
            self._demand[link] += (cap - old) * members
        self._dirty.update(links)

    def resolve(self) -> list[int]:
        """Solve where something changed and return the flows whose rate is new, in order of their number."""
        if not self._dirty and not self._limited:
            return []
        component = self._component()
        self._dirty.clear()
        self._limited.clear()
        links = {link for flow in component for link in self.flows[flow][0]}
        if all(self._demand[link] <= self.capacity[link] for link in links):
            solved = {flow: self.flows[flow][1] for flow in component}
        else:
            solved = progressive_filling({flow: self.flows[flow] for flow in component}, self.capacity)
        changed = [flow for flow in sorted(solved) if solved[flow] != self.rate[flow]]
        for flow in changed:
            self.rate[flow] = solved[flow]
        return changed

    def _component(self) -> list[int]:
        """Return the flows connected to a changed link through links that can saturate, and those whose cap changed."""
        seen: set[int] = set(self._limited)
        links = sorted(self._dirty)
        visited = set(links)
        while links:
            for flow in self._on_link[links.pop()]:
                if flow in seen:
                    continue
                seen.add(flow)
                new = [k for k in self.flows[flow][0] if k not in visited and self._demand[k] > self.capacity[k]]
                visited.update(new)
                links += new
        return sorted(seen)
