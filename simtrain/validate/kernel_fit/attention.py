"""The curve of one generation of attention kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simtrain.hardware.accelerator import Accelerator, AttentionCurve
from simtrain.validate.intervals import Array, linearised
from simtrain.validate.kernel_fit.box import ENOUGH, rounded, scaled, with_attention
from simtrain.validate.kernel_fit.errors import huber_loss, log_ratios
from simtrain.validate.kernel_fit.predict import predict_attention
from simtrain.validate.kernel_fit.simplex import minimise
from simtrain.validate.tables import AttentionRow

PADS_VALUES = frozenset({"flash1", "flash2"})
"""Attention kernels with one head dimension for queries, keys and values; frameworks pad values to it."""

BACKWARD_SHARE = 0.77
"""Backward over forward rate of fused attention where only forward is measured: 0.40-0.45 of peak over 0.5-0.6 on Hopper. Assumed."""

LAYOUT_TRAFFIC = frozenset({"trtllm"})
"""Attention kernels whose table includes the pass that splits Q, K, V and fills the cache."""

ATTENTION_BOUNDS = {
    "forward": (0.05, 1.0), "ramp": (0.0, 2000.0), "backward": (0.05, 1.0), "tail": (0.0, 3.0), "backward_tail": (0.0, 3.0),
    "small_head_factor": (0.4, 1.2), "table_traffic": (0.0, 20.0),
}  # fmt: skip


def fit_attention(rows: Sequence[AttentionRow], accelerator: Accelerator, prior: AttentionCurve | None = None) -> AttentionCurve:
    """Fit the curve of one kernel generation to the rows that are not held out.

    Parameters
    ----------
    rows
        Calls of one generation. A parameter that they do not tell (backward where only forward is measured, the head
        factor where heads are alike) keeps the value, or the ratio to forward, of the prior.
    accelerator
        Gives peak, SMs and bandwidth.
    prior
        Curve of a like kernel.

    Returns
    -------
    AttentionCurve
    """
    used = [row for row in rows if not row.is_held_out]
    generation = rows[0].generation
    prior = prior or AttentionCurve(forward=0.5, backward=0.5 * BACKWARD_SHARE, pads_values=generation in PADS_VALUES)
    names = _told_by(used)

    def curve(x: Array) -> AttentionCurve:
        return _attention_curve(scaled(names, x, ATTENTION_BOUNDS), prior)

    def objective(x: Array) -> float:
        chip = with_attention(accelerator, generation, curve(x))
        return huber_loss(used, lambda row: predict_attention(row, chip))

    starts = [0.5, 0.15, 0.4, 0.15, 0.1, 0.6, 0.15], [0.6, 0.05, 0.5, 0.3, 0.2, 0.5, 0.2]
    position = {name: i for i, name in enumerate(ATTENTION_BOUNDS)}
    return curve(minimise(objective, [[start[position[name]] for name in names] for start in starts], iterations=500))


def _attention_curve(values: Mapping[str, float], prior: AttentionCurve) -> AttentionCurve:
    """Return a curve with fitted values, and what hangs on them where nothing tells it apart."""
    found = dict(values)
    if "backward" not in found:
        found["backward"] = min(1.0, found["forward"] * prior.backward / prior.forward)
    if "tail" in found and "backward_tail" not in found:
        found["backward_tail"] = found["tail"]
    return prior.model_copy(update=rounded(found))


def attention_intervals(rows: Sequence[AttentionRow], accelerator: Accelerator) -> dict[str, tuple[float, float]]:
    """Return the 90 % intervals of the accelerator's curve as fitted to these calls of one generation."""
    used = [row for row in rows if not row.is_held_out]
    generation = rows[0].generation
    fitted = accelerator.kernels.attention[generation]

    def residuals(values: Mapping[str, float]) -> Array:
        chip = with_attention(accelerator, generation, _attention_curve(values, fitted))
        return log_ratios(used, lambda row: predict_attention(row, chip))

    return linearised({name: getattr(fitted, name) for name in _told_by(used)}, ATTENTION_BOUNDS, residuals)


def _told_by(rows: Sequence[AttentionRow]) -> list[str]:
    """Return the parameters that these rows tell apart."""
    if len(rows) < ENOUGH // 3:
        return ["forward", "ramp"]
    directions = {row.direction for row in rows}
    names = ["forward", "ramp"]
    # With as many blocks in every call, its end costs the same share in all of them.
    names += ["tail"] if len({row.batch * row.heads * row.seq_len for row in rows}) > 3 else []
    names += ["backward"] if len(directions) > 1 else []
    names += ["backward_tail"] if "backward" in directions else []
    names += ["small_head_factor"] if len({row.head_dim for row in rows if row.head_dim <= 128}) > 1 else []
    names += ["table_traffic"] if rows[0].generation in LAYOUT_TRAFFIC else []
    return names
