"""Every shipped model and job loads, says where it comes from, and agrees with the table of published runs."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from simtrain.model import Transformer
from simtrain.spec import data_root
from simtrain.workload import Pretraining

TABLE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "published_training.csv"

SHIPPED = {
    # model_name of the table: name of the shipped file
    "llama2-7b": "llama2_7b", "llama2-13b": "llama2_13b", "llama2-70b": "llama2_70b", "llama3-8b": "llama3_8b", "llama3-70b": "llama3_70b",
    "llama3.1-405b": "llama3_405b", "gpt3-175b": "gpt3_175b", "gpt3-175B": "gpt3_175b", "megatron-22B": "megatron_22b", "turing-530B": "mt_nlg_530b",
    "gpt-7.5B": "megatron_7_5b", "gpt-18B": "megatron_18b", "gpt-39B": "megatron_39b", "gpt-76B": "megatron_76b",
    "gpt-145B": "megatron_145b", "gpt-530B": "mt_nlg_530b", "gpt-1T": "megatron_1t", "mixtral-8x7b": "mixtral_8x7b", "deepseek-v3": "deepseek_v3",
    "mpt-125m": "mpt_125m", "mpt-350m": "mpt_350m", "mpt-760m": "mpt_760m", "mpt-1b": "mpt_1b", "mpt-3b": "mpt_3b", "mpt-7b": "mpt_7b",
    "mpt-13b": "mpt_13b", "mpt-30b": "mpt_30b", "mpt-70b": "mpt_70b",
}  # fmt: skip

FLOP_SOURCES = [
    "llm-foundry", "megatron-sc21", "megatron-readme-jan21", "korthikanti-2022", "nemo-perf", "gpu-recipes", "megatron-bridge",
    "dgxc-benchmarking", "tpu-recipes", "tpu-ironwood", "automodel",
]  # fmt: skip


@cache
def rows() -> list[dict[str, str]]:
    """Read the table of published runs, or skip."""
    if not TABLE.is_file():
        pytest.skip("the table of published runs (../shared/data/published_training.csv) is not there")
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def shipped(name: str) -> Transformer:
    """Load once; many rows share a model."""
    return Transformer.load(name)


def shipped_rows() -> Iterator[tuple[dict[str, str], Transformer]]:
    """Rows whose model is shipped. The table has a second 1.7B with another shape, so that name is left out."""
    for row in rows():
        if row["model_name"] in SHIPPED:
            yield row, shipped(SHIPPED[row["model_name"]])


@pytest.mark.parametrize("name", Transformer.names())
def test_model_loads_and_has_provenance(name: str) -> None:
    model = Transformer.load(name)
    assert model.name == name
    assert model.description
    assert model.sources


@pytest.mark.parametrize("name", Pretraining.names())
def test_job_loads_and_has_provenance(name: str) -> None:
    job = Pretraining.load(name)
    assert job.name == name
    assert job.description
    assert job.sources
    assert job.seq_len <= job.model.max_seq_len
    assert job.tokens_per_step == job.global_batch_size * job.seq_len


def test_a_shape_that_no_source_states_says_so() -> None:
    for name in ("gpt_1_2b", "gpt_7b", "gpt_30b"):
        assert any(source.startswith("assumed") for source in Transformer.load(name).sources)


@pytest.mark.parametrize("folder", ["models", "jobs"])
def test_file_names_are_lower_case_words(folder: str) -> None:
    for path in (data_root() / "workloads" / folder).iterdir():
        assert path.suffix == ".yaml", path.name
        assert path.stem == path.stem.lower(), path.name
        assert "-" not in path.stem, path.name


@pytest.mark.parametrize(("name", "degree"), [("gpt_1_2b", 64), ("gpt_7b", 32), ("gpt_30b", 64)])
def test_ulysses_heads_divide_over_the_published_degrees(name: str, degree: int) -> None:
    """DeepSpeed-Ulysses shards heads: the 1.2B runs on 64 GPUs, the 7B and 30B with sequence degrees 32 and 64."""
    assert Transformer.load(name).heads % degree == 0


def test_megascale_models_differ_from_their_parents_only_in_heads_and_vocabulary() -> None:
    for name, parent, heads in (("gpt3_175b_megascale", "gpt3_175b", 128), ("mt_nlg_530b_megascale", "mt_nlg_530b", 160)):
        ours = Transformer.load(name).model_dump(exclude={"name", "description", "sources"})
        theirs = Transformer.load(parent).model_dump(exclude={"name", "description", "sources"})
        assert ours == theirs | {"heads": heads, "vocab": 64000}


def test_bert_attends_in_both_directions() -> None:
    for name in ("bert_base", "bert_large"):
        assert not Transformer.load(name).is_causal
    assert all(Transformer.load(name).is_causal for name in Transformer.names() if not name.startswith("bert"))


def test_shapes_agree_with_the_table() -> None:
    columns = ("layers", "hidden", "heads", "ffn", "vocab")
    checked = 0
    for row, model in shipped_rows():
        if not row["layers"] or row["source_key"] == "mt-nlg":  # MT-NLG prints the unpadded vocabulary
            continue
        expected = tuple(int(float(row[c])) for c in columns)
        assert tuple(getattr(model, c) for c in columns) == expected, row["id"]
        assert model.num_kv_heads == int(float(row["kv_heads"])), row["id"]
        if row["experts"]:
            assert model.moe is not None
            assert (model.moe.experts, model.moe.top_k) == (int(float(row["experts"])), int(float(row["topk"]))), row["id"]
        checked += 1
    assert checked > 100


def test_mpt_parameters_agree_with_the_table_at_every_sequence() -> None:
    """Learned positions make the count grow with the sequence; the source prints it for each."""
    for row, model in shipped_rows():
        if row["source_key"] == "llm-foundry":
            at_length = model.model_copy(update={"max_seq_len": int(row["seq_len"])})
            assert at_length.parameters() / 1e9 == pytest.approx(float(row["params_b"]), abs=0.51e-4), row["id"]


@pytest.mark.parametrize("source", FLOP_SOURCES)
def test_flops_agree_with_the_flop_check(source: str) -> None:
    """``flop_check_full|causal`` is the reported rate over an independent count of the model FLOPs, printed with 3 decimals."""
    checked = 0
    for row, model in shipped_rows():
        if row["source_key"] != source or "|" not in row["flop_check_full|causal"]:
            continue
        seq_len = int(row["seq_len"])
        sequences_per_gpu_second = float(row["gbs"]) / float(row["step_time_s"]) / float(row["num_gpus"])
        for is_causal, printed in zip((False, True), row["flop_check_full|causal"].split("|"), strict=True):
            ours = float(row["tflops_per_gpu"]) * 1e12 / (sequences_per_gpu_second * model.training_flops(seq_len, is_causal))
            assert ours == pytest.approx(float(printed), abs=1.2e-3), row["id"]
        checked += 1
    assert checked > 0
