"""FSMoE: inter-node traffic, intra-node traffic and experts on three lanes, with degrees and gradient slots from closed forms.

References
----------
.. [1] Pan et al., "FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models", ASPLOS 2025, arXiv 2501.10714.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simtrain.cost.collective import Transfer
from simtrain.graph.gradient_flow import GradientFlow, Send, Slots
from simtrain.graph.moe import ExpertExchange, Lanes
from simtrain.graph.recorder import Recorder
from simtrain.model import Transformer
from simtrain.policy.chunk_degree import DEGREES, ChunkModel, best, fitted, one_lane, rounded, three_lanes
from simtrain.systems.base import Case, Claim
from simtrain.systems.moe.deepspeed_moe import DeepSpeedMoE
from simtrain.systems.training import Microbatch


class FSMoE(DeepSpeedMoE):
    """Degrees of their own for forward and backward; gradients cut to fit the gaps [1]_, sections 4 and 5."""

    baseline = DeepSpeedMoE
    changes_math: ClassVar[str] = "the baseline's tensor-parallel ranks all compute the gate of every token"
    title: ClassVar[str] = "FSMoE (ASPLOS'25)"

    is_sequence_parallel: bool = True
    overlaps_lanes: bool = True
    """Inter-node beside intra-node traffic; false is the paper's FSMoE-No-IIO."""
    degree_choices: tuple[int, ...] = Field(default=DEGREES, min_length=1)
    """Numbers of chunks to choose from; the solver's answer is a real number, and rounded to these."""
    dp_overlap: Literal["none", "layer"] = "layer"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def lanes(self) -> Lanes:
        return Lanes("inter", "intra") if self.overlaps_lanes else Lanes("inter", "inter")

    def degrees(self, r: Recorder, x: ExpertExchange) -> tuple[int, int]:
        slot = r.gradients.experts if isinstance(r.gradients, Slots) else 0.0
        forward = fitted(lambda degree: x.times(r, degree, is_backward=False))
        return self.degree(forward, 0.0), self.degree(forward.backward(), self.reduction(r, slot).seconds)

    def degree(self, model: ChunkModel, reduction: float) -> int:
        """Return the chunks of one direction, with a reduction [s] of gradients beside its exchange.

        How FSMoE-No-IIO finds its degree is not printed: it takes the best of the choices, as Tutel does.
        """
        if self.overlaps_lanes:
            return rounded(lambda degree: three_lanes(model.times(degree), degree, reduction)[1], self.degree_choices)
        return best(lambda degree: one_lane(model.times(degree), degree, reduction), self.degree_choices)

    def reduction(self, r: Recorder, nbytes: float) -> Transfer:
        """Return the cost of reducing gradients. [B]"""
        return r.costs.collective("reduce_scatter" if self.zero else "all_reduce", nbytes, r.group("dp_cp"))

    def gradient_flow(self, r: Recorder, m: Transformer, b: Microbatch, send: Send, layer_bytes: float) -> GradientFlow:
        """Fill the dense part, where nothing else needs the inter-node lane, and give the rest to the exchanges.

        The paper fills the gaps of dense parts and exchanges from the back, and spreads what is left over the exchanges by
        differential evolution; for equal layers both come to this, since what an exchange takes goes into its gap first.
        """
        whole, probe = self.reduction(r, layer_bytes), Recorder(r.mesh, r.costs, r.coordinates)
        self.attention_block(probe, m, b)
        seconds = probe.backward("dense").alone - whole.latency
        in_dense = min(layer_bytes, max(0.0, seconds) * whole.rate / whole.nbytes * layer_bytes)
        return Slots(send, experts=layer_bytes - in_dense, dense=in_dense)


def _table_6(gate: str, ours: float, theirs: float) -> Claim:
    settings = {"tp": 4, "seq_len": 256, "global_batch_size": 8, "gate": gate}
    return Claim("[1] Table 6", "step_time", Case(f"GPT2-XL on testbed B, {gate} gate", "gpt2_xl_moe", "fsmoe_b", settings), ours, theirs)


FSMoE.claims = (_table_6("gshard", 0.7077, 0.9681), _table_6("x_moe", 0.7469, 1.0640))
