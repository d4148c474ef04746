"""Which thread of a rank goes first on its core: messages before compute, and whoever holds a lock of the backend before the thread that wants it.

gloo's one thread for sockets wakes whenever a packet is there. If the lock of the connection is held it tries again at once, without sleeping, so that
on a rank with one core it takes the core from the holder that it waits for: a call of ``isend`` then lasts 2 to 46 ms until the scheduler has it
finished, and meanwhile one of two directions of an exchange stands still. A holder in a real-time class cannot be taken off its core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMPUTE = 10
"""Niceness of all other threads."""
_NICENESS = {"pt_gloo_runloop": -5, "gloo_tcp_loop": 0}
"""Of the threads that run collectives, and of the one that reads all sockets, by the start of their names."""


def set_priorities() -> None:
    """Give the threads of the backend precedence over compute, so that a message need not wait for the scheduler's next tick."""
    if os.geteuid() != 0:
        return
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        os.setpriority(os.PRIO_PROCESS, int(task.name), next((n for start, n in _NICENESS.items() if name.startswith(start)), COMPUTE))


@contextmanager
def holding_locks() -> Iterator[None]:
    """Post sends and receives within: they run on the thread that computes, and take the backend's locks."""
    if os.geteuid() != 0:
        yield
        return
    _set(0, os.SCHED_FIFO)
    try:
        yield
    finally:
        _set(0, os.SCHED_OTHER)  # its niceness is kept


def _set(thread: int, scheduling: int) -> None:
    with suppress(PermissionError):  # some containers forbid it
        os.sched_setscheduler(thread, scheduling, os.sched_param(1 if scheduling == os.SCHED_FIFO else 0))
