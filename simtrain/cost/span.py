"""Where the members of one communicator sit: on how many nodes, below how many leaf switches."""

from __future__ import annotations

from dataclasses import dataclass

from simtrain.errors import InputError


@dataclass(frozen=True)
class Span:
    """Placement of one communicator, reduced to the three numbers that its cost depends on.

    Parameters
    ----------
    size
        Members, at least 1.
    per_node
        Members on each node; ``size`` if all sit on one node. The last node may hold fewer.
    leaves
        Leaf switches (or sets of rail leaves) touched; more than one means that the spine is crossed.

    Examples
    --------
    >>> Span(16, 8).nodes
    2
    >>> Span(10, 8).fewest_per_node
    2
    """

    size: int
    per_node: int
    leaves: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"span: size {self.size} must be at least 1")
        if not 1 <= self.per_node <= self.size:
            raise InputError(f"span: per_node {self.per_node} must lie between 1 and size {self.size}")
        if not 1 <= self.leaves <= self.size:
            raise InputError(f"span: leaves {self.leaves} must lie between 1 and size {self.size}")

    @property
    def nodes(self) -> int:
        """Nodes touched."""
        return -(-self.size // self.per_node)

    @property
    def fewest_per_node(self) -> int:
        """Members on the node that holds the fewest; its NICs bound what crosses nodes."""
        return self.size - self.per_node * (self.nodes - 1)
