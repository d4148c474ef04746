"""Where the wall clock of a run goes: every second is in exactly one part."""

from __future__ import annotations

from typing import Literal, NamedTuple

Part = Literal["productive", "checkpoint", "degraded", "lost_work", "detection", "restart", "waiting"]

PARTS: tuple[Part, ...] = ("productive", "checkpoint", "degraded", "lost_work", "detection", "restart", "waiting")
"""Work that was kept; stalls for saves; what slower running costs; training that was thrown away; a fault not noticed yet; from noticed to
training again; no node to train on."""


class Trained(NamedTuple):
    """Seconds of training by what they were used for."""

    productive: float = 0.0
    checkpoint: float = 0.0
    degraded: float = 0.0

    @property
    def total(self) -> float:
        """All of it. [s]"""
        return self.productive + self.checkpoint + self.degraded

    def plus(self, productive: float, checkpoint: float, degraded: float) -> Trained:
        """Return the sum with further seconds. [s]"""
        return Trained(self.productive + productive, self.checkpoint + checkpoint, self.degraded + degraded)


class Span(NamedTuple):
    """A stretch of the run during which the job did one thing."""

    start: float
    end: float
    what: str
    """``training``, or one of the parts."""
    cause: str
    """Failure that led to it; empty for training."""


class Loss(NamedTuple):
    """Work that an interruption has lost."""

    time: float
    seconds: float
    cause: str


class Ledger:
    """Books the time since the last entry under what the job has been doing; nothing is booked twice or left out."""

    def __init__(self) -> None:
        self.trained = Trained()
        self.lost = 0.0
        self.down: dict[Part, float] = {"detection": 0.0, "restart": 0.0, "waiting": 0.0}
        self.spans: list[Span] = []
        self._since = 0.0

    def train(self, now: float, productive: float, checkpoint: float, cause: str = "") -> None:
        """Book the time until now as training; what is neither productive nor a save is what slower running costs."""
        elapsed = now - self._since
        self.trained = self.trained.plus(productive, checkpoint, elapsed - productive - checkpoint)
        self._close(now, "training", cause)

    def stop(self, now: float, part: Part, cause: str) -> None:
        """Book the time until now under a part in which nothing is trained."""
        self.down[part] += now - self._since
        self._close(now, part, cause)

    def roll_back(self, kept: Trained) -> float:
        """Move the training beyond what a save has kept to lost work, and return how much that is. [s]"""
        lost = self.trained.total - kept.total
        self.lost += lost
        self.trained = kept
        return lost

    def parts(self) -> dict[Part, float]:
        """Return the seconds of each part. [s]"""
        t = self.trained
        return {"productive": t.productive, "checkpoint": t.checkpoint, "degraded": t.degraded, "lost_work": self.lost, **self.down}

    def _close(self, now: float, what: str, cause: str) -> None:
        if now > self._since:
            self.spans.append(Span(self._since, now, what, cause))
        self._since = now
