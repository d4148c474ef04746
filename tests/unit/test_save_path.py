"""The closed form of training with saves, against walking it save by save."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.engine.save_path import Position, SavePath, Saving


def walk(saving: Saving, speed: float, time: float, persist_wait: float = 0.0) -> Position:
    """Train and save one after the other until the time is up."""
    saves, work = 0, 0.0
    while True:
        if time <= saving.interval / speed:
            return Position(work + time * speed, 0.0, saves)
        time -= saving.interval / speed
        work += saving.interval
        stall = saving.memory_stall + ((saving.storage_stall + persist_wait) if (saves + 1) % saving.storage_every == 0 else 0.0)
        if time < stall:
            return Position(work, time, saves)
        time -= stall
        saves += 1


@given(
    st.floats(1, 50), st.integers(1, 4), st.floats(0, 5), st.floats(0, 20), st.floats(0.2, 1), st.floats(0, 2000),
)  # fmt: skip
def test_closed_form_is_the_walk(interval: float, every: int, memory: float, storage: float, speed: float, time: float) -> None:
    saving = Saving(interval, every, memory, storage)
    path, expected = SavePath(saving, speed), walk(saving, speed, time)
    found = path.at(time)
    assert found.work == pytest.approx(expected.work, abs=1e-6)
    if found.saves == expected.saves:  # at the very end of a save rounding may count it in or not
        assert found.stalled == pytest.approx(expected.stalled, abs=1e-6)
    assert path.time_at(found) == pytest.approx(time, abs=1e-6)


def test_a_save_waits_for_the_one_before_to_be_readable() -> None:
    """100 s of work, 5 s of stall, 130 s to persist: the next save has to wait 30 s, so a period takes 135 s."""
    path = SavePath(Saving(100.0, 1, 0.0, 5.0, 130.0), 1.0)
    assert path.at(135.0 * 7).work == pytest.approx(700.0)
    assert SavePath(Saving(100.0, 1, 0.0, 5.0, 90.0), 1.0).at(105.0 * 7).work == pytest.approx(700.0)


def test_each_save_to_storage_comes_with_one_to_memory() -> None:
    path = SavePath(Saving(10.0, 3, 1.0, 4.0), 0.5)
    assert [path.stall_of(n) for n in range(1, 7)] == [1, 1, 5, 1, 1, 5]
    assert [path.end_of(n) for n in (1, 2, 3, 6)] == [21, 42, 67, 134]
