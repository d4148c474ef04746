"""Cost of bringing routed tokens to the ranks of their experts and back inside one node, by copying units of the accelerator.

A library such as DeepEP [1]_ gives some streaming multiprocessors ("units") to a kernel that copies each token once to every rank that
holds one of its experts, the own rank among them, and handles it once more where it starts (dispatch) or is summed up (combine). Two
things bound it: what the units can copy, and what leaves the rank through its port::

    reached = n (1 - (1 - 1/n)**top_k)            ranks that a token goes to, of n, with experts spread evenly
    copied  = tokens * (reached + 1) * bytes of a token
    leaving = tokens * reached * (n - 1)/n * bytes of a token
    seconds = launch + max(copied / (units * unit_rate), leaving / (bandwidth * efficiency))

The first term does not depend on the links: fitted apart, a unit copies as fast on Hopper as on Blackwell.

References
----------
.. [1] DeepSeek-AI, "DeepEP: an efficient expert-parallel communication library", 2025.
"""

from __future__ import annotations

from simtrain.cost.collective import Transfer
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware.node import Node


def ranks_reached(ranks: int, top_k: int) -> float:
    """Return how many of ``ranks`` hold at least one of ``top_k`` experts of a token, on the mean over even routing.

    Examples
    --------
    >>> ranks_reached(4, 2)
    1.75
    """
    return ranks * (1 - (1 - 1 / ranks) ** top_k)


def token_exchange(tokens: float, token_bytes: float, top_k: int, ranks: int, node: Node, *, units: int | None = None) -> Transfer:
    """Return the cost of one dispatch or combine of routed tokens inside a node, for one member.

    Parameters
    ----------
    tokens
        Of one rank.
    token_bytes
        Of one token as it is sent, scales of narrow formats included. [B]
    top_k
        Experts per token.
    ranks
        Over which the experts are spread, all on this node.
    node
        Gives the bandwidth and, as ``scale_up.token_exchange``, the rates.
    units
        Streaming multiprocessors that copy; as the library does if None.

    Returns
    -------
    Transfer
        ``nbytes`` is what leaves the rank, ``rate`` that of the tighter bound.

    Raises
    ------
    InputError
        If no unit copies.
    UnsupportedError
        If the node states no ``token_exchange``.
    """
    rates = node.scale_up.token_exchange
    if rates is None:
        raise UnsupportedError(f"nodes/{node.name}.yaml: scale_up.token_exchange is not stated; an exchange of tokens by copying units needs it")
    units = rates.units if units is None else units
    if units < 1:
        raise InputError(f"token_exchange: units={units}; at least 1 has to copy")
    if ranks == 1 or not tokens:
        return Transfer(0.0, 0.0, node.scale_up.bandwidth * rates.efficiency, "scale_up")
    reached = ranks_reached(ranks, top_k)
    copied = tokens * (reached + 1) * token_bytes
    leaving = tokens * reached * (ranks - 1) / ranks * token_bytes
    seconds = max(copied / (units * rates.unit_rate), leaving / (node.scale_up.bandwidth * rates.efficiency))
    return Transfer(rates.launch, leaving, leaving / seconds, "scale_up")
