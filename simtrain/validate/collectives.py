"""Predicted against measured collectives, and the fit of the few link parameters on them.

The fit is linear. For a given algorithm the model of :mod:`simtrain.cost.collective` is, per member::

    seconds = launch + steps * latency + V * (1 / R) + sqrt(V) * (sqrt(half_size) / R) + own * (own_copy / R)

with ``steps``, ``V`` and ``own`` from the algorithm's :class:`~simtrain.cost.collective.Load`; an all-to-all has its own share of copying and a
handshake. The seven unknown terms (nine with in-switch reduction) follow from non-negative least absolute relative errors, one set per fabric, never per
row. A program that measures adds its own time per call (host, NCCL version), which is no property of the fabric: each source but the one with the
most rows has an overhead of its own in the fit (if it has small messages to tell it from), which is reported and not used in predictions.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simtrain.cost.collective import ALGORITHMS, Load, bytes_sent, collective, exchange_overhead, links_share
from simtrain.cost.span import Span
from simtrain.errors import InputError, UnsupportedError
from simtrain.hardware.cluster import Cluster, Topology
from simtrain.hardware.node import Node

Array = NDArray[np.float64]

KIND_OF_OP = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "all-gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reduce-scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "all-reduce, `NCCL_NVLS_ENABLE=0`": "all_reduce",
    "all-reduce, `NCCL_NVLS_ENABLE=1`": "all_reduce",
    "all_reduce latency small": "all_reduce",
    "all_reduce (2 ranks, 4 NICs, Tree)": "all_reduce",
}
"""Names of operations in the table."""

NODE_OF_GPU = {
    "A100": "dgx_a100", "H100": "dgx_h100", "H200": "dgx_h200", "B200": "dgx_b200", "GB200": "gb200_nvl72",
    "B300": "dgx_b300", "GB300": "gb300_nvl72", "H800": "h800_8nic", "MI300X": "mi300x_8", "V100-SXM2": "dgx_1v", "H20": "h20_8nic",
}  # fmt: skip
"""Shipped node by the start of the table's ``gpu``; the longest start counts."""

FABRICS = {"NVLink mesh V100": ("V100",), "NVSwitch A100": ("A100",), "NVSwitch H100": ("H100", "H200"), "NVSwitch B200": ("B200", "B300", "GB200", "GB300")}
"""Accelerators that sit on one generation of the fabric and are fitted together."""

NOMINAL = {"NVLink mesh V100": 150e9, "NVSwitch A100": 300e9, "NVSwitch H100": 450e9, "NVSwitch B200": 900e9}
"""Datasheet bandwidth per accelerator and direction. [B/s]"""

SMALL = 2**20
"""Messages up to here are bound by latency. [B]"""

FEW = 24
"""Sources count equally in a fit; those with fewer rows than this count by row."""

HELD_OUT = 5
"""One row in this many is kept out of fits."""


class Measurement(NamedTuple):
    """One measured collective."""

    id: str
    source: str
    gpu: str
    kind: str
    span: Span
    nbytes: float
    seconds: float
    algorithm: str
    """``ring``, ``tree`` or ``nvls`` where the row says so, else ``auto``."""
    nics: int | None
    """Cards per node, where the row says so."""

    @property
    def is_held_out(self) -> bool:
        """Whether the row is kept out of fits, by a hash of its id."""
        return int(hashlib.sha256(self.id.encode()).hexdigest(), 16) % HELD_OUT == 0


PARAMETERS = (
    "efficiency", "latency", "launch", "half_size", "own_copy", "exchange_copy", "exchange_latency", "switch_reduction_efficiency", "switch_reduction_latency",
)  # fmt: skip
"""What a fit finds; the last two where the switch reduces."""

PHYSICAL = 8
"""Unknown terms of the linear model; what follows them are times that a source adds."""


@dataclass(frozen=True)
class ScaleUpFit:
    """Parameters of one scale-up fabric, with the names of :class:`simtrain.hardware.node.ScaleUp`."""

    efficiency: float
    latency: float
    launch: float
    half_size: float
    own_copy: float
    exchange_copy: float
    exchange_latency: float
    switch_reduction_efficiency: float | None = None
    switch_reduction_latency: float | None = None
    overheads: dict[str, float] = field(default_factory=dict[str, float])
    """Extra time per call of each source, over the source with the most rows. [s]"""

    def fields(self) -> dict[str, float]:
        """Return the values to put into ``ScaleUp``."""
        return {name: getattr(self, name) for name in PARAMETERS if getattr(self, name) is not None}


