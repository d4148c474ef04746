"""One rank of a measurement: calibrates, then measures all configurations in shuffled rounds; writes JSON lines."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import statistics
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from validation.measure import micro
from validation.measure.program import Block, Program
from validation.measure.programs import PROGRAMS

WARM_UPS = 2
INTERFACE = Path("/sys/class/net/eth0/statistics/tx_bytes")
"""Counter of the rank's own interface, inside its namespace. [B]"""


def main() -> None:
    """Run the task of this rank."""
    die_with_parent()
    task = json.loads(Path(os.environ["SIMTRAIN_TASK"]).read_text())
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['SIMTRAIN_STORE']}", rank=rank, world_size=size, timeout=timedelta(seconds=60))
    micro.set_priorities()
    with open(os.environ["SIMTRAIN_RESULTS"], "a", buffering=1) as out:
        worker = Worker(rank, size, task, lambda line: print(json.dumps(line), file=out))
        worker.run()
    dist.barrier()
    dist.destroy_process_group()


def die_with_parent() -> None:
    """Have the kernel kill this rank when the process that started it dies, also by ``kill -9``."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class Worker:
    """Runs the phases of a task: ``micro``, ``blocks``, ``rounds``."""

    def __init__(self, rank: int, size: int, task: dict[str, Any], write: Any) -> None:
        self.rank, self.size, self.task, self.write = rank, size, task, write
        self.yardstick = micro.Yardstick()

    def run(self) -> None:
        """Calibrate, measure, and repeat a part of the calibration to report drift."""
        if size_of := self.task.get("micro"):
            for name, seconds in micro.constants(self.rank, self.size, size_of):
                self.write({"kind": "micro", "name": name, "seconds": seconds})
        programs = [PROGRAMS[c["program"]](self.rank, self.size, **c["values"]) for c in self.task["configurations"]]
        for number, program in enumerate(programs):
            self._blocks(number, program)
        for round_number in range(self.task["rounds"]):
            order = list(range(len(programs)))
            random.Random(round_number).shuffle(order)
            for number in order:
                self._sample(number, programs[number], round_number)

    def _blocks(self, number: int, program: Program) -> None:
        torch.manual_seed(0)
        program.prepare()
        blocks = program.blocks()
        names = sorted(blocks)
        micro.start_together(self.rank, self.size)
        times: dict[str, list[float]] = {name: [] for name in names}
        yards: list[float] = []
        for repeat in range(self.task["block_repeats"] + 1):
            yards.append(self.yardstick.seconds())
            for name in names:
                seconds = _time_of(blocks[name])
                if repeat:
                    times[name].append(seconds)
        dist.barrier()
        values = {name: statistics.median(seconds) for name, seconds in times.items()}
        program.prepare()  # forget what the blocks left behind
        self.write({"kind": "blocks", "number": number, "seconds": values, "yardstick": statistics.median(yards)})

    def _sample(self, number: int, program: Program, round_number: int) -> None:
        if round_number == 0:
            for _ in range(WARM_UPS):
                program.step()
            error = program.error()
            if not error < 1e-3:
                raise AssertionError(f"{program.name} {program.settings}: result is off by {error:.2g} from the same mathematics in one process")
        else:
            program.step()
        before, sent = self.yardstick.seconds(), _sent()
        start = micro.start_together(self.rank, self.size)
        program.step()
        seconds = time.perf_counter() - start
        after = self.yardstick.seconds()
        dist.barrier()
        line = {"kind": "sample", "number": number, "round": round_number, "seconds": seconds, "yardsticks": [before, after], "sent": _sent() - sent}
        self.write(line)


def _time_of(block: Block) -> float:
    """Return the time of one run: of the core, which leaves out other ranks' turns on it, or of the clock where the core only waits. [s]"""
    block.before()
    clock = time.thread_time if block.is_compute else time.perf_counter
    start = clock()
    block.run()
    return clock() - start


def _sent() -> int:
    """Return the bytes that left this rank's interface so far. [B]"""
    return int(INTERFACE.read_text()) if INTERFACE.exists() else 0


if __name__ == "__main__":
    main()
