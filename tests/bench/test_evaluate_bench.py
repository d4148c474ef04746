"""What an evaluation costs: ``pytest tests/bench/test_evaluate_bench.py --benchmark-only``. All on one core, warm, by the ordinary path.

Groups: ``sweep`` evaluates GPT-3 175B on 1,024 GPUs over (tp, pp, vpp, microbatch, recomputation), memory, costs and metrics included;
``data_parallel`` one set-up on more and more GPUs; ``unfolded`` executes every rank.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from simtrain.engine.execute import execute
from simtrain.study.evaluate import Evaluator, Infeasible
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario, scenario

SYSTEM, WORKLOAD, CLUSTER = "dense/megatron_lm", "gpt3_175b", "selene_a100"
NUM_GPUS, LAYERS = 1024, 96


@pytest.fixture(autouse=True)
def processor_time(benchmark: Any) -> None:
    """Count processor time: the machine may be shared."""
    benchmark._timer = time.process_time


def points(batch: int) -> Iterator[dict[str, Any]]:
    """Settings that the degrees allow; what does not fit into memory is among them."""
    degrees = itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64), (1, 2, 3, 4, 6, 8, 12), (1, 2, 4, 8), ("none", "selective", "full"))
    for tp, pp, vpp, size, recompute in degrees:
        microbatches, rest = divmod(batch * tp * pp, NUM_GPUS * size)
        is_divided = NUM_GPUS % (tp * pp) == 0 and LAYERS % (pp * vpp) == 0 and microbatches > 0 and rest == 0
        if is_divided and (vpp == 1 or (pp > 1 and microbatches % pp == 0)):
            yield {"tp": tp, "pp": pp, "vpp": vpp, "microbatch_size": size, "recompute": recompute}


@pytest.mark.benchmark(group="sweep")
@pytest.mark.parametrize("batch", [1024, 1536])
def test_sweep_on_1024_gpus(benchmark: Any, batch: int) -> None:
    fixed = {"num_nodes": NUM_GPUS // 8, "zero": 1, "global_batch_size": batch}
    evaluator = Evaluator(SYSTEM, WORKLOAD, CLUSTER, settings=fixed, engine="compiled")
    chosen = list(points(batch))
    spent: dict[bool, list[float]] = {True: [], False: []}
    rows: list[int] = []

    def sweep() -> None:
        for times in (*spent.values(), rows):
            times.clear()
        for point in chosen:
            start = time.process_time()
            result = evaluator.evaluate(point)
            if not isinstance(result, Infeasible):
                assert result.metrics["step_time"] > 0
                rows.append(len(result.trace.graph))
            spent[isinstance(result, Infeasible)].append(time.process_time() - start)

    benchmark.pedantic(sweep, rounds=5, warmup_rounds=1)
    if benchmark.stats:
        feasible, infeasible = spent[False], spent[True]
        benchmark.extra_info.update(
            evaluations_per_second=len(chosen) / benchmark.stats.stats.median, feasible=len(feasible), infeasible=len(infeasible),
            feasible_per_second=len(feasible) / sum(feasible), infeasible_per_second=len(infeasible) / sum(infeasible), mean_rows=sum(rows) / len(rows),
        )  # fmt: skip


def evaluation(num_gpus: int, pp: int) -> Callable[[], None]:
    """TP8 with 64 microbatches on every pipeline of 8 stages, 32 on those of 4."""
    dp = num_gpus // (8 * pp)
    fixed = {"num_nodes": num_gpus // 8, "global_batch_size": 8 * pp * dp, "tp": 8, "pp": pp, "zero": 1 if dp > 1 else 0, "recompute": "full"}
    evaluator = Evaluator(SYSTEM, WORKLOAD, CLUSTER, settings=fixed, engine="compiled")

    def evaluate() -> None:
        result = evaluator.evaluate()
        assert isinstance(result, Infeasible) or result.metrics["step_time"] > 0

    return evaluate


@pytest.mark.benchmark(group="data_parallel")
@pytest.mark.parametrize("num_gpus", [64, 512, 4096, 16384])
def test_an_evaluation_on_more_gpus(benchmark: Any, num_gpus: int) -> None:
    """At 64 GPUs there is one pipeline, and nothing to reduce."""
    benchmark.pedantic(evaluation(num_gpus, 8), rounds=50, warmup_rounds=3)


@pytest.mark.benchmark(group="data_parallel")
@pytest.mark.parametrize("num_gpus", [64, 512, 4096, 16384])
def test_an_evaluation_with_more_replicas(benchmark: Any, num_gpus: int) -> None:
    """From 2 pipelines on to 512."""
    benchmark.pedantic(evaluation(num_gpus, 4), rounds=50, warmup_rounds=3)


def unfolded(num_gpus: int) -> Scenario:
    """TP8 PP8 with 8 microbatches."""
    settings = {"num_nodes": num_gpus // 8, "global_batch_size": num_gpus // 8, "tp": 8, "pp": 8, "zero": 1, "recompute": "selective"}
    return scenario(SYSTEM, WORKLOAD, CLUSTER, settings)


@pytest.mark.benchmark(group="unfolded")
@pytest.mark.parametrize("num_gpus", [512, 16384])
def test_every_rank(benchmark: Any, num_gpus: int) -> None:
    s = unfolded(num_gpus)

    def run() -> None:
        result = run_scenario(s, engine="compiled", unfold=("tp", "dp"))
        assert result.metrics["step_time"] > 0
        benchmark.extra_info["rows"] = len(result.trace.graph)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="unfolded")
def test_every_operation_of_512_ranks(benchmark: Any) -> None:
    s = unfolded(512)

    def run() -> None:
        step = s.system.build(s.workload, s.cluster)  # pyright: ignore[reportAttributeAccessIssue]
        whole = execute(step, s.cluster, engine="compiled", slowdown=s.system.software.overlap_slowdown, unfold=("tp", "dp"), use_composites=False)
        assert whole.metrics(s.cluster)["step_time"] > 0
        benchmark.extra_info["rows"] = len(whole.trace.graph)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
