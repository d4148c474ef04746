"""The achieved share of the datasheet bandwidth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simtrain.hardware.accelerator import MemoryCurve
from simtrain.validate.kernel_fit.box import significant
from simtrain.validate.tables import MemoryRow


def fit_memory(rows: Sequence[MemoryRow], bandwidths: Mapping[str, float]) -> MemoryCurve:
    """Fit the achieved share of the datasheet bandwidth: the geometric mean over streams that are not held out.

    Parameters
    ----------
    rows
        Streams.
    bandwidths
        Datasheet bandwidth by the table's name of the device. [B/s]
    """
    shares = [math.log(1 / (row.seconds * bandwidths[row.gpu])) for row in rows if not row.is_held_out]
    return MemoryCurve(efficiency=significant(math.exp(sum(shares) / len(shares))))
