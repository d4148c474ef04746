"""Max-min fair shares that can be checked by hand."""

from __future__ import annotations

from simtrain.engine.fairshare import RATE_UNIT, FairShare, progressive_filling, to_rate

FREE = 10**9
"""A cap that never binds."""


def test_rates_are_whole_units_and_never_nothing() -> None:
    assert to_rate(1.0) == RATE_UNIT == 2**20
    assert to_rate(0.0) == 1
    assert to_rate(50e9) == 50 * 10**9 * 2**20


def test_equal_flows_share_a_link_evenly() -> None:
    assert progressive_filling({i: ({0: 1}, FREE) for i in range(4)}, [100]) == dict.fromkeys(range(4), 25)


def test_a_slower_flow_leaves_the_rest_to_the_others() -> None:
    assert progressive_filling({0: ({0: 1}, 10), 1: ({0: 1}, FREE), 2: ({0: 1}, FREE)}, [100]) == {0: 10, 1: 45, 2: 45}


def test_the_parking_lot() -> None:
    # One flow over all links, one on each: the long one gets half of the narrowest (Bertsekas and Gallager, section 6.5.2).
    flows = {0: ({0: 1, 1: 1, 2: 1}, FREE), 1: ({0: 1}, FREE), 2: ({1: 1}, FREE), 3: ({2: 1}, FREE)}
    assert progressive_filling(flows, [60, 100, 20]) == {0: 10, 1: 50, 2: 90, 3: 10}


def test_three_links_in_a_row() -> None:
    flows = {0: ({0: 1, 1: 1}, FREE), 1: ({1: 1, 2: 1}, FREE), 2: ({0: 1}, FREE), 3: ({2: 1}, FREE)}
    # Link 1 (10 for two flows) binds first at 5; the others keep what is left of theirs.
    assert progressive_filling(flows, [100, 10, 40]) == {0: 5, 1: 5, 2: 95, 3: 35}


def test_a_collective_takes_one_share_per_member_on_a_link() -> None:
    # Two members of flow 0 and one of flow 1 on one NIC: three equal shares.
    assert progressive_filling({0: ({0: 2}, FREE), 1: ({0: 1}, FREE)}, [90]) == {0: 30, 1: 30}


def test_without_links_the_cap_is_the_rate() -> None:
    assert progressive_filling({0: ({}, 7), 1: ({0: 1}, FREE)}, [5]) == {0: 7, 1: 5}


def test_capacities_may_be_a_mapping() -> None:
    assert progressive_filling({0: ({9: 1}, FREE)}, {9: 3}) == {0: 3}


def test_equal_links_give_equal_rates_whatever_rounding_loses() -> None:
    # Two copies of one situation, coupled by a collective with a member on each: what is folded onto one copy must come out the same.
    # 21 units for two flows is a level of 10; the unit that is lost on one link may not be found again on the other.
    unfolded = progressive_filling({0: ({0: 1, 1: 1}, FREE), 1: ({0: 1}, FREE), 2: ({1: 1}, FREE)}, [21, 21])
    folded = progressive_filling({0: ({0: 1}, FREE), 1: ({0: 1}, FREE)}, [21])
    assert unfolded == {0: 10, 1: 10, 2: 10}
    assert folded == {0: 10, 1: 10}


def test_the_network_reports_what_changed() -> None:
    network = FairShare([100, 100])
    network.add(1, {0: 1}, 80)
    network.add(2, {1: 1}, 80)
    assert network.rate == {1: 80, 2: 80}  # nothing saturates: known at once, and nothing to solve
    assert network.resolve() == []
    network.add(3, {0: 1}, 80)
    assert network.resolve() == [1, 3]
    assert network.rate == {1: 50, 2: 80, 3: 50}
    network.remove(3)
    assert network.resolve() == [1]
    assert network.rate == {1: 80, 2: 80}


def test_links_that_cannot_saturate_do_not_couple() -> None:
    network = FairShare([10, 1000, 10])
    network.add(1, {0: 1, 1: 1}, 10)
    network.add(2, {2: 1, 1: 1}, 10)
    assert network.resolve() == []
    network.add(3, {2: 1}, 10)
    assert network.resolve() == [2, 3]
    assert network.rate == {1: 10, 2: 5, 3: 5}


def test_a_flow_without_links_has_its_cap_at_once() -> None:
    network = FairShare([])
    network.add(1, {}, 9)
    assert (network.rate[1], network.resolve()) == (9, [])
