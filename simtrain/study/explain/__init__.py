"""Explaining a step: its critical path, what is exposed, who waits, and what each resource is worth."""

from simtrain.study.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
