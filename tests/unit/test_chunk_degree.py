"""Closed forms of a chunked exchange, against the paper's questions and against a schedule drawn by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.cost.model import CostModel
from simtrain.engine.replay import replay
from simtrain.graph.graph import assemble
from simtrain.graph.mesh import Mesh
from simtrain.graph.moe import ChunkTimes, ExpertExchange, Lanes
from simtrain.graph.program import Program
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import Do, RankClass, Step
from simtrain.policy.chunk_degree import best, one_lane, three_lanes
from tests.tiny import MODEL, SOFTWARE, cluster

TIMES = st.floats(0.01, 10.0)


def paper_case(t: ChunkTimes, r: int, gar: float) -> int:
    """FSMoE section 4: Q1 to Q3 find what binds without the reduction, Q4 to Q7 whether it outlasts the idle inter-node lane."""
    a, g, e, s = t
    q1, q2, q3 = a > g, r * e > 2 * (r - 1) * a, r * e > (r - 1) * (g + s)
    if q1:
        bound, idle = (2, r * e - 2 * (r - 1) * a + g + s) if q2 else (3, g + s)  # Q5, Q4
    else:
        bound, idle = (2, r * e - 2 * (r - 1) * a + g + s) if q3 else (4, r * (g + s) - 2 * (r - 1) * a)  # Q7, Q6
    return 1 if gar > idle else bound


@given(TIMES, TIMES, TIMES, st.sampled_from([1, 2, 4, 8]), st.floats(0, 40))
def test_the_papers_questions_choose_the_largest_expression(a: float, g: float, e: float, r: int, gar: float) -> None:
    t = ChunkTimes(a, g, e, g)  # gather and scatter alike, as Q1 takes for granted
    case, seconds = three_lanes(t, r, gar)
    values = {1: 2 * r * a + gar, 2: 2 * a + 2 * g + r * e, 3: 2 * r * a + 2 * g, 4: 2 * a + 2 * r * g}
    assert values[paper_case(t, r, gar)] == pytest.approx(seconds)
    assert values[case] == pytest.approx(seconds)


def by_hand(t: ChunkTimes, r: int, reduction: float, *, is_shared: bool) -> float:
    """Run the tasks in order of issue, each lane first in, first out."""
    free = {"inter": 0.0, "intra": 0.0, "experts": 0.0}
    intra = "inter" if is_shared else "intra"

    def run(lane: str, seconds: float, after: float) -> float:
        free[lane] = max(free[lane], after) + seconds
        return free[lane]

    arrived = [run(intra, t.all_gather, run("inter", t.all_to_all, 0.0)) for _ in range(r)]
    run("inter", reduction, 0.0)
    done = [run("experts", t.experts, arrival) for arrival in arrived]
    return max(run("inter", t.all_to_all, run(intra, t.reduce_scatter, end)) for end in done)


@given(TIMES, TIMES, TIMES, TIMES, st.sampled_from([1, 2, 3, 8]))
def test_one_lane_is_exact(a: float, g: float, e: float, s: float, r: int) -> None:
    t = ChunkTimes(a, g, e, s)
    assert one_lane(t, r) == pytest.approx(by_hand(t, r, 0.0, is_shared=True))


@given(TIMES, TIMES, TIMES, TIMES, st.sampled_from([1, 2, 4, 8]))
def test_three_lanes_bound_from_below(a: float, g: float, e: float, s: float, r: int) -> None:
    """The paper's cases leave out how the lanes fill; they are exact for one chunk and never too long by more than rounding."""
    t = ChunkTimes(a, g, e, s)
    if r == 1:
        assert three_lanes(t, r)[1] == pytest.approx(by_hand(t, r, 0.0, is_shared=False))
    assert three_lanes(t, r)[1] <= by_hand(t, r, 0.0, is_shared=False) * (1 + 1e-9)


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("lanes", [Lanes("inter", "intra"), Lanes("inter", "inter")])
@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize(("hidden", "ffn"), [(512, 64), (64, 4096), (1024, 512)])
def test_the_engine_runs_the_exchange_as_by_hand(hidden: int, ffn: int, degree: int, lanes: Lanes, is_backward: bool) -> None:
    place = cluster(4, 2, scale_up=60e9, nic=10e9)
    mesh = Mesh((("tp", 2), ("dp", 4)))
    r = Recorder(mesh, CostModel(place, SOFTWARE, "bf16", MODEL))
    x = ExpertExchange("dp", "tp", 4096.0, hidden, ffn, 2, 1, "gelu")
    p = Program("exchange")
    x.emit(r, p, lanes, degree, is_backward=is_backward)
    step = Step(mesh, [RankClass({}, 8, [Do(p.template())])], 0.0, 0.0, 0.0, "bf16")
    t = x.times(r, degree, is_backward=is_backward)
    assert min(t) > 0
    expected = by_hand(t, degree, 0.0, is_shared=lanes.inter == lanes.intra)
    assert replay(assemble(step), place).makespan == pytest.approx(expected, rel=1e-6)


def test_the_smallest_of_equal_degrees_is_taken() -> None:
    assert best(lambda d: 1.0) == 1
    assert best(lambda d: abs(d - 4)) == 4
