"""Errors a user can meet. Each message says where, what, what is allowed and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimtrainError(Exception):
    """Base of all errors raised on purpose; the command line prints them without a traceback."""

    exit_code = 2


class InputError(SimtrainError, ValueError):
    """Bad input: a YAML file, a parameter or a command line that cannot be used."""


class UnknownNameError(InputError):
    """A name that is not shipped and not a path."""


class InfeasibleError(InputError):
    """The configuration does not fit into the memory of the accelerator.

    Parameters
    ----------
    message
        What does not fit, and where.
    table
        Rows (part, bytes per accelerator) that make up the demand. [B]
    """

    def __init__(self, message: str, table: Iterable[tuple[str, float]] = ()) -> None:
        self.table = tuple(table)
        lines = [message, *(f"  {part:<28s} {nbytes / 1e9:9.2f} GB" for part, nbytes in self.table)]
        super().__init__("\n".join(lines))


class UnsupportedError(InputError):
    """A combination that is meaningful but not modelled."""


class ToleranceError(SimtrainError):
    """A prediction lies outside its stated tolerance, or a regression was found."""

    exit_code = 1


def did_you_mean(word: str, known: Iterable[str], show: int = 8) -> str:
    """Return a hint that lists the names nearest to a mistyped one.

    Parameters
    ----------
    word
        What the user wrote.
    known
        What would have been allowed.
    show
        How many allowed names to list when none is near.

    Examples
    --------
    >>> did_you_mean("latencey", ["latency", "bandwidth"])
    "did you mean 'latency'?"
    >>> did_you_mean("h100", ["a100_sxm_80gb", "h100_sxm_80gb", "h100_pcie"])
    "did you mean 'h100_pcie' or 'h100_sxm_80gb'?"
    """
    names = sorted({str(name) for name in known})
    longer = [name for name in names if len(word) > 2 and word in name]
    near = list(dict.fromkeys([*longer, *difflib.get_close_matches(word, names, n=3, cutoff=0.6)]))[:3]
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    listed = ", ".join(names[:show]) + (", ..." if len(names) > show else "")
    return f"allowed: {listed}" if names else "nothing is allowed here"
