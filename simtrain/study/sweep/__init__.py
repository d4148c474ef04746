"""Studies: many points of one question, run in parallel, interrupted and resumed, drawn."""

from simtrain.study.sweep.definition import Study
from simtrain.study.sweep.result import SweepResult
from simtrain.study.sweep.run import sweep

__all__ = ["Study", "SweepResult", "sweep"]
