"""Small real torch runs on this machine, predicted and measured: what ``simtrain validate torch`` does."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtrain.errors import InputError, UnsupportedError
from simtrain.spec import data_root
from simtrain.validate.torch_blocks import predict_drawn
from simtrain.validate.torch_host import describe
from simtrain.validate.torch_machine import Bed, Machine, machine_of
from simtrain.validate.torch_predict import naive, programs_of
from simtrain.validate.torch_racks import in_racks, oversubscription
from simtrain.validate.torch_restart import restart_rows
from simtrain.validate.torch_rl_runs import rl_rows
from simtrain.validate.torch_samples import blocks_of, repeat_noise, samples, slowest_micro, slowest_samples
from simtrain.validate.torch_store import write

if TYPE_CHECKING:
    import pandas as pd

MBIT = 1e6
QUICK = ("data_parallel", "tensor_parallel", "ulysses", "packing")
ROUNDS: Mapping[str, int] = {"collective": 15}
"""Of a full run, where they are not 7: a plain collective takes a tenth of a step."""
IN_RACKS: Mapping[str, Mapping[str, Sequence[str]]] = {"data_parallel": {}, "collective": {"kind": ("all_reduce", "all_gather", "reduce_scatter")}}
"""Programs that also run in two racks, and with which settings: without single messages between ranks, which are not modelled there."""
UPLINK = 500 * MBIT
"""Between the racks, each of which has two ranks of 1,000 Mbit/s. [bit/s]"""
EXPECTED = {2: 0.05, 4: 0.09}
"""Median error to expect by number of ranks: what a prototype of the model reached on a quiet machine."""
GROSS = 3.0
"""Times the expected error beyond which the model, not the machine, must be wrong."""


@dataclass(frozen=True)
class Unit:
    """One program on one bed: calibrated, measured and kept together."""

    bed: Bed
    program: str
    rounds: int
    uplink: float = 0.0
    """Of the link between two racks; 0 for none. [bit/s]"""

    @property
    def name(self) -> str:
        """Name of its network in tables."""
        return f"{self.bed.name}, racks {oversubscription(self.bed, self.uplink):g}:1" if self.uplink else self.bed.name

    @property
    def file(self) -> str:
        """Name of its results."""
        return f"{self.program}_{self.bed.file}{'_racks' if self.uplink else ''}.json"


def units(quick: bool, measure: Any) -> list[Unit]:
    """Return what is measured, shaped networks first."""
    cores, burst = len(os.sched_getaffinity(0)), measure.network.BURST
    shaped = not measure.network.unavailable()
    rates = ([(2, 300.0)] if quick else [(2, 300.0), (2, 1000.0), (4, 1000.0)]) if shaped else [(2, 0.0)]
    names = [n for n in measure.programs.PROGRAMS if not quick or n in QUICK]
    found = [Unit(Bed(size, rate * MBIT, cores, burst), name, 3 if quick else ROUNDS.get(name, 7)) for size, rate in rates for name in names]
    return found if quick or not shaped else [*found, *(replace(unit, uplink=UPLINK) for unit in found if unit.bed.size == 4 and unit.program in IN_RACKS)]


def load_measure() -> Any:
    """Import the measured programs, which lie beside the package and need torch.

    Raises
    ------
    UnsupportedError
        If there is no checkout, or no torch.
    """
    root = data_root()
    if not (root / "validation" / "measure").is_dir():
        raise UnsupportedError("validate torch: runs the programs of validation/measure, which an installed package does not carry; run it in a checkout")
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("validate torch: needs torch; install the extra with: pip install 'simtrain[validation]'")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    for part in ("network", "launch", "programs", "restart", "rl_loop"):
        importlib.import_module(f"validation.measure.{part}")
    return sys.modules["validation.measure"]


def validate_torch(*, quick: bool, out: Path, machine: Path | None = None, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Measure every program, predict it, and return one row per configuration.

    Parameters
    ----------
    quick
        A few programs on one network instead of all.
    out
        Folder of the raw measurements, the constants of this machine and the table. What is there already is not measured again.
    machine
        Folder of an earlier run whose constants are used instead of freshly calibrated ones.
    say
        Called with what is being done.
    """
    import pandas as pd

    measure = load_measure()
    out.mkdir(parents=True, exist_ok=True)
    if reason := measure.network.unavailable():
        say(f"shaped networks are skipped: {reason}; the programs run on the loopback")
    rows: list[dict[str, Any]] = []
    todo = units(quick, measure)
    for number, unit in enumerate(todo):
        say(f"[{number + 1}/{len(todo)}] {unit.program} on {unit.name}")
        calibrated = _calibrated(unit.bed, out, measure, 5 if quick else 21, say)
        used = calibrated if machine is None else Machine.read(machine / f"machine_{unit.bed.file}.yaml")
        placed = in_racks(used, unit.bed, unit.uplink) if unit.uplink else used
        rows += list(_rows(unit, _measured(unit, out, measure, say), measure, placed))
    if not quick:
        try:
            rows += [*restart_rows(out, measure, say), *rl_rows(out, measure, say)]
        except measure.launch.RankError as error:
            raise InputError(str(error)) from None
    table = pd.DataFrame([{"unit": "s"} | row for row in rows])
    write(out / "torch_runs.csv", table.to_csv(index=False))
    write(out / "torch_decisions.csv", decisions(table, measure).to_csv(index=False))
    if not (out / "torch_machine.json").exists():  # as it was when the first of what lies here was measured
        write(out / "torch_machine.json", json.dumps(describe(), indent=1) + "\n")
    return table


