"""Clusters, models and hand-written steps small enough to be checked with pencil and paper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simtrain.graph.mesh import Mesh
from simtrain.graph.step import Do, Instruction, RankClass, Step
from simtrain.graph.template import LINKS_OF, Kind, Link, Op, Template
from simtrain.hardware import Accelerator, Cluster, Kernels, Nic, Node, ScaleUp, Software, Topology
from simtrain.model import Transformer
from simtrain.workload import Pretraining

TICK = 2.0**-40
"""One tick of the time grid. [s]"""


def accelerator(memory: float = 1e15) -> Accelerator:
    """A device with round numbers and enough memory for anything."""
    kernels = Kernels(
        status="assumed",
        gemm={"bf16": {"efficiency": 0.5}, "fp16": {"efficiency": 0.5}},  # pyright: ignore[reportArgumentType]
        attention={"flash2": {"forward": 0.5, "backward": 0.5}},  # pyright: ignore[reportArgumentType]
        launch=0.0,
    )
    return Accelerator(vendor="test", peak={"bf16": 1e14, "fp16": 1e14}, sms=100, memory_capacity=memory, memory_bandwidth=1e12, kernels=kernels)


def cluster(nodes: int = 8, per_node: int = 8, *, nics: int | None = None, scale_up: float = 64.0, nic: float = 8.0) -> Cluster:
    """A cluster whose links have the given whole rates. [B/s] of one port and of one card"""
    return Cluster(
        name="tiny",
        node=Node(
            accelerator=accelerator(),
            num_accelerators=per_node,
            scale_up=ScaleUp(kind="nvswitch", bandwidth=scale_up, efficiency=1.0),
            nic=Nic(count=per_node if nics is None else nics, bandwidth=nic, efficiency=1.0),
        ),
        num_nodes=nodes,
        topology=Topology(kind="flat"),
    )


SOFTWARE = Software(name="tiny", year=2024, attention="flash2")
UNFUSED = Software(name="tiny_unfused", year=2022, attention="unfused")
MODEL = Transformer(name="tiny", layers=8, hidden=256, heads=8, ffn=1024, vocab=1024, max_seq_len=256, dropout=0.1, has_bias=False, norm="rmsnorm")


def job(batch: int, model: Transformer = MODEL, seq_len: int = 256, dtype: str = "bf16") -> Pretraining:
    """One step of a tiny model."""
    return Pretraining(name="tiny", model=model, seq_len=seq_len, global_batch_size=batch, dtype=dtype)  # pyright: ignore[reportArgumentType]


# -- steps by hand -------------------------------------------------------------------------------------------------------------


def compute(seconds: float, *deps: int, stream: str = "compute", name: str = "work", flops: float = 0.0) -> Op:
    """A kernel."""
    return Op(name, Kind.COMPUTE, stream, seconds, deps=deps, flops=flops)


def transfer(
    nbytes: float,
    rate: float,
    *deps: int,
    latency: float = 0.0,
    axis: str = "dp",
    link: str = "nic",
    stream: str = "",
    holds_sms: bool = False,
    name: str = "move",
) -> Op:
    """A collective that moves ``nbytes`` per member over its NIC or scale-up port."""
    return Op(name, Kind.COLLECTIVE, stream or axis, latency, nbytes, rate, axis, LINKS_OF[link], payload=nbytes, deps=deps, holds_sms=holds_sms)


def message(nbytes: float, rate: float, *, is_send: bool, latency: float = 0.0, link: str = "nic", stream: str = "") -> Template:
    """One end of a point-to-point message."""
    out, into = (Link.NIC_OUT, Link.NIC_IN) if link == "nic" else (Link.SCALE_UP_OUT, Link.SCALE_UP_IN)
    kind, name = (Kind.SEND, "send") if is_send else (Kind.RECV, "recv")
    return Template(name, [Op(name, kind, stream or name, latency, nbytes, rate, "pp", out if is_send else into)], (0,))


def template(*ops: Op, exits: Iterable[int] | None = None, name: str = "piece") -> Template:
    """A template; it ends with the last operation of every stream unless told otherwise."""
    last = {op.stream: i for i, op in enumerate(ops)}
    return Template(name, list(ops), tuple(sorted(last.values())) if exits is None else tuple(exits))


def step(programs: Sequence[Sequence[Instruction | Template]], *, axes: Mapping[str, int] | None = None) -> Step:
    """A step with one class per program, along ``pp``; the other axes are folded."""
    mesh = Mesh((*(axes or {}).items(), ("pp", len(programs))))
    copies = mesh.world_size // len(programs)
    classes = [
        RankClass({"pp": i}, copies, [x if not isinstance(x, Template) else Do(x) for x in program]) for i, program in enumerate(programs)
    ]  # fmt: skip
    return Step(mesh, classes, 0.0, 0.0, 0.0, "bf16")


def rows(trace: Any) -> list[tuple[int, str, float, float]]:
    """Rank, name, start and end of every row. [s]"""
    g = trace.graph
    return [(g.ranks[g.rank[i]], g.table.ops[g.op[i]].name, float(trace.start[i]), float(trace.end[i])) for i in range(len(g))]


def ends(trace: Any) -> dict[tuple[int, str], float]:
    """End of each row by rank and name; names have to be unique on a rank. [s]"""
    found = {(rank, name): end for rank, name, _, end in rows(trace)}
    assert len(found) == len(trace.graph)
    return found


def instruction_ends(trace: Any) -> dict[tuple[int, int], float]:
    """End of each instruction on each represented rank, however many rows it was stamped into. [s]"""
    g = trace.graph
    found: dict[tuple[int, int], float] = {}
    for i in range(len(g)):
        key = (g.ranks[g.rank[i]], int(g.instance[i]))
        found[key] = max(found.get(key, 0.0), float(trace.end[i]))
    return found


def budget_errors(one: Sequence[Any], two: Sequence[Any], relative: float = 1e-12) -> list[str]:
    """Where two lists of time budgets differ by more than rounding."""
    found: list[str] = []
    for rank, (a, b) in enumerate(zip(one, two, strict=True)):
        for name in ("compute", "flops", "exposed", "communication", "link_bytes", "sent"):
            x, y = getattr(a, name), getattr(b, name)
            mine, theirs = (x, y) if isinstance(x, dict) else ({"": x}, {"": y})
            for key in sorted({*mine, *theirs}, key=str):
                u, v = mine.get(key, 0.0), theirs.get(key, 0.0)
                if abs(u - v) > relative * max(abs(u), abs(v)) + 1e-15:
                    found.append(f"rank {rank} {name} {key}: {u!r} {v!r}")
    return found
