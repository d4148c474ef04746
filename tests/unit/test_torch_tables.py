"""What is printed and written of torch runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simtrain.report.torch_table import sent_line, summary
from simtrain.validate.torch_samples import repeat_noise
from validation.torch_tables import DATA, NOT_YET, README, section


def row(program: str, error: float, **more: Any) -> dict[str, Any]:
    measured = 0.2
    return {
        "bed": "2 ranks, 300 Mbit/s", "ranks": 2, "program": program, "configuration": json.dumps({"chunks": 2}), "unit": "s", "measured": measured,
        "predicted": measured * (1 + error), "error": error, "noise": 0.01, "repeat": 0.02, "naive": 0.1, "naive_error": -0.5, "sent": 1.0e6,
        "sent_expected": 1.0e6,
    } | more  # fmt: skip


ROWS = [row("data_parallel", 0.01), row("data_parallel", -0.03), row("moe", 0.2, repeat=math.nan), row("rl_staleness", 0.0, unit="updates", measured=1.0)]


def test_the_noise_of_a_repetition_is_that_between_halves_of_the_rounds() -> None:
    assert repeat_noise([1.0, 1.2, 1.0, 1.4, 1.0]) == pytest.approx((1.3 - 1.0) / 1.0)
    assert repeat_noise([2.0, 2.0]) == 0.0
    assert math.isnan(repeat_noise([2.0]))


def test_a_summary_leaves_out_what_could_not_be_repeated() -> None:
    """Of errors 1, 3 and 20 % the 90th percentile lies 0.8 of the way from the second to the third: 3 + 0.8 x 17."""
    assert summary(ROWS[:3]) == "error median 3.0%, p90 16.6%; naive model median 50.0%, p90 50.0%; repeat median 2.0%, p90 2.0%"


def test_bytes_beyond_tolerance_are_called_out() -> None:
    assert sent_line(ROWS).endswith("largest difference +0.0% (data_parallel, 2 ranks, 300 Mbit/s), all within 5%")
    off = sent_line([*ROWS, row("zero3", 0.0, sent=0.9e6)])
    assert "largest difference -10.0% (zero3, 2 ranks, 300 Mbit/s); 1 EXCEED 5%" in off
    assert "not counted" in sent_line([row("restart", 0.0, sent=0.0, sent_expected=0.0)])


def test_nothing_measured_is_said() -> None:
    assert section(Path("/nonexistent")) == NOT_YET


def test_the_section_says_what_the_files_say(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_csv(tmp_path / "torch_runs.csv", index=False)
    pairs = [
        {"bed": "b", "program": "p", "faster": "x", "slower": "y", "gap": 0.3, "is_clear": True, "is_right": right, "cost": 0.0 if right else 0.3}
        for right in (True, False)
    ]
    pd.DataFrame(pairs).to_csv(tmp_path / "torch_decisions.csv", index=False)
    host = {"processor": "P", "cores": 2, "kernel": "Linux 6", "congestion_control": "bbr", "python": "3.11", "torch": "2.13", "date": "2026-11-24"}
    (tmp_path / "torch_machine.json").write_text(json.dumps(host))
    text = section(tmp_path)
    assert "Measured on 2026-11-24: P, 2 cores, Linux 6, torch 2.13 with gloo, Python 3.11, congestion control bbr." in text
    assert "| data_parallel | 2 | 2.0% | 2.8% | -3.0% | 2.0% | 50.0% |" in text
    assert "| moe | 2 ranks, 300 Mbit/s | chunks 2 | 200 ms | 240 ms | +20.0% **missed** |" in text
    assert "| rl_staleness | 2 ranks, 300 Mbit/s | chunks 2 | 1 updates |" in text
    assert "Of the 2 pairs of schedules that differ by more than 10 % and the noise, 1 are told right; following the prediction costs 15.0%" in text
    assert "* b, p: x beats y by 30%" in text


def test_the_readme_is_what_the_committed_files_give() -> None:
    assert section(DATA) in README.read_text()
