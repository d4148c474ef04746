"""The tape that a recorder writes: recorded verbs in their regions, the bytes that they keep, and the passes derived from them.

As in autograd, the backward pass is the tape read from its end, every verb by its own backward. Regions that are not saved are run forward again
just before their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from simtrain.cost.model import CostModel
from simtrain.cost.placement import Group
from simtrain.errors import InputError
from simtrain.graph.gradient_flow import GradientFlow
from simtrain.graph.mesh import Mesh
from simtrain.graph.program import Handle, Program
from simtrain.graph.recordings import NotedMesh, Reads
from simtrain.graph.template import Kind, Template

Emit = Callable[[Program], None]

Needs = Literal["nothing", "input", "output", "wait"]
"""What the backward of a verb reads: nothing (a sum), its input (a product), what it makes too; a wait has no work and is never left out."""
LAYERS = frozenset({"layer", "chosen_layer"})
"""Regions that are checkpointed as a whole: nothing outside reads what they make."""


def nothing(_: Program) -> None:
    """Emit no operation."""


@dataclass
class Node:
    """One recorded verb: how to emit its forward and its backward, and what it keeps in between."""

    forward: Emit
    backward: Emit
    saves: float = 0.0
    """Bytes kept from forward to backward. [B]"""
    workspace: float = 0.0
    """Gradients alive while the backward runs. [B]"""
    regions: tuple[tuple[str, int], ...] = ()
    """Names and instances of the enclosing regions, outermost first."""
    needs: Needs = "output"
    """What its backward reads of its forward."""


@dataclass(frozen=True)
class Piece:
    """What was recorded, in the form in which it is stamped."""

    forward: Template
    backward: Template
    parameters: float
    """Held by this rank, experts among them."""
    expert_parameters: float
    """Those of experts."""
    saved: float
    """Kept from one forward to its backward. [B]"""
    peak: float
    """Most that the backward of one microbatch holds beyond what is saved when it begins. [B]"""
    freed: float
    """Saved bytes that are gone at the end of the backward. [B]"""
    is_closed: bool
    """Whether all of it is over at its end, in both directions, so that it can be repeated."""


@dataclass
class Tape:
    """What one rank of a mesh does, verb by verb.

    Parameters
    ----------
    mesh
        Degrees of the axes.
    costs
        Seconds of everything on this cluster under this software.
    coordinates
        Of the representative rank: its group along each axis gives the span of its collectives.
    recompute
        Regions whose activations are not saved; ``{"layer"}`` is full recomputation.
    """

    mesh: Mesh
    costs: CostModel
    coordinates: dict[str, int] = field(default_factory=dict[str, int])
    recompute: frozenset[str] = frozenset()
    nodes: list[Node] = field(default_factory=list[Node])
    parameters: float = 0.0
    """Parameters held by this rank."""
    expert_parameters: float = 0.0
    """Those among them of experts that no other rank of the data-parallel group holds; their gradients need no reduction."""
    num_layers: int = 0
    """Layers recorded so far, the current one included."""
    gradients: GradientFlow | None = None
    """Where the backward being emitted sends gradients; None while gradients are still accumulated."""
    reads: Reads = field(default_factory=Reads)
    """What was asked of the mesh."""
    _regions: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    _unwaited: dict[int, str] = field(default_factory=dict[int, str])
    _instances: int = 0
    _direction: str = ""

    def __post_init__(self) -> None:
        self._plain = self.mesh.plain if isinstance(self.mesh, NotedMesh) else self.mesh

    # -- structure ---------------------------------------------------------------------------------------

    def size(self, axis: str) -> int:
        """Return the degree of a mesh axis."""
        return self.reads.note("size", axis, self._plain.size(axis))

    def group(self, axis: str) -> Group:
        """Return the ranks of this rank's communicator along an axis, or several joined by ``_``."""
        group = self._plain.block(axis, self.coordinates)
        self.reads.note("span", axis, self.costs.span(group))
        return group

    @contextmanager
    def region(self, name: str, saves: float = 0.0) -> Generator[None, None, None]:
        """Name a part of the program, so that recomputation can choose it.

        Parameters
        ----------
        name
            Such as ``core_attention``.
        saves
            Bytes kept when the region is recomputed: its inputs, unless something outside keeps them. [B]
        """
        self._instances += 1
        mark = (name, self._instances)
        if self._is_recomputed(tuple(self._regions)):
            saves = 0.0
        self._regions.append(mark)
        if name in self.recompute:
            self.nodes.append(Node(nothing, nothing, saves, 0.0, tuple(self._regions)))
        yield
        self._regions.pop()

    @contextmanager
    def layer(self, saves: float = 0.0, *, is_chosen: bool = False, collectives: int = 0, expert_blocks: int = 0) -> Generator[None, None, None]:
        """Enclose one layer: the region ``layer``, floored by the time its launches take on the host.

        ``collectives`` are those between tensor-parallel ranks each way, ``expert_blocks`` counts mixtures of experts.
        With ``is_chosen`` it is a region ``chosen_layer`` too, for recomputation of some layers only.
        """
        forward_host, backward_host = self.costs.host_floor(collectives, expert_blocks)
        state: dict[str, Handle] = {}
        self.num_layers += 1

        def begin(seconds: float) -> Emit:
            def emit(p: Program) -> None:
                state["host"] = p.aside("launch", seconds, "host", Kind.HOST)

            return emit

        def end(p: Program) -> None:
            p.wait(state["host"])

        with self.region("layer", saves):
            with self.region("chosen_layer", saves) if is_chosen else nullcontext():
                if forward_host:
                    self.record(begin(forward_host), end)
                yield
                if forward_host:
                    self.record(end, begin(backward_host), needs="wait")

    @contextmanager
    def forward_only(self) -> Generator[None, None, None]:
        """What is recorded inside has no backward."""
        self._direction = "forward"
        yield
        self._direction = ""

    @contextmanager
    def backward_only(self) -> Generator[None, None, None]:
        """What is recorded inside runs, as written, only when the backward pass reaches this place."""
        self._direction = "backward"
        yield
        self._direction = ""

    def record(self, forward: Emit, backward: Emit, saves: float = 0.0, workspace: float = 0.0, needs: Needs = "output") -> None:
        """Record a verb by what it emits in each direction; all other verbs come down to this one.

        Parameters
        ----------
        forward, backward
            Called with the program that is being written.
        saves
            Bytes kept from one to the other. [B]
        workspace
            Gradients alive while the backward runs. [B]
        needs
            What the backward reads of the forward.
        """
        if self._direction == "forward":
            backward = nothing
        elif self._direction == "backward":
            forward, backward, saves = nothing, forward, 0.0
        self.nodes.append(Node(forward, backward, saves, workspace, tuple(self._regions), needs))

    # -- results -----------------------------------------------------------------------------------------

    def _is_recomputed(self, regions: tuple[tuple[str, int], ...]) -> bool:
        return any(name in self.recompute for name, _ in regions)

    @property
    def saved_bytes(self) -> float:
        """Activations kept from one forward to its backward. [B]"""
        return sum(node.saves for node in self.nodes if self._is_kept(node))

    def _is_kept(self, node: Node) -> bool:
        """Whether what a node saves lasts until its backward: outside recomputed regions, and as the input of one that is in no other."""
        inside = [name for name, _ in node.regions if name in self.recompute]
        return not inside or (len(inside) == 1 and node.forward is nothing and node.backward is nothing)

    @property
    def backward_peak(self) -> float:
        """Most bytes that the backward of one microbatch holds beyond what was saved for it. [B]

        Recomputed regions come back whole; what is saved is freed as the backward passes; each operation
        holds its gradients.
        """
        recomputed: dict[int, float] = {}
        for node in self.nodes:
            mark = self._recompute_mark(node)
            if mark is not None and not self._is_kept(node):  # the region's input is saved, hence there already
                recomputed[mark] = recomputed.get(mark, 0.0) + node.saves
        alive = most = 0.0
        seen: set[int] = set()
        for node in reversed(self.nodes):
            mark = self._recompute_mark(node)
            if mark is not None and mark not in seen:
                seen.add(mark)
                alive += recomputed.get(mark, 0.0)
            most = max(most, alive + node.workspace)
            alive -= node.saves
        return most

    def _recompute_mark(self, node: Node) -> int | None:
        """Return the instance of the outermost recomputed region around a node."""
        return next((instance for name, instance in node.regions if name in self.recompute), None)

    def _repeated(self, mark: int) -> list[Node]:
        """Return what a recomputed region runs again: all of it, or a layer only as far as its backward reads it."""
        nodes = [node for node in self.nodes if self._recompute_mark(node) == mark]
        outermost = next(name for name, instance in nodes[0].regions if instance == mark)
        if not self.costs.software.stops_recomputing or outermost not in LAYERS:
            return nodes
        last = next((i for i in reversed(range(len(nodes))) if nodes[i].needs in ("input", "output")), -1)
        end = last + (last >= 0 and nodes[last].needs == "output")
        return nodes[:end] + [node for node in nodes[end:] if node.needs == "wait"]

    def piece(self, name: str) -> Piece:
        """Return both directions of what was recorded, and what it holds.

        Parameters
        ----------
        name
            Name of the forward template.
        """
        is_closed, held = not self._unwaited, (self.parameters, self.expert_parameters)
        if not is_closed:  # its other end is recorded elsewhere
            return Piece(Template(name), Template(name), *held, self.saved_bytes, 0.0, 0.0, is_closed)
        forward = self._forward(name)
        backward = self._backward(f"{name}.backward")
        is_closed = not (forward.dangling or backward.dangling)
        return Piece(forward.template(), backward.template(), *held, self.saved_bytes, self.backward_peak, self.saved_bytes, is_closed)

    def forward(self, name: str, before_layer: Callable[[Program, int], None] | None = None) -> Template:
        """Return the forward pass of what was recorded.

        Parameters
        ----------
        name
            Name of the template.
        before_layer
            Called before each layer (0 is the first recorded) and, with -1, before everything, to emit what the layer has to wait for.
        """
        return self._forward(name, before_layer).template()

    def _forward(self, name: str, before_layer: Callable[[Program, int], None] | None = None) -> Program:
        program = Program(name)
        starts = self._layer_starts()
        if before_layer is not None:
            before_layer(program, -1)
        for index, node in enumerate(self.nodes):
            if before_layer is not None and index in starts:
                before_layer(program, starts[index])
            node.forward(program)
        return program

    def _layer_starts(self) -> dict[int, int]:
        """Return the number of each layer by the position of its first verb."""
        layers = sorted({n.regions[0][1] for n in self.nodes if n.regions and n.regions[0][0] == "layer"})
        first = {layer: next(i for i, n in enumerate(self.nodes) if n.regions and n.regions[0] == ("layer", layer)) for layer in layers}
        return {index: layers.index(layer) for layer, index in first.items()}

    def backward(self, name: str, after_layer: Callable[[Program, int], None] | None = None) -> Template:
        """Return the backward pass: recomputed regions run forward again just before their gradients.

        Parameters
        ----------
        name
            Name of the template.
        after_layer
            Called when the gradients of a layer (0 for the first recorded) are complete, to emit their
            reduction; what it leaves open is waited on by the caller.

        Raises
        ------
        InputError
            If an asynchronous collective was never waited for: the gradient's collective starts at the wait.
        """
        return self._backward(name, after_layer).template(leave_open=after_layer is not None)

    def _backward(self, name: str, after_layer: Callable[[Program, int], None] | None = None) -> Program:
        if self._unwaited:
            raise InputError(f"recorded but never waited for: {', '.join(self._unwaited.values())}; its gradient would be lost, so wait() for it")
        program = Program(name)
        done: set[int] = set()
        ends = self._layer_starts()
        for index in reversed(range(len(self.nodes))):
            node = self.nodes[index]
            mark = self._recompute_mark(node)
            if mark is not None and mark not in done:
                done.add(mark)
                for again in self._repeated(mark):
                    again.forward(program)
            node.backward(program)
            if after_layer is not None and index in ends:
                after_layer(program, ends[index])
        return program
