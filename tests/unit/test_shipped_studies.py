"""Every shipped study can be read, asks for what exists, and answers its question with a picture."""

from __future__ import annotations

import pytest

from simtrain.study.sweep import Study, sweep
from simtrain.study.sweep.outcome import Evaluation
from simtrain.study.sweep.points import points


@pytest.mark.parametrize("name", Study.names())
def test_a_shipped_study_hangs_together(name: str) -> None:
    study = Study.load(name)
    every = points(study)
    assert study.question.endswith("?") and study.plot is not None and study.plot.note and study.sources
    assert len({point.key for point in every}) == len(every)
    Evaluation(study)  # reads constraints and derived metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", Study.names())
def test_a_shipped_study_runs_and_is_drawn(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("study") / "plot.svg"
    sweep(name).plot(str(path))
    assert path.stat().st_size > 10_000
