"""The programs that measure a GPU, on CPU tensors of tiny sizes: their mathematics, their table, and what they do when something is not there."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; it comes with the extra 'validation'")

from validation.measure.gpu import __main__ as program  # noqa: E402
from validation.measure.gpu import calibration, device, gemm, table, timing  # noqa: E402
from validation.measure.gpu.case import BACK_TO_BACK, Case, Work  # noqa: E402
from validation.measure.gpu.kinds import CHECKS, KINDS  # noqa: E402

CPU = torch.device("cpu")
needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: run the programs themselves")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Two threads of a busy machine wait for each other for milliseconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path / "gpu_runs.csv", newline="") as file:
        return list(csv.DictReader(file))


@needs_cpu
def test_every_case_runs_or_says_why_not_and_a_second_call_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert {row["kind"] for row in rows} == {"check", *KINDS}
    assert tuple(rows[0]) == table.COLUMNS
    for row in rows:
        refused = row["is_graphed"] == "yes" or row["backend"] == "cudnn"
        assert (row["status"] == "ok") != refused, row
        if row["kind"] != "check":
            assert bool(row["seconds"]) != refused
    assert any(row["status"] == "unsupported: CUDA graphs need a CUDA device" for row in rows)
    before = (tmp_path / "gpu_runs.csv").read_bytes()
    capsys.readouterr()
    program.main(["--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("0 of ")
    assert (tmp_path / "gpu_runs.csv").read_bytes() == before


@needs_cpu
def test_a_run_goes_on_after_an_unfinished_line(tmp_path: Path) -> None:
    program.main(["--out", str(tmp_path), "--only", "optimizer"])
    path = tmp_path / "gpu_runs.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])
    program.main(["--out", str(tmp_path), "--only", "optimizer"])
    again = rows_of(tmp_path)
    assert [row["status"] for row in again] == ["ok"] * (len(lines) - 1)
    assert len({table.key_of(row) for row in again}) == len(again)


def test_a_file_with_other_columns_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gpu_runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit, match="2"):
        program.main(["--out", str(tmp_path)])
    assert "has other columns" in capsys.readouterr().err
    assert (tmp_path / "gpu_runs.csv").read_text() == "a,b\n1,2\n"


def test_an_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--out", str(tmp_path), "--only", "gem"])
    assert "unknown kind 'gem'; allowed are launch, gemm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "out of memory: CUDA out of memory. Tried"),
     (NotImplementedError("no such kernel"), "unsupported: no such kernel"), (RuntimeError("m has to be\neven"), "failed: m has to be"),
     (RuntimeError(), "failed: RuntimeError")],
)  # fmt: skip
def test_a_failure_becomes_a_reason_and_the_next_case_is_measured(error: Exception, status: str, tmp_path: Path) -> None:
    session = program.Session(CPU, table.Table(tmp_path / "gpu_runs.csv"))

    def fail(_: Any) -> Work:
        raise error

    cases = [Case("memory", {"op": "a"}, fail), Case("memory", {"op": "b"}, lambda _: Work(lambda: None, mode=BACK_TO_BACK))]
    program.measure_all(session, [("none", case) for case in cases])
    assert [row["status"] for row in rows_of(tmp_path)] == [status, "ok"]


@pytest.mark.parametrize("size", ["tiny", "quick", "full"])
def test_no_two_cases_have_one_configuration_and_all_columns_exist(size: str) -> None:
    cases = [case for kind in KINDS.values() for case in kind(size)]
    keys = [table.key_of({"kind": case.kind, **case.values}) for case in cases]
    assert len(set(keys)) == len(keys)
    assert {column for case in cases for column in case.values} <= set(table.CONFIGURATION)


def test_wrong_mathematics_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "experts_mm", lambda a, b, offsets: 1.1 * gemm.loop_mm(a, b, offsets))
    program.Session(CPU, table.Table(tmp_path / "gpu_runs.csv")).check("gemm")
    assert rows_of(tmp_path)[0]["status"].startswith("wrong: grouped forward differs by 0.1, allowed 0.05")


@pytest.mark.parametrize("kind", CHECKS)
def test_the_mathematics_is_right(kind: str) -> None:
    check, allowed = CHECKS[kind]
    errors = check(CPU)
    assert errors and max(errors.values()) <= allowed, errors


def test_loads_are_what_they_are_called() -> None:
    even, skewed = gemm.loads(4096, 8, "balanced"), gemm.loads(4096, 8, "skewed")
    assert even == [512] * 8
    # The first of eight in a harmonic series has 1 / (1 + 1/2 + ... + 1/8) = 36.8 %.
    assert max(skewed) == pytest.approx(0.368 * 4096, abs=gemm.ALIGNMENT)
    assert all(rows % gemm.ALIGNMENT == 0 for rows in skewed)


def test_the_passes_of_a_linear_layer_do_the_same_work() -> None:
    assert [gemm.of_pass(direction, 3, 5, 7) for direction in gemm.PASSES] == [(3, 5, 7), (3, 7, 5), (5, 7, 3)]


def test_recomputation_stops_before_the_last_product() -> None:
    """The checkpoint ends when backward has what it needs; validation/gpu.md counts on it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from validation.measure.gpu.models import SHAPES, Layer, recomputed

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket.__name__ in ("mm", "addmm")
            return func(*args, **(kwargs or {}))

    layer = Layer(SHAPES["tiny_gpt"], device=CPU, dtype=torch.bfloat16)
    x, found = torch.randn(2, 16, 32, dtype=torch.bfloat16, requires_grad=True), []
    for run in (lambda: layer(x, None), lambda: recomputed(layer, x, None)):
        y = run()
        with Products() as products:
            y.backward(torch.randn(2, 16, 32, dtype=torch.bfloat16))
        found.append(products.count)
    assert found == [8, 8 + 3]  # two for each of four products, and three of them again


