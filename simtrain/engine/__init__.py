"""Replays graphs: shared links, traces, metrics. The only importer of simpy."""

from simtrain.engine.replay import replay
from simtrain.engine.trace import Trace

__all__ = ["Trace", "replay"]
