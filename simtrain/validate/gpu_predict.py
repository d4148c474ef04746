"""What the shipped curves and eras say of each measured row of one GPU. Nothing here was fitted to those rows.

Kernels take the curves of the accelerator at clean clocks and one launch, as a step charges them. Layers and steps take the ordinary path: systems
record them, the engine replays them, under the software era :data:`ERA`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from simtrain.cost import attention, elementwise, gemm, optimizer
from simtrain.cost.model import CostModel
from simtrain.engine.execute import execute
from simtrain.errors import UnsupportedError
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import Do, RankClass, Step
from simtrain.hardware import Cluster, Software
from simtrain.hardware.accelerator import Accelerator
from simtrain.hardware.software import Rates
from simtrain.model import MoE, Transformer
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.moe.megatron_moe import MegatronMoE
from simtrain.systems.training import Microbatch
from simtrain.workload import Pretraining

ERA = "torch_eager_2026"

GENERATIONS = {"flash": "flash2", "cudnn": "cudnn"}
"""Kernel generation by backend of ``scaled_dot_product_attention``."""

GPT_OPS = (10, 32)
"""Framework operations of a GPT layer each way: biases and norms are one with what they follow. Those of a Llama layer stand in the era's file."""

ADAM_BYTES = {"bf16": 14.0, "fp32": 28.0}
"""Weight, gradient and two moments read, weight and moments written by a fused step, per parameter. [B]"""


class Prediction(NamedTuple):
    """What is predicted for a row."""

    seconds: float
    """[s]"""
    activation_bytes: float | None = None
    """Held by a layer from forward to backward. [B]"""


