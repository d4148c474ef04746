"""Words and numbers for people: names of systems and metrics, units that read well, set-ups told apart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from simtrain.study.compare import Comparison, Row, title_of
from simtrain.study.result import UNITS as UNIT_OF
from simtrain.study.result import unit_of
from simtrain.systems.base import Claim, System
from simtrain.units import UNITS

_TITLES = {
    "step_time": "step time", "tokens_per_s": "throughput", "tokens_per_s_per_gpu": "throughput per GPU", "tflops_per_gpu": "FLOP/s per GPU", "mfu": "MFU",
    "mfu_causal": "MFU, causal", "hfu": "HFU", "bubble_fraction": "bubble", "exposed_comm": "exposed comm.", "peak_memory": "peak memory", "num_gpus": "GPUs",
    "usd_per_step": "price of a step", "compute": "compute", "speedup": "speed-up", "ettr": "ETTR", "mean_lost_work": "work lost per interruption",
    "checkpoint_interval": "work between saves", "degraded_speed": "speed without a node",
    "mean_jct": "mean JCT", "p50_jct": "median JCT", "p99_jct": "p99 JCT",
    "mean_first_wait": "wait to first start", "restart_gpu_time": "GPU time lost in restarts", "num_jobs": "jobs", "num_dropped": "jobs left out",
    "num_preemptions": "preemptions",
    "rollouts_per_s": "rollouts", "running_per_server": "requests per server", "tail_time": "tail of a batch",
    "staleness_mean": "staleness, mean", "staleness_max": "staleness, largest", "evictions_per_rollout": "evictions per rollout",
    "generated_tokens_per_s": "generated", "trained_tokens_per_s_per_gpu": "trained per training GPU", "reward_wait": "wait for a reward worker",
}  # fmt: skip
CATEGORY_NAMES = {
    "forward": "forward", "backward": "backward", "recompute": "recomputation", "update": "optimizer", "compute": "compute", "tp": "exposed tp",
    "cp": "exposed cp", "ep": "exposed ep", "pp": "exposed pp", "dp": "exposed dp", "host": "host", "idle": "bubble, idle", "productive": "productive",
    "checkpoint": "checkpoint stalls", "degraded": "degraded", "lost_work": "lost work", "detection": "detection", "restart": "restart",
    "waiting": "waiting for nodes",
    "decode": "decoding", "prefill": "prefill", "reprefill": "prefill again", "weight_sync": "weight sync", "reshard": "resharding",
    "log_probs": "log-probabilities", "train": "training",
}  # fmt: skip
"""Names of what a rank does, see :data:`simtrain.engine.categories.CATEGORIES`; ``compute`` is all of it together."""

_PERCENT = {"mfu", "mfu_causal", "hfu", "bubble_fraction", "ettr", "degraded_speed", "utilisation"}
_COUNTS = {"num_gpus", "num_jobs", "num_dropped", "num_preemptions"}


class Scale(NamedTuple):
    """How values of one metric are written: ``value / size`` with ``decimals`` and a unit."""

    size: float
    unit: str
    decimals: int

    def number(self, value: float) -> str:
        """Write a value without its unit."""
        return f"{value / self.size:,.{self.decimals}f}"

    def text(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()

    def as_published(self, value: float) -> str:
        """Write a value with no more digits than it was given."""
        written = f"{value / self.size:,.{self.decimals + 1}f}"
        return written.rstrip("0").rstrip(".") if "." in written else written


def metric_title(metric: str) -> str:
    """Return the name of a metric for people.

    Examples
    --------
    >>> metric_title("mfu"), metric_title("exposed_comm.tp"), metric_title("sent_bytes.dp")
    ('MFU', 'exposed tp', 'sent over dp')
    """
    family, _, part = metric.partition(".")
    if part:
        if family == "ratio":
            return f"{metric_title(part)}, ratio"
        return {"exposed_comm": f"exposed {part}", "sent_bytes": f"sent over {part}", "time": f"time, {CATEGORY_NAMES.get(part, part)}"}.get(
            family, f"{_TITLES.get(family, family)} {part}"
        )
    return _TITLES.get(metric, metric.replace("_", " "))


def scale(metric: str, values: Iterable[float]) -> Scale:
    """Choose the unit for all values of a metric, so that the largest has one to four digits before the point.

    Examples
    --------
    >>> scale("step_time", [36.8, 6.34]).text(6.34), scale("mfu", [0.552]).text(0.552), scale("peak_memory", [18e9]).text(18e9)
    ('6.34 s', '55.2 %', '18.00 GB')
    """
    largest = max((abs(v) for v in values), default=0.0)
    if metric.partition(".")[0] in _PERCENT:
        return Scale(0.01, "%", 1)
    unit = unit_of(metric)
    if metric in _COUNTS:
        return Scale(1.0, "", 0)
    if unit == "TFLOP/s":
        return Scale(1.0, unit, _decimals(largest))
    size, prefix = _prefixed(largest, unit)
    return Scale(size, prefix, _decimals(largest / size))


def quantity_scale(metric: str, unit: str, values: Iterable[float]) -> Scale:
    """Choose the unit for values of any metric, of a study's own too, from the unit it has in its table.

    Examples
    --------
    >>> quantity_scale("days", "days", [12.5]).text(12.5)
    '12.50 days'
    """
    found = [v for v in values if math.isfinite(v)]
    if metric in UNIT_OF:
        return scale(metric, found)
    largest = max((abs(v) for v in found), default=0.0)
    size, name = _prefixed(largest, unit)
    return Scale(size, name, _decimals(largest / size))


def _prefixed(largest: float, unit: str) -> tuple[float, str]:
    if unit == "s":
        size, name = next(((UNITS["time"][u], u) for u in ("s", "ms", "us") if largest >= UNITS["time"][u] or not largest), (1e-9, "ns"))
        return size, name
    if unit in ("B", "tokens/s"):
        steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
        size, prefix = next(((s, p) for s, p in steps if largest >= s * (1 if unit == "B" else 10)), (1.0, ""))
        return size, f"{prefix} {unit}" if unit == "tokens/s" and prefix else f"{prefix}{unit}"
    return 1.0, "" if unit == "1" else unit


def _decimals(largest: float) -> int:
    """Four digits or a few more, but never more than three after the point."""
    digits = math.floor(math.log10(largest)) + 1 if largest >= 1 else 1
    return min(3, max(0, 4 - digits)) if largest else 0


def system_title(system: System | type[System]) -> str:
    """Return the name of a system: its paper's title without the venue, or the class."""
    return title_of(system if isinstance(system, type) else type(system))


