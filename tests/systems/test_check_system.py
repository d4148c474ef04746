"""The physical laws on every shipped system, and that the laws catch systems that break them."""

import pytest

import simtrain
from simtrain.errors import UnsupportedError
from simtrain.graph.recorder import Recorder
from simtrain.hardware import Cluster
from simtrain.hardware.cluster import Degradation
from simtrain.systems import registry
from simtrain.systems.check import LawBrokenError, check_system
from simtrain.systems.dense.megatron_lm import MegatronLM


@pytest.mark.parametrize("name", registry.names())
def test_laws_hold(name: str) -> None:
    check_system(registry.find(name))


def test_other_flops_than_the_baseline_are_caught() -> None:
    class Lazy(MegatronLM):
        baseline = MegatronLM

        def mlp_block(self, r, m, b):
            pass

    with pytest.raises(LawBrokenError, match="other FLOPs"):
        check_system(Lazy)


def test_a_constant_in_seconds_is_caught() -> None:
    class Constant(MegatronLM):
        def layer_forward(self, r, m, b):
            super().layer_forward(r, m, b)
            r.compute("magic", 1e-3, 1e-3)

    with pytest.raises(LawBrokenError, match="twice as slow"):
        check_system(Constant)


def test_traffic_on_an_axis_of_size_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def emit(self, p, kind, axis, nbytes, *, is_async=False, stream=""):
        transfer = self.costs.collective(kind, nbytes, (0, 1))
        return p.communicate(kind, axis, transfer, nbytes, is_async=is_async, stream=stream)

    class Chatty(MegatronLM):
        example = {"tp": 2, "pp": 2}

        def layer_forward(self, r, m, b):
            super().layer_forward(r, m, b)
            r.all_reduce("cp", 1e6)

    monkeypatch.setattr(Recorder, "emit_collective", emit)
    with pytest.raises(LawBrokenError, match="size 1"):
        check_system(Chatty)


def test_degradations_are_refused_where_nothing_reads_them() -> None:
    cluster = Cluster.load("dgx_a100_40gb_ib", {"num_nodes": 4})
    broken = cluster.model_copy(update={"degradations": (Degradation(link="*", factor=0.5),)})
    with pytest.raises(UnsupportedError, match="degradations"):
        simtrain.run(MegatronLM, "gpt_tiny", broken, settings={"tp": 2, "pp": 2})
