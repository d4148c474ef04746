"""What a user waits for: a run, a comparison of fidelities, starting up. ``pytest tests/bench/test_runs_bench.py --benchmark-only``."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

import simtrain
from simtrain.engine.flow_fidelity import flow_collective
from simtrain.hardware import Cluster

SMALL = {"tp": 2, "pp": 2, "cluster.num_nodes": 4}
GPT3 = {"tp": 8, "pp": 8}


def gpt3(gpus: int, **options: Any) -> float:
    """Step time of GPT-3 175B with 8 microbatches on every pipeline. [s]"""
    settings = GPT3 | {"global_batch_size": gpus // 8, "cluster.num_nodes": gpus // 8}
    return simtrain.run("dense/megatron_lm", "gpt3_175b", "a100_flat", settings=settings, **options).metrics["step_time"]


@pytest.mark.benchmark(group="frequent: one small run", timer=time.process_time)
@pytest.mark.parametrize("fidelity", ["analytic", "fair", "flow"])
def test_small_run(benchmark: Any, fidelity: str) -> None:
    benchmark.pedantic(lambda: simtrain.run("dense/megatron_lm", "gpt_tiny", "dgx_a100_40gb_ib", settings=SMALL, fidelity=fidelity), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="frequent: starting up, wall clock")
@pytest.mark.parametrize("command", [["-c", "import simtrain"], ["-m", "simtrain", "--help"]], ids=["import", "help"])
def test_start(benchmark: Any, command: list[str]) -> None:
    benchmark.pedantic(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True), rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        assert benchmark.stats.stats.median < 0.5


@pytest.mark.benchmark(group="targeted: one collective as messages", timer=time.process_time)
@pytest.mark.parametrize("ranks", [64, 256, 1024])
def test_ring_of_messages(benchmark: Any, ranks: int) -> None:
    cluster = Cluster.load("a100_fat_tree", {"num_nodes": max(1, ranks // 8)})
    benchmark.pedantic(lambda: flow_collective("all_reduce", 2.0**27, range(ranks), cluster, "ring"), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="simulation: GPT-3 175B, TP8 PP8, 8 microbatches, costs included", timer=time.process_time)
@pytest.mark.parametrize("gpus", [512, 16384])
def test_every_rank(benchmark: Any, gpus: int) -> None:
    benchmark.pedantic(lambda: gpt3(gpus, unfold=["tp", "dp"]), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="simulation: GPT-3 175B, TP8 PP8, 8 microbatches, costs included", timer=time.process_time)
@pytest.mark.parametrize("fidelity", ["fair", "flow"])
def test_one_rank_per_stage(benchmark: Any, fidelity: str) -> None:
    benchmark.pedantic(lambda: gpt3(512, fidelity=fidelity), rounds=3, warmup_rounds=1)
