"""Laws of units that hold for any number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtrain.units import UNITS, parse, show

UNIT_PAIRS = st.sampled_from([(dimension, unit) for dimension, table in UNITS.items() for unit in table])
NUMBERS = st.floats(min_value=1e-12, max_value=1e15)


@given(UNIT_PAIRS, NUMBERS)
def test_parse_is_number_times_factor(pair: tuple[str, str], number: float) -> None:
    dimension, unit = pair
    assert parse(f"{number!r} {unit}", dimension) == number * UNITS[dimension][unit]


@given(UNIT_PAIRS, NUMBERS, st.text(" \t", max_size=3))
def test_white_space_does_not_matter(pair: tuple[str, str], number: float, space: str) -> None:
    dimension, unit = pair
    assert parse(f"{space}{number!r}{space}{unit}{space}", dimension) == parse(f"{number!r} {unit}", dimension)


@given(st.sampled_from(sorted(UNITS)), st.floats(min_value=1e-9, max_value=1e21))
def test_what_show_writes_parse_reads(dimension: str, value: float) -> None:
    """Four digits are shown."""
    assert parse(show(value, dimension), dimension) == pytest.approx(value, rel=5.1e-4)


@given(st.floats(min_value=1, max_value=1e6))
def test_a_rate_is_one_over_a_time(number: float) -> None:
    for unit in UNITS["time"]:
        assert parse(f"{number!r} /{unit}", "rate") * parse(f"{number!r} {unit}", "time") == pytest.approx(number**2, rel=1e-12)


@given(UNIT_PAIRS, st.text(max_size=20))
def test_any_text_is_read_or_refused_with_value_error(pair: tuple[str, str], text: str) -> None:
    dimension, _ = pair
    try:
        value = parse(text, dimension)
    except ValueError as error:
        assert str(error)
    else:
        assert not math.isnan(value)


@given(NUMBERS)
def test_bits_are_an_eighth_of_bytes(number: float) -> None:
    for prefix in ("", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"):
        assert 8 * parse(f"{number!r} {prefix}bit/s", "bandwidth") == pytest.approx(parse(f"{number!r} {prefix}B/s", "bandwidth"), rel=1e-15)
