"""The compiled simulator of coupled flows against one that solves everything from scratch, to the bit."""

from __future__ import annotations

import math
import re
import signal
import sys
import types
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, reject, settings
from hypothesis import strategies as st

from simtrain.engine import maxmin
from simtrain.engine.fairshare import to_rate
from simtrain.engine.flow_network import build_network
from simtrain.errors import InputError
from tests.flow_cases import Flows, PlainSimulation, all_to_all, fat_tree_flows, from_rows

UNIT = 2.0**-20
"""Of rates. Capacities of a few units make every division leave a remainder, which is where solvers differ. [B/s]"""


@st.composite
def networks(draw: st.DrawFn, max_flows: int = 14, max_links: int = 6) -> Flows:
    """Few sizes, starts and capacities, so that ties are common; zero bytes, no links, repeated links, caps, latencies, dependencies."""
    unit, second = draw(st.sampled_from([(UNIT, 100.0), (1e8, 1.0)]))
    num_links = draw(st.integers(1, max_links))
    capacity = [unit * draw(st.one_of(st.sampled_from([33, 64]), st.integers(17, 70))) for _ in range(num_links)]
    size = st.one_of(st.sampled_from([0, 900, 1800]), st.integers(1, 3000)).map(lambda n: n * unit * second / 100)
    time = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0)).map(lambda t: t * second)
    cap = st.one_of(st.just(math.inf), st.integers(1, 20).map(lambda n: n * unit))
    link = st.integers(0, num_links - 1)
    path = st.one_of(st.lists(link, max_size=4, unique=True), st.lists(link, max_size=3))
    rows = draw(st.lists(st.tuples(time, size, cap, path), min_size=1, max_size=max_flows))
    before = [draw(st.lists(st.integers(0, f - 1), max_size=2, unique=True)) if f and draw(st.integers(0, 3)) == 0 else [] for f in range(len(rows))]
    latency = [draw(st.sampled_from([0.0, 0.0, second / 3])) for _ in rows]
    return from_rows(capacity, rows, latency=latency, dep_ptr=np.cumsum([0, *map(len, before)]), deps=[g for deps in before for g in deps])


def copies(flows: Flows, count: int) -> Flows:
    """Repeat all flows side by side, each copy on links of its own except for the last link, which they share."""
    num_links = len(flows.capacity)
    n, options = len(flows), flows.options
    shared = num_links - 1
    capacity = [*flows.capacity[:-1]] * count + [flows.capacity[-1]]
    links = [(num_links - 1) * count if k == shared else k + c * (num_links - 1) for c in range(count) for k in flows.links]
    repeated = {key: [*options[key]] * count for key in ("rate_cap", "latency")}
    return Flows(
        [*flows.start] * count, [*flows.nbytes] * count, _stack(flows.link_ptr, count), links, capacity,
        repeated | {"dep_ptr": _stack(options["dep_ptr"], count), "deps": [g + c * n for c in range(count) for g in options["deps"]]},
    )  # fmt: skip


def _stack(pointer: Any, count: int) -> Any:
    return np.concatenate([[0], np.cumsum(np.tile(np.diff(pointer), count))])


def renumbered(flows: Flows, order: list[int], link_order: list[int]) -> Flows:
    """Number flows and links anew: flow ``i`` is the former ``order[i]``, link ``k`` becomes ``link_order[k]``."""
    rank = {old: new for new, old in enumerate(order)}
    pointer, options = flows.link_ptr, flows.options
    links = [[link_order[k] for k in flows.links[pointer[f] : pointer[f + 1]]] for f in order]
    before = [[rank[g] for g in options["deps"][options["dep_ptr"][f] : options["dep_ptr"][f + 1]]] for f in order]
    capacity = np.empty(len(link_order))
    capacity[link_order] = flows.capacity
    rows = [(flows.start[f], flows.nbytes[f], options["rate_cap"][f], links[i][::-1]) for i, f in enumerate(order)]
    latency = [options["latency"][f] for f in order]
    return from_rows(capacity.tolist(), rows, latency=latency, dep_ptr=np.cumsum([0, *map(len, before)]), deps=[g for deps in before for g in deps])


def plain(flows: Flows) -> tuple[list[float], list[float]]:
    times = PlainSimulation(flows).run()
    return times if times else reject()  # a link with less than one unit per flow stops them for good


@settings(max_examples=500)
@given(networks())
def test_equals_plain_simulation_to_the_bit(flows: Flows) -> None:
    finish, start = plain(flows)
    result = flows.run(use_classes=False)
    assert result.finish.tolist() == finish
    assert result.start.tolist() == start


