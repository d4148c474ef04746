"""Coupled flows: what follows by hand from max-min sharing, and what bad input is told."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtrain.engine.flows import simulate_flows
from simtrain.errors import InputError
from tests.flow_cases import LINK, all_to_all, fat_tree_flows, from_rows, ring_all_reduce, ring_time

FREE = math.inf
GB = 1e9
TICK = 2.0**-40


def test_importing_the_simulator_does_not_load_the_compiler(root: Path) -> None:
    program = "import sys; import simtrain.engine.flows; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_latency_passes_before_bytes_move() -> None:
    """The second flow has the link alone until 0.5 s, when it has 1 of 1.5 GB left; then both get half: ends at 2.5 s and, 0.5 GB left, 3 s."""
    flows = from_rows([GB], [(0.0, 1.5 * GB, FREE, [0]), (0.0, 1.5 * GB, FREE, [0])], latency=[0.5, 0.0])
    assert flows.run().finish.tolist() == [3.0, 2.5]


def test_a_flow_waits_for_all_it_depends_on_and_for_its_start() -> None:
    rows = [(0.0, GB, FREE, [0]), (0.0, 2 * GB, FREE, [1]), (0.0, GB, FREE, [0]), (5.0, GB, FREE, [0])]
    result = from_rows([GB, GB], rows, dep_ptr=[0, 0, 0, 2, 3], deps=[0, 1, 2]).run()
    assert result.start.tolist() == [0.0, 0.0, 2.0, 5.0]
    assert result.finish.tolist() == [1.0, 2.0, 3.0, 6.0]


def test_flows_without_bytes_end_after_their_latency_and_set_off_others_at_once() -> None:
    rows = [(1.0, 0.0, FREE, [0]), (0.0, 0.0, FREE, []), (0.0, GB, FREE, [0])]
    result = from_rows([GB], rows, latency=[0.5, 0.0, 0.0], dep_ptr=[0, 0, 1, 2], deps=[0, 1]).run()
    assert result.finish.tolist() == [1.5, 1.5, 2.5]


def test_a_flow_without_links_moves_at_its_cap_or_in_no_time() -> None:
    assert from_rows([], [(1.0, GB, GB / 2, []), (1.0, GB, FREE, [])]).run().finish.tolist() == [3.0, 1.0]


def test_a_link_crossed_twice_carries_the_flow_twice() -> None:
    assert from_rows([GB], [(0.0, GB, FREE, [0, 0])]).run().finish.tolist() == [2.0]


def test_no_flows_at_all() -> None:
    result = simulate_flows([], [], [0], [], [GB])
    assert result.makespan == 0.0 and result.events == 0


def test_durations_are_rounded_up_to_the_grid() -> None:
    assert from_rows([1.0], [(0.0, TICK / 3, FREE, [0])]).run().finish.tolist() == [TICK]


def test_a_tiny_flow_late_in_a_run_still_moves() -> None:
    assert from_rows([LINK], [(8000.0, 1e-9, FREE, [0])]).run().finish.tolist() == [8000.0 + TICK]


def test_equal_links_stay_equal_though_units_are_lost_in_rounding() -> None:
    """Three flows cross both links of 14 units and each link has one more: 14 // 4 = 3 units each. The link looked at second has 5 left for its own."""
    unit = 2.0**-20
    rows = [(0.0, 3 * unit, FREE, [0, 1]) for _ in range(3)] + [(0.0, 3 * unit, FREE, [k]) for k in (0, 1)]
    assert from_rows([14 * unit, 14 * unit], rows).run(use_classes=False).finish.tolist() == [1.0] * 5


@pytest.mark.parametrize("use_classes", ["auto", False])
def test_all_to_all_takes_what_a_host_sends(use_classes: Any) -> None:
    """Each of n hosts sends n - 1 messages through its own link: (n - 1) S / B."""
    result = all_to_all(64, 1e6, per_leaf=8).run(use_classes=use_classes)
    assert result.finish == pytest.approx(np.full(64 * 63, 63e6 / LINK), rel=1e-9)
    assert result.classes == (2 if use_classes else 64 * 63)  # same leaf or not