def _calibrated(bed: Bed, out: Path, measure: Any, repeats: int, say: Callable[[str], None]) -> Machine:
    """Return a bed's constants, measured now or before; they are written down before any program of the bed runs."""
    task = {"configurations": [], "rounds": 0, "block_repeats": 0, "micro": repeats}
    raw = _run(bed, task, out / f"calibration_{bed.file}.json", measure, say)
    try:
        machine = machine_of(bed, slowest_micro(raw["lines"]))
    except KeyError as missing:
        raise InputError(f"{out / f'calibration_{bed.file}.json'}: has no {missing}, as another version wrote it; measure into another folder") from None
    machine.write(out / f"machine_{bed.file}.yaml")
    return machine


def _measured(unit: Unit, out: Path, measure: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the raw lines of a unit, measured now or before."""
    allowed = IN_RACKS[unit.program] if unit.uplink else {}
    variants = [v for v in measure.programs.PROGRAMS[unit.program].variants() if all(v[key] in values for key, values in allowed.items())]
    configurations = [{"program": unit.program, "values": values} for values in variants]
    task = {"configurations": configurations, "rounds": unit.rounds, "block_repeats": 2}
    return _run(unit.bed, task, out / unit.file, measure, say, unit.uplink)


def _run(bed: Bed, task: dict[str, Any], path: Path, measure: Any, say: Callable[[str], None], uplink: float = 0.0) -> dict[str, Any]:
    """Run a task on a bed unless its results are there."""
    if path.exists():
        return json.loads(path.read_text())
    try:
        with measure.launch.turn(say), measure.network.shaped(bed.size, bed.rate, uplink) if bed.rate else nullcontext() as network:
            lines = measure.launch.run_ranks("validation.measure.worker", bed.size, task, network)
    except (measure.launch.RankError, measure.network.NetworkError) as error:
        raise InputError(f"{path.stem} on {bed.name}: {error}") from None
    write(path, json.dumps({"task": task, "lines": lines}))
    return {"task": task, "lines": lines}


def _rows(unit: Unit, raw: Mapping[str, Any], measure: Any, machine: Machine) -> Iterator[dict[str, Any]]:
    lines: list[list[dict[str, Any]]] = raw["lines"]
    cls = measure.programs.PROGRAMS[unit.program]
    for number, configuration in enumerate(raw["task"]["configurations"]):
        values = configuration["values"]
        seconds, yard, quartiles = samples(lines, number)
        blocks = blocks_of(lines, number, yard)
        programs = programs_of(cls, values, [block.typical() for block in blocks], machine, unit.bed)
        predicted, simple = predict_drawn(cls, values, blocks, machine, unit.bed), naive(programs, machine, unit.bed)
        yield {
            "bed": unit.name, "ranks": unit.bed.size, "rate": unit.bed.rate, "program": unit.program, "configuration": json.dumps(values),
            "measured": seconds, "predicted": predicted, "error": predicted / seconds - 1, "noise": (quartiles[1] - quartiles[0]) / 2 / seconds,
            "repeat": repeat_noise(slowest_samples(lines, number)), "naive": simple, "naive_error": simple / seconds - 1,
            "sent": _sent(lines, number), "sent_expected": _expected(programs),
        }  # fmt: skip


def _sent(lines: Sequence[Sequence[Mapping[str, Any]]], number: int) -> float:
    """Return the bytes that left the interface of the rank that sent most in one step, headers included. [B]"""
    return max(statistics.median(line["sent"] for line in rank if line["kind"] == "sample" and line["number"] == number) for rank in lines)


def _expected(programs: Sequence[Any]) -> float:
    """Return the bytes that the busiest rank's program sends in one step. [B]"""
    return max(sum(i.template.ops[0].nbytes for i in p.instructions if hasattr(i, "template") and i.template.ops[0].payload) for p in programs)


def decisions(table: pd.DataFrame, measure: Any) -> pd.DataFrame:
    """Return the A/B pairs: configurations of one program on one bed that differ in choices alone.

    A pair counts if its measured gap exceeds 10 % and the noise of both; ``cost`` is what following the simulator's choice loses.
    """
    import pandas as pd

    choices_of = {name: cls.choices for name, cls in measure.programs.PROGRAMS.items()} | {"rl_loop": measure.rl_loop.CHOICES}
    rows: list[dict[str, Any]] = []
    for _, group in table.groupby(["bed", "program"], sort=False):
        bed, program = (str(group[key].iloc[0]) for key in ("bed", "program"))
        choices = choices_of.get(program, ())
        for a, b in itertools.combinations(group.to_dict("records"), 2):
            values = [json.loads(x["configuration"]) for x in (a, b)]
            if not choices or any(values[0][key] != values[1][key] for key in values[0] if key not in choices):
                continue
            fast, slow = sorted((a, b), key=lambda x: x["measured"])
            gap = slow["measured"] / fast["measured"] - 1
            is_right = fast["predicted"] <= slow["predicted"]
            rows.append(
                {
                    "bed": bed, "program": program, "faster": fast["configuration"], "slower": slow["configuration"], "gap": gap,
                    "is_clear": gap > max(0.10, a["noise"] + b["noise"]), "is_right": is_right, "cost": 0.0 if is_right else gap,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def outside_tolerance(table: pd.DataFrame) -> list[str]:
    """Return what is grossly wrong: beds whose median error exceeds three times the expected one, as one message each."""
    found: list[str] = []
    for bed, group in table[table["unit"] == "s"].groupby("bed", sort=False):
        errors, ranks = [abs(float(e)) for e in group["error"]], [int(n) for n in group["ranks"]]
        median, limit = statistics.median(errors), GROSS * EXPECTED.get(ranks[0], 0.09)
        if median > limit:
            found.append(f"{bed}: median error {median:.1%} over {len(group)} configurations exceeds {limit:.0%}")
    return found