def measurements(table: pd.DataFrame) -> list[Measurement]:
    """Return the rows of a table that state all that a prediction needs, in its order."""
    read = (read_measurement(row) for row in _records(table))
    return [row for row in read if isinstance(row, Measurement)]


def validate_collectives(table: pd.DataFrame, nodes: Mapping[str, Node] | None = None) -> pd.DataFrame:
    """Compare predictions with every collective row of a table.

    Parameters
    ----------
    table
        Columns of ``microbench.csv``; rows of other kinds are ignored.
    nodes
        Node by the start of ``gpu``; the shipped ones if not given.

    Returns
    -------
    DataFrame
        One row per collective: id, source, gpu, kind, ranks, nodes, nbytes [B], measured [s], predicted [s],
        error (predicted / measured - 1), is_held_out, status (``ok``, or ``unsupported: reason``).
    """
    known = _shipped() if nodes is None else dict(nodes)
    rows = [_compare(row, known) for row in _records(table)]
    columns = ["id", "source", "gpu", "kind", "ranks", "nodes", "nbytes", "measured", "predicted", "error", "is_held_out", "status"]
    return pd.DataFrame(rows, columns=columns)


def summarise(frame: pd.DataFrame, by: Sequence[str] = ("source", "gpu")) -> pd.DataFrame:
    """Return count, median, mean and 90th percentile of the absolute error of the predicted rows.

    Parameters
    ----------
    frame
        From :func:`validate_collectives`.
    by
        Columns to group by.
    """
    error = frame.loc[frame["status"] == "ok"].assign(error=lambda f: f["error"].abs())
    grouped = error.groupby(list(by))["error"]
    return grouped.agg(rows="size", median="median", mean="mean", p90=lambda e: e.quantile(0.9)).reset_index()


def fit_scale_up(rows: Iterable[Measurement], bandwidth: float, *, has_switch_reduction: bool = False) -> ScaleUpFit:
    """Fit one set of parameters of a scale-up switch to rows that stay in one node.

    Parameters
    ----------
    rows
        Measurements on this fabric; rows that cross nodes are left out.
    bandwidth
        Nominal, per accelerator and direction. [B/s]
    has_switch_reduction
        Whether an all-reduce may have been done by the switch. Which ones were follows from the fit itself, in turns.

    Raises
    ------
    InputError
        If fewer than 8 rows are left.
    """
    inside = [row for row in rows if row.span.nodes == 1]
    if len(inside) < 8:
        raise InputError(f"fit_scale_up: {len(inside)} rows inside one node; at least 8 are needed")
    ratios = np.arange(0.60, 1.01, 0.01) if has_switch_reduction else np.ones(1)
    fits = [_fit_with_ratio(inside, float(ratio), has_switch_reduction) for ratio in ratios]
    _, solution, ratio = min(fits, key=lambda fit: fit[0])
    launch, latency, per_byte, per_root_byte, switch_latency, own, exchange, handshake = (float(value) for value in solution[:PHYSICAL])
    overheads = {source: float(value) for source, value in zip(_others(inside), solution[PHYSICAL:], strict=True)}
    efficiency = 1 / per_byte / bandwidth
    switch = (efficiency * ratio, switch_latency) if has_switch_reduction else (None, None)
    copies = own / per_byte, exchange / per_byte
    return ScaleUpFit(efficiency, latency, launch, (per_root_byte / per_byte) ** 2, *copies, handshake, *switch, overheads)


def predicted_by(fit: ScaleUpFit, values: Mapping[str, float], rows: Sequence[Measurement], bandwidth: float) -> Array:
    """Return what the linear model of a fit predicts with these values of its parameters, times that sources add included. [s]"""
    per_byte = 1 / (values["efficiency"] * bandwidth)
    terms = [
        values["launch"], values["latency"], per_byte, values["half_size"] ** 0.5 * per_byte, values.get("switch_reduction_latency", 0.0),
        values["own_copy"] * per_byte, values["exchange_copy"] * per_byte, values["exchange_latency"],
    ]  # fmt: skip
    ratio = values.get("switch_reduction_efficiency", values["efficiency"]) / values["efficiency"]
    solution = np.array([*terms, *fit.overheads.values()])
    ring, switch = (_columns(rows, ratio, is_switch=is_switch) @ solution for is_switch in (False, True))
    may_switch = np.array(["switch_reduction_efficiency" in values and row.kind == "all_reduce" and row.algorithm == "auto" for row in rows])
    return np.where(may_switch, np.minimum(ring, switch), ring)


