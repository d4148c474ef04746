"""Writes what real torch runs show into ``validation/README.md``, from the CSV files in ``validation/data``: ``python -m validation.torch_tables``.

``simtrain validate torch --out DIR`` writes ``torch_runs.csv``, ``torch_decisions.csv`` and ``torch_machine.json``; a run whose numbers are to stand is
copied from there. Nothing is measured or predicted here.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from validation.readme_tables import replace

DATA = Path(__file__).parent / "data"
README = Path(__file__).parent / "README.md"
WITHIN = 0.15
"""Error that programs in their own row are meant to stay within."""
SPECIAL = ("moe", "slow_rank", "checkpoint", "restart", "rl_loop", "rl_staleness", "rl_trainer_idle")
"""Programs whose configurations are listed one by one."""
NOT_YET = "Not measured yet: `validation/data/torch_runs.csv` is missing; `simtrain validate torch --out DIR` writes it."


def section(data: Path) -> str:
    """Return the text between the markers."""
    if not (data / "torch_runs.csv").exists():
        return NOT_YET
    table = pd.read_csv(data / "torch_runs.csv")
    rows = cast("list[dict[str, Any]]", table.to_dict("records"))
    times = [row for row in rows if row["unit"] == "s"]
    choices = pd.read_csv(data / "torch_decisions.csv") if (data / "torch_decisions.csv").exists() else pd.DataFrame()
    parts = [_machine(data), _groups("network", "bed", times), _groups("program", "program", times), _special(rows), _choices(choices), _bytes(rows)]
    return "\n\n".join(part for part in parts if part)


def _machine(data: Path) -> str:
    path = data / "torch_machine.json"
    if not path.exists():
        return "The machine is not described: `torch_machine.json` is missing."
    m = json.loads(path.read_text())
    return (
        f"Measured on {m['date']}: {m['processor']}, {m['cores']} cores, {m['kernel']}, torch {m['torch']} with gloo, Python {m['python']}, congestion control "
        f"{m['congestion_control']}."
    )


def _groups(title: str, key: str, rows: list[dict[str, Any]]) -> str:
    """Return a table of errors by a column."""
    lines = [f"| {title} | configurations | median error | p90 | worst | repeat noise, median | naive model, median |", "|---|---|---|---|---|---|---|"]
    for value in dict.fromkeys(row[key] for row in rows):
        group = [row for row in rows if row[key] == value]
        errors = [abs(row["error"]) for row in group]
        repeats = [row["repeat"] for row in group if math.isfinite(row["repeat"])]
        noise = f"{statistics.median(repeats):.1%}" if repeats else "-"
        naive = statistics.median(abs(row["naive_error"]) for row in group)
        worst = max(group, key=lambda row: abs(row["error"]))["error"]
        p90 = np.quantile(errors, 0.9)
        lines.append(f"| {value} | {len(group)} | {statistics.median(errors):.1%} | {p90:.1%} | {worst:+.1%} | {noise} | {naive:.1%} |")
    return "\n".join(lines)


def _special(rows: list[dict[str, Any]]) -> str:
    listed = [row for row in rows if row["program"] in SPECIAL]
    if not listed:
        return ""
    heading = ["| program | network | configuration | measured | predicted | error |", "|---|---|---|---|---|---|"]
    lines = [f"Meant to stay within {WITHIN:.0%} each:", "", *heading]
    for row in listed:
        factor, unit = {"s": (1e3, " ms"), "share": (1e2, " %")}.get(row["unit"], (1.0, " updates"))
        shown = [f"{row[key] * factor:.3g}{unit}" for key in ("measured", "predicted")]
        words = row["configuration"].strip("{}").replace('"', "").replace(": ", " ")
        mark = "" if abs(row["error"]) <= WITHIN else " **missed**"
        lines.append(f"| {row['program']} | {row['bed']} | {words} | {shown[0]} | {shown[1]} | {row['error']:+.1%}{mark} |")
    return "\n".join(lines)


def _choices(table: pd.DataFrame) -> str:
    clear = [row for row in cast("list[dict[str, Any]]", table.to_dict("records")) if row["is_clear"]]
    if not clear:
        return ""
    right, cost = sum(row["is_right"] for row in clear), statistics.fmean(row["cost"] for row in clear)
    text = f"Of the {len(clear)} pairs of schedules that differ by more than 10 % and the noise, {right} are told right; "
    text += f"following the prediction costs {cost:.1%} on average."
    missed = [f"* {row['bed']}, {row['program']}: {row['faster']} beats {row['slower']} by {row['gap']:.0%}" for row in clear if not row["is_right"]]
    return "\n".join([text, *(["", "Told wrong:", "", *missed] if missed else [])])


def _bytes(rows: list[dict[str, Any]]) -> str:
    counted = [row["sent"] / row["sent_expected"] - 1 for row in rows if row["sent"] and row["sent_expected"]]
    if not counted:
        return "Bytes on the interface were not counted: the ranks had none of their own."
    return f"Bytes on the interface differ from the formula by {max(counted, key=abs):+.1%} at most, over {len(counted)} configurations."


def main() -> None:
    """Write the section."""
    README.write_text(replace(README.read_text(), "torch", section(DATA)))


if __name__ == "__main__":
    main()
