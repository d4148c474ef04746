"""How functions are compiled: cached on disk, division without Python's checks, exact arithmetic (fastmath off).

State is passed as tuples of arrays. Numba counts references to each array of a tuple at each call, and passes the tuple on the
stack; for functions as small as these both cost several times the work. Functions that allocate nothing need no counting, and small
ones are inlined, which made the simulation of flows twenty times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function that may allocate arrays."""
    return _njit(function)


def unmanaged(function: Function) -> Function:
    """Compile a function that allocates nothing."""
    return _njit(function, _nrt=False)


def inlined(function: Function) -> Function:
    """Compile a small function that allocates nothing into each of its callers."""
    return _njit(function, _nrt=False, forceinline=True)


def _njit(function: Function, **options: bool) -> Function:
    compile_function: Any = njit
    return compile_function(cache=True, error_model="numpy", **options)(function)
