"""Tutel with PipeMoE's adaptive degree: all-to-alls beside the experts' computation.

References
----------
.. [1] Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale", MLSys 2023.
.. [2] Shi et al., "PipeMoE", INFOCOM 2023: the degree from a performance model, one for forward and backward.
.. [3] Pan et al., "FSMoE", ASPLOS 2025, arXiv 2501.10714, sections 2.3 and 6 (Tutel-Improved).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.graph.gradient_flow import BesideDense, GradientFlow, Send
from simtrain.graph.moe import ExpertExchange
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.policy.chunk_degree import best, fitted, one_lane
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.training import Microbatch


class Tutel(DeepSpeedMoE):
    """Chunks, with all communication on one lane; ``dp_overlap=layer`` is Tutel-Improved: gradients beside the dense part [3]_."""

    baseline = DeepSpeedMoE
    changes_math: ClassVar[str] = "the baseline's tensor-parallel ranks all compute the gate of every token"
    title: ClassVar[str] = "Tutel (MLSys'23) with PipeMoE (INFOCOM'23)"

    is_sequence_parallel: bool = True
    degree: int = Field(default=0, ge=0)
    """Chunks, the same in forward and backward; 0 lets the performance model choose [2]_."""
    dp_overlap: Literal["none", "layer"] = "none"  # pyright: ignore[reportIncompatibleVariableOverride]

    def degrees(self, r: Recorder, x: ExpertExchange) -> tuple[int, int]:
        if self.degree:
            return self.degree, self.degree
        forward = fitted(lambda degree: x.times(r, degree, is_backward=False))
        backward = forward.backward()
        chosen = best(lambda degree: one_lane(forward.times(degree), degree) + one_lane(backward.times(degree), degree))
        return chosen, chosen

    def gradient_flow(self, r: Recorder, m: Transformer, b: Microbatch, send: Send, layer_bytes: float) -> GradientFlow:
        return BesideDense(send)
