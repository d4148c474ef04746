"""Token buckets of shaped links: an idle link saves up a burst, and the next transfer's first bytes pass at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from simtrain.engine.links import LinkTable


@dataclass
class Buckets:
    """Fill of every link's bucket.

    A bucket of ``b`` bytes refills at the link's rate while nothing uses the link; while something does, all of the rate goes to that. A transfer
    that starts on an idle link therefore takes ``(S - b) / B`` instead of ``S / B``. Refilling behind a transfer slower than the link is not modelled.
    """

    links: LinkTable
    tokens: dict[int, float] = field(default_factory=dict[int, float])
    idle_since: dict[int, float] = field(default_factory=dict[int, float])
    users: dict[int, int] = field(default_factory=dict[int, int])

    def join(self, loads: Mapping[int, int], now: float) -> float:
        """Return how many bytes of each member of a transfer pass at once, and take them from the buckets. [B]"""
        shaped = {link: count for link, count in loads.items() if self.links.burst[link]}
        for link in shaped:
            if not self.users.get(link):
                idle = now - self.idle_since.get(link, float("-inf"))
                self.tokens[link] = min(self.links.burst[link], self.tokens.get(link, 0.0) + self.links.bandwidth[link] * idle)
            self.users[link] = self.users.get(link, 0) + 1
        credit = min((self.tokens[link] / count for link, count in shaped.items()), default=0.0)
        for link, count in shaped.items():
            self.tokens[link] -= credit * count
        return credit

    def leave(self, loads: Mapping[int, int], now: float) -> None:
        """Let a transfer's links go."""
        for link in loads:
            if self.links.burst[link]:
                self.users[link] -= 1
                if not self.users[link]:
                    self.idle_since[link] = now
