"""Writes the README's speed table from what this machine does now: ``python -m validation.speed_table``, about ten minutes.

Every job runs in a process of its own, warm, on one core; times are processor time, medians of 5. The executors run the same graphs, and the
flow simulators the same flows; SimPy's graphs are smaller (see ``SIMPY_ROWS``), its rate does not grow with them. SimGrid is Debian's
``python3-simgrid``, run by the system's Python and driven from Python as our simulator is; without it its column stays empty.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.random_graphs import random_cluster, random_graph
from tests.flow_cases import Flows, all_to_all, fat_tree_flows, ring_all_reduce
from validation.readme_tables import README, replace
from validation.timing import GIB, Measurement, Work, load, machine, measure

MARKERS = ("<!-- speed:begin -->", "<!-- speed:end -->")
SYSTEM_PYTHON, SIMGRID = "/usr/bin/python3", Path(__file__).resolve().parent.parent / "tests" / "validation" / "simgrid_flows.py"
SIMPY_ROWS = 200_000
HOSTS = 1024
OPTIONS: dict[str, dict[str, Any]] = {"lanes": {"fidelity": "analytic", "slowdown": 0.0}, "shared links and slowdown": {"fidelity": "fair", "slowdown": 0.2}}
FLOWS: dict[str, tuple[Any, ...]] = {
    "10,000 flows within 0.05 s": (fat_tree_flows, 10_000, 0.05),
    "100,000 flows within 20 s": (fat_tree_flows, 100_000, 20.0),
    "100,000 flows within 4 s": (fat_tree_flows, 100_000, 4.0),
    "all-to-all of 1,024 hosts, 1,047,552 flows": (all_to_all, 1024, 1e6),
    "ring all-reduce of 128 MiB over 1,024 ranks, message by message": (ring_all_reduce, 1024, 128 * 2.0**20),
}


# -- work ----------------------------------------------------------------------------------------------------------------------


def replaying(engine: str, rows: int, ranks: int, mode: str) -> Work:
    """Replay a random graph."""
    from simtrain.engine.executors import replay_with

    graph, cluster, options = random_graph(rows, ranks, 1), random_cluster(ranks), OPTIONS[mode]
    chosen: Any = engine
    return lambda: replay_with(chosen, graph, cluster, options["fidelity"], options["slowdown"])


def flowing(name: str) -> Work:
    """Simulate coupled flows."""
    build, *arguments = FLOWS[name]
    flows: Flows = build(*arguments)
    return flows.run


def stepping(gpus: int, unfold: Sequence[str], fidelity: str) -> Work:
    """Run GPT-3 175B through the ordinary path, costs included: TP8 PP8, 8 microbatches on every pipeline."""
    import simtrain

    dp = gpus // 64
    settings = {"tp": 8, "pp": 8, "global_batch_size": 8 * dp, "cluster.num_nodes": gpus // 8}
    return lambda: simtrain.run("dense/megatron_lm", "gpt3_175b", "a100_flat", settings=settings, unfold=unfold, fidelity=fidelity)


def simgrid(name: str) -> tuple[float, str] | None:
    """Return SimGrid's time and version for the same flows, or None without it. [s]"""
    build, *arguments = FLOWS[name]
    flows: Flows = build(*arguments)
    if "deps" in flows.options or len(flows) > 200_000:
        return None  # its actors take no messages that wait for others, and it does not finish the million
    pointer, links = list(flows.link_ptr), list(map(int, flows.links))
    routes = [links[first:last] for first, last in pairwise(pointer)]  # from the link of the source to that of the target
    rows = [[route[0], route[-1] - HOSTS, float(start), int(nbytes), 0, route] for route, start, nbytes in zip(routes, flows.start, flows.nbytes)]
    job = {"hosts": HOSTS, "capacity": list(map(float, flows.capacity)), "flows": rows}
    done = subprocess.run([SYSTEM_PYTHON, str(SIMGRID)], input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"SimGrid, {name}: {(done.stderr.splitlines() or ['no message'])[-1]}", file=sys.stderr)
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["seconds"], str(answer["version"])


# -- table ---------------------------------------------------------------------------------------------------------------------


