"""The transformer of ACT: post-norm (or pre-norm) layers whose positions go to queries and keys only.

As in DETR (Carion et al. 2020), positions are added in every layer and never to the values. Everything
is batch first. Parameter names are those of ``nn.MultiheadAttention`` and LeRobot, so that their
weights load; attention itself goes through ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.config import ACTConfig


class Attention(nn.Module):
    """Multi-head attention with the parameters of ``nn.MultiheadAttention``, batch first."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        """``query`` (B, Q, D), ``key`` and ``value`` (B, K, D), ``keep`` bool (B, K) → (B, Q, D)."""
        w_query, w_key, w_value = self.in_proj_weight.chunk(3)
        b_query, b_key, b_value = self.in_proj_bias.chunk(3)
        q = self._split(F.linear(query, w_query, b_query))
        k = self._split(F.linear(key, w_key, b_key))
        v = self._split(F.linear(value, w_value, b_value))
        mask = None if keep is None else keep[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.self_attn = Attention(dim, config.heads, dropout)
        self.linear1 = nn.Linear(dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = config.pre_norm
        self.activation = F.relu if config.activation == "relu" else F.gelu

    def forward(self, x: Tensor, pos: Tensor, keep: Tensor | None = None) -> Tensor:
        """``x`` (B, T, D), ``pos`` broadcastable to it, ``keep`` bool (B, T) → (B, T, D)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), pos, keep)
            return x + self._feed(self.norm2(x))
        x = self.norm1(x + self._attend(x, pos, keep))
        return self.norm2(x + self._feed(x))

    def _attend(self, x: Tensor, pos: Tensor, keep: Tensor | None) -> Tensor:
        placed = x + pos
        return self.dropout(self.self_attn(placed, placed, x, keep))

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class DecoderLayer(nn.Module):
    """Self-attention over the action queries, attention to the encoder's tokens, a perceptron."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        dim, dropout = config.dim, config.dropout
        self.self_attn = Attention(dim, config.heads, dropout)
        self.multihead_attn = Attention(dim, config.heads, dropout)
        self.linear1 = nn.Linear(dim, config.ffn)
        self.linear2 = nn.Linear(config.ffn, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = config.pre_norm
        self.activation = F.relu if config.activation == "relu" else F.gelu

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        """``x`` (B, H, D) queries, ``memory`` (B, T, D) tokens, positions broadcastable → (B, H, D)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), query_pos)
            x = x + self._look(self.norm2(x), query_pos, memory, memory_pos)
            return x + self._feed(self.norm3(x))
        x = self.norm1(x + self._attend(x, query_pos))
        x = self.norm2(x + self._look(x, query_pos, memory, memory_pos))
        return self.norm3(x + self._feed(x))

    def _attend(self, x: Tensor, pos: Tensor) -> Tensor:
        placed = x + pos
        return self.dropout(self.self_attn(placed, placed, x))

    def _look(self, x: Tensor, pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        return self.dropout(self.multihead_attn(x + pos, memory + memory_pos, memory))

    def _feed(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class Encoder(nn.Module):
    """A stack of encoder layers; a last norm only when they are pre-norm."""

    def __init__(self, config: ACTConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(layers))
        self.norm = nn.LayerNorm(config.dim) if config.pre_norm else nn.Identity()

    def forward(self, x: Tensor, pos: Tensor, keep: Tensor | None = None) -> Tensor:
        """See `EncoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, pos, keep)
        return self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers and a last norm."""

    def __init__(self, config: ACTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, memory_pos: Tensor) -> Tensor:
        """See `DecoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, query_pos, memory, memory_pos)
        return self.norm(x)