def relative_weights(rows: Sequence[Measurement]) -> Array:
    """Return the weight of each row, 1 on the mean: sources with enough rows count alike."""
    counts = Counter(row.source for row in rows)
    weights = np.array([1 / max(counts[row.source], FEW) for row in rows])
    return weights / weights.mean()


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows that are collectives, as mappings."""
    columns = [str(name) for name in table.columns]
    rows = (dict(zip(columns, values, strict=True)) for values in table.itertuples(index=False, name=None))
    return [row for row in rows if row["kind"] in ("collective", "all_to_all")]


def read_measurement(row: Mapping[str, Any]) -> Measurement | str:
    """Return a measurement, or why the row cannot be one. Cells may be text; an empty one is a number that is not stated."""
    row = {**row, **{name: _number(row[name]) for name in ("ranks", "nodes", "size_bytes", "latency_us", "busbw_gbs")}}
    op, notes, topology = str(row["op"]), str(row["notes"]), str(row["topology"])
    if op not in KIND_OF_OP:
        return f"unsupported: operation {op!r} is not a collective of nccl-tests"
    if any(np.isnan(row[name]) for name in ("ranks", "nodes", "size_bytes")):
        return "unsupported: ranks, nodes or size are not stated"
    if re.search(r"misconfigured|slow case|poor config|hardware not stated", notes, re.IGNORECASE) or notes.endswith("; same"):
        return "unsupported: the source calls it slow or misconfigured, or does not state the hardware"
    kind, ranks, nodes = KIND_OF_OP[op], int(row["ranks"]), int(row["nodes"])
    nbytes, measured = float(row["size_bytes"]), float(row["latency_us"]) * 1e-6
    if np.isnan(measured):
        measured = bytes_sent(kind, nbytes, ranks) / (float(row["busbw_gbs"]) * 1e9)
    is_ring = "Ring" in topology and "Ring/Tree" not in topology
    algorithm = "ring" if is_ring else "nvls" if "NVLSTree" in topology else "tree" if "Tree" in op else "auto"
    cards = re.search(r"(\d+) ?x ?(?:HDR|IB200)", f"{topology} {row['gpu']} {notes}")
    span = Span(ranks, -(-ranks // nodes))
    source, gpu = str(row["source_key"]), str(row["gpu"])
    return Measurement(str(row["id"]), source, gpu, kind, span, nbytes, measured, algorithm, int(cards[1]) if cards else None)


def _number(cell: Any) -> float:
    return float(cell) if cell not in ("", None) else float("nan")


def _compare(row: Mapping[str, Any], nodes: Mapping[str, Node]) -> tuple[Any, ...]:
    read = read_measurement(row)
    head = (row["id"], row["source_key"], row["gpu"])
    if isinstance(read, str):
        return (*head, row["op"], row["ranks"], row["nodes"], row["size_bytes"], *[float("nan")] * 3, False, read)
    body = (*head, read.kind, read.span.size, read.span.nodes, read.nbytes, read.seconds)
    try:
        predicted = predict(read, node_of(read.gpu, nodes))
    except UnsupportedError as error:
        return (*body, float("nan"), float("nan"), read.is_held_out, f"unsupported: {error}")
    return (*body, predicted, predicted / read.seconds - 1, read.is_held_out, "ok")


def node_of(gpu: str, nodes: Mapping[str, Node] | None = None) -> Node:
    """Return the shipped node behind the table's name of a device.

    Raises
    ------
    UnsupportedError
        If none is shipped.
    """
    known = _shipped() if nodes is None else nodes
    start = max((s for s in known if gpu.startswith(s)), key=len, default=None)
    if start is None:
        raise UnsupportedError(f"no shipped node for {gpu!r}")
    return known[start]


def predict(row: Measurement, node: Node) -> float:
    """Return the predicted duration of one measured collective on a cluster of this node. [s]

    Raises
    ------
    UnsupportedError
        If the node has fewer accelerators than the collective had ranks on one.
    """
    if row.span.per_node > node.num_accelerators:
        raise UnsupportedError(f"{row.span.per_node} ranks per node on {node.name}")
    if row.nics is not None and row.nics != node.nic.count:
        node = node.model_copy(update={"nic": node.nic.model_copy(update={"count": row.nics})})
    cluster = Cluster(name="measured", node=node, num_nodes=row.span.nodes, topology=Topology(kind="flat"))
    algorithm = row.algorithm if row.algorithm in ALGORITHMS[row.kind] else "auto"
    return collective(row.kind, row.nbytes, row.span, cluster, algorithm=algorithm).seconds


@cache
def _shipped() -> dict[str, Node]:
    names = set(Node.names())
    return {start: Node.load(name) for start, name in NODE_OF_GPU.items() if name in names}


def _others(rows: Sequence[Measurement]) -> list[str]:
    """Return the sources that get an overhead of their own: those with small messages to tell it from, but for the one with the most rows."""
    main = Counter(row.source for row in rows).most_common(1)[0][0]
    return sorted({row.source for row in rows if row.nbytes <= SMALL} - {main})


def _fit_with_ratio(rows: Sequence[Measurement], ratio: float, has_switch: bool) -> tuple[float, Array, float]:
    """Fit with the switch's rate fixed to ``ratio`` times that of rings; algorithms and parameters take turns."""
    seconds = np.array([row.seconds for row in rows])
    weights = relative_weights(rows)
    ring, switch = _columns(rows, ratio, is_switch=False), _columns(rows, ratio, is_switch=True)
    may_switch = np.array([has_switch and row.kind == "all_reduce" and row.algorithm == "auto" for row in rows])
    is_switch = may_switch & np.array([row.nbytes > SMALL and row.span.size > 5 for row in rows])
    solution = np.zeros(ring.shape[1])
    for _ in range(8 if has_switch else 1):
        solution = _least_relative_error(np.where(is_switch[:, None], switch, ring), seconds, weights)
        is_switch = may_switch & (switch @ solution < ring @ solution)
    predicted = np.where(is_switch, switch @ solution, ring @ solution)
    return float(np.average(np.abs(np.log(predicted / seconds)), weights=weights)), solution, ratio


