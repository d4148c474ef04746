"""Quantities with units: conversions, messages, and what a field of a file accepts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from simtrain.errors import InputError
from simtrain.spec import Spec, validate
from simtrain.units import UNITS, Bytes, BytesPerSecond, PerSecond, Quantity, Seconds, Usd, parse, show


class Link(Spec):
    """A record with one quantity of each strictness."""

    bandwidth: BytesPerSecond = 1.0
    latency: Seconds = 0.0
    buffer: Bytes = 0.0
    rate: PerSecond = 0.0
    cost: Usd = 0.0


@pytest.mark.parametrize(
    ("text", "dimension", "si"),
    [
        ("5 us", "time", 5e-6),
        ("5us", "time", 5e-6),
        ("5 \N{MICRO SIGN}s", "time", 5e-6),
        ("5 \N{GREEK SMALL LETTER MU}s", "time", 5e-6),
        ("30 ns", "time", 30e-9),
        ("1.5 ms", "time", 1.5e-3),
        ("2 min", "time", 120),
        ("3.09 h", "time", 3.09 * 3600),
        ("54 days", "time", 54 * 86400),
        ("1 year", "time", 365.25 * 86400),
        ("80 GB", "data", 80e9),
        ("80 GiB", "data", 80 * 1024**3),
        ("1 KiB", "data", 1024),
        ("8 bit", "data", 1),
        ("1 Gbit", "data", 125e6),
        ("1 Gb", "data", 125e6),
        ("1 Tibit", "data", 2**37),
        ("400 Gbit/s", "bandwidth", 50e9),
        ("400 Gb/s", "bandwidth", 50e9),
        ("400 Gbps", "bandwidth", 50e9),
        ("3.35 TB/s", "bandwidth", 3.35e12),
        ("1 GiB/s", "bandwidth", 2**30),
        ("312 TFLOP/s", "flops_rate", 312e12),
        ("312 TFLOPS", "flops_rate", 312e12),
        ("1979 TOP/s", "flops_rate", 1979e12),
        ("1.2 PFLOP", "flops", 1.2e15),
        ("1.41 GHz", "frequency", 1.41e9),
        ("36 /h", "rate", 0.01),
        ("1 /day", "rate", 1 / 86400),
        ("700 W", "power", 700),
        ("10.2 kW", "power", 10200),
        ("1e6 USD", "money", 1e6),
        ("3.6 USD/h", "price", 1e-3),
        ("1_000 GB", "data", 1e12),
        ("1e3 GB", "data", 1e12),
        ("1e3GB", "data", 1e12),
        (".5 s", "time", 0.5),
        ("5. s", "time", 5),
        ("  5 s \n", "time", 5),
        ("+5 s", "time", 5),
        ("-5 s", "time", -5),  # parse reads it; a field refuses it
    ],
)
def test_conversions(text: str, dimension: str, si: float) -> None:
    assert parse(text, dimension) == pytest.approx(si, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("400", "bandwidth", "'400' has no unit; write e.g. '400 Gbit/s'"),
        ("1e9", "data", "'1e9' has no unit; write e.g. '1e9 GB'"),
        ("5 us", "bandwidth", "is a time, but a bandwidth is needed here; write e.g. '400 Gbit/s'"),
        ("80 GB", "bandwidth", "is a data, but a bandwidth is needed here"),
        ("80 GB/s", "data", "is a bandwidth, but a data is needed here"),
        ("312 TFLOP", "flops_rate", "is a flops, but a flops_rate is needed here"),
        ("80 GB", "time", "is a data, but a time is needed here"),
        ("80 KB", "data", "has the unknown unit 'KB'; write e.g. '80 GB'"),
        ("400 gbps", "bandwidth", "unknown unit 'gbps'"),
        ("1,000 GB", "data", "unknown unit ',000 GB'"),
        ("1 2 GB", "data", "unknown unit '2 GB'"),
        ("fast", "bandwidth", "'fast' is not a quantity; write a number and a unit, e.g. '400 Gbit/s'"),
        ("", "time", "'' is not a quantity"),
        ("GB", "data", "'GB' is not a quantity"),
        ("nan s", "time", "'nan s' is not a quantity"),
        ("inf s", "time", "'inf s' is not a quantity"),
        ("--5 s", "time", "'--5 s' is not a quantity"),
    ],
)
def test_what_cannot_be_read(text: str, dimension: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text, dimension)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bandwidth", 400, "400 has no unit; write e.g. '400 Gbit/s'"),
        ("latency", 5e-6, "5e-06 has no unit; write e.g. '5e-06 us'"),
        ("bandwidth", "0 GB/s", "must be greater than zero"),
        ("bandwidth", 0, "must be greater than zero"),
        ("latency", "-5 us", "'-5 us' must be at least zero"),
        ("latency", True, "True is not a quantity; write e.g. '5 us'"),
        ("latency", None, "None is not a quantity"),
        ("latency", ["5 us"], "is not a quantity"),
        ("latency", math.nan, "nan is not finite"),
        ("latency", math.inf, "inf is not finite"),
        ("latency", "1e400 s", "'1e400 s' is not finite"),
        ("rate", "2 Hz", "is a frequency, but a rate is needed here"),
    ],
)
def test_a_file_field_says_what_is_wrong(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Link, {field: value}, "links/x.yaml")
    assert str(caught.value).startswith(f"links/x.yaml: {field}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [0, 0.0])
def test_a_file_may_write_zero_without_a_unit(value: float) -> None:
    assert validate(Link, {"latency": value}, "x.yaml").latency == 0


@pytest.mark.parametrize("value", [5, 5.0, np.float64(5), np.float32(5), np.int64(5)])
def test_python_may_give_plain_si_numbers(value: Any) -> None:
    link = Link(latency=value)
    assert link.latency == 5
    assert type(link.latency) is float


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, True, np.bool_(True), None, "5"])
def test_python_meets_the_same_limits(value: Any) -> None:
    with pytest.raises(ValidationError):
        Link(latency=value)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (5e10, "bandwidth", "50 GB/s"),
        (0.0123, "time", "12.3 ms"),
        (0.0, "time", "0 ns"),
        (3e-9, "time", "3 ns"),
        (7200, "time", "7200 s"),
        (10800, "time", "3 h"),
        (80e9, "data", "80 GB"),
        (512, "data", "512 B"),
        (312e12, "flops_rate", "312 TFLOP/s"),
        (3e21, "flops", "3000 EFLOP"),
        (700, "power", "700 W"),
        (1.41e9, "frequency", "1.41 GHz"),
        (0.25, "rate", "0.25 /s"),
        (1e6, "money", "1e+06 USD"),
        (1e-3, "price", "3.6 USD/h"),
    ],
)
def test_show(value: float, dimension: str, text: str) -> None:
    assert show(value, dimension) == text


def test_every_dimension_shows_what_it_can_read() -> None:
    for dimension in UNITS:
        assert parse(show(2.0, dimension), dimension) == pytest.approx(2.0)


@pytest.mark.parametrize("dimension", UNITS)
def test_the_schema_asks_for_a_unit(dimension: str) -> None:
    schema = Quantity(dimension).__get_pydantic_json_schema__({}, None)  # type: ignore[arg-type]
    assert {"const": 0} in schema["anyOf"]
    assert {"type": "string"} in schema["anyOf"]
    assert all(parse(example, dimension) > 0 for example in schema["examples"])
