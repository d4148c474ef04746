"""The ranks of the RL loop: rank 0 trains, rank 1 generates and runs the environment. Weights travel by gloo, responses through a socket.

Admission and consumption are decided by the policies that the simulated systems use (:mod:`simtrain.policy`); lengths and latencies come from the
same seeded workload. Everything that takes time is real: tokens are drawn one by one, the environment sleeps, the trainer backpropagates.
"""

from __future__ import annotations

import json
import math
import os
import queue
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from simtrain.policy.admission import Counts, bounded_staleness
from simtrain.policy.consumption import ORDERS, Order
from simtrain.workload.rollouts import RolloutSource, RolloutStream
from validation.measure import micro
from validation.measure.rl_policy import VOCAB, Generator, Learner, Policy, Response, score
from validation.measure.worker import die_with_parent

TRAINER, ROLLOUT = 0, 1
ON_POLICY = 1e-3
"""Largest difference between two ways of computing one log-probability under the same weights: token by token, and all at once."""


def main() -> None:
    """Calibrate, then run all configurations in shuffled rounds."""
    die_with_parent()
    task = json.loads(Path(os.environ["SIMTRAIN_TASK"]).read_text())
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['SIMTRAIN_STORE']}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.manual_seed(rank)
    connection = connect(rank, Path(os.environ["SIMTRAIN_STORE"]).with_name("responses.socket"))
    yardstick = micro.Yardstick()
    with open(os.environ["SIMTRAIN_RESULTS"], "a", buffering=1) as out:

        def say(**line: object) -> None:
            print(json.dumps(line), file=out)

        for name, seconds, yards in constants(rank, connection, task["streams"][0], task["repeats"], say):
            say(kind="micro", name=name, seconds=seconds, yardsticks=yards)
        for round_number in range(task["rounds"]):
            order = list(range(len(task["configurations"])))
            random.Random(round_number).shuffle(order)
            for number in order:
                stream = RolloutStream(**task["streams"][number])
                dist.barrier()
                before = yardstick.seconds()
                dist.barrier()
                settings = task["configurations"][number]
                result = Trainer(connection, stream, settings).run() if rank == TRAINER else RolloutServer(connection, stream, settings).run()
                dist.barrier()
                say(kind="run", number=number, round=round_number, yardsticks=[before, yardstick.seconds()], **result)
    dist.barrier()
    dist.destroy_process_group()


def connect(rank: int, path: Path) -> Connection:
    """Return the end of the socket that carries commands one way and responses the other."""
    if rank == TRAINER:
        with Listener(str(path), "AF_UNIX") as listener:
            dist.barrier()
            return listener.accept()
    dist.barrier()
    return Client(str(path), "AF_UNIX")


# -- what is measured before ------------------------------------------------------------------------------------


