"""Reading traces of jobs: our own CSV and public formats.

============  =========================================================================================================================
``csv``       header ``submit_s,gpus,duration_s`` and, if wanted, ``priority``; further columns are ignored
``swf``       Standard Workload Format: requested (else allocated) processors are the GPUs
``philly``    ``cluster_job_log`` of msr-fiddle/philly-traces: run times of all attempts are added, the widest attempt gives the GPUs
``helios``    ``cluster_log.csv`` of S-Lab-System-Group/HeliosData: jobs without GPUs are left out
``tiresias``  ``*_job.csv`` of SymbioticLab/Tiresias
============  =========================================================================================================================

Jobs without a run time or without GPUs are left out; a run time is at least 1 s; time starts at the first submission, except in ``csv``.

References
----------
.. [1] D. G. Feitelson, "The Standard Workload Format", version 2.2.
.. [2] M. Jeon et al., "Analysis of Large-Scale Multi-Tenant GPU Clusters for DNN Training Workloads", USENIX ATC 2019.
.. [3] Q. Hu et al., "Characterization and Prediction of Deep Learning Workloads in Large-Scale GPU Datacenters", SC 2021.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from simtrain.errors import InputError


class Row(NamedTuple):
    """One job of a trace."""

    submit: float
    """[s]"""
    gpus: int
    duration: float
    """[s]"""
    priority: int = 0


def read_csv(text: str, shown: str) -> list[Row]:
    """Read our own columns; times count from the trace's own origin."""
    rows = [
        Row(_number(r, "submit_s", at), _count(r, "gpus", at), _number(r, "duration_s", at), _count(r, "priority", at) if "priority" in r else 0)
        for at, r in _records(text, shown, ("submit_s", "gpus", "duration_s"))
    ]  # fmt: skip
    return _usable(rows)


def read_tiresias(text: str, shown: str) -> list[Row]:
    """Read a trace of the Tiresias simulator."""
    needed = ("num_gpu", "submit_time", "duration")
    return _from_first(
        [Row(_number(r, "submit_time", at), _count(r, "num_gpu", at), _number(r, "duration", at)) for at, r in _records(text, shown, needed)]
    )  # fmt: skip


def read_helios(text: str, shown: str) -> list[Row]:
    """Read a cluster log of Helios [3]_."""
    needed = ("gpu_num", "submit_time", "duration")
    return _from_first([Row(_moment(r["submit_time"], at), _count(r, "gpu_num", at), _number(r, "duration", at)) for at, r in _records(text, shown, needed)])


def read_swf(text: str, shown: str) -> list[Row]:
    """Read the Standard Workload Format [1]_: 18 numbers a line, -1 for what is not known, comments after ``;``."""
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith(";"):
            continue
        at = f"{shown}: line {number}"
        if len(words) < 8:
            raise InputError(f"{at}: {len(words)} fields, but a job has 18; is this the Standard Workload Format?")
        fields: dict[str, str] = {"submit time": words[1], "run time": words[3], "allocated": words[4], "requested": words[7]}
        requested = _count(fields, "requested", at)
        rows.append(Row(_number(fields, "submit time", at), requested if requested > 0 else _count(fields, "allocated", at), _number(fields, "run time", at)))
    return _from_first(rows)


def read_philly(text: str, shown: str) -> list[Row]:
    """Read a Philly job log [2]_: a JSON list of jobs with their attempts."""
    try:
        jobs: Any = json.loads(text)
        rows = [_philly_row(job, f"{shown}: job {i}") for i, job in enumerate(jobs)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown}: is no Philly job log ({type(error).__name__}: {error}); give cluster_job_log, a JSON list of jobs with attempts") from None
    return _from_first(rows)


def _philly_row(job: Mapping[str, Any], at: str) -> Row:
    gpus, seconds = 0, 0.0
    for attempt in job["attempts"]:
        begin, end = attempt["start_time"], attempt["end_time"]
        if begin in (None, "None") or end in (None, "None"):
            continue
        seconds += _moment(end, at) - _moment(begin, at)
        gpus = max(gpus, sum(len(machine["gpus"]) for machine in attempt["detail"]))
    return Row(_moment(job["submitted_time"], at), gpus, seconds if gpus else -1.0)


FORMATS: Mapping[str, Callable[[str, str], list[Row]]] = {
    "csv": read_csv, "swf": read_swf, "philly": read_philly, "helios": read_helios, "tiresias": read_tiresias,
}  # fmt: skip
"""Readers by name: from the text and the name shown in messages to rows."""


def _records(text: str, shown: str, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{shown}: no column {missing[0]!r}; the first line has to name {', '.join(needed)}")
    for record in reader:
        at = f"{shown}: line {reader.line_num}"
        if None in record or None in record.values():
            raise InputError(f"{at}: has not as many fields as the {len(reader.fieldnames or ())} of the first line; mend it")
        yield at, record


def _number(record: Mapping[str, str], key: str, at: str) -> float:
    try:
        value = float(record[key])
    except ValueError:
        value = float("nan")
    if not -1e12 < value < 1e12:
        raise InputError(f"{at}: {key}: {record[key]!r} is no number; write seconds, e.g. 3600") from None
    return value


def _count(record: Mapping[str, str], key: str, at: str) -> int:
    value = _number(record, key, at)
    if value != int(value):
        raise InputError(f"{at}: {key}: {record[key]!r} is no whole number; a job has 1, 2, ... GPUs")
    return int(value)


def _moment(text: str, at: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InputError(f"{at}: {text!r} is no time; write e.g. 2017-10-09 07:01:58") from None
    return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()


def _usable(rows: Iterable[Row]) -> list[Row]:
    return [row._replace(duration=max(1.0, row.duration)) for row in rows if row.gpus > 0 and row.duration >= 0]


def _from_first(rows: Iterable[Row]) -> list[Row]:
    kept = _usable(rows)
    first = min((row.submit for row in kept), default=0.0)
    return [row._replace(submit=row.submit - first) for row in kept]