@pytest.mark.parametrize("kind", [{"slow": [5]}, {"hot": 4}, {"slow": [1, 40], "hot": 3}])
def test_classes_do_not_change_a_bit(kind: dict[str, Any]) -> None:
    flows = all_to_all(64, 1e6, per_leaf=8, **kind)
    single, classes = flows.run(use_classes=False), flows.run(use_classes=True)
    assert classes.classes < len(flows) / 10 and single.classes == len(flows)
    assert np.array_equal(single.finish, classes.finish)


def test_slow_host_takes_twice_as_long() -> None:
    result = all_to_all(64, 1e6, per_leaf=8, slow=[5]).run()
    assert result.makespan == pytest.approx(2 * 63e6 / LINK, rel=1e-9)


def test_distinct_flows_are_simulated_one_by_one() -> None:
    flows = fat_tree_flows(500, 1e-3, hosts=64, per_leaf=8)
    assert flows.run().classes == 500
    with pytest.raises(InputError, match="no classes worth using"):
        flows.run(use_classes=True)


@pytest.mark.parametrize("use_classes", ["auto", False])
@pytest.mark.parametrize("ranks", [2, 3, 8, 32])
def test_ring_all_reduce_takes_the_textbook_time(ranks: int, use_classes: Any) -> None:
    result = ring_all_reduce(ranks, 2.0**27, latency=2e-6).run(use_classes=use_classes)
    steps = 2 * (ranks - 1)
    assert result.makespan == pytest.approx(ring_time(ranks, 2.0**27, 2e-6), rel=1e-9, abs=steps * 2 * TICK)
    assert result.classes == (steps if use_classes else steps * ranks)


def test_uneven_ring_is_not_faster_than_its_slowest_link() -> None:
    flows = ring_all_reduce(16, 2.0**27, latency=0.0, unevenness=0.1)
    assert flows.run().makespan >= 30 * 2.0**27 / 16 / min(flows.capacity)


def test_windows_say_that_they_approximate() -> None:
    flows = fat_tree_flows(300, 1e-3, hosts=64, per_leaf=8)
    exact, rough = flows.run(), flows.run(window=1e-4)
    assert rough.is_approximate and not exact.is_approximate
    assert rough.events == exact.events
    assert rough.makespan == pytest.approx(exact.makespan, rel=0.05)
    assert flows.run(window=2 * TICK).finish == pytest.approx(exact.finish, rel=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nbytes": [-1.0]}, "nbytes: -1.0 is not a number from zero upwards"),
        ({"nbytes": [math.nan]}, "nbytes: nan"),
        ({"nbytes": [1.0, 2.0]}, "nbytes: an array of 1 numbers"),
        ({"start": [1e9]}, "start: times must be below 8192 s"),
        ({"links": [3]}, "links: numbers from 0 to 0 are allowed, not 3"),
        ({"links": [0.5]}, "links: whole numbers"),
        ({"link_ptr": [0]}, "link_ptr: 2 numbers"),
        ({"link_ptr": [0, 2]}, "links: 1 entries, but the pointers end at 2"),
        ({"capacity": [0.0]}, "capacity: rates must be positive"),
        ({"capacity": [1e15]}, "capacity: rates must be positive and at most 4.4 TB/s"),
        ({"capacity": [math.inf]}, "capacity: a link cannot be infinitely fast"),
        ({"rate_cap": [0.0]}, "rate_cap: rates must be positive"),
        ({"dep_ptr": [0, 1], "deps": [0]}, "these flows never finish: 0; they wait for each other"),
        ({"window": -1.0}, "window"),
        ({"use_classes": "never"}, "use_classes: 'never' is none of"),
    ],
)
def test_bad_input_says_where_and_what(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"start": [0.0], "nbytes": [1.0], "link_ptr": [0, 1], "links": [0], "capacity": [1.0]}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        simulate_flows(**(arguments | change))
