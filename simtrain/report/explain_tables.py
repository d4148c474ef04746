"""What ``simtrain explain`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simtrain.report.labels import CATEGORY_NAMES, scale, system_title
from simtrain.report.terminal import escaped, new_console, new_table
from simtrain.study.explain import Explanation
from simtrain.study.explain.resources import RESOURCES

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 6
"""Operations, stages and waits that are printed."""
_SMALL = 5e-4
"""Shares of the step below which a wait is not worth a line."""


def print_explanation(explanation: Explanation) -> None:
    """Print the critical path, exposed communication, bubbles, waits, memory, and what each resource is worth."""
    console, result = new_console(), explanation.result
    whole = result.metrics["step_time"]
    unit = scale("step_time", [whole])
    s = result.scenario
    console.print(f"{system_title(s.system)}: {s.workload.name} on {s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}", markup=False)
    console.print(f"step time {unit.text(whole)}", markup=False)

    table = _headed("critical path", unit.unit)
    for name, seconds in explanation.on_path.items():
        table.add_row(CATEGORY_NAMES.get(name, name).removeprefix("exposed "), unit.number(seconds), _share(seconds / whole))
    console.print(table)

    table = _headed("longest operations on it", unit.unit)
    for category, name, count, seconds in explanation.operations[:_SHOWN]:
        table.add_row(escaped(f"{name} ({CATEGORY_NAMES[category].removeprefix('exposed ')}), {count:,} x"), unit.number(seconds), _share(seconds / whole))
    console.print(table)

    if explanation.communication:
        table = new_table()
        table.add_column("communication, mean over ranks")
        for title in ("in progress", "not hidden"):
            table.add_column(escaped(f"{title} [{unit.unit}]"), justify="right")
        table.add_column("hidden", justify="right")
        for axis, (moving, exposed) in explanation.communication.items():
            table.add_row(axis, unit.number(moving), unit.number(exposed), _share(max(0.0, 1 - exposed / moving)))
        console.print(table)
    _print_waits(explanation)

    memory = scale("peak_memory", explanation.memory.values())
    capacity = s.cluster.node.accelerator.memory_capacity
    table = _headed("memory of the fullest rank", memory.unit, "of capacity")
    for part, nbytes in sorted(explanation.memory.items(), key=lambda pair: -pair[1]):
        table.add_row(part, memory.number(nbytes), _share(nbytes / capacity))
    console.print(table)

    table = _headed("10 % better", unit.unit, "saves")
    table.add_column("per 1 %", justify="right")
    for gain in explanation.gains:
        table.add_row(RESOURCES[gain.resource], unit.number(gain.better), _share(gain.saved, 2), f"{gain.elasticity:.3f} %")
    console.print(table)


def _headed(title: str, unit: str, share: str = "of step") -> Table:
    table = new_table()
    table.add_column(escaped(title))
    table.add_column(escaped(f"[{unit}]"), justify="right")
    table.add_column(share, justify="right")
    return table


def _share(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def _print_waits(explanation: Explanation) -> None:
    console, whole = new_console(), explanation.result.metrics["step_time"]
    idle = sorted(explanation.bubbles, key=lambda entry: -entry[1])
    if len(idle) > 1:
        slowest = max(idle, key=lambda entry: entry[2])
        console.print(f"idle: most {_share(idle[0][1])} ({idle[0][0]}), least {_share(idle[-1][1])} ({idle[-1][0]})", markup=False)
        console.print(f"most compute: {slowest[0]}, {_share(slowest[2] / whole)} of the step", markup=False)
    waits = [w for w in explanation.stragglers if w[2] > _SMALL * whole and w[0] != w[1]][:_SHOWN]
    for mine, theirs, seconds in waits:
        console.print(f"{mine} waits for {theirs}: {scale('step_time', [whole]).text(seconds)} over all its exchanges", markup=False)
    console.print()
