"""What an operation counts as, for budgets, critical paths and pictures."""

from __future__ import annotations

from collections.abc import Container, Iterable

from simtrain.engine.metrics import AXES, axis_label
from simtrain.graph.template import COMMUNICATION, Kind, Op, Template

COMPUTE = ("forward", "backward", "recompute", "update")
CATEGORIES = (*COMPUTE, *AXES, "host", "idle")
"""What a rank does; where several go on at once, the first of them counts. ``update`` is the optimizer and whatever else computes."""

_BACKWARD = (".backward", ".dgrad", ".wgrad")


def forward_names(pairs: Iterable[tuple[Op, Template]]) -> frozenset[str]:
    """Return the names of all operations of forward passes."""
    return frozenset(op.name for op, template in pairs if template.name.startswith("forward"))


def category(op: Op, template: Template, forwards: Container[str]) -> str:
    """Return what an operation of a template counts as; a forward kernel inside a backward pass is a recomputation.

    Parameters
    ----------
    forwards
        See :func:`forward_names`.
    """
    if op.kind in COMMUNICATION:
        return axis_label(op.axis)
    if op.kind in (Kind.HOST, Kind.COPY):
        return "host"
    if op.name.endswith(_BACKWARD):
        return "backward"
    if template.name.startswith("backward"):
        return "recompute" if op.name in forwards else "backward"
    return "forward" if template.name.startswith("forward") else "update"
