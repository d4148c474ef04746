"""From the shape columns of a row to a transformer. What a table does not state comes from the family that its name belongs to."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from simtrain.errors import InputError, UnsupportedError
from simtrain.model import Transformer
from simtrain.validate.published.table import PublishedRow

LLAMA: dict[str, Any] = {"mlp": "swiglu", "norm": "rmsnorm", "position": "rope", "is_tied": False, "has_bias": False}
GPT: dict[str, Any] = {"mlp": "gelu", "norm": "layernorm", "position": "learned", "is_tied": True, "has_bias": True, "dropout": 0.1}
MPT: dict[str, Any] = {**GPT, "has_bias": False, "dropout": 0.0}
NEMOTRON: dict[str, Any] = {"mlp": "relu", "norm": "layernorm", "position": "rope", "is_tied": False, "has_bias": False}

FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"llama|internlm|qwen|mistral", LLAMA),
    (r"nemotron", NEMOTRON),
    (r"mpt", MPT),
    (r"bloom", {**GPT, "position": "alibi", "dropout": 0.0}),
    (r"gpt|megatron|turing|mt-nlg", GPT),
)
"""Public architectures by name; activation, norm, positions, tied embeddings and biases are in no column of the table."""

SHIPPED: tuple[tuple[str, str], ...] = (
    (r"deepseek.?v3", "deepseek_v3"), (r"kimi.?k2", "kimi_k2"), (r"qwen3.?235b", "qwen3_235b_a22b"), (r"qwen3.?30b", "qwen3_30b_a3b"),
    (r"gpt.?oss.?120b", "gpt_oss_120b"), (r"gpt.?oss.?20b", "gpt_oss_20b"), (r"llama4.?maverick", "llama4_maverick"), (r"llama4.?scout", "llama4_scout"),
    (r"grok", "grok1_314b"), (r"mixtral.?8x7b", "mixtral_8x7b"), (r"mixtral.?8x22b", "mixtral_8x22b"),
)  # fmt: skip
"""Shipped models with experts, by name: a row gives neither the width of an expert nor latents, windows and shared experts."""

RECALLED = {
    "nemotron-8b": (32, 4096, 32, 16384, 256000),
    "nemotron-22b": (40, 6144, 48, 24576, 256000),
}
"""Layers, hidden, heads, ffn and vocabulary of models whose shape the table leaves out (public NeMo configurations, recalled)."""

NOT_A_TRANSFORMER = re.compile(r"nemotron.?(v?3|h)[^0-9]|mamba|jamba|gemma4|gemma-4|stable|bert|unet|dlrm|resnet|retina|rgat", re.IGNORECASE)
"""Hybrids of state-space and attention layers, and what is no language model."""


class RowModel(NamedTuple):
    """A model and what was assumed about it."""

    model: Transformer
    notes: tuple[str, ...]


def model_of(row: PublishedRow) -> RowModel:
    """Return the transformer that a row trained.

    Raises
    ------
    UnsupportedError
        If the row does not say enough, or it is no transformer.
    """
    name = row.text("model_name")
    if NOT_A_TRANSFORMER.search(name):
        raise UnsupportedError(f"{name} is no plain transformer")
    shipped = next((file for pattern, file in SHIPPED if re.search(pattern, name, re.IGNORECASE)), None)
    if shipped is not None:
        return _resized(_shipped(shipped), row)
    if row.count("experts"):
        raise UnsupportedError(f"experts of {name or 'an unnamed model'}: their width is in no column, and no such model is shipped")
    return _from_columns(row, name)


@cache
def _shipped(name: str) -> Transformer:
    return Transformer.load(name)


def _resized(model: Transformer, row: PublishedRow) -> RowModel:
    """Take layers and vocabulary from the row where it states them (truncated proxies, padding)."""
    changes = {key: value for key in ("layers", "vocab") if (value := row.count(key)) and value != getattr(model, key)}
    return RowModel(model.model_copy(update=changes), (f"model {model.name} by name",))


def _from_columns(row: PublishedRow, name: str) -> RowModel:
    shape = [row.count(c) for c in ("layers", "hidden", "heads", "ffn", "vocab")]
    notes: list[str] = []
    if None in shape and name.lower() in RECALLED:
        shape, notes = list(RECALLED[name.lower()]), ["shape recalled"]
    layers, hidden, heads, ffn, vocab = shape
    if layers is None or hidden is None or heads is None or vocab is None:
        raise UnsupportedError(f"shape of {name or 'an unnamed model'} is not stated")
    family = next((settings for pattern, settings in FAMILIES if re.search(pattern, name, re.IGNORECASE)), None)
    if family is None:
        family = GPT if ffn is None or ffn == 4 * hidden else LLAMA
        notes.append("architecture guessed from the width of the MLP")
    if ffn is None:
        ffn = 4 * hidden
        notes.append("ffn not stated, 4 x hidden")
    values: dict[str, Any] = {
        "name": re.sub(r"[^\w.-]+", "_", name), "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": row.count("kv_heads") or 0,
        "ffn": ffn, "vocab": vocab, "max_seq_len": row.count("seq_len") or 2048, **family,
    }  # fmt: skip
    try:
        return RowModel(Transformer.model_validate(values), tuple(notes))
    except (ValueError, InputError) as error:
        raise UnsupportedError(f"shape of {name}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """Return what pydantic says of the first value that is wrong, without its link."""
    lines = [line.strip() for line in str(error).splitlines()]
    found = next((line for line in lines if line.startswith(("Value error", "Input should"))), lines[0])
    return found.partition(" [type=")[0].removeprefix("Value error, ")
