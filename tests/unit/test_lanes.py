"""Exclusive lanes: first come, first served, all lanes of a transfer or none."""

from __future__ import annotations

from simtrain.engine.lanes import Lanes, lanes_of
from simtrain.graph.template import Link


def test_units_on_one_lane_go_one_after_another_in_order_of_request() -> None:
    lanes = Lanes(1)
    for unit in (5, 3, 4):
        lanes.request(unit, [0])
    served = []
    for _ in range(3):
        (unit,) = lanes.granted()
        assert lanes.granted() == []
        served.append(unit)
        lanes.release(unit)
    assert served == [5, 3, 4]


def test_units_on_different_lanes_go_together() -> None:
    lanes = Lanes(3)
    for unit in range(3):
        lanes.request(unit, [unit])
    assert lanes.granted() == [0, 1, 2]


def test_all_lanes_or_none() -> None:
    lanes = Lanes(3)
    lanes.request(1, [0])
    lanes.request(2, [0, 1])
    lanes.request(3, [1, 2])
    # 3 waits behind 2 although its lanes are free: nothing overtakes on a lane, nothing is held while waiting.
    assert lanes.granted() == [1]
    lanes.release(1)
    assert lanes.granted() == [2]
    assert lanes.granted() == []
    lanes.release(2)
    assert lanes.granted() == [3]


def test_a_lane_named_twice_is_taken_once() -> None:
    lanes = Lanes(1)
    lanes.request(1, [0, 0])
    assert lanes.granted() == [1]
    lanes.release(1)
    lanes.request(2, [0])
    assert lanes.granted() == [2]


def test_no_lanes_no_waiting() -> None:
    lanes = Lanes(1)
    lanes.request(1, [])
    assert lanes.granted() == [1]
    lanes.release(1)
    lanes.release(99)  # never asked


def test_lanes_of_a_rank_are_its_own() -> None:
    everything = Link.SCALE_UP_OUT | Link.SCALE_UP_IN | Link.NIC_OUT | Link.NIC_IN
    first, second = lanes_of(0, int(everything)), lanes_of(1, int(everything))
    assert len({*first, *second}) == 8
    assert set(lanes_of(1, int(Link.NIC_OUT | Link.NIC_IN))) < set(second)
    assert lanes_of(1, 0) == []