@settings(max_examples=150)
@given(networks(max_flows=40, max_links=9))
def test_equals_plain_simulation_on_crowded_links(flows: Flows) -> None:
    assert flows.run(use_classes=False).finish.tolist() == plain(flows)[0]


@settings(max_examples=200)
@given(networks(max_flows=6, max_links=4), st.integers(2, 5))
def test_classes_equal_plain_simulation_to_the_bit(flows: Flows, count: int) -> None:
    several = copies(flows, count)
    finish, _ = plain(several)
    result = several.run(use_classes=True)
    assert result.classes <= len(flows)
    assert result.finish.tolist() == finish


@settings(max_examples=150)
@given(networks(), st.randoms(use_true_random=False))
def test_numbering_does_not_matter(flows: Flows, random: Any) -> None:
    plain(flows)
    order, link_order = list(range(len(flows))), list(range(len(flows.capacity)))
    random.shuffle(order)
    random.shuffle(link_order)
    finish = flows.run().finish
    assert renumbered(flows, order, link_order).run().finish.tolist() == finish[order].tolist()


@pytest.mark.parametrize("seed", range(6))
def test_coupled_flows_on_a_fat_tree_equal_plain_simulation(seed: int) -> None:
    flows = fat_tree_flows(120, 2e-3, hosts=16, per_leaf=4, seed=seed)
    assert flows.run().finish.tolist() == plain(flows)[0]


def test_all_to_all_with_a_slow_host_equals_plain_simulation() -> None:
    flows = all_to_all(8, 1e6, per_leaf=4, slow=[3], hot=1)
    assert flows.run(use_classes=True).finish.tolist() == plain(flows)[0]


# -- laws of a single solution ------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(networks(max_flows=30, max_links=8), st.randoms(use_true_random=False))
def test_rates_are_max_min_fair_after_any_sequence_of_changes(flows: Flows, random: Any) -> None:
    """No link is overloaded, and each flow is stopped by its cap or by a link on which nobody is faster and no unit per flow is left."""
    cap = np.array([maxmin.NO_CAP if math.isinf(c) else to_rate(c) for c in flows.options["rate_cap"]])
    capacity = np.array([to_rate(c) for c in flows.capacity])
    net = build_network(np.asarray(flows.link_ptr, np.int64), np.asarray(flows.links, np.int32), capacity, cap)
    shares = maxmin.empty_shares(net)
    active: set[int] = set()
    limited = [f for f in range(len(flows)) if net.flow_ptr[f] < net.flow_ptr[f + 1] or not math.isinf(flows.options["rate_cap"][f])]
    for _ in range(12 if limited else 0):
        for f in random.sample(limited, random.randint(1, min(4, len(limited)))):
            (maxmin.depart if f in active else maxmin.arrive)(net, shares, f)
            active ^= {f}
        maxmin.solve(net, shares)
        maxmin.forget_touched(shares)
        _check_fairness(net, shares, sorted(active))


def _check_fairness(net: maxmin.Network, shares: maxmin.Shares, active: list[int]) -> None:
    load, count, fastest = np.zeros(len(net.capacity), int), np.zeros(len(net.capacity), int), np.zeros(len(net.capacity), int)
    rows = {f: range(net.flow_ptr[f], net.flow_ptr[f + 1]) for f in active}
    for f in active:
        for e in rows[f]:
            load[net.flow_link[e]] += net.weight[e] * shares.bound[f]
            count[net.flow_link[e]] += net.weight[e]
            fastest[net.flow_link[e]] = max(fastest[net.flow_link[e]], shares.bound[f])
    assert (load <= net.capacity).all()
    for f in active:
        crossed = [net.flow_link[e] for e in rows[f]]
        stopped = [k for k in crossed if shares.bound[f] == fastest[k] and net.capacity[k] - load[k] < count[k]]
        assert shares.bound[f] <= net.cap[f]
        assert shares.bound[f] == net.cap[f] or stopped


