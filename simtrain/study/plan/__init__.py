"""Planning: the best degrees for a model on a cluster, found without trying them all, and why the others lose."""

from simtrain.study.plan.search import Plan, PlanResult, plan

__all__ = ["Plan", "PlanResult", "plan"]
