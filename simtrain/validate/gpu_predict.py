"""What the shipped curves and eras say of each measured row of one GPU. Nothing here was fitted to the rows of the check.

Products and attention take the curves of the accelerator at clean clocks and one launch, as a step charges them; what is bound by memory, the eager kernels of
the software era :data:`ERA`. Layers and steps take the ordinary path: systems record them, the engine replays them, under that era.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from simtrain.cost import attention, gemm
from simtrain.cost.eager import EagerKernels
from simtrain.cost.model import CostModel
from simtrain.engine.execute import execute
from simtrain.errors import InputError, UnsupportedError
from simtrain.graph.mesh import Mesh
from simtrain.graph.recorder import Recorder
from simtrain.graph.step import Do, RankClass, Step
from simtrain.hardware import Cluster, Software
from simtrain.hardware.accelerator import Accelerator
from simtrain.model import MoE, Transformer
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario
from simtrain.systems.dense.megatron_lm import MegatronLM
from simtrain.systems.moe.megatron_moe import MegatronMoE
from simtrain.systems.training import Microbatch
from simtrain.validate.gpu_rows import GpuRow, operation_of
from simtrain.workload import Pretraining

ERA = "torch_eager_2026"

GENERATIONS = {"flash": "flash2", "cudnn": "cudnn"}
"""Kernel generation by backend of ``scaled_dot_product_attention``."""

GPT_OPS = (10, 32)
"""Framework operations of a GPT layer each way: biases and norms are one with what they follow. Those of a Llama layer stand in the era's file."""

ADAM_BYTES = {"bf16": 14.0, "fp32": 28.0}
"""Weight, gradient and two moments read, weight and moments written by a fused step, per parameter. [B]"""


EVENTS = 3.2e-6
"""What the two events around a single call add to it: a kernel that does nothing between them (4.3 us in the median of two sessions on an H100 and two on an
H200) less a link of a chain of them in a graph (1.1 us). It belongs to the clock of the program, not to the device. [s]"""


class Prediction(NamedTuple):
    """What is predicted for a row."""

    seconds: float
    """[s]"""
    activation_bytes: float | None = None
    """Held by a layer from forward to backward. [B]"""


class Predictor:
    """Predicts rows on one accelerator.

    Parameters
    ----------
    cluster
        Any cluster of the device; one accelerator of it is used.
    era
        Software; by default :data:`ERA`.

    Raises
    ------
    InputError
        If that software has no eager kernels.
    """

    def __init__(self, cluster: Cluster, era: Software | None = None) -> None:
        self.era = era or Software.load(ERA)
        if self.era.eager is None:
            raise InputError(f"software/{self.era.name}.yaml: no key 'eager', which single operations are predicted by; take {ERA}")
        nic = cluster.node.nic.model_copy(update={"count": 1})
        node = cluster.node.model_copy(update={"num_accelerators": 1, "nic": nic})
        self.cluster = cluster.model_copy(update={"node": node, "num_nodes": 1, "name": f"one {cluster.node.accelerator.name}"})
        self.chip: Accelerator = node.accelerator
        self._kinds: dict[str, Callable[[GpuRow], Prediction]] = {
            "launch": self._launch, "gemm": self._gemm, "grouped": self._grouped, "attention": self._attention, "memory": self._memory,
            "stream": self._memory, "routing": self._memory, "layer": self._layer, "moe_layer": self._layer, "optimizer": self._optimizer,
            "transfer": self._transfer, "step": self._step,
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
    def kernels(self) -> EagerKernels:
        """Kernels bound by memory."""
        costs = CostModel(self.cluster, self.era, "bf16", _model(GpuRow({"hidden": "128", "heads": "1", "head_dim": "128", "ffn": "128", "model": "gpt"})))
        assert costs.eager is not None
        return costs.eager

    def _kernel(self, seconds: float, row: GpuRow) -> Prediction:
        """Return a call of so many seconds of work, its launch included, and the events around it unless it is part of a graph."""
        return Prediction(seconds + self.chip.kernels.launch + _events(row))

    def _launch(self, row: GpuRow) -> Prediction:
        start = self.kernels.times.start
        each = start if row.flag("is_graphed") else max(start, self.era.host_op_time)
        return Prediction(row.count("tensors") * each + _events(row))

    def _gemm(self, row: GpuRow) -> Prediction:
        m, n, k = (row.count(dim) for dim in "mnk")
        dtype = row.text("dtype")
        # The dimensions that are strides in memory: of a weight gradient m and n.
        strides = (m, n) if row.text("pass") == "wgrad" and dtype != "fp8" else (n, k)
        sustained = self.chip.kernels.sustained.get("default", 1.0) if row.text("mode") == "sustained" else 1.0
        return self._kernel(gemm.matmul(m, n, k, self.chip, dtype, sustained=sustained, strides=strides), row)

    def _grouped(self, row: GpuRow) -> Prediction:
        if row.text("op") != "grouped_mm":
            raise UnsupportedError("a loop over experts, not a grouped kernel")
        is_wgrad = row.text("pass") == "wgrad"
        n, k = row.count("n"), row.count("k")
        return self._kernel(gemm.grouped_matmul(row.expert_rows, n, k, self.chip, "bf16", is_weight_gradient=is_wgrad, out_bytes=2.0, accumulate=False), row)

    def _attention(self, row: GpuRow) -> Prediction:
        s, heads, kv_heads, head_dim = (row.count(name) for name in ("seq_len", "heads", "kv_heads", "head_dim"))
        generation, is_backward = GENERATIONS[row.text("backend")], row.text("pass") == "backward"
        call = (row.count("batch"), s, s, heads, kv_heads, head_dim, self.chip, "bf16", generation)
        return self._kernel(attention.flash(*call, is_causal=row.flag("causal"), backward=is_backward), row)

    def _memory(self, row: GpuRow) -> Prediction:
        kernels, elements, element_bytes, table = operation_of(row)
        zeroed = self.kernels.pair("zero", table)[0] if table else 0.0
        return Prediction(zeroed + self.kernels.sequence(kernels, elements, element_bytes) + _events(row))

    def _optimizer(self, row: GpuRow) -> Prediction:
        if row.text("backend") != "fused":
            raise UnsupportedError("Adam as a sequence of operations on lists: its traffic is not stated anywhere")
        return Prediction(self.kernels.optimizer(row.count("parameters"), ADAM_BYTES[row.text("dtype")]))

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
        era, is_gpt = self.era, _is_gpt(row)
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
                        counts,
                        columns,
                        inner,
                        self.chip,
                        "bf16",
                        is_weight_gradient=is_wgrad,
                        sustained=sustained,
                        out_bytes=costs.gradient_bytes,
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


def _events(row: GpuRow) -> float:
    """Return what events add to the time of a row: only calls behind a flush stand alone between two of them. [s]"""
    return EVENTS if row.text("mode") == "flushed" else 0.0


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
