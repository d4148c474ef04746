"""Streams are keyed by what they are for: reproducible, independent of order, process and hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simtrain.rng import stream


def test_same_seed_and_key_give_the_same_numbers() -> None:
    assert np.array_equal(stream(1, "length", 7).random(10), stream(1, "length", 7).random(10))


def test_other_draws_do_not_disturb_a_stream() -> None:
    alone = stream(1, "length", 7).random(5)
    stream(1, "failure", 7).random(1000)
    assert np.array_equal(stream(1, "length", 7).random(5), alone)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, "length", 7), (2, "length", 7)),
        ((1, "length", 7), (1, "length", 8)),
        ((1, "length", 7), (1, "failure", 7)),
        ((1, "length", 7), (1, "length", "7")),
        ((1, "length", 1, 23), (1, "length", 12, 3)),
        ((1, "ab", "c"), (1, "a", "bc")),
        ((1,), (1, "")),
        ((1, 2), (12,)),
        ((-1,), (1,)),
    ],
)
def test_different_keys_give_different_streams(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert not np.array_equal(stream(*a).random(4), stream(*b).random(4))


def test_the_order_of_the_key_matters() -> None:
    assert stream(1, "a", "b").random() != stream(1, "b", "a").random()


def test_the_generator_is_philox_keyed_by_a_digest() -> None:
    """Philox with a 128-bit key (Salmon et al., SC'11); the key is BLAKE2b of the typed parts."""
    digest = hashlib.blake2b(b"1\x1fstr:length\x1fint:7", digest_size=16).digest()
    expected = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    assert np.array_equal(stream(1, "length", 7).random(3), expected.random(3))


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_draws_the_same(hash_seed: str) -> None:
    code = "from simtrain.rng import stream; print(repr(float(stream(3, 'prompt', 5).random())))"
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    assert float(out) == stream(3, "prompt", 5).random()


def test_first_draws_of_neighbouring_streams_are_uniform_and_uncorrelated() -> None:
    """Mean 1/2 and variance 1/12 within 4 standard errors; correlation of neighbours within 4 / sqrt(n)."""
    n = 4000
    draws = np.array([stream(0, "prompt", i).random() for i in range(n)])
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / n)
    assert abs(draws.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)  # variance of (u - 1/2)^2 is 1/180
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(n)