def constants(
    rank: int, connection: Connection, stream: dict[str, Any], repeats: int, say: Callable[..., None]
) -> Iterator[tuple[str, list[float], list[float]]]:
    """Time one token for several batch sizes, one update for several lengths, and the broadcast; yield names, times and yardsticks. [s]

    Each is timed alone and beside the other rank's work. Repetitions go round all of them, so that a slow phase of the machine hits one of each.
    """
    job, policy, yardstick = RolloutStream(**stream), Policy(), micro.Yardstick()
    batch, cap = job.batch_size, job.response.cap
    work: list[tuple[int, str, Callable[[], float]]] = []
    for n in [*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < batch), batch]:
        work.append((ROLLOUT, f"decode {n}", lambda n=n: _decode_times(policy, n, 1)[0]))
    for length in (cap // 4, cap // 2, cap):
        work.append((TRAINER, f"train {length}", lambda length=length: _train_times(policy, batch, length, 1)[0]))
    pair, flat = Pair(rank, connection, job, policy), policy.flatten()
    times: dict[str, list[float]] = {}
    yards: dict[str, list[float]] = {}

    def note(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)
        yards.setdefault(name, []).append(yardstick.seconds())

    for repeat in range(repeats):
        say(kind="alive", repeat=repeat)
        for is_beside in (False, True):
            for who, name, run in work:
                seconds = pair.timed(who, run, is_beside)
                if seconds is not None:
                    note(f"{name} beside" if is_beside else name, seconds)
        dist.barrier()
        start = time.perf_counter()
        dist.broadcast(flat, TRAINER)
        policy.load_flat(flat)
        note("broadcast", time.perf_counter() - start)
    for name, seconds in times.items():
        yield name, seconds, yards[name]


@dataclass(frozen=True)
class Pair:
    """Both ranks while one of them times something: the other does its own work beside it, or rests."""

    rank: int
    connection: Connection
    job: RolloutStream
    policy: Policy

    def timed(self, who: int, run: Callable[[], float], is_beside: bool) -> float | None:
        """Return the time that one rank measures, to that rank. [s]"""
        dist.barrier()
        if self.rank == who:
            seconds = run()
            self.connection.send("done")
            return seconds
        while is_beside and not self.connection.poll():
            if self.rank == TRAINER:
                _train_times(self.policy, self.job.batch_size, self.job.response.cap // 4, 0)
            else:
                _decode_times(self.policy, self.job.batch_size, 0)
        self.connection.recv()
        return None


def _responses(count: int, length: int) -> list[Response]:
    return [Response(i, i, length, [(i + k) % VOCAB for k in range(length)], [-math.log(VOCAB)] * length, 0, reward=float(i)) for i in range(count)]


def _decode_times(policy: Policy, n: int, repeats: int) -> list[float]:
    """Return times of one token of ``n`` responses: the mean over 32 steps, one per repetition. [s]"""
    generator = Generator(policy)
    generator.join([Response(i, i, 10**9, [], [], 0) for i in range(n)])
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(32):
            generator.step(0)
        if repeat:
            times.append((time.perf_counter() - start) / 32)
    return times


def _train_times(policy: Policy, batch: int, length: int, repeats: int) -> list[float]:
    learner, responses = Learner(policy), _responses(batch, length)
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        learner.update(responses)
        if repeat:
            times.append(time.perf_counter() - start)
    return times


# -- the rank that generates ------------------------------------------------------------------------------------


class Environment:
    """Workers that each take a response, sleep for its latency and send it on with its reward: first come, first served."""

    def __init__(self, num_workers: int, send: Callable[[Response], None]) -> None:
        self._send = send
        self._jobs: queue.SimpleQueue[tuple[Response, float] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(num_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, response: Response, latency: float) -> None:
        """Queue a response. [s]"""
        self._jobs.put((response, latency))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            response, latency = job
            if self._over.wait(latency):
                return
            response.reward = score(response.tokens)
            self._send(response)

    def close(self) -> None:
        """Drop what is under way."""
        self._over.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


class RolloutServer:
    """Writes responses as the trainer orders them, or as the admission rule lets them."""

    def __init__(self, connection: Connection, stream: RolloutStream, settings: dict[str, Any]) -> None:
        self.connection, self.stream = connection, stream
        self.generator = Generator(Policy())
        self.source = RolloutSource(stream, 0)
        self.latency: dict[int, float] = {}
        self.version = self.submitted = self.tokens = 0
        self.ordered = 0
        """Responses that the trainer has ordered and that have not joined."""
        self.rule = bounded_staleness(settings["max_staleness"], stream.batch_size) if settings["mode"] == "bounded" else None
        self._lock = threading.Lock()
        self.environment = Environment(stream.reward.workers_per_node, self._send)

    def _send(self, message: object) -> None:
        with self._lock:
            self.connection.send(message)

    def run(self) -> dict[str, Any]:
        """Write until the trainer has enough."""
        busy, start = 0.0, time.perf_counter()
        while self._obey():
            self._admit()
            if not self.generator.running:
                continue
            begun = time.perf_counter()
            complete = self.generator.step(self.version)
            busy += time.perf_counter() - begun
            self.tokens += len(self.generator.running) + len(complete)
            for response in complete:
                self.environment.submit(response, self.latency.pop(response.number))
        self.environment.close()
        self._send(None)
        return {"tokens": self.tokens, "decoding": busy / (time.perf_counter() - start)}

    def _obey(self) -> bool:
        """Carry out the trainer's commands, waiting for one if there is nothing to write; return whether to go on."""
        while self.connection.poll(0 if self.generator.running or self._allowed() else None):
            match self.connection.recv():
                case "submit", count:
                    self.ordered += count
                case "update", version:
                    flat = self.generator.policy.flatten()
                    dist.broadcast(flat, TRAINER)
                    self.generator.policy.load_flat(flat)
                    self.version = version
                case _:
                    return False
        return True

    def _allowed(self) -> int:
        if self.rule is None:
            return self.ordered
        return int(self.rule(Counts(self.version, self.submitted, len(self.generator.running), self.stream.batch_size)))

    def _admit(self) -> None:
        count = min(self._allowed(), self.stream.batch_size)
        if count <= 0:
            return
        self.submitted += count
        self.ordered = max(0, self.ordered - count)
        rollouts = self.source.take(count)
        self.latency |= {r.number: r.reward_time for r in rollouts}
        self.generator.join([Response(r.number, r.prompt, r.length, [], [], self.version) for r in rollouts])


# -- the rank that trains ---------------------------------------------------------------------------------------


class Buffer:
    """Scored responses, filled by a thread that listens; a batch is taken in the order of a consumption policy."""

    def __init__(self, connection: Connection, batch_size: int, order: Order) -> None:
        self.batch_size, self.order, self.connection = batch_size, order, connection
        self._held: list[tuple[int, Response]] = []
        """With their ranks in the order."""
        self._added = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while (response := self.connection.recv()) is not None:
            with self._changed:
                self._held.append((self.order.rank(response.number, self._added), response))
                self._added += 1
                self._changed.notify()

    def take(self, version: int) -> list[Response]:
        """Wait for a batch that may be trained on at a version, and take it."""
        limit = self.order.limit(version, self.batch_size)
        with self._changed:
            self._changed.wait_for(lambda: sum(r.number < limit for _, r in self._held) >= self.batch_size)
            allowed = sorted((entry for entry in self._held if entry[1].number < limit), key=lambda entry: entry[0])
            batch = [response for _, response in allowed[: self.batch_size]]
            taken = {response.number for response in batch}
            self._held = [entry for entry in self._held if entry[1].number not in taken]
        return batch

    def close(self) -> None:
        """Wait for the last message."""
        self._thread.join()


class Trainer:
    """Drives the loop in one of its modes, and notes when each update was done and how stale what it used was."""

    def __init__(self, connection: Connection, stream: RolloutStream, settings: dict[str, Any]) -> None:
        self.connection, self.stream, self.mode = connection, stream, settings["mode"]
        self.policy = Policy()
        self.learner = Learner(self.policy)
        self.buffer = Buffer(connection, stream.batch_size, ORDERS[settings.get("consumption_order", "oldest_first")]())
        self.version, self.busy = 0, 0.0
        self.updates: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Train on all batches."""
        {"synchronous": self._synchronous, "one_step": self._one_step, "bounded": self._bounded}[self.mode]()
        self.connection.send(("end",))
        self.buffer.close()
        warm, last = self.updates[self.stream.warmup_steps - 1], self.updates[-1]
        counted = self.updates[self.stream.warmup_steps :]
        elapsed, samples = last["time"] - warm["time"], len(counted) * self.stream.batch_size
        return {
            "seconds_per_sample": elapsed / samples, "idle": 1 - (last["busy"] - warm["busy"]) / elapsed,
            "staleness": [s for update in counted for s in update["staleness"]], "rewards": [update["reward"] for update in self.updates],
            "losses": [update["loss"] for update in self.updates],
        }  # fmt: skip

    def _synchronous(self) -> None:
        for version in range(self.stream.num_steps):
            self._submit()
            self._train(self.buffer.take(version))
            self._update_weights()

    def _one_step(self) -> None:
        self._submit()
        batch = self.buffer.take(0)
        for version in range(self.stream.num_steps):
            self._submit()
            self._train(batch)
            batch = self.buffer.take(version + 1)
            self._update_weights()

    def _bounded(self) -> None:
        for version in range(self.stream.num_steps):
            self._train(self.buffer.take(version))
            self._update_weights()

    def _submit(self) -> None:
        self.connection.send(("submit", self.stream.batch_size))

    def _train(self, batch: list[Response]) -> None:
        start = time.perf_counter()
        for response in batch:
            response.consumed_version = self.version
        loss, ratio = self.learner.update(batch)
        off = max((float(ratio[:, i].abs().max()) for i, r in enumerate(batch) if r.staleness == 0), default=0.0)
        if not math.isfinite(loss) or off > ON_POLICY:
            raise AssertionError(f"loss {loss}: log-probabilities of tokens that these weights drew are off by {off:.2g}")
        self.version += 1
        self.busy += time.perf_counter() - start
        self.updates.append(
            {
                "time": time.perf_counter(), "busy": self.busy, "loss": loss, "staleness": [r.staleness for r in batch],
                "reward": statistics.fmean(r.reward for r in batch),
            }
        )  # fmt: skip

    def _update_weights(self) -> None:
        start = time.perf_counter()
        self.connection.send(("update", self.version))
        dist.broadcast(self.policy.flatten(), TRAINER)
        self.busy += time.perf_counter() - start


if __name__ == "__main__":
    main()
