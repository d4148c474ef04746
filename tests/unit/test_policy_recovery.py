"""Spares, copies, and what is left of a mesh, by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.graph.mesh import Mesh
from simtrain.policy.recovery import copies_survive, lost_ranks, repartition, rerouted_load, spares_for


def test_standby_machines_of_byterobust() -> None:
    """Facts, V18: 4 of 1,024 at 1.2e-3 a day."""
    assert spares_for(1024, 1.2e-3) == 4


@given(st.integers(1, 60), st.floats(0.001, 0.9), st.floats(0.5, 0.9999))
def test_spares_are_the_smallest_that_suffice(nodes: int, p: float, quantile: float) -> None:
    found = spares_for(nodes, p, quantile)
    below = [sum(math.comb(nodes, k) * p**k * (1 - p) ** (nodes - k) for k in range(count + 1)) for count in (found - 1, found)]
    assert below[0] < quantile + 1e-9 and (below[1] >= quantile - 1e-9 or found == nodes)


def test_spares_at_the_ends() -> None:
    assert [spares_for(10, p) for p in (0.0, -1.0, 1.0)] == [0, 0, 10]


@pytest.mark.parametrize(("places", "copies"), [(6, 2), (7, 3), (5, 2), (3, 4), (4, 1)])
def test_copies_survive_while_each_group_has_a_member(places: int, copies: int) -> None:
    groups: list[list[int]] = [list(range(start, start + copies)) for start in range(0, places - copies + 1, copies)] or [list(range(places))]
    groups[-1] = list(range(groups[-1][0], places))
    for count in range(places + 1):
        for lost in itertools.combinations(range(places), count):
            assert copies_survive(lost, places, copies) == all(set(group) - set(lost) for group in groups)


def test_lost_ranks_are_those_of_the_mesh() -> None:
    mesh = Mesh((("tp", 4), ("cp", 1), ("dp", 6), ("pp", 3)))
    for place in range(9):
        found = lost_ranks([place], accelerators=8, inner=4, dp=6, pp=3)
        expected = {(stage, replica) for stage in range(3) for replica in range(6) for tp in range(4)
                    if mesh.rank({"tp": tp, "cp": 0, "dp": replica, "pp": stage}) // 8 == place}  # fmt: skip
        assert found.replicas == {replica for _, replica in expected}
        assert found.by_stage == tuple(sum(s == stage for s, _ in expected) for stage in range(3))


def test_peers_take_over() -> None:
    assert (rerouted_load(0, 4), rerouted_load(1, 4), rerouted_load(4, 4)) == (1.0, 4 / 3, math.inf)


@given(st.lists(st.sampled_from([0.25, 0.5, 2 / 3, 0.75, 1.0]), min_size=2, max_size=4), st.integers(0, 6))
def test_repartition_is_minimax(speeds: list[float], more: int) -> None:
    layers = len(speeds) + more
    found = repartition(layers, speeds)
    assert sum(found) == layers and min(found) >= 1
    splits = (c for c in itertools.product(range(1, layers + 1), repeat=len(speeds)) if sum(c) == layers)
    best = min(max(n / s for n, s in zip(split, speeds, strict=True)) for split in splits)
    assert max(n / s for n, s in zip(found, speeds, strict=True)) == pytest.approx(best)
