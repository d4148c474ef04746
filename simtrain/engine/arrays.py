"""Names of the array types that compiled engine code takes and returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Numbers = NDArray[np.int32]
"""Row numbers: flows, links, positions."""
Flags = NDArray[np.uint8]
Keys = NDArray[Any]
Colours = NDArray[np.uint64]
