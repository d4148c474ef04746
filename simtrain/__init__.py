"""A discrete-event simulator of training clusters, and a benchmark suite of training systems on top of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simtrain.version import __version__ as __version__

if TYPE_CHECKING:
    from simtrain.errors import InfeasibleError, InputError, SimtrainError, UnsupportedError
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
    "errors": ("InfeasibleError", "InputError", "SimtrainError", "UnsupportedError"),
    "hardware": ("Accelerator", "Cluster", "Node", "Software"),
    "model": ("Transformer",),
    "workload": ("Pretraining",),
    "systems.base": ("Case", "Claim", "System"),
    "study.run": ("run",),
    "study.result": ("Result",),
    "study.compare": ("Comparison", "compare"),
    "study.explain": ("Explanation", "explain"),
    "study.plan": ("Plan", "PlanResult", "plan"),
    "study.sweep": ("Study", "SweepResult", "sweep"),
    "validate.calibrate": ("calibrate",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Accelerator", "Case", "Claim", "Cluster", "Comparison", "Explanation", "InfeasibleError", "InputError", "Node", "Plan", "PlanResult",
    "Pretraining", "Result", "SimtrainError", "Software", "Study", "SweepResult", "System", "Transformer", "UnsupportedError", "calibrate", "compare",
    "explain", "plan", "run", "sweep",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load public names when they are first used, so that importing the package stays quick."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'simtrain' has no attribute {name!r}")
    return getattr(import_module(f"simtrain.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not, for completion in a shell."""
    return sorted([*__all__, "__version__"])