@dataclass(frozen=True)
class GpuRow:
    """One measured row; cells that are empty read as 0, no, or an empty text."""

    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell as it stands."""
        return self.cells.get(column, "")

    def count(self, column: str) -> int:
        """Return a whole number."""
        return int(self.cells.get(column) or 0)

    def number(self, column: str) -> float | None:
        """Return a number, or None if the cell is empty."""
        cell = self.cells.get(column)
        return float(cell) if cell else None

    def flag(self, column: str) -> bool:
        """Return whether a cell says yes."""
        return self.cells.get(column) == "yes"

    @property
    def expert_rows(self) -> list[int]:
        """Rows of each expert."""
        return [int(rows) for rows in self.text("expert_rows").split()]


class Predictor:
    """Predicts rows on one accelerator.

    Parameters
    ----------
    cluster
        Any cluster of the device; one accelerator of it is used.
    """

    def __init__(self, cluster: Cluster) -> None:
        nic = cluster.node.nic.model_copy(update={"count": 1})
        node = cluster.node.model_copy(update={"num_accelerators": 1, "nic": nic})
        self.cluster = cluster.model_copy(update={"node": node, "num_nodes": 1, "name": f"one {cluster.node.accelerator.name}"})
        self.chip: Accelerator = node.accelerator
        self._kinds: dict[str, Callable[[GpuRow], Prediction]] = {
            "launch": self._launch, "gemm": self._gemm, "grouped": self._grouped, "attention": self._attention, "memory": self._memory,
            "layer": self._layer, "moe_layer": self._layer, "optimizer": self._optimizer, "transfer": self._transfer, "step": self._step,
        }  # fmt: skip

    def predict(self, row: GpuRow) -> Prediction:
        """Return what is predicted for a row.

        Raises
        ------
        UnsupportedError
            If nothing is, with the reason.
        """
        kind = row.text("kind")
        if kind not in self._kinds:
            raise UnsupportedError(f"kind {kind!r} is not predicted; known are {', '.join(self._kinds)}")
        return self._kinds[kind](row)

    # -- kernels ------------------------------------------------------------------------------------------

    @cached_property
    def kernels(self) -> CostModel:
        """Costs of single kernels at clean clocks."""
        era = Software.load(ERA)
        clean = era.model_copy(update={"rates": {self.chip.kernels.name: Rates()}})
        return CostModel(self.cluster, clean, "bf16", _model(GpuRow({"hidden": "128", "heads": "1", "head_dim": "128", "ffn": "128", "model": "gpt"})))

    def _kernel(self, seconds: float) -> Prediction:
        return Prediction(seconds + self.chip.kernels.launch)

    def _launch(self, row: GpuRow) -> Prediction:
        each = self.chip.kernels.launch if row.flag("is_graphed") else max(self.chip.kernels.launch, Software.load(ERA).host_op_time)
        return Prediction(row.count("tensors") * each)

    def _gemm(self, row: GpuRow) -> Prediction:
        m, n, k = (row.count(dim) for dim in "mnk")
        dtype = row.text("dtype")
        # The dimensions that are strides in memory, in elements of the operands: of a weight gradient m and n.
        unit = gemm.ALIGNMENT / gemm.DTYPE_BYTES[dtype]
        strides = (m, n) if row.text("pass") == "wgrad" and dtype != "fp8" else (n, k)
        is_aligned = all(dim % unit == 0 for dim in strides)
        sustained = self.chip.kernels.sustained.get("default", 1.0) if row.text("mode") == "sustained" else 1.0
        return self._kernel(gemm.matmul(m, n, k, self.chip, dtype, sustained=sustained, is_aligned=is_aligned))

    def _grouped(self, row: GpuRow) -> Prediction:
        if row.text("op") != "grouped_mm":
            raise UnsupportedError("a loop over experts, not a grouped kernel")
        is_wgrad = row.text("pass") == "wgrad"
        n, k = row.count("n"), row.count("k")
        return self._kernel(gemm.grouped_matmul(row.expert_rows, n, k, self.chip, "bf16", is_weight_gradient=is_wgrad, out_bytes=2.0, accumulate=False))

    def _attention(self, row: GpuRow) -> Prediction:
        s, heads, kv_heads, head_dim = (row.count(name) for name in ("seq_len", "heads", "kv_heads", "head_dim"))
        generation, is_backward = GENERATIONS[row.text("backend")], row.text("pass") == "backward"
        call = (row.count("batch"), s, s, heads, kv_heads, head_dim, self.chip, "bf16", generation)
        return self._kernel(attention.flash(*call, is_causal=row.flag("causal"), backward=is_backward))

    def _memory(self, row: GpuRow) -> Prediction:
        op, tokens, hidden, is_backward = row.text("op"), row.count("m"), row.count("hidden"), row.text("pass") == "backward"
        costs, elements = self.kernels, float(row.count("m") * row.count("hidden"))
        if op in ("layernorm", "rmsnorm"):
            return Prediction(costs.norm(tokens, hidden)[is_backward])
        if op == "swiglu":
            return Prediction(costs.activation(tokens, hidden, op)[is_backward])
        if op == "embedding":
            return Prediction(costs.embedding(tokens, row.count("vocab"), hidden)[is_backward])
        if op == "cross_entropy":
            return Prediction(costs.cross_entropy(tokens, row.count("vocab"))[is_backward])
        if op == "gelu":  # no bias here, so one pass
            return self._kernel(elementwise.activation(tokens, hidden, op, self.chip, backward=is_backward))
        if op == "softmax":
            return self._kernel(elementwise.softmax(elements, self.chip, backward=is_backward))
        if op == "cast_fp8":
            return self._kernel(elementwise.cast(elements, self.chip))
        if op in ("copy", "add"):
            return self._kernel(elementwise.stream(elements * {"copy": 4, "add": 6}[op], self.chip))
        raise UnsupportedError(f"operation {op!r} has no formula")

    def _optimizer(self, row: GpuRow) -> Prediction:
        if row.text("backend") != "fused":
            raise UnsupportedError("Adam as a sequence of operations on lists: its traffic is not stated anywhere")
        return Prediction(optimizer.step(row.count("parameters"), ADAM_BYTES[row.text("dtype")], self.chip))

    def _transfer(self, row: GpuRow) -> Prediction:
        if row.text("memory") == "pageable":
            raise UnsupportedError("copies from pageable memory are not modelled")
        if row.text("op") == "mm":  # nothing slows a product beside a copy
            return self._gemm(row)
        pcie = self.cluster.node.pcie
        if pcie is None:
            raise UnsupportedError(f"nodes/{self.cluster.node.name}.yaml: no pcie")
        return Prediction(pcie.latency + row.count("size_bytes") / pcie.bandwidth)

    # -- layers and steps ---------------------------------------------------------------------------------

    def _era(self, row: GpuRow) -> Software:
        """Return the software of a row: a graph takes the host away, GPT layers have fewer operations than Llama's."""
        era, is_gpt = Software.load(ERA), _is_gpt(row)
        changed: dict[str, Any] = {"host_op_time": 0.0} if row.flag("is_graphed") else {}
        if is_gpt:
            changed |= {"forward_ops_per_layer": GPT_OPS[0], "backward_ops_per_layer": GPT_OPS[1], "is_activation_fused": True}
        return era.model_copy(update=changed)

    def _layer(self, row: GpuRow) -> Prediction:
        m, era = _model(row), self._era(row)
        system = _system(row, era)
        costs, mesh = CostModel(self.cluster, era, "bf16", m), Mesh((("tp", 1), ("cp", 1), ("dp", 1), ("pp", 1)), system.folds(1))
        tokens = row.count("batch") * row.count("seq_len")
        batch, kind = Microbatch(row.count("batch"), row.count("seq_len"), float(tokens)), system.layer_kind(m, 0)
        r = Recorder(mesh, costs, recompute=system.recomputed_regions)
        with r.layer(tokens * m.hidden * costs.dtype_bytes, expert_blocks=system.expert_blocks(kind)):
            system.layer_of_kind(r, m, batch, kind)
        both = row.text("pass") == "forward_backward"
        program = [Do(r.forward("forward")), *([Do(r.backward("backward"))] if both else [])]
        step = Step(mesh, [RankClass({"pp": 0}, 1, program)], tokens, 0.0, 0.0, "bf16")
        seconds = execute(step, self.cluster, fidelity="fair").trace.makespan
        return Prediction(seconds + self._skew(row, costs), r.saved_bytes)

    def _skew(self, row: GpuRow, costs: CostModel) -> float:
        """Return what unequal experts cost over equal ones, which is what the system records. [s]"""
        rows = row.expert_rows
        if not rows:
            return 0.0
        extra, mean = 0.0, [sum(rows) / len(rows)] * len(rows)
        sustained = costs.sustained("bf16") * costs.rates.grouped
        for n, k in ((2 * row.count("ffn"), row.count("hidden")), (row.count("hidden"), row.count("ffn"))):
            products = {"forward": (n, k, False), "dgrad": (k, n, False), "wgrad": (n, k, True)}
            runs = {"forward": 2 if row.flag("recompute") else 1, "dgrad": 1, "wgrad": 1} if row.text("pass") != "forward" else {"forward": 1}
            for name, times in runs.items():
                columns, inner, is_wgrad = products[name]
                uneven, even = (
                    gemm.grouped_matmul(
                        counts, columns, inner, self.chip, "bf16", is_weight_gradient=is_wgrad, sustained=sustained, out_bytes=costs.gradient_bytes,
                        accumulate=costs.software.accumulates_in_product,
                    )
                    for counts in (rows, mean)
                )
                extra += times * (uneven - even)
        return extra

    def _step(self, row: GpuRow) -> Prediction:
        m, system = _model(row), _system(row, self._era(row))
        batch = row.count("batch") * row.count("microbatches")
        workload = Pretraining.model_validate({"name": row.text("model"), "model": m, "seq_len": row.count("seq_len"), "global_batch_size": batch})
        return Prediction(run_scenario(Scenario("gpu", system, workload, self.cluster)).metrics["step_time"])


