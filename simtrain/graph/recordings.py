"""What has been recorded, by all that it depends on.

A layer is a function of what its system reads: some of its parameters, the sizes of some axes, where some communicators sit.
These *reads* are noted while it is recorded, and a recording is used again wherever everything reads the same, whatever else
differs: other pipeline degrees, schedules, numbers of data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from simtrain.graph.mesh import Mesh

Question = tuple[str, str]
"""What was asked (``field``, ``size``, ``span``, ...) and of which."""
FIELD = "field"
"""Kind of the questions about parameters of a system."""
Questions = tuple[Question, ...]
R = TypeVar("R")


class Reads:
    """Questions asked while something was recorded, with their answers."""

    def __init__(self) -> None:
        self.answers: dict[Question, Any] = {}

    def note(self, kind: str, name: str, answer: Any) -> Any:
        """Remember an answer and return it."""
        self.answers[kind, name] = answer
        return answer


class NotedMesh(Mesh):
    """A mesh that notes itself as a whole when anything is asked of it."""

    def __init__(self, plain: Mesh, reads: Reads) -> None:
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "reads", reads)

    def __getattribute__(self, name: str) -> Any:
        plain: Mesh = object.__getattribute__(self, "plain")
        if name == "plain":
            return plain
        object.__getattribute__(self, "reads").note("mesh", "", plain)
        return getattr(plain, name)


class Recordings(Generic[R]):
    """Recordings of one kind; the least recently used go first.

    Parameters
    ----------
    most
        Recordings that are kept at most.
    """

    def __init__(self, most: int = 4096) -> None:
        self.most = most
        self._questions: dict[Hashable, list[tuple[int, Questions]]] = {}
        self._numbers: dict[tuple[Hashable, Questions], int] = {}
        self._kept: dict[tuple[int, tuple[Hashable, ...]], R] = {}

    def find(self, what: Hashable, ask: Callable[[Questions], tuple[Hashable, ...]]) -> R | None:
        """Return the recording of ``what`` for which ``ask`` answers every question as it was answered then, fields first.

        What was answered last is asked first.
        """
        asked = self._questions.get(what, [])
        for place, (number, questions) in enumerate(asked):
            key = (number, ask(questions))
            found = self._kept.pop(key, None)
            if found is not None:
                self._kept[key] = found
                if place:
                    asked.insert(0, asked.pop(place))
                return found
        return None

    def keep(self, what: Hashable, reads: Reads, recording: R) -> R:
        """Keep a recording with what it has read, and return it."""
        answers = dict(sorted(reads.answers.items(), key=lambda item: item[0][0] != FIELD))
        questions = tuple(answers)
        if (what, questions) not in self._numbers:
            self._numbers[what, questions] = len(self._numbers)
            self._questions.setdefault(what, []).append((self._numbers[what, questions], questions))
        self._kept[self._numbers[what, questions], tuple(answers.values())] = recording
        if len(self._kept) > self.most:
            del self._kept[next(iter(self._kept))]
        return recording
