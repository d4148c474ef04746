"""What one evaluation leaves for the next: costs, recordings, programs, graphs, composites.

Whoever makes many evaluations owns one :class:`Reuse` and passes it along; a single run makes its own. Everything in it is keyed by
all it depends on, so it changes no result, and its size is bounded. Objects are compared by identity and kept while they are a key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import count
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar, cast

from simtrain.cost.model import CostModel
from simtrain.engine.composite import Composer
from simtrain.engine.replay import Fidelity
from simtrain.graph.columns import Columns, concatenate, in_line
from simtrain.graph.graph import Shapes
from simtrain.graph.mesh import Mesh
from simtrain.graph.pipeline_columns import Pipeline, Shape, pipeline_columns
from simtrain.graph.recorder import Piece
from simtrain.graph.recordings import FIELD, Questions, Reads, Recordings
from simtrain.graph.template import Joined, Template
from simtrain.hardware import Cluster, Software
from simtrain.model import Transformer
from simtrain.systems.base import System

T = TypeVar("T")
S = TypeVar("S", bound=System)


class Recent(Generic[T]):
    """What was used recently, by key. To find an entry is one look: when the young generation is full, it takes the place of the old one, which is forgotten.

    Parameters
    ----------
    most
        Entries that are kept at most; the half that was used last is always kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._young: dict[Hashable, T] = {}
        self._old: dict[Hashable, T] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the entry of a key, made if there is none."""
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is None:
                found = make()
            if len(self._young) >= self.most // 2:
                self._young, self._old = {}, self._young
            self._young[key] = found
        return found


class Reuse:
    """Everything that evaluations can share."""

    def __init__(self) -> None:
        self.pieces = Recordings[Piece]()
        self.shapes = Shapes()
        self._costs = Recent[tuple[CostModel, tuple[object, ...]]](64)
        self._composers = Recent[Composer](64)
        self._pipelines = Recent[Pipeline](512)
        self._joined = Recent[Joined](4096)
        self._programs = Recent[Appended](1024)
        self._endings = Recent[Columns](64)
        self._templates = Recent[Template](4096)
        self._flops = Recent[float](256)
        self._seats = Recent[Seats](1024)
        self._meshes = Recent[Mesh](1024)
        self._messages = Recent[tuple[Template, ...]](4096)

    def costs(self, cluster: Cluster, software: Software, dtype: str, model: Transformer) -> CostModel:
        """Return the costs of these, with what they have computed so far."""
        key = (id(cluster), id(software), dtype, id(model))
        return self._costs.of(key, lambda: (CostModel(cluster, software, dtype, model), (cluster, software, model)))[0]

    def composer(self, cluster: Cluster, fidelity: Fidelity, slowdown: float) -> Composer:
        """Return the composites made on a cluster so far."""
        return self._composers.of((id(cluster), fidelity, slowdown), lambda: Composer(cluster, fidelity, slowdown))

    def pipeline(self, shape: Shape) -> Pipeline:
        """Return the programs of a pipeline."""
        return self._pipelines.of(shape, lambda: pipeline_columns(shape))

    def joined(self, name: str, parts: Sequence[tuple[Template, int]]) -> Joined:
        """Return templates one after another."""
        return self._joined.of((name, *((id(template), count) for template, count in parts)), lambda: Joined(name, parts))

    def template(self, key: Hashable, make: Callable[[], Template]) -> Template:
        """Return what was made for a key that names all that it depends on."""
        return self._templates.of(key, make)

    def in_line(self, messages: tuple[Hashable, ...]) -> Columns:
        """Return a program that runs one template after another; each may be an end of a message."""
        return self._endings.of(messages, lambda: in_line(messages))

    def appended(self, pipeline: Pipeline, slots: int, last: Columns) -> Appended:
        """Return the programs of a pipeline with another behind each, whose slots follow the ``slots`` of the first."""
        return self._programs.of((Same(pipeline), Same(last)), lambda: Appended(pipeline, slots, last))

    def messages(self, key: Hashable, make: Callable[[], tuple[Template, ...]]) -> tuple[Template, ...]:
        """Return the ends of messages made for a key that names all that they depend on."""
        return self._messages.of(key, make)

    def mesh(self, axes: tuple[tuple[str, int], ...], folds: tuple[tuple[str, int, int], ...]) -> Mesh:
        """Return a mesh, which knows what was asked of it before."""
        return self._meshes.of((axes, folds), lambda: Mesh(axes, folds))

    def seats(self, costs: CostModel, mesh: Mesh, stages: int) -> Seats:
        """Return which stages sit alike; the same object for the same costs and an equal mesh."""
        return self._seats.of((Same(costs), mesh), lambda: _seats(costs, mesh, stages))

    def training_flops(self, model: Transformer, seq_len: int, is_causal: bool, window: int | None) -> float:
        """Return :meth:`simtrain.model.Transformer.training_flops`."""
        key = (Same(model), seq_len, is_causal, window)
        return self._flops.of(key, lambda: model.training_flops(seq_len, is_causal=is_causal, window=window))


class Appended:
    """The programs of a pipeline's stages with another behind each, written when somebody asks."""

    def __init__(self, pipeline: Pipeline, slots: int, last: Columns) -> None:
        self._pipeline, self._slots, self._last = pipeline, slots, last
        self._made: dict[int, Columns] = {}

    def of(self, stage: int) -> Columns:
        """Return the program of a stage."""
        if stage not in self._made:
            self._made[stage] = concatenate([self._pipeline.stages[stage], self._last], [self._slots, 0])
        return self._made[stage]


