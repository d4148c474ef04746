"""Predictions of measured programs: constants from made-up measurements, and answers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from simtrain.cost.collective import bytes_sent
from simtrain.graph.per_rank import RankProgram
from simtrain.validate.torch_machine import HIGH, KINDS, LOW, WIRES, Bed, Machine, machine_of
from simtrain.validate.torch_predict import naive, predict, predict_restart

BED = Bed(2, 300e6, 2, 0.0)
RATE = 0.956 * 300e6 / 8
LATENCY = {"all_reduce": 7e-4, "all_gather": 4e-4, "reduce_scatter": 9e-4, "send_recv": 6e-4, "exchange": 2e-4}
EFFICIENCY = {"all_reduce": 1.0, "all_gather": 0.8, "reduce_scatter": 0.98, "send_recv": 1.0, "exchange": 0.9}
GAP, HIDDEN = 3e-3, 1e-3
"""What an all-reduce of the smaller size takes longer beside compute, and by how much less the larger one does. [s]"""
RECEIVES = 2.5
"""Rate at which a rank takes what several send, over that of one of them."""
SHARE = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 1.0, "send_recv": 0.5, "exchange": 0.5}
"""Hops between two ranks, over those of an all-reduce."""


def _seconds(kind: str, nbytes: float, bed: Bed) -> float:
    volume, rate = bytes_sent(WIRES.get(kind, kind), nbytes, bed.size), 0.956 * bed.rate / 8
    if kind == "exchange":  # what is lost, several messages lose together
        return LATENCY[kind] + (volume / EFFICIENCY[kind] - bed.burst) / rate
    return LATENCY[kind] + (volume - bed.burst) / (rate * EFFICIENCY[kind])


def micro(bed: Bed = BED) -> dict[str, float]:
    """Return what a machine of known constants would be measured at. [s]"""
    found = {f"{kind} {nbytes}": _seconds(kind, nbytes, bed) for kind in KINDS for nbytes in (LOW, HIGH)}
    found |= {f"busy all_reduce {nbytes}": found[f"all_reduce {nbytes}"] + gap for nbytes, gap in ((LOW, GAP), (HIGH, GAP - HIDDEN))}
    found |= {f"incast {nbytes}": LATENCY["exchange"] + (bed.size - 1) * nbytes / (RECEIVES * 0.956 * bed.rate / 8) for nbytes in (LOW, HIGH)}
    return found | {f"product {LOW}": 1e-4, f"product beside {LOW}": 1.25e-4}


@pytest.fixture
def machine() -> Machine:
    return machine_of(BED, micro())


@pytest.mark.parametrize("bed", [BED, Bed(4, 1e9, 2, 262144.0)])
def test_constants_come_back(bed: Bed) -> None:
    found = machine_of(bed, micro(bed))
    nic = found.cluster.node.nic
    assert nic.bandwidth * nic.efficiency == pytest.approx(0.956 * bed.rate / 8, rel=1e-3)
    for kind in KINDS:
        assert found.software.operations[kind].latency == pytest.approx(LATENCY[kind], rel=1e-2)
        assert found.software.operations[kind].efficiency == pytest.approx(EFFICIENCY[kind], rel=1e-3)
    assert found.software.overlap_slowdown == pytest.approx(0.2)
    for nbytes, gap in ((LOW, GAP), (HIGH, GAP - HIDDEN)):
        assert found.price("all_reduce", nbytes, bed.size).under_compute == pytest.approx(gap, rel=1e-3)
    if bed.size > 2:
        assert nic.receive_bandwidth == pytest.approx(RECEIVES * nic.bandwidth, rel=1e-3)
    assert found.cluster.ranks_per_accelerator == bed.size // 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_price_is_what_was_measured(machine: Machine, kind: str) -> None:
    # One message of an exchange between two carries what each sends: half of the buffer.
    nbytes = LOW / 2 if kind == "exchange" else LOW
    assert machine.price(kind, nbytes, 2).seconds == pytest.approx(micro()[f"{kind} {LOW}"], rel=1e-3)
    assert machine.price(kind, nbytes, 2).latency == pytest.approx(LATENCY[kind], rel=1e-2)
    # What it waits for cores: per hop, less a share of its time on the wire.
    hop, hidden = (GAP + HIDDEN * LOW / (HIGH - LOW)) / 2, HIDDEN * RATE / (HIGH - LOW)
    waits = 2 * SHARE[kind] * hop - hidden * (machine.price(kind, nbytes, 2).seconds - LATENCY[kind])
    assert machine.price(kind, nbytes, 2).under_compute == pytest.approx(waits, rel=1e-2)


def test_constants_survive_their_file(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "machine.yaml"
    machine.write(path)
    read = Machine.read(path)
    assert read.cluster.node.nic == machine.cluster.node.nic
    assert read.software.overlap_slowdown == machine.software.overlap_slowdown
    assert read.software.operations == machine.software.operations


def test_a_reduce_scatter_sends_the_bytes_of_an_all_reduce(machine: Machine) -> None:
    assert machine.price("reduce_scatter", 1e6, 2).nbytes == machine.price("all_reduce", 1e6, 2).nbytes


def programs(machine: Machine) -> list[RankProgram]:
    return [RankProgram(rank, 2, machine.price, machine.software.collective_queues) for rank in range(2)]


def test_overlap_costs_compute_and_latency(machine: Machine) -> None:
    ranks = programs(machine)
    for r in ranks:
        handle = r.collective("all_reduce", 4e6, async_op=True)
        r.compute("work", 0.1)
        r.wait(handle)
    wire = LATENCY["all_reduce"] + 4e6 / RATE + GAP - HIDDEN / 2  # half way between the sizes that were measured
    # While the wire is busy, compute runs at 0.8 of its rate.
    assert predict(ranks, machine) == pytest.approx(0.1 + 0.2 * wire, rel=1e-3)
    assert naive(ranks, machine, BED) == pytest.approx(LATENCY["all_reduce"] + 4e6 / (300e6 / 8), rel=1e-3)


def test_a_halved_bandwidth_is_noticed(machine: Machine) -> None:
    import pandas as pd

    from simtrain.validate.torch_runs import outside_tolerance

    slow = machine_of(BED, {name: 2 * s if str(LOW) in name or str(HIGH) in name else s for name, s in micro().items()})
    rows: list[dict[str, object]] = []
    for size in (4e6, 8e6, 12e6):
        predictions: list[float] = []
        for used in (machine, slow):
            ranks = programs(used)
            for r in ranks:
                r.compute("work", 0.02)
                r.collective("all_reduce", size)
            predictions.append(predict(ranks, used))
        rows.append({"bed": BED.name, "ranks": 2, "unit": "s", "error": predictions[1] / predictions[0] - 1})
    assert outside_tolerance(pd.DataFrame(rows))
    assert not outside_tolerance(pd.DataFrame([row | {"error": 0.02} for row in rows]))


@pytest.mark.parametrize(("every", "die_at", "redone"), [(2, 7, 1), (5, 7, 2), (5, None, 0)])
def test_a_restart_pays_start_and_the_steps_since_the_checkpoint_again(machine: Machine, every: int, die_at: int | None, redone: int) -> None:
    constants = {"start": 3.0, "first": 0.75, "step": 0.5, "checkpoint": 0.25, "end": 1.0, "recovery": 4.0}
    deaths = 0 if die_at is None else 1
    expected = 3.0 + deaths * 4.0 + (1 + deaths) * 0.25 + (12 + redone) * 0.5 + 12 // every * 0.25 + 1.0
    assert predict_restart(constants, 12, every, die_at, machine) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "volume"), [("all_reduce", 1.5), ("all_gather", 0.75), ("reduce_scatter", 1.5)])
def test_a_ring_over_two_racks_runs_at_the_rate_of_their_uplink(kind: str, volume: float) -> None:
    from simtrain.validate.torch_racks import in_racks

    bed, nbytes = Bed(4, 1e9, 2, 0.0), 8e6
    plain = machine_of(bed, micro(bed))
    # One edge of the ring crosses each way, so it has the whole uplink: at 500 Mbit/s it is half as fast as a card, at 2,000 the cards bound.
    for uplink, rate in ((500e6, 0.956 * 500e6 / 8), (2e9, plain.price(kind, nbytes, 4).rate)):
        found = in_racks(plain, bed, uplink).price(kind, nbytes, 4)
        assert found.nbytes == pytest.approx(volume * nbytes)
        assert found.rate == pytest.approx(rate, rel=1e-3)
        assert found.latency == plain.price(kind, nbytes, 4).latency


def test_single_messages_between_racks_are_refused(machine: Machine) -> None:
    from simtrain.errors import UnsupportedError
    from simtrain.validate.torch_racks import in_racks

    with pytest.raises(UnsupportedError, match="single messages between racks are not modelled"):
        in_racks(machine, Bed(4, 1e9, 2, 0.0), 500e6).price("exchange", 1e6, 4)
