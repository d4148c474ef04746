"""Layer split: how many layers each pipeline stage gets when they do not divide evenly.

A policy takes (layers, pp, vpp) and returns the layers of every chunk, by stage. Stages differ in more than layers: the first also holds
the embedding, the last the logits, and under 1F1B stage ``s`` keeps ``pp - s`` microbatches in flight.

References
----------
.. [1] Llama team, "The Llama 3 Herd of Models", 2024, section 3.3.2 (recalled).
.. [2] Megatron-LM, ``--account-for-embedding-in-pipeline-split`` and ``--account-for-loss-in-pipeline-split`` (recalled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from simtrain.errors import InputError

LayerCounts = tuple[tuple[int, ...], ...]
"""Layers by stage and chunk."""
LayerSplit = Callable[[int, int, int], LayerCounts]
"""From layers, pp and vpp to the layers of every chunk."""


def front(layers: int, pp: int, vpp: int) -> LayerCounts:
    """Give what is left over to the first stages, one each.

    Examples
    --------
    >>> front(10, 4, 1)
    ((3,), (3,), (2,), (2,))
    """
    return _even(layers, pp, vpp, range(pp))


def back(layers: int, pp: int, vpp: int) -> LayerCounts:
    """Give what is left over to the last stages, which keep the fewest microbatches in flight.

    Examples
    --------
    >>> back(10, 4, 1)
    ((2,), (2,), (3,), (3,))
    """
    return _even(layers, pp, vpp, reversed(range(pp)))


def middle(layers: int, pp: int, vpp: int) -> LayerCounts:
    """Give what is left over to the middle stages, sparing those with embedding and logits; 126 layers on 16 stages become Llama 3's. [1]_

    Examples
    --------
    >>> middle(10, 4, 1)
    ((2,), (3,), (3,), (2,))
    """
    return _even(layers, pp, vpp, sorted(range(pp), key=lambda stage: abs(2 * stage - (pp - 1))))


def ends(layers: int, pp: int, vpp: int) -> LayerCounts:
    """Count embedding and logits as a layer each: the first and the last chunk hold one layer less than the others. [2]_

    Where that would leave one of them empty, what is left over goes to the chunks in the middle.

    Examples
    --------
    >>> ends(6, 2, 2)
    ((1, 2), (2, 1))
    """
    chunks = pp * vpp
    base, extra = divmod(layers + 2, chunks)
    is_spared = base > 1 or (base == 1 and extra == chunks)
    if not is_spared:
        base, extra = divmod(layers, chunks)
    favoured = sorted(range(chunks), key=lambda place: abs(2 * place - (chunks - 1)))[:extra]
    counts = [base + (place in favoured) - is_spared * ((place == 0) + (place == chunks - 1)) for place in range(chunks)]
    if min(counts) < 1:
        raise InputError(f"pp={pp} x vpp={vpp} = {chunks} chunks, but the model has {layers} layers; lower pp or vpp")
    return tuple(tuple(counts[chunk * pp + stage] for chunk in range(vpp)) for stage in range(pp))


SPLITS: Mapping[str, LayerSplit] = {"front": front, "back": back, "middle": middle, "ends": ends}
"""Policies by name."""


def _even(layers: int, pp: int, vpp: int, order: Iterable[int]) -> LayerCounts:
    """Spread layers over chunks; what is left over goes to stages in the given order, one each. With several chunks nothing may be left."""
    chunks = pp * vpp
    if layers < chunks:
        raise InputError(f"pp={pp} x vpp={vpp} = {chunks} chunks, but the model has {layers} layers; lower pp or vpp")
    base, extra = divmod(layers, chunks)
    if vpp > 1 and extra:
        raise InputError(f"pp={pp} x vpp={vpp} = {chunks} does not divide layers={layers}, as it has to with vpp > 1; choose a divisor of {layers}")
    favoured = set(list(order)[:extra])
    return tuple((base + (stage in favoured),) * vpp for stage in range(pp))


def checked(split: LayerCounts, layers: int, pp: int, vpp: int) -> LayerCounts:
    """Return a split, if it is one: ``pp`` stages of ``vpp`` chunks, no chunk empty, every layer placed once.

    Raises
    ------
    InputError
        If it is not.
    """
    if len(split) != pp or any(len(stage) != vpp for stage in split):
        raise InputError(f"layer split {split}: give {pp} stages of {vpp} chunks")
    counts = [count for stage in split for count in stage]
    if min(counts) < 1 or sum(counts) != layers:
        raise InputError(f"layer split {split}: give every chunk at least one layer, {layers} in all (they are {sum(counts)})")
    return split
