"""A binary heap of small integers ordered by keys that may change while they are in it (compiled).

``heap`` holds items, ``place`` the position of each item in it (-1: absent), ``key`` the key of each item. The number of
items in use is the caller's, because compiled functions do not resize arrays.
"""

from __future__ import annotations

import numpy as np

from simtrain.engine.arrays import Keys, Numbers
from simtrain.engine.compiled import inlined


@inlined
def sift_up(heap: Numbers, place: Numbers, key: Keys, position: int) -> None:
    """Restore the order after the key of the item at a position became smaller."""
    item = heap[position]
    own = key[item]
    while position > 0:
        parent = (position - 1) >> 1
        above = heap[parent]
        if key[above] <= own:
            break
        heap[position] = above
        place[above] = position
        position = parent
    heap[position] = item
    place[item] = position


@inlined
def sift_down(heap: Numbers, place: Numbers, key: Keys, size: int, position: int) -> None:
    """Restore the order after the key of the item at a position became larger."""
    item = heap[position]
    own = key[item]
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and key[heap[child + 1]] < key[heap[child]]:
            child += 1
        below = heap[child]
        if own <= key[below]:
            break
        heap[position] = below
        place[below] = position
        position = child
    heap[position] = item
    place[item] = position


@inlined
def push(heap: Numbers, place: Numbers, key: Keys, size: int, item: int) -> int:
    """Insert an item whose key is set; return the new size."""
    heap[size] = item
    sift_up(heap, place, key, size)
    return size + 1


@inlined
def remove(heap: Numbers, place: Numbers, key: Keys, size: int, item: int) -> int:
    """Take an item out; return the new size."""
    position = place[item]
    place[item] = -1
    size -= 1
    if position < size:
        last = heap[size]
        heap[position] = last
        place[last] = position
        if position > 0 and key[last] < key[heap[(position - 1) >> 1]]:
            sift_up(heap, place, key, position)
        else:
            sift_down(heap, place, key, size, position)
    return size


@inlined
def heapify(heap: Numbers, place: Numbers, key: Keys, size: int) -> None:
    """Order the whole heap anew; cheaper than moving items singly when many keys changed."""
    for position in range(size // 2 - 1, -1, -1):
        sift_down(heap, place, key, size, position)


def empty_heap(items: int) -> tuple[Numbers, Numbers]:
    """Return ``heap`` and ``place`` for that many items."""
    return np.zeros(items, np.int32), np.full(items, -1, np.int32)
