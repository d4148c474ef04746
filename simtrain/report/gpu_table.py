"""What one GPU was measured and predicted to do: tables and a picture by kind of work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from simtrain.report import style
from simtrain.report.terminal import escaped, new_console, new_table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rows", "compared", "median", "p90", "bias", "noise")

COLOURS = {
    "launch": "#66707C", "gemm": "#0072B2", "grouped": "#CC79A7", "attention": "#E69F00", "memory": "#009E73", "layer": "#56B4E9", "moe_layer": "#882255",
    "optimizer": "#3B3B3B", "transfer": "#A6845C", "step": "#D55E00", "stream": "#117733", "routing": "#999933",
}  # fmt: skip
"""By kind of work."""

NAMES = {
    "gemm": "matrix product", "grouped": "grouped product", "memory": "bound by memory", "moe_layer": "layer with experts", "step": "training step",
    "stream": "sum by size", "routing": "piece of routing",
}  # fmt: skip
"""Kinds, where their name in the table of measurements is short for something."""


def print_gpu_runs(frame: pd.DataFrame, summary: pd.DataFrame, about: Mapping[str, Any], memory_errors: Sequence[float]) -> None:
    """Print errors by kind, what has no prediction and why, and the largest errors.

    Parameters
    ----------
    frame, summary, memory_errors
        As :func:`simtrain.validate.gpu_runs.compare` and the functions after it return them.
    about
        What the measurements were made on.
    """
    console, table = new_console(), new_table()
    console.print(f"measured on {escaped(provenance(about))}")
    table.add_column("kind")
    table.add_column("what")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in cast("list[dict[str, Any]]", summary.to_dict("records")):
        table.add_row(escaped(row["kind"]), escaped(row["what"]), *_cells(row))
    console.print(table)
    if memory_errors:
        console.print(_memory_line(memory_errors))
    rows = cast("list[dict[str, Any]]", frame.to_dict("records"))
    reasons = [row["status"] for row in rows if row["status"] != "ok"]
    for reason in dict.fromkeys(reasons):
        console.print(f"{reasons.count(reason)} rows {escaped(reason)}")


class Shown(NamedTuple):
    """One device of a page."""

    name: str
    summary: pd.DataFrame
    about: Mapping[str, Any]
    memory_errors: Sequence[float]
    repeats: Mapping[tuple[str, str], float]
    """Distance between two measurements of the same cases, by kind and way of running; empty if there is one only."""


def markdown(devices: Sequence[Shown]) -> str:
    """Return errors by kind as Markdown, devices beside each other, and what they were measured on below."""
    heads = [f"{device.name} {column}" for device in devices for column in (*_BRIEF, *(["repeat"] if device.repeats else []))]
    lines = [f"| kind | what | compared | {' | '.join(heads)} |", "|---|---|---:|" + "---:|" * len(heads)]
    scores = [{(row["kind"], row["what"]): row for row in cast("list[dict[str, Any]]", device.summary.to_dict("records"))} for device in devices]
    for group in dict.fromkeys(group for table in scores for group in table):
        found = [table.get(group) for table in scores]
        if not any(row and row["compared"] for row in found):
            continue
        counts = list(dict.fromkeys(str(row["compared"]) if row else "0" for row in found))
        cells: list[str] = []
        for device, row in zip(devices, found, strict=True):
            cells += [_percent(row[column] if row else None, signed=column == "bias") for column in _BRIEF]
            cells += [_percent(device.repeats.get(group))] if device.repeats else []
        lines.append(f"| {NAMES.get(group[0], group[0])} | {group[1]} | {' / '.join(counts)} | {' | '.join(cells)} |")
    lines.append("")
    for device in devices:
        memory = f"; {_memory_line(device.memory_errors)}" if device.memory_errors else ""
        lines.append(f"* {provenance(device.about)}{memory}.")
    return "\n".join(lines)


_BRIEF = ("median", "p90", "bias", "noise")


def provenance(about: Mapping[str, Any]) -> str:
    """Return device, versions, clocks and date in one line."""
    driver: Mapping[str, str] = about.get("nvidia_smi") or {}
    parts = [str(about.get("device", "an unknown device"))]
    parts += [f"{name} {value}" for name, value in (("driver", driver.get("driver_version")), ("torch", about.get("torch"))) if value]
    parts += [f"{name} {driver[key]}" for name, key in (("SM clock up to", "clocks.max.sm"), ("power limit", "power.limit")) if driver.get(key)]
    return ", ".join([*parts, str(about.get("date", ""))[:10]]).rstrip(", ")


def _memory_line(errors: Sequence[float]) -> str:
    middle, far = (float(np.quantile(np.abs(errors), q)) for q in (0.5, 0.9))
    return f"activations of {len(errors)} layers without recomputation: median error {middle:.1%}, p90 {far:.1%}, bias {statistics.median(errors):+.1%}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [str(row["rows"]), str(row["compared"]), *(_percent(row[key], signed=key == "bias") for key in COLUMNS[2:])]


def _percent(value: float | None, signed: bool = False) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:+.1%}" if signed else f"{value:.1%}"


def plot_gpu_runs(devices: Sequence[tuple[pd.DataFrame, Mapping[str, Any]]], path: str) -> None:
    """Draw predicted against measured times, and the errors of each kind, a row of panels for each device; a graph is a filled mark, an eager run a hollow one.

    Parameters
    ----------
    devices
        Predictions, as :func:`simtrain.validate.gpu_runs.compare` returns them, and what the measurements were made on.
    path
        Picture to write.
    """
    import matplotlib.pyplot as plt

    height = 6.0 * len(devices) + 0.7
    with style.styled():
        figure, axes = plt.subplots(len(devices), 2, figsize=(13.5, height), gridspec_kw={"width_ratios": [1, 1.1]}, squeeze=False)
        count = 0
        for (left, right), (frame, about) in zip(axes, devices, strict=True):
            rows = [row for row in cast("list[dict[str, Any]]", frame.to_dict("records")) if row["error"] is not None and row["error"] == row["error"]]
            kinds = [kind for kind in COLOURS if any(row["kind"] == kind for row in rows)]
            count += len(rows)
            _scatter(left, rows)
            left.set_title(f"{about.get('device', '')}: within 10 % in the band")
            _by_kind(right, rows, kinds)
        figure.subplots_adjust(left=0.06, right=0.985, top=1 - 1.05 / height, bottom=0.6 / height, wspace=0.28, hspace=0.2)
        is_calibration = any(about.get("cases") == "calibration" for _, about in devices)
        which = "parameters were fitted to some" if is_calibration else "none fitted to"
        style.header(figure, "One GPU: predicted against measured", [f"{count:,} measurements, {which}", "filled: in a CUDA graph"])
        style.save(figure, path)
        plt.close(figure)


def _scatter(ax: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        colour = COLOURS[row["kind"]]
        ax.scatter(row["measured"], row["predicted"], s=13, facecolors=colour if row["is_graphed"] else "none", edgecolors=colour, linewidths=0.8)
    times = [row[key] for row in rows for key in ("measured", "predicted")]
    low, high = min(times) * 0.7, max(times) * 1.4
    ax.plot([low, high], [low, high], color=style.QUIET, linewidth=0.8)
    ax.fill_between([low, high], [low / 1.1, high / 1.1], [low * 1.1, high * 1.1], color=style.QUIET, alpha=0.12, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="measured [s]", ylabel="predicted [s]")


def _by_kind(ax: Any, rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> None:
    limit = 100.0
    for place, kind in enumerate(reversed(kinds)):
        chosen = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["error"])
        for number, row in enumerate(chosen):
            offset = -0.27 + 0.54 * number / max(1, len(chosen) - 1)
            error, colour = 100 * row["error"], COLOURS[kind]
            face = colour if row["is_graphed"] else "none"
            marker = ">" if error > limit else "o"
            ax.scatter(min(error, limit), place + offset, s=13, marker=marker, facecolors=face, edgecolors=colour, linewidths=0.7, clip_on=False)
        median = min(limit, 100 * statistics.median(row["error"] for row in chosen))
        ax.plot([median] * 2, [place - 0.36, place + 0.36], color=style.INK, linewidth=1.6)
    ax.axvline(0, color=style.QUIET, linewidth=0.8)
    labels = [f"{NAMES.get(kind, kind)} ({sum(row['kind'] == kind for row in rows)})" for kind in reversed(kinds)]
    ax.set(xlim=(-limit, limit), yticks=range(len(kinds)), yticklabels=labels, xlabel="error of time [%]; triangle: beyond", title="By kind; bar: median")
    ax.tick_params(axis="y", labelcolor=style.INK)