def _is_gpt(row: GpuRow) -> bool:
    return "gpt" in row.text("model")


def _system(row: GpuRow, era: Software) -> MegatronLM:
    """Return the system on one rank."""
    cls = MegatronMoE if row.count("experts") else MegatronLM
    recompute = "full" if row.flag("recompute") else "none"
    return cls.model_validate({"software": era, "dp": 1, "recompute": recompute, "microbatch_size": row.count("batch"), "is_data_loading_overlapped": True})


def _model(row: GpuRow) -> Transformer:
    """Return the model of a row; a single layer has a vocabulary that nothing reads."""
    is_gpt, experts = _is_gpt(row), row.count("experts")
    hidden, ffn = row.count("hidden"), row.count("ffn")
    moe = MoE(experts=experts, top_k=row.count("top_k"), expert_ffn=ffn) if experts else None
    return Transformer.model_validate(
        {
            "name": row.text("model"), "layers": max(1, row.count("layers")), "hidden": hidden, "heads": row.count("heads"),
            "kv_heads": row.count("kv_heads"), "head_dim": row.count("head_dim"), "ffn": ffn, "vocab": row.count("vocab") or math.ceil(hidden),
            "max_seq_len": max(1, row.count("seq_len")), "mlp": "gelu" if is_gpt else "swiglu", "norm": "layernorm" if is_gpt else "rmsnorm",
            "position": "learned" if is_gpt else "rope", "has_bias": is_gpt, "moe": moe,
        }
    )  # fmt: skip
