"""Which software era ran a row, and on which nodes and network: looked up by framework, date, device and source.

A row of a source that is not known here gets the era of its kind of sharding and its year, and the reference network of its device,
with a note.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from simtrain.errors import UnsupportedError
from simtrain.hardware import Cluster, Node, Topology
from simtrain.validate.published.table import PublishedRow


class Stack(NamedTuple):
    """How one generation of a framework runs."""

    software: str
    """File in ``hardware/software``."""
    is_overlapping: bool = True
    """Whether gradients are reduced, and updated parameters gathered, behind computation."""
    pp_overlap: bool = False
    """Whether messages between stages go beside computation."""
    tp_pieces: int = 1
    """Pieces of tensor-parallel products that overlap with their collectives."""
    pads_vocab: int = 0
    """The vocabulary is padded to this times tp; 0: not padded, unless tp needs it."""
    has_vpp: bool = False
    """Whether pipelines are interleaved where the table leaves vpp blank."""
    recompute: str = "none"
    """What is recomputed where the table is silent."""
    split: str = "middle"
    """How layers that do not divide evenly are spread."""


FRAMEWORKS: tuple[tuple[str, Stack], ...] = (
    (r"vtrain", Stack("megatron_deepspeed_2023", is_overlapping=False)),
    (r"megatron-deepspeed", Stack("megatron_deepspeed_2022", is_overlapping=False, pads_vocab=128)),
    (r"internevo", Stack("internevo_2023")),
    (r"llm-foundry|composer", Stack("fsdp_2023")),
    (r"torchtitan", Stack("torchtitan_2024")),
    (r"automodel", Stack("automodel_2026", pp_overlap=True)),
    (r"megatron-lm \(.*(2020|2021)\)", Stack("megatron_2021", is_overlapping=False, pads_vocab=128)),
    (r"megatron-lm \(.*2022\)", Stack("megatron_2022", is_overlapping=False, pads_vocab=128)),
    (r"megatron-bridge.*(26\.0[6-9]|26\.1\d|2[7-9]\.\d)", Stack("megatron_bridge_2026_summer", pp_overlap=True, tp_pieces=4, pads_vocab=128, split="ends")),
    (r"megatron-bridge.*2[6-9]\.\d", Stack("megatron_bridge_2026", pp_overlap=True, tp_pieces=4, pads_vocab=128, split="ends")),
    (r"megatron-bridge", Stack("megatron_bridge_2025", pp_overlap=True, tp_pieces=4, pads_vocab=128, split="ends")),
    (r"megatron-lm 0\.1\d|te 2\.", Stack("megatron_core_2026", pads_vocab=128)),
    # Containers of 2023-24 outside MLPerf, and MaxText of the same time.
    (r"release 2[34]\.\d\d|nvidia.*2[34]\.\d\d", Stack("mlperf_2024", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
    (r"nemo.*25\.|release 25\.|ngc.*25\.|nvidia.*25\.", Stack("nemo_2025", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
    (r"nemo 24\.(09|1\d)", Stack("nemo_2024_late", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
    (r"nemo|megatron-core", Stack("nemo_2024", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
    (r"maxtext|pax", Stack("jax_2024", pp_overlap=True, pads_vocab=128, recompute="full")),
)
"""Patterns over ``framework``, the first that matches."""

BY_SOURCE: tuple[tuple[str, Stack], ...] = (
    (r"^vtrain-single", Stack("megatron_deepspeed_2023_node", is_overlapping=False)),
    (r"^mlperf-v[0-4]\.", Stack("mlperf_2024", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
    (r"^mlperf-", Stack("mlperf_2025", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")),
)
"""Patterns over ``source_key`` that go before: submissions to MLPerf name containers, not stacks; one-node runs keep clocks that racks do not."""

NODES: tuple[tuple[str, str], ...] = (
    (r"^a100.*40", "dgx_a100_40gb"), (r"^a100", "dgx_a100"), (r"^h100.*(500|hbm2e)", "grand_teton_h100_500w"), (r"^h100", "dgx_h100"),
    (r"^h200", "dgx_h200"), (r"^h800", "h800_8nic"), (r"^h20\b", "h20_8nic"), (r"^a800", "a800_4nic"), (r"^gb300", "gb300_nvl72"), (r"^gb200", "gb200_nvl72"),
    (r"^b300", "dgx_b300"), (r"^b200", "dgx_b200"), (r"^v100.*(dgx-?2|32gb-sxm2)", "dgx_2"), (r"^v100", "dgx_1v"), (r"mi300x", "mi300x_8"),
    (r"^ascend.?910b", "ascend_910b_8"),
)  # fmt: skip
"""Reference node by device."""

CLUSTERS: tuple[tuple[str, str], ...] = (
    (r"^vtrain", "vtrain_a100"), (r"^bigscience", "jean_zay_a100"), (r"^internevo", "internevo_a100"), (r"^llm-foundry.*a100.*40", "mosaic_a100_40gb"),
    (r"^llm-foundry.*a100", "mosaic_a100"), (r"^llm-foundry.*h100", "mosaic_h100"), (r"^(megatron-|korthikanti|mt-nlg).*a100.*80", "selene_a100"),
    (r"^torchtitan.*h100.*500", "grand_teton_h100_500w"), (r"^(mlperf|nemo|dgxc|megatron).*h100", "dgx_h100_eos"),
)  # fmt: skip
"""Cluster by ``source_key`` and device; others are reference nodes on a fabric without oversubscription."""

LARGEST_DOMAIN = 72
"""Accelerators in one NVLink domain of a rack."""


@cache
def _cluster(name: str) -> Cluster:
    return Cluster.load(name)


@cache
def _node(name: str) -> Node:
    return Node.load(name)


def stack_of(row: PublishedRow) -> tuple[Stack, tuple[str, ...]]:
    """Return the stack of a row, and a note if it was guessed."""
    framework = row.text("framework").lower()
    for pattern, stack in BY_SOURCE:
        if re.search(pattern, row.source):
            return stack, ()
    for pattern, stack in FRAMEWORKS:
        if re.search(pattern, framework):
            return stack, ()
    year = re.search(r"20[12]\d", row.text("date") or framework)
    if "fsdp" in row.text("sharding").lower() or "zero3" in row.text("sharding").lower():
        guessed = Stack("fsdp_2023" if year and year[0] < "2024" else "torchtitan_2024")
    elif year and year[0] < "2024":
        guessed = Stack("megatron_2023", is_overlapping=False, pads_vocab=128)
    else:
        guessed = Stack("nemo_2025", pp_overlap=True, tp_pieces=4, pads_vocab=128, has_vpp=True, split="ends")
    return guessed, (f"framework unknown, taken for {guessed.software}",)


def cluster_of(row: PublishedRow) -> tuple[Cluster, tuple[str, ...]]:
    """Return nodes and network of a row: as many accelerators as it used.

    Raises
    ------
    UnsupportedError
        If the device is not shipped or the number of accelerators makes no whole nodes.
    """
    gpu, count = row.text("gpu"), row.count("num_gpus")
    if count is None:
        raise UnsupportedError("num_gpus is not stated")
    node_name = next((name for pattern, name in NODES if re.search(pattern, gpu, re.IGNORECASE)), None)
    if node_name is None:
        raise UnsupportedError(f"accelerator {gpu or '(none stated)'} is not shipped")
    named = next((name for pattern, name in CLUSTERS if re.search(pattern, f"{row.source} {gpu}", re.IGNORECASE)), None)
    notes: list[str] = []
    if named is not None:
        cluster = _cluster(named)
        node = cluster.node
    else:
        node = _node(node_name)
        cluster = Cluster(name=f"published_{node_name}", node=node, num_nodes=1, topology=Topology(kind="rail_optimised"))
        notes.append(f"network of {node_name}")
    if re.search(r"power.?limited", gpu, re.IGNORECASE):
        node = _power_limited(node)
        notes.append(f"power limit not stated, {POWER_LIMITED:g} of the rate")
    node = _resized(node, count)
    if named is None:
        node = _with_stated_network(node, row)
    return cluster.model_copy(update={"node": node, "num_nodes": count // node.num_accelerators}), tuple(notes)


POWER_LIMITED = 0.777
"""Rate of a part that is said to be power limited without a number: as the 500 W H100, assumed."""


def _power_limited(node: Node) -> Node:
    return node.model_copy(update={"accelerator": node.accelerator.model_copy(update={"power_factor": POWER_LIMITED})})


def _resized(node: Node, count: int) -> Node:
    """Return the node with as many accelerators as one of the job's nodes uses, its cards in proportion."""
    full = node.num_accelerators
    size = count if count <= full else max((n for n in range(1, min(full, LARGEST_DOMAIN) + 1) if count % n == 0 and (full <= 16 or n % 4 == 0)), default=1)
    if size < min(full, count) / 2:
        raise UnsupportedError(f"{count} accelerators make no whole nodes of {full}")
    cards = max(1, node.nic.count * size // full)
    while size % cards and cards % size:
        cards -= 1
    return node.model_copy(update={"num_accelerators": size, "nic": node.nic.model_copy(update={"count": cards})})


def _with_stated_network(node: Node, row: PublishedRow) -> Node:
    """Take the bandwidth between nodes from the row where it states it."""
    stated = row.number("inter_bw_gbps_per_gpu")
    if not stated or stated <= 0:
        return node
    bandwidth = stated * 1e9 / 8 * node.num_accelerators / node.nic.count
    return node.model_copy(update={"nic": node.nic.model_copy(update={"bandwidth": bandwidth})})
