"""Quantities with units: strings such as ``400 Gbit/s`` in YAML, SI floats inside.

Bits become bytes (``8 bit = 1 B``), decimal prefixes are powers of 1000 and binary ones (``GiB``) powers
of 1024. A bare number is refused where a file is read and accepted, as SI, where Python code builds an
object.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import core_schema

_SI = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_IEC = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}

_MICRO = ("us", "\N{MICRO SIGN}s", "\N{GREEK SMALL LETTER MU}s")
_TIME = dict.fromkeys(_MICRO, 1e-6) | {"s": 1.0, "ms": 1e-3, "ns": 1e-9, "min": 60.0, "h": 3600.0, "day": 86400.0, "days": 86400.0, "year": 31557600.0}
_DATA = {f"{p}B": f for p, f in (_SI | _IEC).items()} | {f"{p}bit": f / 8 for p, f in (_SI | _IEC).items()} | {f"{p}b": f / 8 for p, f in _SI.items()}
_FLOP = {f"{p}FLOP": f for p, f in _SI.items()} | {f"{p}OP": f for p, f in _SI.items()}

UNITS: dict[str, dict[str, float]] = {
    "time": _TIME,
    "data": _DATA,
    "flops": _FLOP,
    "bandwidth": {f"{u}/s": f for u, f in _DATA.items()} | {f"{p}bps": f / 8 for p, f in _SI.items()},
    "flops_rate": {f"{u}/s": f for u, f in _FLOP.items()} | {f"{p}FLOPS": f for p, f in _SI.items()},
    "frequency": {f"{p}Hz": f for p, f in _SI.items()},
    "rate": {f"/{u}": 1 / f for u, f in _TIME.items()},
    "power": {f"{p}W": f for p, f in _SI.items()} | {"mW": 1e-3},
    "money": {"USD": 1.0},
    "price": {"USD/h": 1 / 3600.0, "USD/s": 1.0},
}
"""Allowed unit strings of each dimension and their SI factor."""

_EXAMPLE = {
    "time": "5 us",
    "data": "80 GB",
    "flops": "1.2 PFLOP",
    "bandwidth": "400 Gbit/s",
    "flops_rate": "312 TFLOP/s",
    "frequency": "1.41 GHz",
    "rate": "2e-6 /h",
    "power": "700 W",
    "money": "1e6 USD",
    "price": "2.5 USD/h",
}

_BASE = {"data": "B", "flops": "FLOP", "bandwidth": "B/s", "flops_rate": "FLOP/s", "frequency": "Hz", "power": "W"}

_PATTERN = re.compile(r"^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S.*?)?\s*$")


def parse(text: str, dimension: str) -> float:
    """Read a quantity with its unit.

    Parameters
    ----------
    text
        Number and unit, such as ``"400 Gbit/s"``.
    dimension
        A key of :data:`UNITS`.

    Returns
    -------
    float
        The value in SI units (s, B, FLOP, B/s, FLOP/s, Hz, 1/s, W, USD, USD/s).

    Raises
    ------
    ValueError
        If there is no number, no unit, or a unit of another dimension.

    Examples
    --------
    >>> parse("400 Gbit/s", "bandwidth")
    50000000000.0
    >>> parse("80 GiB", "data") == 80 * 2**30
    True
    """
    example = _EXAMPLE[dimension]
    match = _PATTERN.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity; write a number and a unit, e.g. '{example}'")
    number, unit = float(match[1].replace("_", "")), match[2]
    if unit is None:
        raise ValueError(f"{text!r} has no unit; write e.g. '{match[1]} {example.split()[-1]}'")
    table = UNITS[dimension]
    if unit not in table:
        other = [name for name, units in UNITS.items() if unit in units]
        what = f"is a {other[0]}, but a {dimension} is needed here" if other else f"has the unknown unit {unit!r}"
        raise ValueError(f"{text!r} {what}; write e.g. '{example}'")
    return number * table[unit]


def show(value: float, dimension: str) -> str:
    """Write an SI value with the unit that reads best; what is no dimension (a count, a fraction) stays a plain number.

    Examples
    --------
    >>> show(5e10, "bandwidth")
    '50 GB/s'
    >>> show(0.0123, "time")
    '12.3 ms'
    """
    if dimension == "time":
        scale = next((u for u in ("h", "s", "ms", "us") if abs(value) >= _TIME[u] * (3 if u == "h" else 1)), "ns")
        return f"{value / _TIME[scale]:.4g} {scale}"
    if dimension == "price":
        return f"{value * 3600:.4g} USD/h"
    if dimension in ("rate", "money"):
        return f"{value:.4g} {'/s' if dimension == 'rate' else 'USD'}"
    if dimension not in _BASE:
        return f"{value:.4g}"
    prefix = next((p for p in ("E", "P", "T", "G", "M", "k") if abs(value) >= _SI[p]), "")
    return f"{value / _SI[prefix]:.4g} {prefix}{_BASE[dimension]}"


@dataclass(frozen=True)
class Quantity:
    """Marks a float field as a physical quantity for validation, messages and the JSON Schema.

    Parameters
    ----------
    dimension
        A key of :data:`UNITS`.
    is_positive
        Whether zero is refused as well as negative values.
    """

    dimension: str
    is_positive: bool = False

    def convert(self, value: Any, info: ValidationInfo) -> float:
        """Turn what a file or a caller gave into an SI float, or raise ``ValueError``."""
        if isinstance(value, str):
            number = parse(value, self.dimension)
        elif not isinstance(value, bool) and isinstance(value, Real):
            number = float(value)
        else:
            raise ValueError(f"{value!r} is not a quantity; write e.g. '{_EXAMPLE[self.dimension]}'")
        if not math.isfinite(number):
            raise ValueError(f"{value!r} is not finite")
        is_bare = not isinstance(value, str) and bool((info.context or {}).get("from_file"))
        if is_bare and number != 0:
            raise ValueError(f"{value} has no unit; write e.g. '{value} {_EXAMPLE[self.dimension].split()[-1]}'")
        if number < 0 or (self.is_positive and number == 0):
            raise ValueError(f"{value!r} must be {'greater than' if self.is_positive else 'at least'} zero")
        return number

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self.convert)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe what a file may hold: text with a unit, or a bare zero."""
        return {"anyOf": [{"type": "string"}, {"const": 0}], "description": f"{self.dimension} with unit", "examples": [_EXAMPLE[self.dimension]]}


Seconds = Annotated[float, Quantity("time")]
Bytes = Annotated[float, Quantity("data")]
Flops = Annotated[float, Quantity("flops")]
BytesPerSecond = Annotated[float, Quantity("bandwidth", is_positive=True)]
FlopsPerSecond = Annotated[float, Quantity("flops_rate", is_positive=True)]
Hertz = Annotated[float, Quantity("frequency", is_positive=True)]
PerSecond = Annotated[float, Quantity("rate")]
Watts = Annotated[float, Quantity("power")]
Usd = Annotated[float, Quantity("money")]
UsdPerSecond = Annotated[float, Quantity("price")]
