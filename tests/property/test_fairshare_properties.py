"""The incremental network against progressive filling from scratch, and max-min fairness from its definition."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtrain.engine.fairshare import FairShare, Flow, progressive_filling

LINKS = 6


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    links = draw(st.dictionaries(st.integers(0, LINKS - 1), st.integers(1, 4), max_size=4))
    return links, draw(st.one_of(st.integers(1, 400), st.just(10**9)))


capacities = st.lists(st.integers(50, 2000), min_size=LINKS, max_size=LINKS)
SCRIPTS: dict[str, Any] = {"capacity": capacities, "script": st.lists(st.one_of(flows(), st.integers(0, 30)), min_size=1, max_size=25)}
"""A flow is added; a number removes the live flow at that place."""


def oracle(alive: dict[int, Flow], capacity: list[int]) -> dict[int, int]:
    """Max-min rates by raising all rates together from 0; it shares nothing with the solver.

    A flow stops at its cap, and when one of its links could not carry one more unit for each member that still grows.
    """
    rates = {flow: 0 if links else cap for flow, (links, cap) in alive.items()}
    growing = {flow for flow, (links, _) in alive.items() if links}
    while growing := {f for f in growing if rates[f] < alive[f][1]}:
        on_link = [sum(alive[f][0].get(k, 0) for f in growing) for k in range(len(capacity))]
        left = [c - sum(rates[f] * alive[f][0].get(k, 0) for f in alive) for k, c in enumerate(capacity)]
        full = {k for k in range(len(capacity)) if left[k] < on_link[k]}
        if any(full & alive[f][0].keys() for f in growing):
            growing = {f for f in growing if not full & alive[f][0].keys()}
            continue
        room = [left[k] // on_link[k] for k in range(len(capacity)) if on_link[k]]
        step = min([*room, *(alive[f][1] - rates[f] for f in growing)])
        for f in growing:
            rates[f] += step
    return rates


def play(capacity: list[int], script: list[Flow | int], network: FairShare, *, resolve_every: int = 1) -> None:
    """Add and remove flows and compare all rates after each arbitration."""
    alive: dict[int, Flow] = {}
    for number, item in enumerate(script):
        if not isinstance(item, int):
            alive[number] = item
            network.add(number, *item)
        elif alive:
            flow = sorted(alive)[item % len(alive)]
            del alive[flow]
            network.remove(flow)
        if number % resolve_every == 0 or number == len(script) - 1:
            before = dict(network.rate)
            changed = network.resolve()
            assert network.rate == progressive_filling(alive, capacity)
            assert changed == sorted(changed)
            assert {f for f in alive if before.get(f) != network.rate[f]} == set(changed)


@settings(max_examples=400)
@given(**SCRIPTS)
def test_incremental_rates_are_those_from_scratch(capacity: list[int], script: list[Flow | int]) -> None:
    play(capacity, script, FairShare(capacity))


@settings(max_examples=100)
@given(**SCRIPTS)
def test_several_changes_may_be_solved_at_once(capacity: list[int], script: list[Flow | int]) -> None:
    play(capacity, script, FairShare(capacity), resolve_every=3)


@settings(max_examples=200)
@given(capacity=capacities, population=st.dictionaries(st.integers(0, 20), flows(), min_size=1, max_size=8), caps=st.lists(st.integers(1, 300), max_size=6))
def test_a_flow_with_another_cap_shares_as_if_it_had_started_with_it(capacity: list[int], population: dict[int, Flow], caps: list[int]) -> None:
    network = FairShare(capacity)
    for flow, (links, cap) in population.items():
        network.add(flow, links, cap)
    network.resolve()
    for number, cap in enumerate(caps):
        flow = sorted(population)[number % len(population)]
        population[flow] = population[flow][0], cap
        before = dict(network.rate)
        network.limit(flow, cap)
        changed = network.resolve()
        assert network.rate == progressive_filling(population, capacity)
        assert {f for f in population if before[f] != network.rate[f]} == set(changed)


@settings(max_examples=300)
@given(capacity=capacities, population=st.dictionaries(st.integers(0, 20), flows(), min_size=1, max_size=12))
def test_filling_is_raising_all_rates_together(capacity: list[int], population: dict[int, Flow]) -> None:
    assert progressive_filling(population, capacity) == oracle(population, capacity)


@settings(max_examples=300)
@given(capacity=capacities, population=st.dictionaries(st.integers(0, 20), flows(), min_size=1, max_size=12))
def test_rates_are_max_min_fair(capacity: list[int], population: dict[int, Flow]) -> None:
    # Bertsekas and Gallager, section 6.5.2: an allocation is max-min fair if and only if every flow has a bottleneck link, one that is full and on
    # which no flow is faster. Whole units: a link of n members counts as full when fewer than n units are left.
    rates = progressive_filling(population, capacity)
    load = [sum(rates[f] * links.get(k, 0) for f, (links, _) in population.items()) for k in range(LINKS)]
    assert all(used <= total for used, total in zip(load, capacity, strict=True))
    for flow, (links, cap) in population.items():
        assert 0 <= rates[flow] <= cap
        if rates[flow] == cap:
            continue
        members = {k: sum(other.get(k, 0) for other, _ in population.values()) for k in links}
        fastest = {k: max(rates[f] for f, (other, _) in population.items() if k in other) for k in links}
        assert any(capacity[k] - load[k] < members[k] and rates[flow] >= fastest[k] for k in links)


@settings(max_examples=200)
@given(capacity=capacities, population=st.dictionaries(st.integers(0, 20), flows(), min_size=1, max_size=10), copies=st.integers(2, 5))
def test_copies_of_a_situation_have_the_rates_of_one(capacity: list[int], population: dict[int, Flow], copies: int) -> None:
    # What folding relies on. Flows of even number have one instance with members on the links of all copies, the others an instance per copy.
    everywhere: dict[int, Flow] = {}
    for flow, (links, cap) in population.items():
        if flow % 2 == 0:
            everywhere[flow * copies] = ({k * copies + c: n for k, n in links.items() for c in range(copies)}, cap)
        else:
            for c in range(copies):
                everywhere[flow * copies + c] = ({k * copies + c: n for k, n in links.items()}, cap)
    rates = progressive_filling(everywhere, [c for c in capacity for _ in range(copies)])
    one = progressive_filling(population, capacity)
    assert {flow: rate for flow, rate in rates.items()} == {flow: one[flow // copies] for flow in everywhere}


@settings(max_examples=200)
@given(capacity=capacities, population=st.dictionaries(st.integers(0, 20), flows(), min_size=1, max_size=10), times=st.integers(2, 5))
def test_a_shared_link_serves_equal_members_as_a_share_serves_one(capacity: list[int], population: dict[int, Flow], times: int) -> None:
    # A card of two ranks with both unfolded against half a card with one of them.
    together = progressive_filling(
        {f: ({k: n * times for k, n in links.items()}, cap) for f, (links, cap) in population.items()}, [c * times for c in capacity]
    )
    assert together == progressive_filling(population, capacity)


def test_a_network_that_forgets_a_removal_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(self: Any, flow: int) -> None:
        links, cap = self.flows.pop(flow)
        del self.rate[flow]
        for link, members in links.items():
            self._on_link[link].discard(flow)
            self._demand[link] -= cap * members

    capacity, script = [100] * LINKS, [({0: 1}, 80), ({0: 1}, 80), 0]
    play(capacity, script, FairShare(capacity))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(FairShare, "remove", forgetful)
    with pytest.raises(AssertionError):
        play(capacity, script, FairShare(capacity))  # pyright: ignore[reportArgumentType]
