"""Times of a machine that is slow at times, against answers by hand: what was measured then says nothing of the usual speed."""

from __future__ import annotations

from typing import Any

import pytest

from simtrain.validate import torch_restart
from simtrain.validate.torch_samples import blocks_of, samples, slowest_micro

USUAL, SLOW = 1.0, 1.9
"""Yardsticks: a neighbour on the same core nearly halves what is left of it."""
YARDS = [USUAL, SLOW, USUAL, USUAL]


def rank_lines(seconds: list[float], yards: list[float]) -> list[dict[str, Any]]:
    """One rank: a constant, blocks and samples, each measured at the same times."""
    lines: list[dict[str, Any]] = [{"kind": "micro", "name": "send", "seconds": seconds, "yardsticks": yards}]
    for k, (time, yard) in enumerate(zip(seconds, yards, strict=True)):
        lines.append({"kind": "blocks", "number": 0, "round": k, "seconds": {"work": time}, "yardstick": yard})
        lines.append({"kind": "sample", "number": 0, "round": k, "seconds": time, "yardsticks": [yard, yard]})
    return lines


def test_what_was_measured_on_a_slow_machine_is_left_out() -> None:
    lines = [rank_lines([1.0, 2.0, 1.02, 1.04], YARDS), rank_lines([1.01, 2.0, 1.03, 1.05], YARDS)]
    assert slowest_micro(lines)["send"] == pytest.approx((1.01 + 1.03 + 1.05) / 3)
    assert samples(lines, 0)[:2] == (1.03, USUAL)
    assert [block.seconds["work"] for block in blocks_of(lines, 0, USUAL)] == [[1.0, 1.02, 1.04], [1.01, 1.03, 1.05]]


def test_a_time_is_slow_for_all_ranks_together() -> None:
    """Times of one moment stay beside each other: a write to a shared disk is drawn for all ranks at once."""
    lines = [rank_lines([1.0, 2.0, 3.0, 4.0], YARDS), rank_lines([5.0, 6.0, 7.0, 8.0], [USUAL] * 4)]
    assert [block.seconds["work"] for block in blocks_of(lines, 0, USUAL)] == [[1.0, 3.0, 4.0], [5.0, 7.0, 8.0]]


def test_with_fewer_than_three_usual_times_all_count() -> None:
    yards = [1.0, 1.5, 2.0, 2.5]
    lines = [rank_lines([1.0, 2.0, 3.0, 4.0], yards)] * 2
    assert len(blocks_of(lines, 0, 1.75)[0].seconds["work"]) == 4
    assert slowest_micro(lines)["send"] == pytest.approx(2.5)


def test_blocks_are_scaled_to_the_speed_of_the_samples() -> None:
    lines = [rank_lines([1.0, 2.0, 1.0, 1.0], YARDS)] * 2
    assert blocks_of(lines, 0, 1.1)[0].seconds["work"] == pytest.approx([1.1, 1.1, 1.1])


def test_a_program_may_have_no_blocks() -> None:
    assert [block.seconds for block in blocks_of([[], []], 0, USUAL)] == [{}, {}]


def test_restarts_on_a_slow_machine_are_left_out() -> None:
    """Four rounds of one job and of its parts, one each at half the speed; the job's slow time and the slow part do not count."""

    def line(yard: float, **what: Any) -> dict[str, Any]:
        return {"yardsticks": [yard, yard], **what}

    lines = [line(y, number=0, seconds=s) for y, s in zip(YARDS, (3.0, 6.0, 3.2, 3.4), strict=True)]
    lines += [line(y, parts={"start": [s], "step": [s / 10, s / 5]}) for y, s in zip(YARDS, (2.0, 9.0, 2.2, 2.4), strict=True)]
    parts, jobs = torch_restart.samples(lines)
    assert jobs == {0: [3.0, 3.2, 3.4]}
    assert parts == pytest.approx({"start": 2.2, "step": (0.24 + 0.4) / 2})  # of 0.2 0.4 0.22 0.44 0.24 0.48
