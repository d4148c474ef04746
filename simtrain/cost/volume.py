"""Bytes that one rank puts on the wire in a collective, whatever the links."""

from __future__ import annotations


def bytes_sent(kind: str, nbytes: float, n: int) -> float:
    """Return what each rank sends in a bandwidth-optimal collective. [B]

    Parameters
    ----------
    kind
        Collective; ``nbytes`` is the larger buffer on one rank, as nccl-tests counts it.
    nbytes
        [B]
    n
        Ranks.

    Notes
    -----
    ``2 (n-1)/n S`` for an all-reduce, ``(n-1)/n S`` for all-gather, reduce-scatter and all-to-all, ``S`` for a
    broadcast, a shift or a send: the factors between algbw and busbw of nccl-tests. [1]_

    References
    ----------
    .. [1] NVIDIA, nccl-tests, doc/PERFORMANCE.md.

    Examples
    --------
    >>> bytes_sent("all_reduce", 8e6, 8)
    14000000.0
    """
    if n == 1:
        return 0.0
    factor = {"all_reduce": 2.0 * (n - 1) / n, "all_gather": (n - 1) / n, "reduce_scatter": (n - 1) / n, "all_to_all": (n - 1) / n}
    return factor.get(kind, 1.0) * nbytes
