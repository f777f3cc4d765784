"""The model's forward pass over packed tokens: no padding goes through any layer but attention's own matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from .attention import Cache, Packed, Rotary, attention
from .block import Block, BlockOutput
from .config import TinyConfig
from .experts import feed_forward
from .weights import STREAM, MoEWeights, TinyWeights

# Called with a layer's number, its block's input [T, H] and output.
Watch = Callable[[int, torch.Tensor, BlockOutput], None]


class Network:
    """A model with its blocks. blocks: number of a Mixture-of-Experts layer -> what computes it."""

    def __init__(self, weights: TinyWeights, config: TinyConfig, blocks: Mapping[int, Block]) -> None:
        self.weights, self.config, self.blocks = weights, config, blocks
        self.rotary = Rotary(config, weights.device)

    def start(
        self, sequences: Sequence[Sequence[int]], *, room: int = 0, watch: Watch | None = None
    ) -> tuple[torch.Tensor, Cache]:
        """A batch from its first tokens: the final hidden states of all tokens, one sequence after the other, [N, H].

        room: how many positions more the cache has for `step`.
        """
        device = self.weights.device
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        longest = max(map(len, sequences))
        row = torch.repeat_interleave(torch.arange(len(sequences), device=device), lengths)
        position = torch.cat([torch.arange(len(sequence), device=device) for sequence in sequences])
        tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
        cache = Cache(self.config, rows=len(sequences), positions=longest + room, like=self.weights.embedding)
        at = Packed(row=row, position=position, rows=len(sequences), longest=longest, first=True)
        return self._forward(tokens, at, cache, watch), cache

    def step(self, tokens: torch.Tensor, position: torch.Tensor, longest: int, cache: Cache) -> torch.Tensor:
        """One token more for every row of the cache: tokens, position [rows] to final hidden states [rows, H].

        longest: the largest of the positions, plus one.
        """
        row = torch.arange(len(tokens), device=tokens.device)
        at = Packed(row=row, position=position, rows=len(tokens), longest=longest, first=False)
        return self._forward(tokens, at, cache, None)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, H] to [N, vocabulary]."""
        return functional.linear(hidden, self.weights.embedding)

    def _forward(self, tokens: torch.Tensor, at: Packed, cache: Cache, watch: Watch | None) -> torch.Tensor:
        config, norm = self.config, self._norm
        x = self.weights.embedding[tokens]
        for number, layer in enumerate(self.weights.layers):
            normed = norm(x, layer.input_norm)
            x = x + attention(normed, layer.attention, config, self.rotary, cache, number, at)
            hidden = norm(x, layer.mlp_norm)
            if isinstance(layer.mlp, MoEWeights):
                block = self.blocks[number](hidden)
                if watch is not None:
                    watch(number, hidden, block)
                x = x + block.output
            else:
                x = x + feed_forward(hidden, layer.mlp, "fp32")
        return norm(x, self.weights.norm)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.config.norm_eps * STREAM**2)
