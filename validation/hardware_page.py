"""Adds a row to ``docs/hardware.md`` for each shipped file that it does not list: ``python -m validation.hardware_page``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from simtrain.hardware import Accelerator, Cluster, Node, Software
from simtrain.spec import NamedSpec

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hardware.md"


def accelerator(name: str) -> list[str]:
    a = Accelerator.load(name)
    peaks = [f"{a.peak[dtype] / 1e12:g}" if dtype in a.peak else "-" for dtype in ("fp32", "fp16", "bf16", "fp8", "nvfp4")]
    # Capacity as vendors print it: gibibytes in the file, gigabytes in the table.
    memory, tdp = f"{a.memory_capacity / 2**30:.0f}", f"{a.tdp:g}" if a.tdp else "-"
    return [*peaks, memory, f"{a.memory_bandwidth / 1e9:g}", tdp, f"`{a.kernels.name}`", source(a)]


def node(name: str) -> list[str]:
    n = Node.load(name)
    up, nic = n.scale_up, n.nic
    rate = "-" if up.kind == "none" else f"{up.bandwidth / 1e9:g} x {up.efficiency:.2f}"
    cards = f"{nic.count} x {nic.bandwidth * 8 / 1e9:g}G x {nic.efficiency:g}"
    return [f"{n.num_accelerators} x `{n.accelerator.name}`", up.kind, rate, cards, f"{n.nic_bandwidth_per_accelerator / 1e9:.3g}", source(n)]


def cluster(name: str) -> list[str]:
    c = Cluster.load(name)
    where = c.topology.kind if c.topology.kind == "flat" else f"{c.topology.kind}, {c.topology.nodes_per_leaf} per leaf"
    extras = f"fabric x {c.fabric_efficiency:g}" if c.fabric_efficiency < 1 else "-"
    return [f"{c.num_nodes} x `{c.node.name}`", str(c.num_accelerators), where, f"{c.topology.oversubscription:g}:1", extras, source(c)]


def software(name: str) -> list[str]:
    s = Software.load(name)
    parts = ("norm", "softmax", "activation", "dropout", "cross_entropy")
    unfused = ", ".join(part.replace("_", "-") for part in parts if not getattr(s, f"is_{part}_fused")) or "-"
    return [str(s.year), s.attention, unfused, f"{s.host_op_time * 1e6:g} us", f"{s.gradient_bytes:g}", s.description]


def source(spec: NamedSpec) -> str:
    return spec.sources[0].split(":")[0] if spec.sources else "-"


TABLES: Sequence[tuple[str, type[NamedSpec], Callable[[str], list[str]]]] = (
    ("## Accelerators", Accelerator, accelerator), ("## Nodes", Node, node), ("## Clusters", Cluster, cluster), ("## Software eras", Software, software),
)  # fmt: skip


def main() -> None:
    """Write the page with a row for every file."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for heading, kind, row in TABLES:
        start = next(i for i in range(lines.index(heading), len(lines)) if lines[i].startswith("|---")) + 1
        end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
        rows = {line.split("`")[1]: line for line in lines[start:end]}
        for name in kind.names():
            rows.setdefault(name, " | ".join([f"| `{name}`", *row(name)]) + " |")
        lines[start:end] = [rows[name] for name in sorted(rows)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
