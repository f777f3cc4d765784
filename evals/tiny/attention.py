"""Grouped-query attention over packed tokens, with a cache of keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from .config import TinyConfig
from .weights import AttentionWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Where N packed tokens stand. row: [N] the sequence of the batch. position: [N] in it. longest: positions used.

    first: whether each row's tokens begin at position 0 (else there is one token a row, in the order of rows).
    """

    row: torch.Tensor
    position: torch.Tensor
    rows: int
    longest: int
    first: bool


class Cache:
    """Keys and values of a batch, [layers, rows, key-value heads, positions, head size], rotated already."""

    def __init__(self, config: TinyConfig, *, rows: int, positions: int, like: torch.Tensor) -> None:
        shape = (config.num_layers, rows, config.num_key_value_heads, positions, config.head_size)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows of the batch but these."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class Rotary:
    """cos and sin of every position and pair of dimensions: [positions, rotary size / 2]; halves are rotated.

    Source: arXiv:2104.09864, in the arrangement of transformers' `rotate_half`.
    """

    def __init__(self, config: TinyConfig, device: torch.device) -> None:
        share = torch.arange(0, config.rotary_size, 2, dtype=torch.float32, device=device) / config.rotary_size
        position = torch.arange(config.max_positions, dtype=torch.float32, device=device)
        angles = position[:, None] / config.rope_theta**share
        self.size, self.cos, self.sin = config.rotary_size, angles.cos(), angles.sin()

    def turn(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """x: [N, heads, head size]. position: [N]."""
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        first, second = x[..., : self.size // 2], x[..., self.size // 2 : self.size]
        turned = (first * cos - second * sin, second * cos + first * sin, x[..., self.size :])
        return torch.cat(turned, dim=-1)


def attention(
    x: torch.Tensor, weights: AttentionWeights, config: TinyConfig, rotary: Rotary, cache: Cache, layer: int, at: Packed
) -> torch.Tensor:
    """x: [N, H] normalised hidden states. Adds keys and values to the cache. Returns [N, H]."""
    heads, kv_heads, size = config.num_heads, config.num_key_value_heads, config.head_size
    qkv = functional.linear(x, weights.qkv).view(len(x), heads + 2 * kv_heads, size)
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
    if weights.q_norm is not None and weights.k_norm is not None:
        q = functional.rms_norm(q, (size,), weights.q_norm, config.norm_eps)
        k = functional.rms_norm(k, (size,), weights.k_norm, config.norm_eps)
    q, k = rotary.turn(q, at.position), rotary.turn(k, at.position)
    cache.keys[layer, at.row, :, at.position] = k
    cache.values[layer, at.row, :, at.position] = v
    keys, values = cache.keys[layer, :, :, : at.longest], cache.values[layer, :, :, : at.longest]
    if at.first:
        # Rows are filled up behind their end, where the causal mask hides them from all that counts.
        padded = q.new_zeros(at.rows, at.longest, heads, size)
        padded[at.row, at.position] = q
        if x.is_cuda:  # in fp32 its fused attention wants a key for every query head
            keys, values = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (keys, values))
        out = functional.scaled_dot_product_attention(
            padded.transpose(1, 2), keys, values, is_causal=True, enable_gqa=not x.is_cuda
        )
        mixed = out.transpose(1, 2)[at.row, at.position]
    else:
        seen = torch.arange(at.longest, device=x.device) <= at.position[:, None]
        mixed = _one_token_each(q, keys, values, seen)
    return functional.linear(mixed.reshape(len(x), heads * size), weights.o)


def _one_token_each(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """q: [rows, heads, D]. keys, values: [rows, key-value heads, S, D]. seen: [rows, S] bool. Returns as q."""
    rows, kv_heads, _, size = keys.shape
    grouped = q.view(rows, kv_heads, -1, size)
    scores = (grouped @ keys.transpose(2, 3)) * size**-0.5
    weights = scores.masked_fill(~seen[:, None, None], float("-inf")).softmax(dim=-1)
    mixed: torch.Tensor = weights @ values
    return mixed.view(q.shape)
