"""Exclusive links for the analytic fidelity: transfers that share a link run one after another."""

from __future__ import annotations

from collections.abc import Iterable

from simtrain.graph.template import LINK_CLASSES


def lanes_of(rank: int, classes: int) -> list[int]:
    """Return the lanes of a rank's link classes.

    A lane is one rank's share of a link, not the link: the rate of a transfer is that of a share already, and ranks
    that share a NIC would otherwise be charged for it twice (and only where they are unfolded).
    """
    return [rank * len(LINK_CLASSES) + i for i, c in enumerate(LINK_CLASSES) if classes & int(c)]


class Lanes:
    """Grants a unit all its links at once, in order of request; nothing is held while waiting.

    A request is granted when it is the first on each of its links. The order of requests is total, so the
    oldest request can always be granted once its links are released: no deadlock.
    """

    def __init__(self, count: int) -> None:
        self._queue: list[list[int]] = [[] for _ in range(count)]
        self._held: dict[int, list[int]] = {}
        self._waiting: dict[int, list[int]] = {}

    def request(self, unit: int, lanes: Iterable[int]) -> None:
        """Queue a unit on its links."""
        wanted = list(dict.fromkeys(lanes))
        self._waiting[unit] = wanted
        for lane in wanted:
            self._queue[lane].append(unit)

    def release(self, unit: int) -> None:
        """Free the links of a unit that ended; a unit that never asked holds none."""
        for lane in self._held.pop(unit, ()):
            self._queue[lane].remove(unit)

    def granted(self) -> list[int]:
        """Return the waiting units that are first on all their links, oldest first, and give them their links."""
        if not self._waiting:
            return []
        ready = [unit for unit, lanes in self._waiting.items() if all(self._queue[lane][0] == unit for lane in lanes)]
        for unit in ready:
            self._held[unit] = self._waiting.pop(unit)
        return ready
