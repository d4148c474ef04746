"""The slowest of several accelerators: against order statistics of the normal distribution, and in the costs of a run."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from simtrain.cost.model import CostModel
from simtrain.cost.slowest import expected_largest, rate_of_slowest
from simtrain.hardware import Cluster
from simtrain.hardware.software import Rates
from tests.tiny import MODEL, SOFTWARE


def exact(count: int) -> float:
    """Integrate ``x`` over the density of the largest, ``n * phi(x) * Phi(x) ** (n - 1)``."""
    x = np.linspace(-8.0, 8.0, 4001)
    normal = NormalDist()
    below = np.array([normal.cdf(v) for v in x])
    density = count * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * below ** (count - 1)
    return float(np.trapezoid(x * density, x))


def test_two_draws_have_a_closed_form() -> None:
    assert exact(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-6)
    assert expected_largest(2) == pytest.approx(1 / math.sqrt(math.pi), abs=0.03)


@pytest.mark.parametrize("count", [3, 8, 64, 512, 4096, 12288])
def test_the_largest_of_many_draws(count: int) -> None:
    assert expected_largest(count) == pytest.approx(exact(count), abs=0.03)


def test_one_accelerator_waits_for_nobody() -> None:
    assert rate_of_slowest(1, 0.05) == 1.0
    assert rate_of_slowest(4096, 0.0) == 1.0


def model_of(nodes: int, spread: float) -> CostModel:
    cluster = Cluster.load("dgx_h100_eos").model_copy(update={"num_nodes": nodes})
    software = SOFTWARE.model_copy(update={"attention": "flash2", "rates": {"hopper": Rates(gemm=0.9, spread=spread)}})
    return CostModel(cluster, software, "bf16", MODEL)


def test_products_and_attention_wait_for_the_slowest_and_bytes_do_not() -> None:
    for nodes in (1, 64):
        even, uneven = model_of(nodes, 0.0), model_of(nodes, 0.02)
        rate, launch = 1 - 0.02 * expected_largest(8 * nodes), even.launch
        assert (even.matmul(8192, 8192, 8192) - launch) / (uneven.matmul(8192, 8192, 8192) - launch) == pytest.approx(rate)
        attention = [c.attention(8192, 8192, 8, 128, 1, 8, True, None, "", 0.0).forward - launch for c in (even, uneven)]
        assert attention[0] / attention[1] == pytest.approx(rate)
        assert even.norm(8192, 8192) == uneven.norm(8192, 8192)
        assert even.collective("all_reduce", 1e9, (0, 1)) == uneven.collective("all_reduce", 1e9, (0, 1))
