"""One rank of a measurement: calibrates, then measures all configurations in shuffled rounds; writes JSON lines."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from validation.measure import micro
from validation.measure.priorities import set_priorities
from validation.measure.program import Block, Program
from validation.measure.programs import PROGRAMS

WARM_UPS = 1
"""Steps before a program is checked; each round begins with another."""
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
    set_priorities()
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
            for name, times in micro.constants(self.rank, self.size, size_of):
                self.write({"kind": "micro", "name": name, **times._asdict()})
        programs = [PROGRAMS[c["program"]](self.rank, self.size, **c["values"]) for c in self.task["configurations"]]
        blocks = [self._prepared(number, program) for number, program in enumerate(programs)]
        for round_number in range(self.task["rounds"]):
            order = list(range(len(programs)))
            random.Random(round_number).shuffle(order)
            for number in order:
                self._round(number, programs[number], blocks[number], round_number)

    def _prepared(self, number: int, program: Program) -> dict[str, Block]:
        """Make a program ready to run, and check its result; return its blocks."""
        torch.manual_seed(0)
        program.prepare()
        for _ in range(WARM_UPS):
            program.step()
        error = program.error()
        if not error < 1e-3:
            raise AssertionError(f"{program.name} {program.settings}: result is off by {error:.2g} from the same mathematics in one process")
        dist.barrier()
        self.write({"kind": "ready", "number": number})  # a sign of life: the mathematics in one process may take its time
        return program.blocks()

    def _round(self, number: int, program: Program, blocks: dict[str, Block], round_number: int) -> None:
        """Time the blocks of a program, then a step of it: a machine that has become slower in between rounds is so for both."""
        program.step()
        if blocks:  # on every rank, or on none
            micro.start_together(self.rank, self.size)
        else:
            dist.barrier()  # what is still on its way would count as the bytes of the step below
        for repeat in range(self.task["block_repeats"] if blocks else 0):
            yardstick = self.yardstick.seconds()
            seconds = {name: _time_of(blocks[name]) for name in sorted(blocks)}
            self.write({"kind": "blocks", "number": number, "round": round_number, "repeat": repeat, "seconds": seconds, "yardstick": yardstick})
        before, sent = self.yardstick.seconds(), _sent()
        start = micro.start_together(self.rank, self.size)
        program.step()
        seconds = time.perf_counter() - start
        dist.barrier()  # a yardstick beside what others still send would say that the machine is slow
        line = {"kind": "sample", "number": number, "round": round_number, "seconds": seconds, "yardsticks": [before, self.yardstick.seconds()]}
        self.write(line | {"sent": _sent() - sent})


def _time_of(block: Block) -> float:
    """Return the time of one run: of the core, which leaves out other ranks' turns on it, or of the clock where the core only waits. [s]"""
    block.before()
    clock = time.thread_time if block.is_compute else time.perf_counter
    start = clock()
    result = block.run()
    seconds = result if block.is_timer else clock() - start
    block.after()
    return seconds


def _sent() -> int:
    """Return the bytes that left this rank's interface so far. [B]"""
    return int(INTERFACE.read_text()) if INTERFACE.exists() else 0


if __name__ == "__main__":
    main()
