"""Which node is where: in a place of the job, standing by as a spare, or away for repair."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable


class Places:
    """Nodes of a job and its spares; a job of ``n`` nodes has the places 0 to ``n - 1``.

    Parameters
    ----------
    num_nodes, num_spares
        Nodes in the job at first, and nodes beside it.

    Attributes
    ----------
    missing
        Places without a node.
    spares
        Nodes that stand by, in order.
    """

    def __init__(self, num_nodes: int, num_spares: int) -> None:
        self.missing: set[int] = set()
        self.spares = list(range(num_nodes, num_nodes + num_spares))
        self._place_of = {node: node for node in range(num_nodes)}
        self._away: set[int] = set()

    def place_of(self, node: int) -> int | None:
        """Return the place of a node; None if it is not in the job."""
        return self._place_of.get(node)

    def in_job(self, nodes: Iterable[int]) -> list[int]:
        """Return those of some nodes that are in the job."""
        return [node for node in nodes if node in self._place_of]

    def present(self, nodes: Iterable[int]) -> list[int]:
        """Return those of some nodes that are not away."""
        return [node for node in nodes if node not in self._away]

    def take(self, node: int) -> None:
        """Take a node out of the job or out of the spares."""
        place = self._place_of.pop(node, None)
        if place is None:
            self.spares.remove(node)
        else:
            self.missing.add(place)
        self._away.add(node)

    def give_back(self, nodes: Iterable[int]) -> None:
        """Make nodes that were away spares."""
        for node in nodes:
            self._away.discard(node)
            insort(self.spares, node)

    def fill(self) -> list[int]:
        """Put spares into places without a node, as many as there are, and return them."""
        filled = sorted(self.missing)[: len(self.spares)]
        nodes = [self.spares.pop(0) for _ in filled]
        self._place_of.update(zip(nodes, filled, strict=True))
        self.missing.difference_update(filled)
        return nodes
