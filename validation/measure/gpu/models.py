"""Transformer layers and small models as eager PyTorch has them: real shapes, no dropout, bf16 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from validation.measure.gpu.attention import attend
from validation.measure.gpu.gemm import ALIGNMENT, experts_mm


@dataclass(frozen=True)
class Shape:
    """Dimensions of a layer. GPT layers have layer norms, biases and GELU; Llama layers RMS norms, rotary positions and SwiGLU."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    family: str
    experts: int = 0
    top_k: int = 0

    @property
    def is_gpt(self) -> bool:
        """Whether this is the older family."""
        return self.family == "gpt"


SHAPES = {
    "gpt_125m": Shape(768, 12, 12, 64, 3072, "gpt"),
    "gpt_1b3": Shape(2048, 16, 16, 128, 8192, "gpt"),
    "gpt_6b7": Shape(4096, 32, 32, 128, 16384, "gpt"),
    "gpt_175b": Shape(12288, 96, 96, 128, 49152, "gpt"),
    "llama3_1b": Shape(2048, 32, 8, 64, 8192, "llama"),
    "llama3_8b": Shape(4096, 32, 8, 128, 14336, "llama"),
    "llama3_70b": Shape(8192, 64, 8, 128, 28672, "llama"),
    "qwen3_30b_a3b": Shape(2048, 32, 4, 128, 768, "llama", 128, 8),
    "mixtral_8x7b": Shape(4096, 32, 8, 128, 14336, "llama", 8, 2),
    "gpt_350m": Shape(1024, 16, 16, 64, 4096, "gpt"),
    "gpt_2b7": Shape(2560, 20, 20, 128, 10240, "gpt"),
    "llama3_3b": Shape(3072, 24, 8, 128, 8192, "llama"),
    "llama_64x6": Shape(2560, 20, 4, 128, 1408, "llama", 64, 6),
    "llama_16x2": Shape(3072, 24, 8, 128, 4096, "llama", 16, 2),
    "tiny_gpt": Shape(32, 4, 4, 8, 64, "gpt"),
    "tiny_llama": Shape(32, 4, 2, 8, 48, "llama"),
    "tiny_moe": Shape(32, 4, 2, 8, 16, "llama", 4, 2),
}


