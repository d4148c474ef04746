"""The time grid and device meshes."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from simtrain.errors import InputError
from simtrain.graph.grid import GRID, LONGEST, ceil_grid, to_grid
from simtrain.graph.mesh import Mesh, split_axes

TICK = 2.0**-40


def test_the_grid_is_a_power_of_two() -> None:
    assert GRID == 2.0**40
    assert LONGEST == 8192.0  # 2^53 ticks of 2^-40 s


@pytest.mark.parametrize(("ticks", "nearest", "above"), [(0.0, 0, 0), (0.4, 0, 1), (0.5, 0, 1), (1.5, 2, 2), (2.5, 2, 3), (2.6, 3, 3), (7.0, 7, 7)])
def test_rounding_is_half_to_even_and_ceiling_never_goes_down(ticks: float, nearest: int, above: int) -> None:
    assert to_grid(ticks * TICK) == nearest * TICK
    assert ceil_grid(ticks * TICK) == above * TICK


def test_a_grid_time_stays_itself() -> None:
    rng = random.Random(0)
    for _ in range(1000):
        time = rng.randrange(2**53) * TICK
        assert to_grid(time) == ceil_grid(time) == time


def test_sums_on_the_grid_are_exact_in_any_order() -> None:
    rng = random.Random(1)
    terms = [to_grid(rng.expovariate(1e3)) for _ in range(2000)]
    exact = sum(map(Fraction, terms))
    assert exact < LONGEST
    for _ in range(5):
        rng.shuffle(terms)
        total = 0.0
        for term in terms:
            total += term
        assert Fraction(total) == exact


def test_sums_off_the_grid_are_not() -> None:
    # Why there is a grid at all: eight durations of about a millisecond already depend on their order.
    rng = random.Random(2)
    terms = [rng.expovariate(1e3) for _ in range(8)]
    sums = {math.fsum(terms)}
    for _ in range(50):
        rng.shuffle(terms)
        total = 0.0
        for term in terms:
            total += term
        sums.add(total)
    assert len(sums) > 1


MESH = Mesh((("tp", 2), ("cp", 3), ("dp", 4), ("pp", 5)))


def test_the_innermost_axis_is_the_fastest() -> None:
    assert MESH.world_size == 120
    assert [MESH.stride(axis) for axis in ("tp", "cp", "dp", "pp")] == [1, 2, 6, 24]
    assert MESH.rank({}) == 0
    assert MESH.rank({"tp": 1, "cp": 2, "dp": 3, "pp": 4}) == 119


def test_ranks_number_all_coordinates_once() -> None:
    ranks = [MESH.rank({"tp": t, "cp": c, "dp": d, "pp": p}) for p in range(5) for d in range(4) for c in range(3) for t in range(2)]
    assert ranks == list(range(120))


def test_groups_along_one_axis() -> None:
    assert MESH.group("tp") == [0, 1]
    assert MESH.group("dp", {"tp": 1, "pp": 2}) == [49, 55, 61, 67]
    assert MESH.group("dp", {"dp": 3, "tp": 1, "pp": 2}) == [49, 55, 61, 67]


def test_groups_along_joined_axes_are_the_product_of_both() -> None:
    assert MESH.size("dp_cp") == 12
    assert sorted(MESH.group("dp_cp", {"tp": 1})) == [1 + 2 * c + 6 * d for d in range(4) for c in range(3)]
    assert sorted(MESH.group("cp_dp", {"tp": 1})) == sorted(MESH.group("dp_cp", {"tp": 1}))
    assert split_axes("dp_cp") == ["dp", "cp"]


def test_groups_of_an_axis_partition_the_mesh() -> None:
    for axis, others in (("tp", ("cp", "dp", "pp")), ("dp_cp", ("tp", "pp")), ("pp", ("tp", "cp", "dp"))):
        seen: list[int] = []
        stack: list[dict[str, int]] = [{}]
        for other in others:
            stack = [{**c, other: i} for c in stack for i in range(MESH.size(other))]
        for coordinates in stack:
            seen += MESH.group(axis, coordinates)
        assert sorted(seen) == list(range(120))


def test_a_degree_is_at_least_one() -> None:
    with pytest.raises(InputError, match="tp: a degree is at least 1"):
        Mesh((("tp", 0),))


def test_an_unknown_axis_is_met_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown mesh axis 'ep'"):
        MESH.size("ep")
    with pytest.raises(InputError, match="unknown mesh axis"):
        MESH.size("dp_ep")
