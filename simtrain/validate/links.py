"""Predicted time of what moves between devices: exchanges of routed tokens, copies to hosts and neighbours, drives."""

from __future__ import annotations

from simtrain.cost.collective import Transfer, collective
from simtrain.cost.exchange import ranks_reached, token_exchange
from simtrain.cost.span import Span
from simtrain.errors import UnsupportedError
from simtrain.hardware.cluster import Cluster, Topology
from simtrain.hardware.node import Node
from simtrain.validate.tables import CopyRow, ExchangeRow, StorageRow

LARGE_COPY = 2.0**30
"""Message whose rate a copy of unstated size is taken to show. [B]"""


def predict_exchange(row: ExchangeRow, node: Node) -> float:
    """Return the predicted time of an exchange of tokens, or its time per byte. [s], [s/B]

    Every token goes to the ranks of its ``top_k`` experts, spread evenly; a library that sends it once to a rank with several of them reaches
    :func:`~simtrain.cost.exchange.ranks_reached`. Inside a node copying units bound it, between nodes the cards.

    Raises
    ------
    UnsupportedError
        If the node has fewer accelerators than the exchange had ranks on one.
    """
    if row.per_node > node.num_accelerators:
        raise UnsupportedError(f"{row.per_node} ranks per node on {node.name}")
    token_bytes = row.hidden * row.element_bytes
    if row.per_node == row.ranks:
        transfer = token_exchange(row.tokens, token_bytes, row.top_k, row.ranks, node, units=row.units)
        # A rate of DeepEP counts every token that arrives, from the own rank too: between nodes it can so exceed that of the card.
        return transfer.seconds / (transfer.nbytes * row.ranks / (row.ranks - 1)) if row.is_per_byte else transfer.seconds
    copies = ranks_reached(row.ranks, row.top_k) if row.is_deduplicated else float(row.top_k)
    transfer = _on(node, "all_to_all", row.tokens * copies * token_bytes, Span(row.ranks, row.per_node))
    return transfer.seconds / transfer.nbytes if row.is_per_byte else transfer.seconds


def predict_copy(row: CopyRow, node: Node) -> float:
    """Return the predicted time per byte of a large copy. [s/B]

    Raises
    ------
    UnsupportedError
        If the node states no host links.
    """
    if row.direction == "peer":
        return _on(node, "send_recv", LARGE_COPY, Span(2, 2)).seconds / LARGE_COPY
    if node.pcie is None:
        raise UnsupportedError(f"nodes/{node.name}.yaml states no pcie")
    return 1 / node.pcie.bandwidth


def predict_storage(row: StorageRow, node: Node) -> float:
    """Return the predicted time per byte of a large transfer from or to the drives of a node. [s/B]

    Raises
    ------
    UnsupportedError
        If the node states no storage.
    """
    if node.storage is None:
        raise UnsupportedError(f"nodes/{node.name}.yaml states no storage")
    return 1 / (node.storage.read if row.direction == "read" else node.storage.write)


def _on(node: Node, kind: str, nbytes: float, span: Span) -> Transfer:
    return collective(kind, nbytes, span, Cluster(name="measured", node=node, num_nodes=span.nodes, topology=Topology(kind="flat")))
