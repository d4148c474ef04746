"""One training step as the programs of its rank classes, before anything is stamped into rows.

A rank class stands for all ranks that do the same at the same time (all data- and tensor-parallel copies of a
pipeline stage). Its program is a list of instructions over templates.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simtrain.graph.mesh import Mesh
from simtrain.graph.template import Template

CONTEXT = "context"
"""Memory part outside the framework's allocator: it counts for what fits, not for the allocated peak."""


class Do(NamedTuple):
    """Run a template after the frontier.

    Parameters
    ----------
    template
        What to run.
    key
        Under a key it runs aside and is waited on later; without one, the program goes on after it.
    microbatch, chunk
        For traces.
    message
        Both ends of a send and its receive carry the same message.
    leaves
        Key under which what the template leaves open is waited on later.
    """

    template: Template
    key: Hashable = None
    microbatch: int = -1
    chunk: int = -1
    message: Hashable = None
    leaves: Hashable = None


class Wait(NamedTuple):
    """Let the rest of the program wait for what runs under a key."""

    key: Hashable


Instruction = Do | Wait


@dataclass
class RankClass:
    """Ranks that run one program."""

    coordinates: dict[str, int]
    """Mesh coordinates that tell the class from others (its pipeline stage)."""
    multiplicity: int
    """Ranks it stands for."""
    program: Sequence[Instruction] = field(default_factory=list[Instruction])
    memory: dict[str, float] = field(default_factory=dict[str, float])
    """Peak bytes by part. [B]"""


@dataclass
class Step:
    """All rank classes of one step."""

    mesh: Mesh
    classes: list[RankClass]
    tokens: float
    """Tokens processed by all ranks."""
    model_flops: float
    """Useful FLOPs of the step, full-square attention where the model says so; recomputation not counted. [FLOP]"""
    model_flops_causal: float
    """The same with attention counted over the causal half. [FLOP]"""
    dtype: str
    notes: list[str] = field(default_factory=list[str])
    """Assumptions the user should see."""


def allocated_bytes(memory: Mapping[str, float]) -> float:
    """Return what the framework's allocator holds: everything but the context. [B]"""
    return sum(nbytes for part, nbytes in memory.items() if part != CONTEXT)
