"""Laws of systems that learn from rollouts; :func:`simtrain.systems.check.check_system` runs them."""

from __future__ import annotations

import math
from collections.abc import Callable

from simtrain.cost.decoding import DecodingCosts
from simtrain.engine.pools import RolloutRun
from simtrain.errors import InfeasibleError
from simtrain.hardware import Cluster
from simtrain.systems.base import Options
from simtrain.systems.rollout import RolloutSystem
from simtrain.workload import Rollouts

Law = Callable[[bool, str], None]
Scaled = Callable[..., Cluster]
_CHAOS = 1e-3
"""Relative difference that two runs may have which differ by rounding alone: an order of events that flips sends requests elsewhere."""


def rollout_laws(law: Law, scaled: Scaled, case: RolloutSystem, job: Rollouts, place: Cluster, run: RolloutRun) -> None:
    """Run the laws; ``law(holds, what)`` complains."""
    _check_lives(law, case, job, place, run)
    _check_budget(law, run, place)
    _check_scaling(law, scaled, case, job, place, run)
    _check_free_network(law, scaled, case, job, place, run)
    _check_memory(law, case, job, place)


def _check_lives(law: Law, case: RolloutSystem, job: Rollouts, place: Cluster, run: RolloutRun) -> None:
    """Every rollout goes through its stations in order, once, no faster than alone, and is as long as its prompt says."""
    costs = DecodingCosts(case.serving_costs(job, place), case.inference, case.generation_tp)
    seen: set[int] = set()
    for batch in run.batches:
        law(len(batch) == job.batch_size, "trains on a batch of another size")
        for r in batch:
            law(r.number not in seen, f"trains on rollout {r.number} twice")
            seen.add(r.number)
            law(r.admitted <= r.started <= r.finished <= r.scored <= r.consumed_at, f"rollout {r.number} is used before it is there")
            law(r.start_version <= r.finish_version <= r.consumed_version, f"rollout {r.number} uses weights from the future")
            alone = r.length * (costs.fixed(1) + costs.kv_time * (r.prompt_len + (r.length - 1) / 2))
            law(r.finished - r.started >= alone * (1 - 1e-6) - 1e-5, f"rollout {r.number} is generated faster than alone on a server")
            length = job.lengths(0, r.prompt)[r.number % job.group_size]
            law(r.length == length, f"rollout {r.number} is not as long as its prompt says")


def _check_budget(law: Law, run: RolloutRun, place: Cluster) -> None:
    """Every accelerator-second is something, and nothing is counted twice."""
    metrics, parts = run.metrics(place), run.times()
    law(run.num_gpus == place.num_accelerators, "uses more or fewer accelerators than there are")
    law(all(seconds >= -1e-6 * metrics["step_time"] for seconds in parts.values()), f"accelerators do more than there is time for: {parts}")
    law(math.isclose(sum(parts.values()), metrics["step_time"], rel_tol=1e-9), "loses accelerator-seconds")
    consumed = sum(r.length for batch in run.batches for r in batch)
    law(run.end.servers.tokens >= consumed, "trains on tokens that nobody generated")


def _check_scaling(law: Law, scaled: Scaled, case: RolloutSystem, job: Rollouts, place: Cluster, run: RolloutRun) -> None:
    """All rates halved and all latencies doubled take twice as long: a slip of units anywhere breaks this."""
    inference = case.inference.model_copy(update={"step_overhead": 2 * case.inference.step_overhead})
    reward = job.reward.model_copy(update={"median": 2 * job.reward.median, "timeout": 2 * job.reward.timeout})
    slow = case.model_copy(update={"software": case.software.with_host_times(2.0), "inference": inference})
    place_slow = scaled(place, compute=0.5, network=0.5)
    if place.storage is not None:
        place_slow = place_slow.model_copy(update={"storage": place.storage.model_copy(update={n: getattr(place.storage, n) / 2 for n in ("read", "write")})})
    twice = slow.simulate(job.model_copy(update={"reward": reward}), place_slow, Options()).makespan
    law(math.isclose(twice, 2 * run.makespan, rel_tol=_CHAOS), f"takes {twice / run.makespan:.6f} x as long when everything is twice as slow")


def _check_free_network(law: Law, scaled: Scaled, case: RolloutSystem, job: Rollouts, place: Cluster, run: RolloutRun) -> None:
    """Weights that move over the network cost nothing when it is free."""
    software = case.software.model_copy(update={"collective_gap": 0.0})
    free = case.model_copy(update={"software": software, "weight_sync": "broadcast"}).simulate(job, scaled(place, network=math.inf), Options())
    parts = free.times()
    law(parts.get("weight_sync", 0.0) + parts.get("reshard", 0.0) <= 1e-6 * free.makespan, "moves weights at a cost on a free network")
    law(free.makespan <= run.makespan * (1 + 0.05), "is slower on a free network")


def _check_memory(law: Law, case: RolloutSystem, job: Rollouts, place: Cluster) -> None:
    """What fits is allowed, what does not is refused."""
    accelerator = place.node.accelerator
    small = accelerator.model_copy(update={"memory_capacity": job.model.parameters() * 2.0 / case.generation_tp})
    try:
        case.simulate(job, place.model_copy(update={"node": place.node.model_copy(update={"accelerator": small})}), Options())
    except InfeasibleError:
        return
    law(False, "accepts a model that does not fit")