def _columns(rows: Sequence[Measurement], ratio: float, *, is_switch: bool) -> Array:
    """Return the columns of the physical terms, then one per source with an overhead of its own.

    Launch, steps, V, sqrt(V), in-switch calls, own block of a ring, own block of an all-to-all, its handshake.
    """
    others = _others(rows)
    table: list[list[float]] = []
    for row in rows:
        methods = ALGORITHMS[row.kind]
        by_switch = is_switch and "nvls" in methods
        load: Load = methods["nvls" if by_switch else next(iter(methods))](row.nbytes, row.span)
        reach = ratio if by_switch else _links_share(row)
        steps = 0 if by_switch else load.scale_up_steps
        is_exchange = row.kind == "all_to_all"
        copied = load.own_bytes / reach
        own = (0.0, copied, exchange_overhead(load.own_bytes)) if is_exchange else (copied, 0.0, 0.0)
        physical = [1.0, steps, load.scale_up_bytes / reach, load.scale_up_bytes**0.5 / reach, float(by_switch), *own]
        table.append([*physical, *(float(row.source == source) for source in others)])
    return np.array(table)


def _links_share(row: Measurement) -> float:
    """Return the share of its links that a member of the group uses: less than 1 on a mesh of cables."""
    known = _shipped()
    return links_share(node_of(row.gpu, known), row.span.size, row.kind) if row.gpu.startswith(tuple(known)) else 1.0


def _least_relative_error(columns: Array, seconds: Array, weights: Array) -> Array:
    """Minimise the weighted mean of |prediction / measurement - 1| over non-negative coefficients.

    Iteratively reweighted least squares; a coefficient that comes out negative is dropped for good, the most negative first.
    """
    relative = columns / seconds[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
    active = [i for i in range(columns.shape[1]) if np.abs(relative[:, i]).max() > 0]
    while True:
        solution = _reweighted(relative[:, active] / scale[active], weights)
        if (solution >= 0).all():
            break
        del active[int(np.argmin(solution))]
    full = np.zeros(columns.shape[1])
    full[active] = solution / scale[active]
    return full


def _reweighted(matrix: Array, weights: Array) -> Array:
    current, solution = weights, np.zeros(matrix.shape[1])
    for _ in range(40):
        root = np.sqrt(current)
        solution = np.asarray(np.linalg.lstsq(matrix * root[:, None], root, rcond=None)[0], dtype=np.float64)
        current = weights / np.maximum(np.abs(matrix @ solution - 1), 0.02)
    return solution