def test_readings_of_nvidia_smi() -> None:
    assert device.reading_of("1980, 693.21, 61\n") == device.Reading(1980, 693.21, 61)
    assert device.reading_of("1980, [N/A], 61") == device.Reading(1980, None, 61)
    assert device.reading_of("No devices were found") == device.Reading()


def test_quartiles_and_numbers_of_runs() -> None:
    assert timing.summary([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0, 5)
    assert timing.summary([1.0]) == (1.0, 1.0, 1.0, 1)
    assert timing.runs_within(timing.FLUSHED, 10.0) == timing.LEAST
    assert timing.runs_within(timing.FLUSHED, 1e-6) == timing.MOST[timing.FLUSHED]


@needs_cpu
def test_every_case_of_the_calibration_runs_or_says_why_not(tmp_path: Path) -> None:
    assert program.main(["--out", str(tmp_path), "--calibration"]) == 0
    rows = [row for row in rows_of(tmp_path) if row["kind"] != "check"]
    assert {row["kind"] for row in rows} == {*calibration.KINDS, "stream", "moe_layer"}
    for row in rows:
        refused = row["is_graphed"] == "yes" and row["kind"] in ("launch", "optimizer", "layer", "moe_layer", "step")
        assert (row["status"] == "ok") != refused, row
        assert bool(row["seconds"]) != refused


@pytest.mark.parametrize("size", ["tiny", "quick", "full"])
def test_no_two_cases_of_the_calibration_have_one_configuration(size: str) -> None:
    cases = [case for kind in calibration.KINDS.values() for case in kind(size)]
    keys = [table.key_of({"kind": case.kind, **case.values}) for case in cases]
    assert len(set(keys)) == len(keys)
    assert {column for case in cases for column in case.values} <= set(table.CONFIGURATION)


def test_a_kind_of_the_other_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--out", str(tmp_path), "--calibration", "--only", "attention"])
    assert "unknown kind 'attention'; allowed are launch, memory, routing" in capsys.readouterr().err


def test_the_pieces_of_routing_make_the_layer_that_has_them() -> None:
    from validation.measure.gpu.models import SHAPES, Experts, swiglu
    from validation.measure.gpu.routing import places

    torch.manual_seed(0)
    shape = SHAPES["tiny_moe"]
    layer, x = Experts(shape, device=CPU, dtype=torch.bfloat16), torch.randn(16, shape.hidden, dtype=torch.bfloat16)
    weights, chosen = layer.route(x)
    order = torch.argsort(chosen.flatten(), stable=True)
    token = order // shape.top_k
    place, ends = places(chosen.flatten()[order], shape.experts)
    routed = x.new_zeros(token.numel() + gemm.ALIGNMENT * shape.experts, shape.hidden).index_copy(0, place, x.index_select(0, token))
    y = gemm.experts_mm(swiglu(gemm.experts_mm(routed, layer.up.transpose(-2, -1), ends)), layer.down.transpose(-2, -1), ends)
    weighted = y.index_select(0, place) * weights.flatten()[order, None].to(y.dtype)
    assert torch.equal(torch.zeros_like(x).index_add(0, token, weighted), layer(x))
