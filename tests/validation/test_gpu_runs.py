"""Predictions of measured rows of one GPU, by formulas written here again, and what is said of rows that have none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from simtrain.cost.model import CostModel
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware import Cluster, Software
from simtrain.validate.gpu_predict import ERA, EVENTS, GPT_OPS, Predictor
from simtrain.validate.gpu_rows import GpuRow
from simtrain.validate.gpu_runs import CLUSTERS, EXPECTED, Compared, GpuRuns, cluster_of, compare, memory_errors, outside_tolerance, read_gpu_runs, summary
from tests.tiny import MODEL
from validation import gpu_page

H100 = "NVIDIA H100 80GB HBM3"
LAYER = {"kind": "layer", "op": "layer", "model": "llama", "dtype": "bf16", "batch": "1", "seq_len": "128", "heads": "8", "kv_heads": "8", "head_dim": "64",
         "hidden": "512", "ffn": "1024", "causal": "yes", "backend": "flash", "recompute": "no", "mode": "back_to_back"}  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> dict[str, Compared]:
    return gpu_page.measured()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(cluster_of(H100))


def seconds(predictor: Predictor, **cells: str) -> float:
    return predictor.predict(GpuRow(cells)).seconds


def test_every_device_name_has_a_cluster() -> None:
    for part, name in CLUSTERS.items():
        assert cluster_of(f"NVIDIA {part} x").name == name
    with pytest.raises(InputError, match=r"device 'TITAN' has no accelerator file that stands for it; known are H100 80GB HBM3"):
        cluster_of("TITAN")


def test_one_accelerator_is_left(predictor: Predictor) -> None:
    assert predictor.cluster.num_accelerators == 1
    assert predictor.chip == Cluster.load("dgx_h100_eos").node.accelerator


def test_a_long_product_runs_at_the_efficiency_of_its_curve(predictor: Predictor) -> None:
    n = 2**15
    row = {"kind": "gemm", "op": "mm", "dtype": "bf16", "m": str(n), "n": str(n), "k": str(n)}
    curve, peak = predictor.chip.kernels.gemm["bf16"], predictor.chip.peak_of("bf16")
    whole = 2 * n**3 / (curve.efficiency * peak)
    assert seconds(predictor, **row, **{"pass": "forward"}) == pytest.approx(whole, rel=0.01)
    assert seconds(predictor, **row, mode="sustained") == pytest.approx(whole / predictor.chip.kernels.sustained["default"], rel=0.01)


def test_a_weight_gradient_does_not_mind_a_ragged_number_of_tokens(predictor: Predictor) -> None:
    """Its inner dimension counts rows of both operands; a ragged number of columns does matter."""
    of = lambda **cells: seconds(predictor, kind="gemm", op="mm", dtype="bf16", **cells)  # noqa: E731
    even = of(m="4096", n="4096", k="4096", **{"pass": "wgrad"})
    assert of(m="4096", n="4096", k="4095", **{"pass": "wgrad"}) == pytest.approx(even, rel=0.01)
    assert of(m="4096", n="4096", k="4095", **{"pass": "forward"}) > 2 * even


def test_what_moves_bytes_takes_a_start_and_bytes_over_bandwidth(predictor: Predictor) -> None:
    """Alone between two events, and in a graph, where there are none; in quadrature with the work of the multiprocessors."""
    era, kernels = Software.load(ERA), predictor.chip.kernels
    assert era.eager is not None
    rate, start = predictor.chip.memory_bandwidth * kernels.memory.efficiency * era.rates["hopper"].memory, era.eager.start
    copy = {"kind": "memory", "op": "copy", "m": "4096", "hidden": "4096", "mode": "flushed"}
    assert seconds(predictor, **copy | {"mode": "back_to_back"}) == pytest.approx(4 * 4096**2 / rate + start)
    assert seconds(predictor, **copy) == pytest.approx(4 * 4096**2 / rate + start + EVENTS)
    swiglu = copy | {"op": "swiglu", "pass": "backward"}
    assert seconds(predictor, **swiglu) == pytest.approx(18 * 4096**2 / rate + 3 * start + EVENTS)
    work = 4096**2 * era.eager.reduction / predictor.chip.sms
    assert seconds(predictor, **copy | {"op": "rmsnorm"}) == pytest.approx(math.hypot(4 * 4096**2 / rate, work) + start + EVENTS)
    update = math.hypot(28e9 / rate, 1e9 * era.eager.optimizer / predictor.chip.sms) + start
    assert seconds(predictor, kind="optimizer", parameters="1000000000", dtype="fp32", backend="fused") == pytest.approx(update)
    pcie = predictor.cluster.node.pcie
    assert pcie is not None
    assert seconds(predictor, kind="transfer", op="h2d", size_bytes="1000000", memory="pinned") == pytest.approx(pcie.latency + 1e6 / pcie.bandwidth)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [({"kind": "transfer", "op": "h2d", "memory": "pageable"}, "copies from pageable memory are not modelled"),
     ({"kind": "optimizer", "backend": "foreach"}, "Adam as a sequence of operations"), ({"kind": "grouped", "op": "loop"}, "a loop over experts"),
     ({"kind": "memory", "op": "sort", "m": "1", "hidden": "1"}, "operation 'sort' has no formula"), ({"kind": "new"}, "kind 'new' is not predicted")],
)  # fmt: skip
def test_what_is_not_modelled_is_said(cells: dict[str, str], reason: str, predictor: Predictor) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        predictor.predict(GpuRow(cells))


def test_a_small_eager_layer_takes_the_time_of_its_host(predictor: Predictor) -> None:
    era = Software.load(ERA)
    forward, both = era.forward_ops_per_layer, era.forward_ops_per_layer + era.backward_ops_per_layer
    of = lambda **cells: seconds(predictor, **LAYER | cells)  # noqa: E731
    assert of(**{"pass": "forward"}) == pytest.approx(forward * era.host_op_time, rel=1e-6)
    assert of(**{"pass": "forward_backward"}) == pytest.approx(both * era.host_op_time, rel=1e-6)
    assert of(**{"pass": "forward_backward", "recompute": "yes"}) == pytest.approx((both + forward) * era.host_op_time, rel=1e-6)
    assert of(**{"pass": "forward", "is_graphed": "yes"}) < forward * era.host_op_time / 5
    assert of(**{"pass": "forward", "model": "gpt"}) == pytest.approx(GPT_OPS[0] * era.host_op_time, rel=1e-6)


def test_recomputation_costs_a_forward_without_its_last_product_and_keeps_the_input_alone(predictor: Predictor) -> None:
    row = LAYER | {"seq_len": "4096", "is_graphed": "yes"}
    forward, plain, again = (
        predictor.predict(GpuRow(row | {"pass": direction, "recompute": recompute}))
        for direction, recompute in (("forward", "no"), ("forward_backward", "no"), ("forward_backward", "yes"))
    )
    costs = CostModel(predictor.cluster, Software.load(ERA), "bf16", MODEL)
    left_out = costs.matmul(4096, 1024, 512) + costs.bias_dropout_add(4096, 512, 0.0)[0]  # PyTorch stops there: backward reads the input of the product alone
    assert again.seconds == pytest.approx(plain.seconds + forward.seconds - left_out, rel=1e-6)
    assert again.activation_bytes == 4096 * 512 * 2
    assert plain.activation_bytes is not None and plain.activation_bytes > 10 * again.activation_bytes


def test_skewed_experts_cost_their_padding(predictor: Predictor) -> None:
    row = LAYER | {"kind": "moe_layer", "experts": "4", "top_k": "2", "pass": "forward", "is_graphed": "yes", "seq_len": "1024"}
    even, skewed = (predictor.predict(GpuRow(row | {"expert_rows": rows})).seconds for rows in ("512 512 512 512", "1032 384 392 240"))
    assert even == pytest.approx(predictor.predict(GpuRow(row)).seconds)
    assert skewed > even


def test_a_step_of_more_microbatches_takes_longer_by_all_but_the_update(predictor: Predictor) -> None:
    row = LAYER | {"kind": "step", "op": "step", "vocab": "1024", "layers": "2", "seq_len": "2048", "is_graphed": "yes"}
    one, two, three = (seconds(predictor, **row | {"microbatches": count}) for count in "123")
    assert three - two == pytest.approx(two - one, rel=1e-6)
    parameters = 2 * (4 * 512**2 + 3 * 512 * 1024) + 1024 * 512 + 5 * 512
    eager = CostModel(predictor.cluster, Software.load(ERA), "bf16", MODEL).eager
    assert eager is not None
    update = eager.optimizer(parameters, Software.load(ERA).optimizer_traffic)
    assert one - (two - one) == pytest.approx(update, rel=0.01)


def runs() -> GpuRuns:
    """Return four rows: two compared, one without a formula, one that failed; and a check, which is left out."""
    layer = LAYER | {"pass": "forward", "seconds": "0.001", "lower_quartile": "0.0009", "upper_quartile": "0.0011", "status": "ok", "activation_bytes": "1e6"}
    pageable = {"kind": "transfer", "op": "h2d", "memory": "pageable", "size_bytes": "1", "seconds": "1", "status": "ok"}
    lost = {"kind": "memory", "op": "copy", "m": "1", "hidden": "1", "seconds": "", "status": "out of memory: Tried"}
    check = {"kind": "check", "op": "layer", "seconds": "", "status": "ok"}
    return GpuRuns([layer, layer | {"is_graphed": "yes", "seconds": "0.00002"}, pageable, lost, check], {"device": H100})


def test_rows_are_compared_or_the_reason_is_kept() -> None:
    frame = compare(runs())
    assert list(frame["status"]) == ["ok", "ok", "not predicted: copies from pageable memory are not modelled", "not measured: out of memory: Tried"]
    assert frame["error"][0] == pytest.approx(frame["predicted"][0] / 1e-3 - 1)
    assert frame["noise"][0] == pytest.approx(0.1)
    found = summary(frame).set_index(["kind", "what"])
    assert list(found.index) == [("layer", "eager, bound by the host"), ("layer", "graphed"), ("transfer", "alone"), ("memory", "copy")]
    assert list(found["compared"]) == [1, 1, 0, 0]
    assert len(memory_errors(frame)) == 1


@pytest.mark.parametrize(("error", "count"), [(0.44, 0), (-0.46, 1)])
def test_gross_errors_are_told(error: float, count: int) -> None:
    import pandas as pd

    found = outside_tolerance(pd.DataFrame([{"kind": "layer", "error": error}, {"kind": "launch", "error": 9.0}, {"kind": "gemm", "error": None}]))
    assert len(found) == count


def test_a_halved_bandwidth_of_memory_is_noticed(predictor: Predictor) -> None:
    import pandas as pd

    node = predictor.cluster.node
    slow = node.accelerator.model_copy(update={"memory_bandwidth": node.accelerator.memory_bandwidth / 2})
    wrong = Predictor(predictor.cluster.model_copy(update={"node": node.model_copy(update={"accelerator": slow})}))
    rows = [{"kind": "memory", "op": op, "m": "8192", "hidden": "8192", "pass": "forward"} for op in ("copy", "gelu", "rmsnorm")]
    errors = [wrong.predict(GpuRow(row)).seconds / predictor.predict(GpuRow(row)).seconds - 1 for row in rows]
    assert outside_tolerance(pd.DataFrame([{"kind": "memory", "error": error} for error in errors]))


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    path = tmp_path / "gpu_runs.csv"
    with pytest.raises(InputError, match=r"gpu_runs\.csv: no such file"):
        read_gpu_runs(path)
    path.write_text("kind,op\n")
    with pytest.raises(InputError, match=r"gpu_runs\.json: no such file"):
        read_gpu_runs(path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match="no column 'seconds'"):
        read_gpu_runs(path)
    path.write_text("kind,op,seconds,status\n")
    with pytest.raises(InputError, match="not JSON"):
        read_gpu_runs(path)


def test_a_table_is_printed_drawn_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from simtrain.cli.validate import ValidationTarget, validate
    from simtrain.errors import ToleranceError

    measured = runs()
    columns = list(dict.fromkeys(key for row in measured.rows for key in row))
    path = tmp_path / "gpu_runs.csv"
    path.write_text("\n".join(",".join(row) for row in [columns, *([row.get(column, "") for column in columns] for row in measured.rows)]) + "\n")
    path.with_suffix(".json").write_text(json.dumps(measured.about | {"nvidia_smi": {"driver_version": "580.1"}, "date": "2026-11-24T13:00:00"}))
    with pytest.raises(ToleranceError, match="NVIDIA H100 80GB HBM3 layer: median error"):
        validate(ValidationTarget.torch, gpu=True, table=path, as_json=tmp_path / "o.json", plot=tmp_path / "o.svg")
    shown = capsys.readouterr().out
    assert "measured on NVIDIA H100 80GB HBM3, driver 580.1, 2026-11-24" in shown
    assert "eager, bound by the host" in shown
    (device,) = json.loads((tmp_path / "o.json").read_text())
    assert len(device["rows"]) == 4
    assert (tmp_path / "o.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [({"machine": Path("x")}, "--machine has no effect"), ({"table": Path("x"), "quick": True}, "--quick and --out have no effect with --table")],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    from simtrain.cli.validate import ValidationTarget, validate

    with pytest.raises(InputError, match=message):
        validate(ValidationTarget.torch, gpu=True, **options)


@pytest.mark.parametrize(("device", "kind"), [(device, kind) for device in gpu_page.DEVICES for kind in EXPECTED])
def test_committed_measurements_are_not_grossly_mispredicted(device: str, kind: str, measured: dict[str, Compared]) -> None:
    frame = measured[device].frame
    assert not outside_tolerance(frame[frame["kind"] == kind])


def test_the_page_shows_what_the_table_gives_today(measured: dict[str, Compared]) -> None:
    page = gpu_page.PAGE.read_text()
    part = re.search(r"<!-- gpu:begin -->\n(.*)\n<!-- gpu:end -->", page, flags=re.S)
    assert part is not None
    assert part[1] == gpu_page.body(measured), "run python -m validation.gpu_page"


def test_the_era_counts_the_operations_of_the_program() -> None:
    """Operations that do work, as the dispatcher sees them; views do none."""
    torch = pytest.importorskip("torch", reason="torch is not installed; it comes with the extra 'validation'")
    from torch.utils._python_dispatch import TorchDispatchMode

    from validation.measure.gpu.layers import made
    from validation.measure.gpu.models import SHAPES, rotation_of

    views = {"view", "_unsafe_view", "transpose", "t", "split", "split_with_sizes", "detach", "expand", "slice", "unsqueeze", "alias"}

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket.__name__ not in views
            return func(*args, **(kwargs or {}))

    device, found = torch.device("cpu"), {}
    for name in ("tiny_gpt", "tiny_llama", "tiny_moe"):
        shape = SHAPES[name]
        layer, x = made(shape, False, device), torch.randn(2, 16, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
        dy = torch.randn_like(x)
        rotation = None if shape.is_gpt else rotation_of(16, shape.head_dim, device)
        with Counter() as forward:
            y = layer(x, rotation)
        with Counter() as backward:
            y.backward(dy)
        found[name] = forward.count, backward.count
    era = Software.load(ERA)
    assert found["tiny_gpt"] == pytest.approx(GPT_OPS, abs=2)
    assert found["tiny_llama"] == pytest.approx((era.forward_ops_per_layer, era.backward_ops_per_layer), abs=2)
    more = [a - b for a, b in zip(found["tiny_moe"], found["tiny_llama"])]
    assert sum(more) / 2 == pytest.approx(era.ops_per_expert_block, abs=2)
