"""The whole of ``simtrain validate torch`` but its measuring: made-up measurements of a known machine; and once, slow, real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from simtrain.cli import main
from simtrain.validate.torch_machine import machine_of
from simtrain.validate.torch_predict import predict, programs_of
from simtrain.validate.torch_runs import load_measure, units
from tests.validation.test_torch_predict import micro

ROOT = Path(__file__).parents[2]
BLOCK = 0.02
"""Every block of every made-up program. [s]"""


class Blocks(dict[str, float]):
    """Notes which blocks a program has."""

    def __missing__(self, name: str) -> float:
        self[name] = BLOCK
        return BLOCK


def make_up(out: Path, slower: float = 1.0) -> None:
    """Write what a machine of known constants would be measured at, whose programs all take longer than predicted by a factor."""
    measure = load_measure()
    for unit in units(True, measure):
        constants = micro(unit.bed) if unit.bed.rate else micro()
        machine, cls = machine_of(unit.bed, constants), measure.programs.PROGRAMS[unit.program]
        calibration = [{"kind": "micro", "name": name, "seconds": [seconds] * 5, "yardsticks": [1.0] * 5} for name, seconds in constants.items()]
        (out / f"calibration_{unit.bed.file}.json").write_text(json.dumps({"task": {}, "lines": [calibration] * unit.bed.size}))
        lines: list[list[dict[str, Any]]] = [[] for _ in range(unit.bed.size)]
        configurations = [{"program": unit.program, "values": values} for values in cls.variants()]
        for number, configuration in enumerate(configurations):
            blocks = [Blocks() for _ in lines]
            seconds = slower * predict(programs_of(cls, configuration["values"], blocks, machine, unit.bed), machine)
            for rank, own in zip(lines, blocks, strict=True):
                rank.append({"kind": "blocks", "number": number, "seconds": dict(own), "yardstick": 1.0})
                rank += [
                    {"kind": "sample", "number": number, "round": k, "seconds": seconds * (1 + noise), "yardsticks": [1.0, 1.0], "sent": 0}
                    for k, noise in enumerate((-0.02, 0.0, 0.02))
                ]
        (out / unit.file).write_text(json.dumps({"task": {"configurations": configurations}, "lines": lines}))


def halve_bandwidth(folder: Path) -> None:
    """Halve the rate of the link in a folder of constants."""
    for path in folder.glob("machine_*_cluster.yaml"):
        data = yaml.safe_load(path.read_text())
        rate, unit = data["node"]["nic"]["bandwidth"].split()
        data["node"]["nic"]["bandwidth"] = f"{float(rate) / 2} {unit}"
        path.write_text(yaml.safe_dump(data))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["simtrain", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        shown = capsys.readouterr()
        return int(caught.value.code or 0), shown.out, shown.err

    return call


def test_a_halved_bandwidth_exits_with_one(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    measured, wrong = tmp_path / "measured", tmp_path / "wrong"
    measured.mkdir()
    make_up(measured)
    code, shown, _ = run("validate", "torch", "--quick", "--out", str(measured), "--plot", str(tmp_path / "runs.svg"))
    assert code == 0
    assert "error median 0.0%" in shown
    assert (tmp_path / "runs.svg").stat().st_size > 10_000
    shutil.copytree(measured, wrong)
    halve_bandwidth(wrong)
    code, _, said = run("validate", "torch", "--quick", "--out", str(measured), "--machine", str(wrong))
    assert code == 1
    assert "configurations exceeds 15%" in said.splitlines()[-1]


def test_an_error_like_noise_passes(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_up(tmp_path, slower=1.08)
    code, shown, _ = run("validate", "torch", "--quick", "--out", str(tmp_path))
    assert code == 0
    assert "error median 7.4%" in shown  # 1 - 1 / 1.08


@pytest.mark.slow
def test_a_halved_bandwidth_of_this_machine_exits_with_one(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    measured, wrong = tmp_path / "measured", tmp_path / "wrong"

    def validate(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "simtrain", "validate", "torch", "--quick", "--out", str(measured), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=900)

    if validate().returncode:
        pytest.skip("the machine is too disturbed: predictions are grossly off with the right bandwidth already")
    shutil.copytree(measured, wrong)
    halve_bandwidth(wrong)
    assert validate("--machine", str(wrong)).returncode == 1
