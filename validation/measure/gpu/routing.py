"""The pieces of a mixture of experts but for its products: what ``models.Experts`` runs between its grouped products, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from validation.measure.gpu.case import random
from validation.measure.gpu.gemm import ALIGNMENT
from validation.measure.gpu.models import swiglu
from validation.measure.gpu.streams import Parts

PIECES = ("scores", "sort", "places", "gather", "spread", "swiglu_halves", "collect", "weigh", "add_rows")
WITHOUT_BACKWARD = ("sort", "places")


@dataclass(frozen=True)
class Routed:
    """Dimensions of a mixture."""

    tokens: int
    hidden: int
    ffn: int
    experts: int
    top_k: int

    @property
    def rows(self) -> int:
        """Tokens times the experts that each chooses."""
        return self.tokens * self.top_k

    @property
    def buffer(self) -> int:
        """Rows with those that align each expert's."""
        return self.rows + ALIGNMENT * self.experts

    def nbytes(self, piece: str, direction: str) -> float:
        """Return what a piece has to move: inputs read, outputs written once. [B]"""
        narrow, wide, columns = 2.0 * self.tokens * self.hidden, 2.0 * self.rows * self.hidden, 2.0 * self.buffer * self.ffn
        return {
            "scores": 10.0 * self.tokens * self.experts, "sort": 24.0 * self.rows, "places": 32.0 * self.rows,
            "gather": wide * 2 if direction == "forward" else wide + narrow, "spread": wide * 2, "collect": wide * 2,
            "swiglu_halves": columns * (3 if direction == "forward" else 5), "weigh": wide * (2 if direction == "forward" else 3),
            "add_rows": wide + narrow if direction == "forward" else wide * 2,
        }[piece]  # fmt: skip


def orders(s: Routed, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return experts as tokens chose them, the order by expert, and where each routed row goes."""
    chosen = torch.topk(torch.rand(s.tokens, s.experts, device=device), s.top_k, dim=-1).indices.flatten()
    order = torch.argsort(chosen, stable=True)
    return chosen, order, places(chosen[order], s.experts)[0]


def places(expert: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Return where routed rows in the order of experts go, each expert's from a multiple of the alignment on, and where experts end."""
    rows = torch.zeros(experts, dtype=torch.int64, device=expert.device).scatter_add_(0, expert, torch.ones_like(expert))
    padded = (rows + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    ends = padded.cumsum(0)
    return torch.arange(expert.numel(), device=expert.device) + ((ends - padded) - (rows.cumsum(0) - rows))[expert], ends.to(torch.int32)


def parts(piece: str, s: Routed, device: torch.device) -> Parts:
    """Return a piece and what it takes gradients of."""
    chosen, order, place = orders(s, device)
    token = order // s.top_k
    made: dict[str, Callable[[], tuple[Any, list[Tensor]]]] = {
        "scores": lambda: _scores(s, device),
        "sort": lambda: (lambda: torch.argsort(chosen, stable=True), []),
        "places": lambda: (lambda: places(chosen[order], s.experts)[0] + order // s.top_k, []),
        "gather": lambda: _of(random(s.tokens, s.hidden, device=device), lambda x: x.index_select(0, token)),
        "spread": lambda: _of(random(s.rows, s.hidden, device=device), lambda x: x.new_zeros(s.buffer, s.hidden).index_copy(0, place, x)),
        "swiglu_halves": lambda: _of(random(s.buffer, 2 * s.ffn, device=device), swiglu),
        "collect": lambda: _of(random(s.buffer, s.hidden, device=device), lambda y: y.index_select(0, place)),
        "weigh": lambda: _weigh(s, order, device),
        "add_rows": lambda: _of(random(s.rows, s.hidden, device=device), lambda y: y.new_zeros(s.tokens, s.hidden).index_add(0, token, y)),
    }
    return made[piece]()


def _of(x: Tensor, run: Callable[[Tensor], Tensor]) -> Parts:
    return lambda: run(x), [x]


def _scores(s: Routed, device: torch.device) -> Parts:
    logits = random(s.tokens, s.experts, device=device)
    return lambda: torch.topk(torch.softmax(logits.float(), -1), s.top_k, dim=-1).values, [logits]


def _weigh(s: Routed, order: Tensor, device: torch.device) -> Parts:
    y, weights = random(s.rows, s.hidden, device=device), torch.rand(s.tokens, s.top_k, device=device)
    return lambda: y * weights.flatten()[order, None].to(y.dtype), [y, weights]


def cases_of(s: Routed) -> Iterator[tuple[str, str]]:
    """Return the pieces of a mixture and their directions."""
    for piece in PIECES:
        yield piece, "forward"
        if piece not in WITHOUT_BACKWARD:
            yield piece, "backward"
