"""Random streams keyed by what they are for, never by the order of calls.

References
----------
.. [1] Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """Return the generator of one named thing.

    Two systems under comparison that ask for ``stream(seed, "length", prompt)`` see the same numbers,
    whatever else they draw.

    Parameters
    ----------
    seed
        The run's seed.
    *key
        Names and indices that identify the entity.

    Examples
    --------
    >>> a = stream(1, "length", 7).integers(100)
    >>> b = stream(1, "length", 7).integers(100)
    >>> bool(a == b)
    True
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, key), "little")))


def uniforms(seed: int, *key: str | int, row: npt.ArrayLike = 0, column: npt.ArrayLike = 0) -> npt.NDArray[np.float64]:
    """Return one uniform number for each (row, column) of a named thing, whatever else is drawn.

    Where :func:`stream` gives one generator per entity, this gives many entities one number each in a few passes over an array: the number of an
    entity does not depend on how many others there are.

    Parameters
    ----------
    seed, *key
        As in :func:`stream`.
    row, column
        Indices of the entity and of its use, below 2^32; they broadcast.

    Returns
    -------
    numpy.ndarray
        Numbers in (0, 1), never 0 or 1; one element for scalars.

    Examples
    --------
    >>> few, many = uniforms(1, "failure", row=[0, 1]), uniforms(1, "failure", row=[1, 5, 0])
    >>> bool(few[0] == many[2] and few[1] == many[0])
    True
    """
    base = np.array([int.from_bytes(_digest(seed, key)[:8], "little")], dtype=np.uint64)  # of one element: scalars would warn when they wrap around
    rows, columns = np.asarray(row).astype(np.uint64), np.asarray(column).astype(np.uint64)
    value = _mix(_mix(base + (rows + np.uint64(1)) * _GOLDEN) + (columns + np.uint64(1)) * _GOLDEN)
    return ((value >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64: every input bit flips half of the output. [1]_"""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _digest(seed: int, key: tuple[str | int, ...]) -> bytes:
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
