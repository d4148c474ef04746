"""Steps whose blocks are drawn from what they were measured at, against answers by hand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from simtrain.graph.per_rank import RankProgram
from simtrain.validate.torch_blocks import BlockTimes, predict_drawn
from simtrain.validate.torch_machine import machine_of
from simtrain.validate.torch_predict import predict, programs_of
from tests.validation.test_torch_predict import BED, micro

TURNS = 40


class Meetings:
    """Work, then meet: again and again."""

    shared: tuple[str, ...] = ()

    def __init__(self, rank: int, size: int, **settings: Any) -> None:
        pass

    def twin(self, r: RankProgram, seconds: Mapping[str, float]) -> None:
        for _ in range(TURNS):
            r.compute("work", seconds["work"])
            r.collective("all_reduce", 1e6)


def test_blocks_that_do_not_scatter_give_the_plain_prediction() -> None:
    machine = machine_of(BED, micro())
    blocks = [BlockTimes({"work": [0.1, 0.1]}), BlockTimes({"work": [0.1]})]
    plain = predict(programs_of(Meetings, {}, [{"work": 0.1}, {"work": 0.1}], machine, BED), machine)
    assert predict_drawn(Meetings, {}, blocks, machine, BED) == pytest.approx(plain)


def test_two_ranks_that_meet_wait_for_the_later_of_two_draws() -> None:
    """Of two draws from 0.1 and 0.2 s the larger is 0.175 s on average, where a single one is 0.15 s."""
    machine = machine_of(BED, micro())
    blocks = [BlockTimes({"work": [0.1, 0.2]}) for _ in range(2)]
    idle = predict(programs_of(Meetings, {}, [{"work": 0.0}, {"work": 0.0}], machine, BED), machine)
    # Deviation of the sum of 40 maxima: 0.27 s; the median of 15 such sums is within 0.1 s (1.25 / sqrt(15) of it).
    assert predict_drawn(Meetings, {}, blocks, machine, BED) - idle == pytest.approx(TURNS * 0.175, abs=0.3)


class MeetingsAfterWrites(Meetings):
    """The work is a write to the one disk."""

    shared = ("work",)


def test_what_ranks_share_is_slow_for_all_of_them_at_once() -> None:
    """A step happens when the disk takes 0.1 s or when it takes 0.2 s, on both ranks; never is one rank later than the other."""
    machine = machine_of(BED, micro())
    blocks = [BlockTimes({"work": [0.1, 0.2]}) for _ in range(2)]
    spans = [predict(programs_of(Meetings, {}, [{"work": seconds}] * 2, machine, BED), machine) for seconds in (0.1, 0.2)]
    found = predict_drawn(MeetingsAfterWrites, {}, blocks, machine, BED)
    assert min(abs(found - span) for span in spans) < 1e-9


def test_a_shared_block_takes_what_it_took_at_the_moment_of_the_step() -> None:
    times = BlockTimes({"write": [3.0, 1.0, 2.0], "work": [1.0]})
    for moment, seconds in ((0.0, 3.0), (0.4, 1.0), (0.99, 2.0)):
        drawn = times.draw(np.random.default_rng(0), moment, ("write",))
        assert [drawn["write"] for _ in range(20)] == [seconds] * 20


def test_the_typical_time_is_the_median_and_draws_are_measured_times() -> None:
    times = BlockTimes({"work": [3.0, 1.0, 2.0]})
    assert times.typical() == {"work": 2.0}
    drawn = times.draw(np.random.default_rng(0), 0.0)
    found = [drawn["work"] for _ in range(300)]
    assert set(found) == {1.0, 2.0, 3.0}
    assert statistics.fmean(found) == pytest.approx(2.0, abs=0.2)
    assert list(drawn) == ["work"]
    assert len(drawn) == 1