@settings(max_examples=150)
@given(networks())
def test_links_never_carry_more_than_they_can_and_all_bytes_arrive(flows: Flows) -> None:
    """In any interval from the first to the last moment of a link's use, its bytes fit through it."""
    plain(flows)
    result = flows.run()
    moves = result.start + np.asarray(flows.options["latency"])
    owner = np.repeat(np.arange(len(flows)), np.diff(flows.link_ptr))
    for link, capacity in enumerate(flows.capacity):
        on = owner[np.asarray(flows.links, int) == link]
        for begin in moves[on]:
            later = on[moves[on] >= begin]
            needed = np.asarray(flows.nbytes)[later].sum() / capacity
            assert result.finish[later].max() - begin >= needed * (1 - 1e-9) - 2.0**-39
    cap = np.asarray(flows.options["rate_cap"])
    assert (result.finish - moves >= np.asarray(flows.nbytes) / cap * (1 - 1e-9) - 2.0**-39).all()


# -- the tests above can fail -------------------------------------------------------------------------------------------------


def _two_hops() -> Flows:
    """A departure on the first link speeds up its other flow, which slows the third one down on the second link."""
    return from_rows([1e9, 1e9], [(0.0, 1e9, math.inf, [0]), (0.0, 4e9, math.inf, [0, 1]), (0.0, 4e9, 6e8, [1])])


def test_plain_simulation_of_two_hops_follows_by_hand() -> None:
    """The first link gives half to each until 2 s. The long flow then shares the second link evenly, having 3 GB left, the capped one 3 of 4."""
    assert _two_hops().run().finish.tolist() == plain(_two_hops())[0] == [2.0, 8.0, 8.0]


MODULES = ("indexed_heap", "maxmin", "flow_loop")
FAULTS = {
    "a released flow does not disturb its other links": ("maxmin", "_soil(net, s, other, level, True)", "pass"),
    "flows above the new level stay": ("maxmin", "if s.bound[flow] > level:", "if s.bound[flow] == UNSET:"),
    "rounding is left out of the bound": ("maxmin", "tangent - s.total[link] - 1 if s.frozen[link] else tangent", "tangent"),
    "a cap is looked at after the links of its level": ("maxmin", "net.cap[s.cap_heap[0]] <= level", "net.cap[s.cap_heap[0]] < level"),
    "a flow released elsewhere still counts as frozen": ("maxmin", "if level < s.split[other]:", "if False:"),
    "work is accounted for at the new rate": ("flow_loop", "before / RATE_UNIT * (now", "rate / RATE_UNIT * (now"),
    "an end may come before its work is done": ("flow_loop", "np.ceil(clock.left", "np.floor(clock.left"),
    "one dependency of several is enough": ("flow_loop", "if timing.missing[other]:", "if timing.missing[other] > 1:"),
}


def _install(monkeypatch: pytest.MonkeyPatch, fault: tuple[str, str, str] | None) -> None:
    """Replace the compiled modules by the same text without compilation, and with the fault if there is one."""
    for name in MODULES:
        path = Path(maxmin.__file__).with_name(f"{name}.py")
        text = path.read_text()
        if fault and fault[0] == name:
            assert text.count(fault[1]) == 1
            text = text.replace(fault[1], fault[2])
        module = types.ModuleType(f"simtrain.engine.{name}")
        module.__file__ = str(path)
        exec(compile(re.sub(r"(?m)^@(inlined|unmanaged|entry\(.*\))\n", "", text), str(path), "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)


@contextmanager
def _ends_within(seconds: int) -> Generator[None, None, None]:
    """A fault may show itself by never coming to an end; hypothesis runs such an example twice, so each run has its own limit."""

    def stop(*_: object) -> None:
        raise AssertionError("never ends")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


ROUNDING = from_rows(
    [33 * UNIT] * 3,
    [(start, size * UNIT, math.inf, path) for start, size, path in (
        (100.0, 1800, [2, 1]), (0.0, 900, [1, 0, 2]), (100.0, 705, []), (100.0, 0, [1, 0, 2]), (100.0, 261, [1, 0, 2]), (100.0, 1619, [0]),
    )],
    latency=[0.0, 0.0, 0.0, 0.0, 100 / 3, 0.0],
)  # fmt: skip
"""A case in which a unit of rounding decides. About one network in two hundred is like it, and which ones are drawn changes with
the constants that hypothesis finds in the package, so it is kept here."""


@example(ROUNDING)
@settings(
    max_examples=1000, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(networks(max_flows=20, max_links=5))
def _agree(flows: Flows) -> None:
    finish, _ = plain(flows)
    with np.errstate(all="ignore"), _ends_within(5):
        assert flows.run(use_classes=False).finish.tolist() == finish


def test_uncompiled_text_agrees_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, None)
    _agree()


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, FAULTS[name])
    with pytest.raises((AssertionError, InputError)):
        _agree()
