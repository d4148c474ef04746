"""Results that were written to files: read back, and repeated from their own configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simtrain import spec
from simtrain.errors import InputError
from simtrain.hardware import Cluster
from simtrain.study.compare import Comparison, Row, in_words, title_of
from simtrain.study.result import Result
from simtrain.study.run import run_scenario
from simtrain.study.settings import Scenario
from simtrain.systems.registry import find

_HOW = "give a file that 'simtrain run ... --json' or 'simtrain compare ... --json' has written"


class Stored(NamedTuple):
    """One result of a file, run again."""

    label: str
    """Set-up, where the file has several."""
    result: Result
    is_same: bool
    """Whether it came out as the file says, to the last bit of its trace."""
    stored: Mapping[str, Any]
    """What the file says."""


def load_results(path: str | Path) -> list[Stored]:
    """Read a result, or the results of a comparison, and run them again from their configuration.

    Parameters
    ----------
    path
        File with the output of ``--json``.

    Raises
    ------
    InputError
        If it is no such file, or a configuration cannot be run any more.
    """
    records = _records(Path(path))
    return [_again(label, record, str(path)) for label, record in records]


def load_comparison(path: str | Path) -> Comparison | None:
    """Read a comparison and run its results again; None if the file holds a single result.

    Raises
    ------
    InputError
        As :func:`load_results`.
    """
    data = _read(Path(path))
    if not _is_comparison(data):
        return None
    rows = [
        Row(
            str(row["case"]), str(row["system"]), bool(row["is_baseline"]), _again("", row["result"], str(path)).result if row["result"] else None,
            {str(k): float(v) for k, v in row["published"].items()}, str(row["infeasible"]), row.get("ratios", {}),
        )
        for row in data
    ]  # fmt: skip
    systems = [type(row.result.scenario.system) if row.result else None for row in rows]
    names = dict.fromkeys(title_of(cls) if cls else row.system for cls, row in zip(systems, rows, strict=True))
    return Comparison(tuple(rows), in_words(list(names)))


def _is_comparison(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(row, dict) and _ROW <= row.keys() for row in data)


_ROW = {"case", "system", "is_baseline", "result", "published", "infeasible"}


def _records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    data = _read(path)
    if isinstance(data, dict) and "config" in data and "metrics" in data:
        return [("", data)]
    if _is_comparison(data):
        return [(str(row.get("case", "")), row["result"]) for row in data if row["result"]]
    raise InputError(f"{path}: holds no result; {_HOW}")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_HOW}") from None
    except ValueError:
        raise InputError(f"{path}: is not JSON; {_HOW}") from None


def _again(label: str, record: Mapping[str, Any], shown: str) -> Stored:
    try:
        result = repeat(record["config"])
    except KeyError as error:
        raise InputError(f"{shown}: config: {error.args[0]} is missing; {_HOW}") from None
    except InputError as error:
        raise InputError(f"{shown}: config: {error}") from None
    return Stored(label, result, result.to_dict()["digests"] == record.get("digests"), record)


def repeat(config: Mapping[str, Any]) -> Result:
    """Run what the configuration of a result says.

    Raises
    ------
    InputError
        If it cannot be run by this version.
    """
    cls = find(str(config["system"]))
    kinds = {"parameters": cls, "workload": cls.workload_type, "cluster": Cluster}
    s = Scenario(str(config["system"]), *(_built(kind, config[part]) for part, kind in kinds.items()))
    options = {name: config[name] for name in ("fidelity", "unfold", "seed", "seeds") if name in config}
    return run_scenario(s, **options)


def _built(kind: type[spec.Spec], data: Any) -> Any:
    try:
        return kind.model_validate(data)  # values are SI, as results hold them
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from None
