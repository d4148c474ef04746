"""MegaScale: hide communication, widen the batch, and take the small kernels and the host out of the way.

References
----------
.. [1] Jiang et al., "MegaScale: Scaling Large Language Model Training to More Than 10,000 GPUs", NSDI 2024, arXiv 2402.15627.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from simtrain.graph.parallel_linear import column_parallel, row_parallel
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Software
from simtrain.model import Transformer
from simtrain.systems.base import Case, Claim
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.training import Microbatch

GPT3 = {"tp": 8, "pp": 8, "vpp": 6, "zero": 2}


def _case(gpus: int, batch: int, row: str = "", **ours: Any) -> Case:
    settings = {"cluster.num_nodes": gpus // 8, "global_batch_size": batch, **GPT3}
    if row:
        return Case(row, "gpt3_175b_megascale", "megascale_a100", settings, system_settings=ours, has_baseline=False, group="ablation")
    return Case(f"{gpus:,} GPUs, batch {batch:,}", "gpt3_175b_megascale", "megascale_a100", settings, group="strong scaling")


class MegaScale(MegatronLM):
    """Every row of the paper's ablation is a parameter; all of them are on by default [1]_."""

    baseline = MegatronLM
    title: ClassVar[str] = "MegaScale (NSDI'24)"
    changes_math: ClassVar[str] = "sliding-window attention computes fewer scores; the parallel block changes none"

    software: Software = Field(default="megascale_2023", validate_default=True)  # pyright: ignore[reportAssignmentType]
    is_parallel_block: bool = True
    """y = x + MLP(LN(x)) + Attn(LN(x)): one gather and one scatter for both branches."""
    sliding_window: int | None = Field(default=512, ge=1)
    """Keys each query attends to. The paper does not print it; 512 is a guess, and 1,024 would move the step time by less than 1 %. [tokens]"""
    tp_overlap: int = Field(default=4, ge=1)
    """Pieces into which gathers, scatters and their products are cut; 1 does not overlap."""
    pp_overlap: bool = True
    dp_overlap: Literal["none", "layer", "chunk"] = "chunk"
    is_data_loading_overlapped: bool = True

    @property
    def attention_window(self) -> int | None:
        return self.sliding_window

    def layer_forward(self, r: Recorder, m: Transformer, b: Microbatch) -> None:
        if not self.is_parallel_block:
            super().layer_forward(r, m, b)
            return
        heads, kv_heads, own = m.heads // self.tp, max(1, m.num_kv_heads // self.tp), b.tokens / self.tp
        qkv, ffn = m.head_size * (heads + 2 * kv_heads), m.ffn // self.tp
        r.norm(own, m.hidden)
        column_parallel(r, "tp", b.tokens, m.hidden, qkv + ffn * (m.mlp_matrices - 1), "qkv_fc1", is_sequence_parallel=True, chunks=self.tp_overlap)
        r.heads(b.tokens, m.head_size, heads, kv_heads)
        self.core_attention(r, m, b, heads, kv_heads)
        r.activation(b.tokens, ffn, m.mlp)
        row_parallel(r, "tp", b.tokens, heads * m.head_size + ffn, m.hidden, "proj_fc2", is_sequence_parallel=True, chunks=self.tp_overlap)
        r.bias_dropout_add(own, m.hidden, m.dropout)


ABLATION: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("baseline", {"software": "megatron_2023", "is_parallel_block": False, "sliding_window": None, "tp_overlap": 1, "pp_overlap": False,
                  "dp_overlap": "none", "is_data_loading_overlapped": False}, 0.477),
    ("+ parallel block", {"is_parallel_block": True}, 0.523),
    ("+ sliding window", {"sliding_window": 512}, 0.533),
    ("+ TP overlap", {"tp_overlap": 4}, 0.555),
    ("+ PP overlap", {"pp_overlap": True}, 0.580),
    ("+ DP overlap", {"dp_overlap": "chunk"}, 0.595),
    ("+ efficient operators", {"software.attention": "flash2", "software.is_norm_fused": True, "software.is_activation_fused": True}, 0.612),
    ("+ data pipeline, host", {"software": "megascale_2023", "is_data_loading_overlapped": True}, 0.623),
    ("+ LAMB, batch 768", {"global_batch_size": 768}, 0.653),
)  # fmt: skip
"""Rows of [1] Table 3: what each adds to the rows above, and the published MFU; 256 GPUs, batch 256."""


def ablation_cases() -> list[Case]:
    """Return the set-up of each row of Table 3."""
    settings: dict[str, Any] = {}
    cases: list[Case] = []
    for name, added, _ in ABLATION:
        if isinstance(added.get("software"), str):
            settings = {k: v for k, v in settings.items() if not k.startswith("software")}
        settings = {**settings, **added}
        cases.append(_case(256, int(settings.get("global_batch_size", 256)), f"Table 3 {name}", **settings))
    return cases


TABLE_2 = (
    (256, 768, (32.0, 40.0), (0.653, 0.530), 1.23),
    (1024, 768, (8.9, 11.9), (0.590, 0.447), 1.32),
    (3072, 6144, (23.66, 29.02), (0.591, 0.487), 1.21),
    (12288, 6144, (6.34, 8.57), (0.552, 0.412), 1.34),
)
"""GPUs, batch, iteration time [s] and MFU of MegaScale and of Megatron-LM, printed speed-up."""

MegaScale.claims = (
    *(
        Claim("[1] Table 2", metric, _case(gpus, batch), ours, theirs)
        for gpus, batch, times, mfus, _ in TABLE_2
        for metric, (ours, theirs) in (("step_time", times), ("mfu", mfus))
    ),
    *(Claim("[1] Table 3", "mfu", case, row[2]) for case, row in zip(ablation_cases(), ABLATION, strict=True)),
)
