"""How functions are compiled: cached on disk, division without Python's checks, exact arithmetic (fastmath off).

State is passed as tuples of arrays. Numba counts references to each array of a tuple at each call, and passes the tuple on the
stack; for functions as small as these both cost several times the work. Functions that allocate nothing need no counting, and small
ones are inlined, which made the simulation of flows twenty times as fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

from simtrain.engine.fairshare import RATE_UNIT
from simtrain.graph.grid import GRID
from simtrain.graph.template import LINK_CLASSES

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function that may allocate arrays."""
    return _njit(function)


def unmanaged(function: Function) -> Function:
    """Compile a function that allocates nothing."""
    return _njit(function, _nrt=False)


def called(function: Function) -> Function:
    """Compile a function that allocates nothing, for compiled ones alone: it is kept on disk with them.

    Kept by itself it would be found there after a change of another file whose functions are inlined into it.
    """
    return _njit(function, cache=False, _nrt=False)


def inlined(function: Function) -> Function:
    """Compile a small function that allocates nothing into each of its callers; it is kept on disk with them, see :func:`called`."""
    return _njit(function, cache=False, _nrt=False, forceinline=True)


def entry(sources: Iterable[str | Path]) -> Callable[[Function], Function]:
    """Compile the outermost function of several files, and compile it anew when any of these changes.

    Numba's cache looks at the file of the outermost function alone, so that a change elsewhere would go unnoticed. It has no public
    way to say what else to look at; a version without the attribute set here behaves as numba does otherwise.

    Parameters
    ----------
    sources
        Files of all functions and tuples that the function uses.
    """
    hasher = hashlib.sha256(repr((GRID, RATE_UNIT, [int(c) for c in LINK_CLASSES])).encode())
    for source in sorted(map(Path, [*sources, __file__])):
        hasher.update(source.read_bytes())

    def compile_entry(function: Function) -> Function:
        dispatcher: Any = unmanaged(function)
        cache_file: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
        if hasattr(cache_file, "_source_stamp"):
            cache_file._source_stamp = hasher.hexdigest()
        return dispatcher

    return compile_entry


def is_cached(dispatcher: Any) -> bool:
    """Whether an outermost function is compiled, in this process or on disk; numba has no public question for the latter."""
    if dispatcher.overloads:
        return True
    try:
        return bool(dispatcher._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False


def _njit(function: Function, **options: bool) -> Function:
    compile_function: Any = njit
    try:
        return compile_function(error_model="numpy", **{"cache": True, **options})(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written: every process compiles for itself
        return compile_function(error_model="numpy", **options)(function)