class Attention(nn.Module):
    """Causal self-attention between its projections."""

    def __init__(self, shape: Shape, **where: Any) -> None:
        super().__init__()
        self.shape = shape
        columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.qkv = nn.Linear(shape.hidden, columns, bias=shape.is_gpt, **where)
        self.out = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=shape.is_gpt, **where)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return ``[batch, seq_len, hidden]``."""
        s, (batch, seq_len, _) = self.shape, x.shape
        heads = self.qkv(x).view(batch, seq_len, -1, s.head_dim)
        q, k, v = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=2)
        if rotation is not None:
            q, k = rotated(q, *rotation), rotated(k, *rotation)
        attended = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True, backend="flash")
        return self.out(attended.transpose(1, 2).reshape(batch, seq_len, -1))


def rotation_of(seq_len: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary positions."""
    angles = torch.arange(seq_len, device=device)[:, None] * 10000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    doubled = torch.cat([angles, angles], -1)[:, None]
    return doubled.cos().bfloat16(), doubled.sin().bfloat16()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``[batch, seq_len, heads, head_dim]`` turned by its position."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class FeedForward(nn.Module):
    """Two products with GELU, or three with SwiGLU, gate and up in one."""

    def __init__(self, shape: Shape, **where: Any) -> None:
        super().__init__()
        self.is_gpt = shape.is_gpt
        self.up = nn.Linear(shape.hidden, shape.ffn * (1 if shape.is_gpt else 2), bias=shape.is_gpt, **where)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=shape.is_gpt, **where)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, seq_len, hidden]``."""
        return self.down(F.gelu(self.up(x), approximate="tanh") if self.is_gpt else swiglu(self.up(x)))


def swiglu(x: Tensor) -> Tensor:
    """Return SiLU of one half of the columns times the other."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class Experts(nn.Module):
    """A router, and feed-forward experts in grouped products. No token is dropped; nothing waits for the host.

    Parameters
    ----------
    shape
        Dimensions.
    is_skewed
        Whether the router prefers experts by ``log(1 / rank)``, fixed.
    """

    def __init__(self, shape: Shape, is_skewed: bool = False, **where: Any) -> None:
        super().__init__()
        self.shape = shape
        self.router = nn.Linear(shape.hidden, shape.experts, bias=False, **where)
        self.up = nn.Parameter(torch.randn(shape.experts, 2 * shape.ffn, shape.hidden, **where) / shape.hidden**0.5)
        self.down = nn.Parameter(torch.randn(shape.experts, shape.hidden, shape.ffn, **where) / shape.ffn**0.5)
        preference = -torch.log1p(torch.arange(shape.experts, device=where["device"], dtype=torch.float32))
        self.register_buffer("preference", preference if is_skewed else torch.zeros_like(preference))
        self.rows = torch.zeros(0)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and numbers of the chosen experts. [tokens, top_k]"""
        scores = torch.softmax(self.router(x).float() + self.preference, -1)
        return torch.topk(scores, self.shape.top_k, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, seq_len, hidden]``."""
        s, flat = self.shape, x.reshape(-1, self.shape.hidden)
        weights, chosen = self.route(flat)
        expert = chosen.flatten()
        order = torch.argsort(expert, stable=True)
        token, expert = order // s.top_k, expert[order]
        rows = torch.zeros(s.experts, dtype=torch.int64, device=x.device).scatter_add_(0, expert, torch.ones_like(expert))
        self.rows = rows.detach()
        padded = (rows + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        ends = padded.cumsum(0)
        # Where each routed row goes: its expert's rows begin at a multiple of the alignment.
        place = torch.arange(expert.numel(), device=x.device) + ((ends - padded) - (rows.cumsum(0) - rows))[expert]
        routed = flat.new_zeros(expert.numel() + ALIGNMENT * s.experts, s.hidden).index_copy(0, place, flat.index_select(0, token))
        ends = ends.to(torch.int32)
        y = experts_mm(swiglu(experts_mm(routed, self.up.transpose(-2, -1), ends)), self.down.transpose(-2, -1), ends)
        y = y.index_select(0, place) * weights.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(flat).index_add(0, token, y).view_as(x)

    def one_by_one(self, x: Tensor) -> Tensor:
        """Return the same, expert by expert, in float32."""
        flat = x.reshape(-1, self.shape.hidden)
        weights, chosen = self.route(flat)
        out = torch.zeros_like(flat, dtype=torch.float32)
        for e in range(self.shape.experts):
            token, choice = (chosen == e).nonzero(as_tuple=True)
            y = swiglu(flat[token].float() @ self.up[e].float().t()) @ self.down[e].float().t()
            out = out.index_add(0, token, y * weights[token, choice, None])
        return out.view_as(x)


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a residual."""

    def __init__(self, shape: Shape, is_skewed: bool = False, **where: Any) -> None:
        super().__init__()
        norm = nn.LayerNorm if shape.is_gpt else nn.RMSNorm
        self.first, self.second = norm(shape.hidden, **where), norm(shape.hidden, **where)
        self.attention = Attention(shape, **where)
        self.feed_forward = Experts(shape, is_skewed, **where) if shape.experts else FeedForward(shape, **where)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return ``[batch, seq_len, hidden]``."""
        x = x + self.attention(self.first(x), rotation)
        return x + self.feed_forward(self.second(x))


def recomputed(layer: Layer, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return a layer's output, keeping its input alone for backward."""
    # Without dropout there is no random state to restore; reading it would wait for the device.
    return checkpoint(layer, x, rotation, use_reentrant=False, preserve_rng_state=False)


class Model(nn.Module):
    """Embedding, layers, final norm, head (tied to the embedding) and loss."""

    def __init__(self, shape: Shape, layers: int, vocab: int, seq_len: int, recompute: bool, **where: Any) -> None:
        super().__init__()
        self.recompute = recompute
        self.embedding = nn.Embedding(vocab, shape.hidden, **where)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Embedding(seq_len, shape.hidden, **where) if shape.is_gpt else None
        self.rotation = None if shape.is_gpt else rotation_of(seq_len, shape.head_dim, where["device"])
        self.layers = nn.ModuleList(Layer(shape, **where) for _ in range(layers))
        self.norm = (nn.LayerNorm if shape.is_gpt else nn.RMSNorm)(shape.hidden, **where)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of ``[batch, seq_len]`` tokens."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        for layer in self.layers:
            x = recomputed(layer, x, self.rotation) if self.recompute else layer(x, self.rotation)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))
