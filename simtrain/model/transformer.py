"""Transformers: shape, parameters and FLOPs.

A FLOP is one multiply or one add; a multiply-accumulate counts two. Attention can be counted over the full
square of the sequence or over the causal half, and every caller has to say which.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from simtrain.spec import NamedSpec, Spec


class MoE(Spec):
    """Mixture of experts in place of the MLP."""

    experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    expert_ffn: int = Field(gt=0)
    shared_experts: int = Field(default=0, ge=0)
    """Experts of the same width that every token visits."""
    num_dense_layers: int = Field(default=0, ge=0)
    """First layers that keep a dense MLP."""
    every: int = Field(default=1, gt=0)
    """Every so many layers has experts, the last of each group; the others keep a dense MLP."""

    def has_experts(self, layer: int) -> bool:
        """Tell whether a layer has experts."""
        return layer >= self.num_dense_layers and (layer + 1) % self.every == 0

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts there are")
        return self


class MLA(Spec):
    """Multi-head latent attention (DeepSeek-V2/V3)."""

    q_lora_rank: int = Field(gt=0)
    kv_lora_rank: int = Field(gt=0)
    rope_head_dim: int = Field(gt=0)
    nope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)


class Transformer(NamedSpec):
    """Shape of a transformer; ``sources`` say where it is published."""

    folder: ClassVar[str] = "workloads/models"

    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(default=0, ge=0)
    """Key-value heads; 0 means as many as heads."""
    head_dim: int = Field(default=0, ge=0)
    """0 means hidden / heads."""
    ffn: int = Field(gt=0)
    vocab: int = Field(gt=0)
    max_seq_len: int = Field(default=2048, gt=0)
    mlp: Literal["gelu", "relu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    position: Literal["learned", "rope", "alibi", "none"] = "learned"
    is_causal: bool = True
    is_tied: bool = True
    """Whether the output projection is the embedding."""
    has_bias: bool = True
    """Biases in the projections, the MLP and the layer norms."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    window: int | None = Field(default=None, gt=0)
    """Sliding window: keys each query attends to. [tokens]"""
    window_every: int = Field(default=1, gt=0)
    """Every so many layers is windowed, the first of each group; the others attend to all keys."""
    moe: MoE | None = None
    mla: MLA | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if not self.head_dim and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}; set head_dim")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.num_kv_heads}")
        return self

    @model_validator(mode="after")
    def _dense_layers_fit(self) -> Self:
        if self.moe is not None and self.moe.num_dense_layers > self.layers:
            raise ValueError(f"moe.num_dense_layers {self.moe.num_dense_layers} is more than the {self.layers} layers")
        return self

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads, the default filled in."""
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        """Dimension of one head, the default filled in."""
        return self.head_dim or self.hidden // self.heads

    @property
    def mlp_matrices(self) -> int:
        """Weight matrices of one MLP: 3 when gated, else 2."""
        return 3 if self.mlp == "swiglu" else 2

    @property
    def attention_parameters(self) -> int:
        """Weights of the attention projections of one layer, without biases."""
        h, a, d = self.hidden, self.heads, self.head_size
        if self.mla is not None:
            x = self.mla
            q = h * x.q_lora_rank + x.q_lora_rank * a * (x.nope_head_dim + x.rope_head_dim)
            kv = h * (x.kv_lora_rank + x.rope_head_dim) + x.kv_lora_rank * a * (x.nope_head_dim + x.v_head_dim)
            return q + kv + a * x.v_head_dim * h
        return h * d * (a + 2 * self.num_kv_heads) + a * d * h

    def _mlp_shape(self, layer: int, is_active: bool) -> tuple[int, int]:
        """Number of MLPs in one layer (all, or those a token visits) and their width."""
        if self.moe is None or not self.moe.has_experts(layer):
            return 1, self.ffn
        routed = self.moe.top_k if is_active else self.moe.experts
        return routed + self.moe.shared_experts, self.moe.expert_ffn

    def _router_parameters(self, layer: int) -> int:
        return 0 if self.moe is None or not self.moe.has_experts(layer) else self.hidden * self.moe.experts

    def mlp_parameters(self, layer: int, is_active: bool = False) -> int:
        """Weights of the MLP or of the experts (all, or those a token visits) and router of one layer, without biases."""
        count, width = self._mlp_shape(layer, is_active)
        return count * self.mlp_matrices * self.hidden * width + self._router_parameters(layer)

    @property
    def norm_parameters(self) -> int:
        """Parameters of one norm over the hidden dimension."""
        return self.hidden * (2 if self.norm == "layernorm" and self.has_bias else 1)

    def _bias_parameters(self, layer: int, is_active: bool) -> int:
        """Biases of the projections and of the MLPs of one layer."""
        if not self.has_bias:
            return 0
        qkv = self.head_size * (self.heads + 2 * self.num_kv_heads)
        count, width = self._mlp_shape(layer, is_active)
        return qkv + self.hidden + count * (width * (self.mlp_matrices - 1) + self.hidden)

    def layer_parameters(self, layer: int, is_active: bool = False) -> int:
        """Parameters of one layer: weights, biases, two norms and those of the latents."""
        latent_norms = 0 if self.mla is None else self.mla.q_lora_rank + self.mla.kv_lora_rank
        weights = self.attention_parameters + self.mlp_parameters(layer, is_active)
        return weights + self._bias_parameters(layer, is_active) + 2 * self.norm_parameters + latent_norms

    @property
    def embedding_parameters(self) -> int:
        """Token embedding and learned positions."""
        return self.vocab * self.hidden + (self.max_seq_len * self.hidden if self.position == "learned" else 0)

    def parameters(self, is_active: bool = False) -> int:
        """All parameters, or those that one token visits.

        A dense GPT counts ``12 l h^2 (1 + 13/(12h) + (V + s)/(12 l h))`` and the final norm. [1]_

        References
        ----------
        .. [1] Narayanan et al., SC'21, equation 2 (without the final norm).
        """
        body = sum(self.layer_parameters(i, is_active) for i in range(self.layers))
        head = 0 if self.is_tied else self.vocab * self.hidden
        return self.embedding_parameters + body + self.norm_parameters + head

    def attention_pairs(self, seq_len: int, is_causal: bool, window: int | None = None) -> float:
        """Query-key pairs of one sequence and head.

        The full square ``s^2``; the causal half ``s^2 / 2`` (the field's convention, without the diagonal
        term); with a sliding window of ``w < s`` keys the causal band ``w s - w^2 / 2``.
        """
        w = min(window or self.window or seq_len, seq_len)
        if not is_causal:
            return float(seq_len) * w
        return w * seq_len - w * w / 2

    def attention_flops(self, seq_len: int, is_causal: bool, window: int | None = None) -> float:
        """Forward FLOPs of scores and weighted values of one sequence in one layer. [FLOP]"""
        qk, v = (self.head_size, self.head_size) if self.mla is None else (self.mla.nope_head_dim + self.mla.rope_head_dim, self.mla.v_head_dim)
        return 2 * self.heads * (qk + v) * self.attention_pairs(seq_len, is_causal, window)

    def forward_flops(self, seq_len: int, is_causal: bool, window: int | None = None) -> float:
        """Forward FLOPs of one sequence: matrix products, attention and logits.

        ``2 s (attention + active MLP weights) + attention`` per layer, plus ``2 s h V`` once. [1]_

        Parameters
        ----------
        seq_len
            Length of the sequence. [tokens]
        is_causal
            Count attention over the causal half (True) or the full square (False).
        window
            Sliding window that replaces the model's own. [tokens]

        Returns
        -------
        float
            [FLOP]

        References
        ----------
        .. [1] Narayanan et al., SC'21, section 5.1 and appendix. For a GELU model with ffn = 4h, three times this over
           B full squares is ``72 B s l h^2 (1 + s/(6h) + V/(12 l h))``; their equation 3,
           ``96 B s l h^2 (1 + s/(6h) + V/(16 l h))``, adds the recomputed forward pass of the layers.
        """
        weights = sum(self.attention_parameters + self.mlp_parameters(i, is_active=True) for i in range(self.layers))
        kinds = [window or self.window_of(i) or seq_len for i in range(self.layers)]
        attention = sum(kinds.count(w) * self.attention_flops(seq_len, is_causal, w) for w in sorted(set(kinds)))
        return 2.0 * seq_len * (weights + self.hidden * self.vocab) + attention

    def window_of(self, layer: int) -> int | None:
        """Return the sliding window of a layer, None if it attends to all keys. [tokens]"""
        return self.window if layer % self.window_every == 0 else None

    def training_flops(self, seq_len: int, is_causal: bool, window: int | None = None) -> float:
        """Model FLOPs of one sequence, forward and backward (3 x forward; recomputation is not counted). [FLOP]"""
        return 3.0 * self.forward_flops(seq_len, is_causal, window)