def row(job: str, ours: Measurement, text: str, simpy: str = "", other: str = "") -> str:
    """Return one line of the table."""
    return f"| {job} | {simpy or '-'} | {text} | {other or '-'} | {ours.memory / GIB:.2f} GiB |"


def replay_rows(rows: int, rounds: int) -> list[str]:
    """Return the lines of the executors."""
    lines: list[str] = []
    for mode in OPTIONS:
        for ranks in (1024, 16384):
            slow = measure(replaying, "simpy", SIMPY_ROWS, ranks, mode, rounds=min(rounds, 3))
            fast = measure(replaying, "compiled", rows, ranks, mode, rounds=rounds)
            job = f"replay with {mode}, {rows:.0e} operations on {ranks:,} ranks".replace("e+0", "e")
            lines.append(row(job, fast, f"**{rows / fast.seconds / 1e6:.1f} M operations/s**", f"{SIMPY_ROWS / slow.seconds / 1e6:.2f} M operations/s"))
    return lines


def flow_rows(rounds: int) -> tuple[list[str], str]:
    """Return the lines of the flow simulators and SimGrid's version."""
    lines, found = [], ""
    for name in FLOWS:
        ours, theirs = measure(flowing, name, rounds=rounds), simgrid(name)
        found = theirs[1] if theirs else found
        lines.append(row(name, ours, f"**{ours.seconds:.3g} s**", other=f"{theirs[0]:.3g} s" if theirs else ""))
    return lines, found


def step_rows(rounds: int, largest: int) -> list[str]:
    """Return the lines of whole runs."""
    lines: list[str] = []
    for gpus, unfold, fidelity, what in (
        (512, (), "fair", "one rank per pipeline stage"), (512, ("tp", "dp"), "fair", "every rank executed"),
        (512, (), "flow", "fidelity flow"), (largest, ("tp", "dp"), "fair", "every rank executed"),
    ):  # fmt: skip
        done = measure(stepping, gpus, unfold, fidelity, rounds=rounds)
        lines.append(row(f"GPT-3 175B, TP8 PP8, 8 microbatches, {gpus:,} GPUs, costs included: {what}", done, f"**{done.seconds:.3g} s**"))
    return lines


def start_rows(rounds: int) -> list[str]:
    """Return the lines of starting up: wall clock of whole processes."""
    import statistics
    import time

    lines: list[str] = []
    for name, command in (("`import simtrain`", ["-c", "import simtrain"]), ("`simtrain --help`", ["-m", "simtrain", "--help"])):
        seconds: list[float] = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        lines.append(f"| {name} | - | {statistics.median(seconds[1:]):.2f} s | - | - |")
    return lines


def main() -> None:
    """Measure all jobs and write the table between the markers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=float, default=1e7, help="operations of the compiled executor's graphs")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions")
    parser.add_argument("--largest", type=int, default=16384, help="GPUs of the largest run")
    parser.add_argument("--print", action="store_true", help="print the table instead of writing it")
    options = parser.parse_args()
    text = README.read_text()
    if not options.print and not all(marker in text for marker in MARKERS):
        sys.exit(f"{README}: has no markers {' and '.join(MARKERS)}; write them where the table belongs")
    busy = load()
    lines = ["| job | SimPy | simtrain | SimGrid | memory |", "|---|---|---|---|---|", *replay_rows(int(options.rows), options.rounds)]
    flows, found = flow_rows(options.rounds)
    lines += [*flows, *step_rows(min(options.rounds, 3), options.largest), *start_rows(options.rounds)]
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("simtrain", "numpy", "numba", "simpy"))])
    note = (
        f"\nGenerated by `python -m validation.speed_table` on {datetime.date.today()}: {machine()} (load {busy:.1f} before), one core, warm, processor time, "
        f"median of {options.rounds}; {versions}{f', SimGrid {found}' if found else ''}. SimPy ran graphs of {SIMPY_ROWS:,} operations. "
        "SimGrid's times contain what its Python bindings take, some 50 us a flow; other measurements of the two jobs of 100,000 flows gave 0.41 and 0.72 s."
    )
    body = "\n".join(lines) + "\n" + note
    if options.print:
        print(body)
    else:
        README.write_text(replace(text, "speed", body))


if __name__ == "__main__":
    main()