def watched(system: S, reads: Reads) -> S:
    """Return a copy of a system that notes which of its parameters are read, whoever reads them."""
    copy = object.__new__(_watched_class(type(system)))
    for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(copy, name, getattr(system, name))
    object.__setattr__(copy, "__dict__", {**system.__dict__, _READS: reads})
    return cast("S", copy)


class Seats(NamedTuple):
    """By stage, the first stage that sits alike: that is a number which is quick to compare, where placements are not."""

    inside: tuple[int, ...]
    """As far as the communicators of the stage go."""
    whole: tuple[int, ...]
    """Also as to the pairs with the stages after and before it."""
    number: int
    """Of the mesh and the costs that these belong to: no other seats have it."""


def _seats(costs: CostModel, mesh: Mesh, stages: int) -> Seats:
    stride = mesh.stride("pp")
    pairs = [costs.span((stage * stride, (stage + 1) % stages * stride)) for stage in range(stages)]
    axes = ("tp", "cp", "dp", "dp_cp", *(name for name, _, _ in mesh.folds))
    own = [tuple(costs.span(mesh.block(axis, {"pp": stage})) for axis in axes) for stage in range(stages)]
    whole = [(own[stage], pairs[stage], pairs[stage - 1]) for stage in range(stages)]
    return Seats(tuple(map(own.index, own)), tuple(map(whole.index, whole)), next(_NUMBERS))


_NUMBERS = count()


_READS = "_reads"


@cache
def _watched_class(cls: type[System]) -> type[System]:
    """Return a subclass whose instances note reads of fields: a subclass, so that ``super()`` works in what the system overrides."""
    fields = frozenset(cls.model_fields)

    def read(self: System, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if name in fields:
            cls.__getattribute__(self, "__dict__")[_READS].note(FIELD, name, comparable(value))
        return value

    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "__doc__": cls.__doc__, "__getattribute__": read})


class Same:
    """An object that equals itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def comparable(value: object) -> Hashable:
    """Return a value that can be compared quickly: itself if it is plain, else its identity."""
    return value if isinstance(value, (int, float, str, type(None))) else Same(value)


class Answers(Generic[S]):
    """Answers what a recording has read, by the parameters of one system on one mesh.

    Parameters
    ----------
    system, mesh, costs
        What recordings read.
    """

    def __init__(self, system: S, mesh: Mesh, costs: CostModel) -> None:
        self.system, self.mesh, self.costs = system, mesh, costs
        self._fields: dict[Questions, tuple[Hashable, ...]] = {}

    def at(self, coordinates: Mapping[str, int]) -> Callable[[Questions], tuple[Hashable, ...]]:
        """Return what answers on a rank with these coordinates."""
        return lambda questions: self._answers(questions, coordinates)

    def _answers(self, questions: Questions, coordinates: Mapping[str, int]) -> tuple[Hashable, ...]:
        read, rest = _sorted(questions)
        fields = self._fields.get(questions)
        if fields is None:  # those of the system are the same on all ranks
            fields = self._fields[questions] = tuple(map(comparable, read(self.system)))
        return *fields, *(self._other(*question, coordinates) for question in rest)

    def _other(self, kind: str, name: str, coordinates: Mapping[str, int]) -> Hashable:
        match kind:
            case "size":
                return self.mesh.size(name)
            case "span":
                return self.costs.span(self.mesh.block(name, coordinates))
            case _:
                return self.mesh


@lru_cache(maxsize=1024)
def _sorted(questions: Questions) -> tuple[Callable[[System], tuple[object, ...]], Questions]:
    """Return how to read the fields among the questions, all at once, and the other questions; fields come first."""
    fields = [name for kind, name in questions if kind == FIELD]
    read = attrgetter(*fields) if len(fields) > 1 else lambda system: tuple(getattr(system, name) for name in fields)
    return read, tuple(question for question in questions if question[0] != FIELD)
