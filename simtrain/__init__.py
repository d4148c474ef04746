"""A discrete-event simulator of training clusters, and a benchmark suite of training systems on top of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from simtrain.errors import InfeasibleError, InputError, SimtrainError
    from simtrain.hardware import Accelerator, Cluster, Node, Software
    from simtrain.model import Transformer
    from simtrain.study.compare import Comparison, compare
    from simtrain.study.explain import Explanation, explain
    from simtrain.study.plan import Plan, PlanResult, plan
    from simtrain.study.result import Result
    from simtrain.study.run import run
    from simtrain.study.sweep import Study, SweepResult, sweep
    from simtrain.systems.base import Case, Claim, System
    from simtrain.validate.calibrate import calibrate
    from simtrain.workload import Pretraining

_HOME = {
    "InfeasibleError": "errors", "InputError": "errors", "SimtrainError": "errors", "Accelerator": "hardware", "Cluster": "hardware", "Node": "hardware",
    "Software": "hardware", "Transformer": "model", "Comparison": "study.compare", "compare": "study.compare", "Result": "study.result", "run": "study.run",
    "calibrate": "validate.calibrate", "Explanation": "study.explain", "explain": "study.explain",
    "Plan": "study.plan", "PlanResult": "study.plan", "plan": "study.plan", "Study": "study.sweep", "SweepResult": "study.sweep", "sweep": "study.sweep",
    "Case": "systems.base", "Claim": "systems.base", "System": "systems.base", "Pretraining": "workload",
}  # fmt: skip

__all__ = [
    "Accelerator", "Case", "Claim", "Cluster", "Comparison", "Explanation", "InfeasibleError", "InputError", "Node", "Plan", "PlanResult",
    "Pretraining", "Result", "SimtrainError", "Software", "Study", "SweepResult", "System", "Transformer", "calibrate", "compare", "explain",
    "plan", "run", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that importing the package stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'simtrain' has no attribute {name!r}")
    return getattr(import_module(f"simtrain.{_HOME[name]}"), name)