def system_titles(comparison: Comparison) -> dict[str, str]:
    """Return the title of each system of a comparison, by name, in the order of its rows; names where titles would be equal."""
    titles: dict[str, str] = {}
    for row in comparison.rows:
        if row.result is not None:
            titles[row.system] = system_title(row.result.scenario.system)
        else:
            titles.setdefault(row.system, _title_from_registry(row.system))
    names = list(titles.values())
    return {name: title if names.count(title) == 1 else name for name, title in titles.items()}


def _title_from_registry(name: str) -> str:
    from simtrain.errors import InputError
    from simtrain.systems import registry

    try:
        return system_title(registry.find(name))
    except InputError:  # a class of the user's own, known by its name only
        return name


def claims_of(comparison: Comparison) -> dict[tuple[str, str], Claim]:
    """Return the claims behind the published values, by case and metric."""
    classes = {type(row.result.scenario.system): None for row in comparison.rows if row.result is not None}
    published = {(row.case, metric) for row in comparison.rows for metric in row.published}
    found = {(claim.case.name, claim.metric): claim for cls in classes for claim in cls.claims}
    return {key: claim for key, claim in found.items() if key in published}


def source_of(comparison: Comparison) -> str:
    """Return where the published values come from, such as ``MegaScale (NSDI'24), Table 2``; empty without any."""
    keys = set(claims_of(comparison))
    places: dict[str, dict[str, None]] = {}
    for row in comparison.rows:
        cls = type(row.result.scenario.system) if row.result is not None else System
        for claim in cls.claims:
            if (claim.case.name, claim.metric) in keys:
                places.setdefault(cls.title or cls.__name__, {})[re.sub(r"^\[\d+\]\s*", "", claim.source)] = None
    return "; ".join(", ".join([paper, *found]) for paper, found in places.items())


def infeasible_mark(row: Row) -> str:
    """Return a word for the place of a number that there is none for."""
    return "OOM" if "out of memory" in row.infeasible else "n/a"


def published_value(row: Row, metric: str) -> float | None:
    """Return a published value; None where there is none, or where the paper prints no number."""
    value = row.published.get(metric)
    return value if value is not None and math.isfinite(value) else None


def is_published_oom(row: Row, metric: str) -> bool:
    """Whether the paper prints out of memory in the place of a value, which claims hold as infinity."""
    return math.isinf(row.published.get(metric, 0.0))


def error_of(row: Row, metric: str) -> float | None:
    """Return predicted over published minus one; None where one of them is no number."""
    return row.error(metric) if published_value(row, metric) is not None else None


def mean_absolute_error(comparison: Comparison, metric: str) -> tuple[float, int] | None:
    """Return the mean of the absolute errors of a metric, and of how many; None without any."""
    errors = [abs(error) for row in comparison.rows if (error := error_of(row, metric)) is not None]
    return (sum(errors) / len(errors), len(errors)) if errors else None


class Cases(NamedTuple):
    """Set-ups told apart by what differs."""

    common: str
    """What all of them share."""
    own: dict[str, list[str]]
    """What is left of each, by its name."""


def tell_apart(names: Sequence[str]) -> Cases:
    """Split the names of set-ups into what they share and what tells them apart.

    Examples
    --------
    >>> tell_apart(["175B on 256 GPUs, batch 768", "175B on 1,024 GPUs, batch 768"])
    Cases(common='175B, batch 768', own={'175B on 256 GPUs, batch 768': ['256 GPUs'], '175B on 1,024 GPUs, batch 768': ['1,024 GPUs']})
    """
    parts = {name: re.split(r", | on ", name) for name in names}
    if len(parts) < 2:
        return Cases(", ".join(*parts.values()) if parts else "", {name: [] for name in parts})
    shared = [part for part in next(iter(parts.values())) if all(part in others for others in parts.values())]
    own = {name: [part for part in split if part not in shared] for name, split in parts.items()}
    return Cases(", ".join(shared), own) if all(own.values()) else Cases("", parts)


def signed_percent(ratio: float) -> str:
    """Write a relative difference.

    Examples
    --------
    >>> signed_percent(-0.0413)
    '-4.1 %'
    """
    return f"{100 * ratio:+.1f} %"


def degrees(sizes: Mapping[str, int]) -> str:
    """Write the axes of a mesh that are larger than 1, such as ``tp 8, pp 8, dp 4``."""
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
