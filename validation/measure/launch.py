"""Start one process per rank, watch all of them, and leave none behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validation.measure.network import REGISTRY, Network

HANG = 50.0
"""Time without a sign of life from any rank after which a run is given up; below the minute after which the backend itself gives up. [s]"""
STOPPED = 2.0
"""A gap in the watching itself of more than this means that this process was stopped, and perhaps the ranks with it. [s]"""
ROOT = Path(__file__).parents[2]


_AFTERMATH = 0.5
"""Within this, the peers of a rank that died end too, some of them before it is noticed. [s]"""
_PRECEDENCE = -15
"""Niceness of a rank's session."""
_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(64 * 2**20)}
"""Keeps freed memory in the process (glibc): a rank that gets fresh pages for every large tensor takes up to twice as long, and whether it does
depends on what ran before."""
_FOLDER = "simtrain-ranks-"
"""Start of the name of a run's temporary folder; the number of its owner follows."""
TURNS = REGISTRY / "turn"
"""Locked by the run that measures."""
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


class RankError(RuntimeError):
    """A rank died, hung or could not start; the message names it."""


@dataclass
class Rank:
    """One started rank."""

    number: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def results(self) -> Path:
        """File of its results, one JSON object per line."""
        return self.folder / f"rank{self.number}.jsonl"

    def last_words(self) -> str:
        """Return the last line that it wrote to its error stream."""
        lines = (self.folder / f"rank{self.number}.err").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


@contextmanager
def turn(say: Callable[[str], None]) -> Generator[None]:
    """Hold the machine's cores for one measurement: another run that wants them waits, or both would time each other.

    The kernel gives the turn back when its holder dies, however it dies.

    Parameters
    ----------
    say
        Called once if there is somebody to wait for.
    """
    TURNS.parent.mkdir(exist_ok=True)
    with open(TURNS, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is measuring on this machine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_ranks(
    module: str, size: int, task: Mapping[str, Any], network: Network | None = None, *, hang: float = HANG, may_die: frozenset[int] = frozenset()
) -> list[list[dict[str, Any]]]:
    """Run ``python -m module`` once per rank and return what each wrote.

    Parameters
    ----------
    module
        Reads its task from the file named by ``SIMTRAIN_TASK`` and appends JSON lines to ``SIMTRAIN_RESULTS``.
    size
        Ranks. Two ranks sit on cores 0 and 1; four share them in pairs of neighbours.
    task
        Given to every rank.
    network
        Namespaces to put the ranks into; none is the loopback.
    hang
        Without a line from any rank for so long, the run is given up. [s]
    may_die
        Ranks that are killed on purpose.

    Raises
    ------
    RankError
        Naming the rank that died or hung, within ``hang`` seconds.
    """
    _remove_stale()
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}{os.getpid()}-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(dict(task)))
        ranks = [_start(module, number, size, folder, network) for number in range(size)]
        try:
            _watch(ranks, hang, may_die)
        finally:
            for rank in ranks:
                _kill(rank)
        return [[json.loads(line) for line in rank.results.read_text().splitlines()] if rank.results.exists() else [] for rank in ranks]


def core_of(rank: int, size: int) -> int:
    """Return the core of a rank: neighbours share one where there are more ranks than cores."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[rank * len(cores) // max(size, len(cores))]


def _remove_stale() -> None:
    """Remove the folders of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        owner = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _start(module: str, number: int, size: int, folder: Path, network: Network | None) -> Rank:
    # Affinity has to be set before the interpreter starts: threads of libraries would keep the old one.
    # The kernel ends a rank when this process dies, from its first moment on; a rank that asks for that itself is an orphan while it imports torch.
    command = [*(network.enter(number) if network else []), *_DIE_WITH_PARENT, "taskset", "-c", str(core_of(number, size)), sys.executable, "-m", module]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "RANK": str(number), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0" if network else "lo",
        "SIMTRAIN_TASK": str(folder / "task.json"), "SIMTRAIN_RESULTS": str(folder / f"rank{number}.jsonl"), "SIMTRAIN_STORE": str(folder / "store"),
        **_MEMORY,
    }  # fmt: skip
    with open(folder / f"rank{number}.err", "wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=errors, stderr=errors, start_new_session=True)
    _precede(process.pid)
    return Rank(number, process, folder)


def _precede(pid: int) -> None:
    """Give a rank precedence over whatever else the machine does.

    Linux shares the processor among sessions before it looks at the priorities of processes; a rank is a session of its own. Without root, or on a
    kernel that does not group by session, nothing happens.
    """
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_PRECEDENCE))


def _watch(ranks: list[Rank], hang: float, may_die: frozenset[int]) -> None:
    sizes = [0] * len(ranks)
    heard = [time.monotonic()] * len(ranks)
    looked = time.monotonic()
    while True:
        gap, looked = time.monotonic() - looked, time.monotonic()
        if gap > STOPPED:
            heard = [moment + gap for moment in heard]
        running = [rank for rank in ranks if rank.process.poll() is None]
        if any(_has_failed(rank, may_die) for rank in ranks):
            time.sleep(_AFTERMATH)
            raise RankError(_who_failed([rank for rank in ranks if rank.process.poll() is not None and _has_failed(rank, may_die)]))
        if not running:
            return
        for rank in running:
            size = rank.results.stat().st_size if rank.results.exists() else 0
            if size != sizes[rank.number]:
                sizes[rank.number], heard[rank.number] = size, time.monotonic()
        if time.monotonic() - max(heard) > hang:
            # Its peers wait for a rank that is stopped, and are as silent; of ranks that all run, the first to fall silent is named.
            stopped = [rank for rank in running if _is_stopped(rank)]
            silent = min(stopped or running, key=lambda r: heard[r.number])
            what = "is stopped" if stopped else "hangs"
            raise RankError(f"rank {silent.number} {what}: no result for {hang:.0f} s; {silent.last_words()}")
        time.sleep(0.02)


def _has_failed(rank: Rank, may_die: frozenset[int]) -> bool:
    return rank.process.returncode not in (None, 0) and rank.number not in may_die


def _who_failed(failed: list[Rank]) -> str:
    """Return what befell the first to fail: a death by signal comes before an error, and this before the complaint of one who has lost a peer."""
    order = sorted(failed, key=lambda rank: (rank.process.returncode > 0, "peer" in rank.last_words(), rank.number))
    return "; then ".join(f"rank {rank.number} ended with code {rank.process.returncode}: {rank.last_words()}" for rank in order)


def _is_stopped(rank: Rank) -> bool:
    """Whether a signal has stopped the process."""
    try:
        return Path(f"/proc/{rank.process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False


def _kill(rank: Rank) -> None:
    if rank.process.poll() is None:
        os.killpg(rank.process.pid, signal.SIGKILL)
    rank.process.wait()
