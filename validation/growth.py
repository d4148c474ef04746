"""How time and memory grow with operations, ranks and flows, over three decades: ``python -m validation.growth --plot growth.svg``.

Each point runs in a process of its own: processor time, median of three after a warm-up; memory is what the process held at most, beyond what it
held after a small run. Exponents are fitted to all points of a series, so the fixed costs of small sizes lower them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simtrain.report.growth_plot import Growth, plot_growth
from tests.flow_cases import fat_tree_flows
from validation.speed_table import SIMPY_ROWS, replaying
from validation.timing import Work, load, machine, measure

RANKS, ROWS = (16, 64, 256, 1024, 4096, 16384), (10_000, 100_000, 1_000_000, 10_000_000)
FLOWS = (1_000, 10_000, 100_000, 1_000_000)
FLOWS_PER_SECOND = 25_000
COLOURS = {"SimPy, lanes": "#9AA3AE", "compiled, lanes": "#332288", "compiled, shared links, slowdown": "#44AA99", "flows at equal load": "#CC6677"}
SHARED = "shared links and slowdown"


def flowing(count: int) -> Work:
    """Simulate random pairs that start at the same rate, however many they are."""
    return fat_tree_flows(count, count / FLOWS_PER_SECOND).run


SMALL: dict[Callable[..., Work], tuple[Any, ...]] = {replaying: ("compiled", 1_000, 16, SHARED), flowing: (100,)}


def series(largest: int) -> Iterator[Growth]:
    """Measure all series up to a number of operations or flows."""
    rows, flows = [n for n in ROWS if n <= largest], [n for n in FLOWS if n <= largest]
    at_most = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= min(largest, 5 * SIMPY_ROWS)]
    yield _grow("operations", "SimPy, lanes", at_most, replaying, lambda n: ("simpy", n, 256, "lanes"))
    yield _grow("operations", "compiled, lanes", rows, replaying, lambda n: ("compiled", n, 1024, "lanes"))
    yield _grow("operations", "compiled, shared links, slowdown", rows, replaying, lambda n: ("compiled", n, 1024, SHARED))
    middle = min(largest, 1_000_000)
    yield _grow("ranks", "compiled, lanes", RANKS, replaying, lambda n: ("compiled", middle, n, "lanes"))
    yield _grow("ranks", "compiled, shared links, slowdown", RANKS, replaying, lambda n: ("compiled", middle, n, SHARED))
    yield _grow("flows", "flows at equal load", flows, flowing, lambda n: (n,))


def _grow(axis: str, label: str, sizes: Any, prepare: Callable[..., Work], arguments: Callable[[int], tuple[Any, ...]]) -> Growth:
    found = [measure(prepare, *arguments(size), rounds=3, first=SMALL[prepare]) for size in sizes]
    grown = Growth(axis, label, list(sizes), [m.seconds for m in found], [m.growth for m in found])
    print(f"{axis:12}{label:36}time ~ size^{grown.exponent(grown.seconds):.2f}  memory ~ size^{grown.exponent(grown.memory):.2f}", flush=True)
    for size, m in zip(sizes, found, strict=True):
        print(f"{size:>14,}{m.seconds:>12.4f} s{m.growth / 2**20:>12.1f} MiB", flush=True)
    return grown


def main() -> None:
    """Measure, print the exponents, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--largest", type=float, default=1e7, help="most operations or flows")
    parser.add_argument("--plot", type=Path, help="write a picture, SVG or PNG by the ending")
    parser.add_argument("--json", type=Path, help="write the points")
    options = parser.parse_args()
    busy, found = load(), list(series(int(options.largest)))
    if options.json:
        options.json.write_text(json.dumps([vars(s) for s in found], indent=1) + "\n")
    if options.plot:
        notes = [machine(), f"load {busy:.1f} before", "one core, processor time, median of 3"]
        plot_growth(found, COLOURS, "What size costs", notes, str(options.plot))
        print(f"wrote {options.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
