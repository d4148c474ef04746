"""What ``simtrain plan`` prints."""

from __future__ import annotations

from typing import Any

from simtrain import spec
from simtrain.report.labels import metric_title, scale
from simtrain.report.terminal import escaped, new_console, new_table
from simtrain.study.plan import PlanResult
from simtrain.study.result import unit_of

_SHOWN = ("step_time", "mfu", "peak_memory")


def print_plan(result: PlanResult) -> None:
    """Print the best plans, why each loses to the first, what became of all candidates, and how to run the best."""
    console, s = new_console(), result.scenario
    size = f"{s.cluster.num_accelerators:,} x {s.cluster.node.accelerator.name}"
    console.print(f"{s.name}: {s.workload.name}, batch {s.workload.global_batch_size:,} x {s.workload.seq_len:,} tokens on {size}", markup=False)
    table = new_table()
    units = {name: scale(name, [p.metrics[name] for p in result.plans]) for name in _SHOWN}
    table.add_column("plan")
    for name, unit in units.items():
        table.add_column(escaped(f"{metric_title(name)} [{unit.unit}]"), justify="right")
    table.add_column("against the best")
    for plan in result.plans:
        table.add_row(plan.candidate.text(), *(unit.number(plan.metrics[name]) for name, unit in units.items()), result.why(plan))
    console.print(table)
    fate = ", ".join(f"{count:,} {what}" for what, count in result.counts.items())
    console.print(f"{sum(result.counts.values()):,} candidates: {fate}", markup=False)
    settings = " ".join(f"--set {key}={value}" for key, value in result.best.settings.items() if value != getattr(s.system, key))
    console.print(f"run the best with {settings}", markup=False, soft_wrap=True)


def plan_json(result: PlanResult) -> dict[str, Any]:
    """Return one object with every plan, its metrics and its reason, and what became of all candidates."""
    s = result.scenario
    return {
        "plans": [
            {
                "settings": dict(p.settings), "metrics": {name: {"value": value, "unit": unit_of(name)} for name, value in p.metrics.items()},
                "bound": {"value": p.bound, "unit": "s"}, "why": result.why(p),
            }
            for p in result.plans
        ],
        "candidates": dict(result.counts),
        "config": {"system": s.name, "parameters": spec.canonical(s.system), "workload": spec.canonical(s.workload), "cluster": spec.canonical(s.cluster)},
    }  # fmt: skip
