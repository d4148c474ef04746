"""Coupled flows against SimGrid, and against what follows by hand. [1]_

SimGrid runs as a program of the system's Python, where Debian's python3-simgrid lies; without it, only the answers by hand are checked.

References
----------
.. [1] Casanova, Giersch, Legrand, Quinson and Suter, Versatile, scalable and accurate simulation of distributed applications and
   platforms, JPDC 74(10), 2014.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.flow_cases import Flows, fat_tree_flows, from_rows

FREE = math.inf
GB = 1e9
SYSTEM_PYTHON = "/usr/bin/python3"

Row = tuple[float, float, float, Sequence[int]]


def same(count: int, row: Row) -> list[Row]:
    return [row] * count


def send(nbytes: float, *links: int, start: float = 0.0, cap: float = FREE) -> Row:
    return start, nbytes * GB, cap, links


# Each case: capacities [GB/s], flows, finish times [s]. The comment gives the argument.
CASES: dict[str, tuple[list[float], list[Row], list[float]]] = {
    # 3 GB at 1 GB/s.
    "alone": ([1], [send(3, 0)], [3]),
    # Four senders of 1 GB share the receiver's link: 1/4 each.
    "incast": ([1, 1, 1, 1, 1], [send(1, k, 4) for k in range(4)], [4, 4, 4, 4]),
    # Thirds until 3 s; 1 and 2 GB are left at 1/2 each until 5 s; then 1 GB at the full rate.
    "incast of unequal sizes": ([1, 1, 1, 1], [send(k + 1, k, 3) for k in range(3)], [3, 5, 6]),
    # Four links of 1 into a core of 2: 1/2 each.
    "oversubscribed core": ([1, 1, 1, 1, 2], [send(1, k, 4) for k in range(4)], [2, 2, 2, 2]),
    # Three hosts, up 0-2, down 3-5; all rates 1/2 until the five single messages end at 2 s, then the double one has 1 GB left at rate 1.
    "skewed all-to-all": (
        [1] * 6,
        [send(2, 0, 4), send(1, 0, 5), send(1, 1, 3), send(1, 1, 5), send(1, 2, 3), send(1, 2, 4)],
        [3, 2, 2, 2, 2, 2],
    ),
    # Two GPUs on PCIe links of 1/5 and 4/5 share a NIC of 1: both links are full, the NIC too.
    "shared network card": ([0.2, 0.8, 1], [send(1, 0, 2), send(1, 1, 2)], [5, 1.25]),
    # Alone until 1 s, halves until the second one ends at 3 s; 1 GB is left at the full rate.
    "staggered starts": ([1], [send(3, 0), send(1, 0, start=1)], [4, 3]),
    # The long flow gets 1/2 on each of three links, as do the short ones.
    "parking lot": ([1, 1, 1], [send(1, 0, 1, 2), send(1, 0), send(1, 1), send(1, 2)], [2, 2, 2, 2]),
    # Links of 1, 2, 4: the first holds the long flow at 1/2, so the short ones get 1/2, 3/2, 7/2.
    "parking lot of unequal links": ([1, 2, 4], [send(1, 0, 1, 2), send(1, 0), send(1, 1), send(1, 2)], [2, 2, 2 / 3, 2 / 7]),
    # A cap of 1/10 leaves 9/20 to each of two others; at 2 s they end and the capped one has 0.7 GB left.
    "cap": ([1], [send(0.9, 0, cap=0.1 * GB), send(0.9, 0), send(0.9, 0)], [9, 2, 2]),
    # The first link gives thirds; the second has 2/3 for its own flow, which ends at 1.5 s and frees nothing that helps.
    "two levels": ([1, 1], [send(1, 0), send(1, 0), send(1, 0, 1), send(1, 1)], [3, 3, 3, 1.5]),
    # Halves on the first link, the third flow gets 1 of 3/2; at 2 s it has 1 GB left and the second link alone.
    "rate rises after a neighbour's end": ([1, 1.5], [send(1, 0), send(1, 0, 1), send(3, 1)], [2, 2, 2 + 2 / 3]),
    # Three of four flows are hashed to one spine link.
    "hash collision": ([1, 1], [*same(3, send(1, 0)), send(1, 1)], [3, 3, 3, 1]),
    # 1 GB moved when a flow of cap 1/4 joins; 3/4 until the first ends at 7/3 s; the capped one goes on at 1/4 until 1 + 0.5 / 0.25.
    "capped flow joins": ([1], [send(2, 0), send(0.5, 0, start=1, cap=0.25 * GB)], [7 / 3, 3]),
    # Hosts 0, 1 | 2, 3 under leaves with one uplink of 1 (8, 9) and one downlink (10, 11): four flows cross it at 1/4, local ones get
    # what is left of a host's link, 1 - 2/4.
    "all-to-all over an oversubscribed leaf": (
        [1] * 12,
        [send(1, a, *((8 + a // 2, 10 + b // 2) if a // 2 != b // 2 else ()), 4 + b) for a in range(4) for b in range(4) if a != b],
        [2 if a // 2 == b // 2 else 4 for a in range(4) for b in range(4) if a != b],
    ),
    # A link at a tenth of its capacity holds up the flow that crosses it, and no other.
    "degraded link": ([1, 1, 0.1, 1], [send(1, k) for k in range(4)], [1, 1, 10, 1]),
    # Idle from 1 to 5 s, then halves: at 6 s two have 1/2 GB left; thirds until these end at 7.5 s; the third one has 1/2 GB left alone.
    "idle time and a third one": ([1], [send(1, 0), send(1, 0, start=5), send(1, 0, start=5), send(1, 0, start=6)], [1, 7.5, 7.5, 8]),
}


def build(case: str) -> tuple[Flows, list[float]]:
    capacity, rows, finish = CASES[case]
    return from_rows([c * GB for c in capacity], rows), finish


@functools.cache
def has_simgrid() -> bool:
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", "import simgrid"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def simgrid(flows: Flows, ends: Sequence[tuple[int, int]]) -> Any:
    """Return SimGrid's finish times; ``ends`` are the hosts of each flow."""
    if not has_simgrid():
        pytest.skip("SimGrid is not importable by the system's Python (Debian's package python3-simgrid)")
    caps = flows.options.get("rate_cap", [FREE] * len(flows))
    links = [[int(k) for k in flows.links[flows.link_ptr[f] : flows.link_ptr[f + 1]]] for f in range(len(flows))]
    rows = [[*map(int, ends[f]), float(flows.start[f]), int(flows.nbytes[f]), 0 if math.isinf(caps[f]) else caps[f], links[f]] for f in range(len(flows))]
    job = {"hosts": int(np.max(ends)) + 1, "capacity": [float(c) for c in flows.capacity], "flows": rows}
    program = Path(__file__).with_name("simgrid_flows.py")
    done = subprocess.run([SYSTEM_PYTHON, str(program)], input=json.dumps(job), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.array(json.loads(done.stdout.splitlines()[-1])["finish"])


@pytest.mark.parametrize("case", CASES)
def test_small_cases_follow_by_hand(case: str) -> None:
    flows, finish = build(case)
    assert flows.run().finish == pytest.approx(finish, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_small_cases_agree_with_simgrid(case: str) -> None:
    flows, _ = build(case)
    assert flows.run().finish == pytest.approx(simgrid(flows, [(2 * f, 2 * f + 1) for f in range(len(flows))]), rel=1e-9)


def ends_of(flows: Flows, hosts: int) -> list[tuple[int, int]]:
    """Return source and target, which are the first and the last link of a route."""
    first, last = np.asarray(flows.links)[flows.link_ptr[:-1]], np.asarray(flows.links)[flows.link_ptr[1:] - 1]
    return list(zip(first.tolist(), (last - hosts).tolist()))


@pytest.mark.parametrize("count, span", [(1000, 5e-3), pytest.param(10_000, 5e-2, marks=pytest.mark.slow)])
def test_coupled_flows_on_a_fat_tree_agree_with_simgrid(count: int, span: float) -> None:
    """1,024 hosts, non-blocking; the 10,000 flows take SimGrid about a minute."""
    flows = fat_tree_flows(count, span)
    assert flows.run().finish == pytest.approx(simgrid(flows, ends_of(flows, 1024)), rel=1e-7)


def test_windows_stay_near_the_exact_times() -> None:
    """Not a bound: on these flows a window of 10 us moves the makespan by less than 1 %."""
    flows = fat_tree_flows(2000, 1e-2)
    assert flows.run(window=1e-5).makespan == pytest.approx(flows.run().makespan, rel=1e-2)
