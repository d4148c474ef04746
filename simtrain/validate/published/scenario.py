"""From a row to a system, a workload and a cluster; what the row leaves open is filled in and noted, what cannot be simulated is refused."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

from simtrain.errors import SimtrainError, UnsupportedError
from simtrain.hardware import Cluster, Software
from simtrain.model import Transformer
from simtrain.spec import Spec
from simtrain.study.settings import Scenario
from simtrain.systems.base import System
from simtrain.systems.registry import find
from simtrain.validate.published.models import model_of
from simtrain.validate.published.stacks import Stack, cluster_of, stack_of
from simtrain.validate.published.table import PublishedRow
from simtrain.workload import Pretraining

MODULES = {
    "core_attn": "core_attention", "layernorm": "norm", "moe_act": "activation", "mlp": "mlp", "mla_up_proj": "mla_up_proj", "moe": "experts",
}  # fmt: skip
"""Names of recomputed parts in Megatron's recipes, and here."""

ENOUGH_MEMORY = 1e15
"""Capacity given to every device: a row was measured, so it fitted. Predicted memory is reported, not enforced. [B]"""


class RowScenario(NamedTuple):
    """What runs, and what was assumed about it."""

    scenario: Scenario
    notes: tuple[str, ...]


def scenario_of(row: PublishedRow, is_fitted: bool = True) -> RowScenario:
    """Return the run that a row describes, under the fit of its software era if there is one, or with ``is_fitted=False`` under the era's priors.

    Raises
    ------
    UnsupportedError
        With the reason, if it cannot be simulated.
    """
    _refuse(row)
    model, model_notes = model_of(row)
    stack, stack_notes = stack_of(row)
    cluster, cluster_notes = cluster_of(row)
    notes = [*model_notes, *stack_notes, *cluster_notes]
    degrees = _degrees(row, cluster, notes)
    dtype = _dtype(row, notes)
    if stack.pads_vocab or degrees["tp"] > 1:
        unit = (stack.pads_vocab or 128) * degrees["tp"]
        model = model.model_copy(update={"vocab": -(-model.vocab // unit) * unit})
    settings: dict[str, Any] = {**degrees, **_sharding(row, stack, degrees, notes), **_recompute(row, stack, notes)}
    settings |= _pipeline(row, stack, model, settings, notes)
    software = stack.software
    if software == "torchtitan_2024" and "eager" in row.text("notes").lower():
        software = "torchtitan_2024_eager"
    if is_fitted:
        software = _fitted(software, cluster.node.accelerator.kernels.rates_key)
    settings |= {"software": software, "is_sequence_parallel": _is_sequence_parallel(row, stack, degrees), **_software(row, stack, software, cluster, notes)}
    if "async tp" in row.text("notes").lower():
        stack = stack._replace(tp_pieces=4)
    settings["tp_overlap"] = stack.tp_pieces
    settings["dp"] = settings["dp"]
    workload = Pretraining.model_validate(
        {"name": "published", "model": _same(model), "seq_len": row.count("seq_len"), "global_batch_size": row.count("gbs"), "dtype": dtype}
    )
    system = "dense/megatron_lm"
    if model.moe is not None:
        system = "moe/megatron_moe"
        settings["ep"] = _expert_degree(row, settings, model)
        settings["expert_overlap"] = 'overlap_moe_expert_parallel_comm": "True' in row.text("notes")
        settings.pop("expert_overlap")
    try:
        return RowScenario(_resolved(system, workload, _same(_roomy(cluster)), settings), tuple(notes))
    except UnsupportedError:
        raise
    except (SimtrainError, ValueError) as error:
        raise UnsupportedError(str(error)) from None


def _resolved(name: str, workload: Pretraining, cluster: Cluster, settings: dict[str, Any]) -> Scenario:
    """Return the scenario of these settings, the software read once for all rows."""
    changes = {key.partition(".")[2]: settings[key] for key in settings if key.startswith("software.")}
    values = {key: value for key, value in settings.items() if not key.startswith("software")}
    system = _system_of(name).model_validate({**values, "software": _software_of(settings["software"], tuple(sorted(changes.items())))})
    return Scenario(name, system, workload, cluster)


S = TypeVar("S", bound=Spec)
_SAME: dict[str, Spec] = {}
"""One object for equal ones: what earlier rows have computed is found by identity."""


def _same(value: S) -> S:
    return cast("S", _SAME.setdefault(f"{type(value).__name__} {value!r}", value))


@cache
def _system_of(name: str) -> type[System]:
    return find(name)


@cache
def _software_of(name: str, changes: tuple[tuple[str, Any], ...]) -> Software:
    return Software.load(name).model_copy(update=dict(changes))


def _fitted(software: str, kernels: str) -> str:
    """Return the file of an era that was fitted on a family of kernels, or the era's own."""
    return fitted if (fitted := f"{software}_{kernels}") in _names() else software


@cache
def _names() -> frozenset[str]:
    return frozenset(Software.names())


def _refuse(row: PublishedRow) -> None:
    """Refuse kinds of runs that are not modelled."""
    task = row.text("task").lower()
    if "lora" in task:
        raise UnsupportedError("LoRA fine-tuning: the base model is frozen")
    if "tpu" in row.text("gpu").lower():
        raise UnsupportedError("TPU")
    if "offload" in row.text("recompute").lower():
        raise UnsupportedError("activations are offloaded to the host")
    for column in ("seq_len", "gbs", "num_gpus"):
        if row.count(column) is None:
            raise UnsupportedError(f"{column} is not stated")
    if row.step_time is None:
        raise UnsupportedError("no step time and no tokens per second are stated")


def _degrees(row: PublishedRow, cluster: Cluster, notes: list[str]) -> dict[str, int]:
    """Return the degrees and the microbatch size."""
    world = cluster.num_accelerators
    sharding = row.text("sharding").lower()
    is_sharded = "fsdp" in sharding or "zero3" in sharding or sharding in ("ddp",)
    found = {axis: row.count(axis) for axis in ("tp", "pp", "cp")}
    if found["tp"] is None and found["pp"] is None and not is_sharded and world > 1:
        raise UnsupportedError("tensor- and pipeline-parallel degrees are not stated")
    degrees = {axis: value or 1 for axis, value in found.items()}
    inner = degrees["tp"] * degrees["pp"] * degrees["cp"]
    if world % inner:
        raise UnsupportedError(f"tp={degrees['tp']} x pp={degrees['pp']} x cp={degrees['cp']} = {inner} does not divide {world} accelerators")
    dp = world // inner
    batch, microbatch = row.count("gbs") or 1, row.count("mbs")
    if microbatch is None:
        accumulated = row.count("grad_accum")
        is_stated = accumulated is not None and batch % (dp * accumulated) == 0
        is_whole = "mbs = gbs/dp" in row.text("notes") or (degrees["pp"] == 1 and batch // dp <= 8)
        microbatch = batch // (dp * accumulated) if accumulated and is_stated else max(1, batch // dp) if is_whole else 1
        notes.append(f"microbatch not stated, {microbatch}")
    if batch % (dp * microbatch):
        raise UnsupportedError(f"global batch {batch} is no multiple of dp={dp} x microbatch {microbatch}")
    return {**degrees, "dp": dp, "microbatch_size": microbatch}


def _dtype(row: PublishedRow, notes: list[str]) -> str:
    precision = row.text("precision").lower()
    if not precision:
        notes.append("precision not stated, bf16")
        return "bf16"
    if re.search(r"(nvfp4|fp4)", precision):
        if "not stated" in precision:
            notes.append("precision not stated and no fp4 in the name of its configuration, fp8")
            return "fp8"
        return "nvfp4" if "blackwell" not in precision or re.match(r"(gb|b)[23]00", row.text("gpu").lower()) else "fp8"
    if "rowwise" in precision:
        notes.append("fp8 scaled by rows gains nothing over bf16, run as bf16")
        return "bf16"
    if re.search(r"fp8|float8|mxfp8", precision):
        return "fp8"
    if "fp16" in precision and "bf16" not in precision:
        return "fp16"
    if "bf16" in precision or "bfloat16" in precision or "fp16" in precision:
        return "bf16"
    if "fp32" in precision or "tf32" in precision:
        return "tf32"
    raise UnsupportedError(f"precision {row.text('precision')!r} is not known")


def _software(row: PublishedRow, stack: Stack, software: str, cluster: Cluster, notes: list[str]) -> dict[str, Any]:
    """Return the keys of the software that a row's recipe sets."""
    precision, kernel = row.text("precision").lower(), row.text("attention_impl").lower()
    keys: dict[str, Any] = {}
    if re.search(r"cs\b|current|tensorwise|rowwise", precision):
        keys["software.has_amax_pass"] = True
    if "pure" in precision:  # the foundry's policy of June 2023, on torch before 2.1, which repeats recomputed layers whole
        keys |= {"software.gradient_bytes": 2.0, "software.stops_recomputing": False}
    attention, known = _software_of(software, ()).attention, cluster.node.accelerator.kernels.attention
    if attention not in known and attention != "unfused":
        keys["software.attention"] = "flash2" if "flash2" in known else "unfused"
        notes.append(f"no {attention} on this device, {keys['software.attention']}")
    if "unfused" in kernel:
        keys["software.attention"] = "unfused"
    if "cef" in row.text("notes").split("truncated")[0].lower() and re.search(r"\bcef\b", row.text("source_title").lower()):
        keys["software.is_cross_entropy_fused"] = True
    return keys


def _sharding(row: PublishedRow, stack: Stack, degrees: dict[str, int], notes: list[str]) -> dict[str, Any]:
    text = row.text("sharding").lower()
    copies = degrees["dp"] * degrees["cp"]
    group = 0
    found = re.search(r"(?:group|fsdp=|fsdp2 \()\s*(\d+)", text)
    if found:
        group = int(found[1])
        if group >= copies or copies % group:
            group = 0
    if "zero2" in text:
        return {"zero": 3, "reshard_after_forward": False}
    if "zero3" in text or "fsdp" in text:
        return {"zero": 3, "zero_group": group}
    if "zero1" in text or "distributed-optimizer" in text:
        zero = 1
    elif text:
        zero = 0
    else:
        zero = 1 if stack.is_overlapping else 0
        notes.append(f"sharding not stated, ZeRO-{zero}")
    overlap = "none" if not stack.is_overlapping else "chunk" if degrees["pp"] > 1 else "layer"
    return {"zero": zero, "zero_group": group if zero else 0, "dp_overlap": overlap}


def _recompute(row: PublishedRow, stack: Stack, notes: list[str]) -> dict[str, Any]:
    text = row.text("recompute").lower()
    recipe = re.search(r"\{.*\}", row.text("recompute"))
    if recipe:
        return _recipe(recipe[0], notes)
    if text.startswith("full"):
        return {"recompute": "full"}
    if "selective layer" in text:
        return {"recompute": "full", "recompute_every": 2}
    if "selective op" in text or "selective (op" in text:
        return {"recompute": "op"}
    if "attention" in text or text.startswith("core_attn"):
        return {"recompute": "selective"}
    if text.startswith("mla_up_proj"):
        return {"recompute_modules": ("mla_up_proj",)}
    if text and not text.startswith(("head recipe: none", "none")):
        notes.append(f"recomputation {text!r} taken for none")
    elif not text:
        notes.append(f"recomputation not stated, {stack.recompute}")
        return {"recompute": stack.recompute}
    return {}


def _recipe(text: str, notes: list[str]) -> dict[str, Any]:
    """Read the settings of a Megatron-Bridge recipe; its values are JSON in strings."""
    try:
        raw = cast(dict[str, str], json.loads(text))
    except ValueError:
        notes.append("recomputation recipe cannot be read, none")
        return {}
    values = {key: _loaded(value) for key, value in raw.items()}
    settings: dict[str, Any] = {}
    modules = values.get("recompute_modules")
    if isinstance(modules, list) and modules:
        settings["recompute_modules"] = tuple(MODULES[m] for m in cast(list[str], modules) if m in MODULES)
    elif values.get("recompute_granularity") == "selective":
        settings["recompute"] = "selective"
    if values.get("recompute_granularity") == "full":
        settings["recompute"] = "full"
        layers = values.get("recompute_num_layers")
        if values.get("recompute_method") == "block" and isinstance(layers, int):
            settings["recompute_layers"] = layers
    return settings


def _loaded(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _pipeline(row: PublishedRow, stack: Stack, model: Transformer, settings: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return chunks per stage, the split of the layers, and whether messages overlap."""
    pp, layers = settings["pp"], model.layers
    microbatches = (row.count("gbs") or 1) // (settings["dp"] * settings["microbatch_size"])
    if pp == 1:
        return {}
    vpp = row.count("vpp")
    if vpp is None:
        vpp = 1
        if stack.has_vpp and layers % pp == 0:
            per_stage = layers // pp
            vpp = per_stage // 2 if per_stage % 2 == 0 else per_stage
        notes.append(f"vpp not stated, {vpp}")
    if vpp > 1 and microbatches % pp:
        notes.append(f"{microbatches} microbatches are no multiple of pp={pp}, not interleaved")
        vpp = 1
    if pp * vpp > layers:
        vpp = 1
    is_even = layers % (pp * vpp) == 0
    split = "front" if is_even else "ends" if vpp > 1 else stack.split
    return {"vpp": vpp, "layer_split": split, "pp_overlap": stack.pp_overlap and vpp > 1}


def _is_sequence_parallel(row: PublishedRow, stack: Stack, degrees: dict[str, int]) -> bool:
    stated = row.number("seq_parallel")
    if degrees["tp"] == 1:
        return True
    return stated > 0 if stated is not None else stack.tp_pieces > 1 or "torchtitan" in stack.software


def _expert_degree(row: PublishedRow, settings: dict[str, Any], model: Transformer) -> int:
    assert model.moe is not None
    stated = row.count("ep") or 1
    ranks = settings["tp"] * settings["cp"] * settings["dp"]
    if ranks % stated or model.moe.experts % stated:
        raise UnsupportedError(f"ep={stated} does not divide {ranks} ranks of a stage and {model.moe.experts} experts")
    return stated


def _roomy(cluster: Cluster) -> Cluster:
    accelerator = cluster.node.accelerator.model_copy(update={"memory_capacity": ENOUGH_MEMORY})
    return cluster.model_copy(update={"node": cluster.node.model_copy(update={"accelerator": accelerator})})
