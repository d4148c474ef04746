"""PipeMoE with Lina: gradients in pieces of a fixed size, beside experts and dense parts.

References
----------
.. [1] Li et al., "Accelerating Distributed MoE Training and Inference with Lina", USENIX ATC 2023.
.. [2] Pan et al., "FSMoE", ASPLOS 2025, arXiv 2501.10714, section 6: pieces of 30 MB.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.graph.gradient_flow import GradientFlow, Pieces, Send
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.systems.moe.tutel import Tutel
from simtrain.systems.training import Microbatch
from simtrain.units import Bytes


class PipeMoELina(Tutel):
    """Tutel's chunks; each gap of the inter-node lane takes one piece, however long it is [2]_."""

    baseline = Tutel
    title: ClassVar[str] = "PipeMoE + Lina (INFOCOM'23, ATC'23)"

    piece: Bytes = Field(default=30e6, gt=0)
    """Most bytes of one reduction. [B]"""
    dp_overlap: Literal["none", "layer"] = "layer"

    def gradient_flow(self, r: Recorder, m: Transformer, b: Microbatch, send: Send, layer_bytes: float) -> GradientFlow:
        return Pieces(send, piece=self.piece)
