"""Which way a call of block-quantised fp8 experts takes: one launch, two launches of GEMMs, or plain weights.

The rule, first match:

1. Weights are dequantised to the activations' dtype where they have no scales of 128 x 128 blocks, or the device has no
   fp8 conversion (compute capability below 8.9): the plain experts then run on them.
2. One launch takes calls of few rows: at most MOST_ROWS (token, slot) pairs for each expert on average, and no biases.
   The weights' bytes are the limit there, and launches cost as much as reading them.
3. One launch also needs a configuration measured for the layer and about so many tokens (`moecheck tune
   triton/fp8_one_launch`); without one the two-launch kernel runs, and a warning says so once.
4. Two launches take the rest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch

import moecheck
from moecheck.tuning import Configuration, Layer

from ._launch import layer_of
from ._one_launch import CHUNKS, SCHEME, TUNING, one_launch
from ._quantised_launch import BLOCK, quantised_experts
from .experts import fused_gate_up

Path = Literal["one launch", "two launches", "dequantise"]
MOST_ROWS = 32  # mean pairs of an expert up to which weights are the limit; not yet measured
FIRST_WITH_FP8 = (8, 9)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The way of a call, and the clause of the rule that decided. configuration: of one launch."""

    path: Path
    reason: str
    configuration: Configuration | None = None

    def words(self) -> str:
        """`two launches: 64 rows of an expert on average, more than 32`."""
        return f"{self.path}: {self.reason}"


def choose(
    layer: Layer,
    tokens: int,
    *,
    capability: tuple[int, int] | None,
    scale_block: tuple[int, int] = (BLOCK, BLOCK),
    biases: bool = False,
    gate_up_layout: str = "halves",
) -> Choice:
    """The rule for a layer and a number of tokens. capability: of the GPU, None for Triton's interpreter."""
    if scale_block != (BLOCK, BLOCK):
        reason = "scales of {} x {}, not of blocks of 128 x 128".format(*scale_block)
        return Choice(path="dequantise", reason=reason)
    if capability is not None and capability < FIRST_WITH_FP8:
        return Choice(path="dequantise", reason="a GPU without fp8 conversion ({}.{})".format(*capability))
    if biases:
        return Choice(path="two launches", reason="one launch adds no biases")
    if gate_up_layout not in CHUNKS:
        return Choice(path="two launches", reason=f"one launch takes no gates and ups as {gate_up_layout}")
    rows = tokens * layer.top_k / max(1, layer.experts)
    if rows > MOST_ROWS:
        return Choice(path="two launches", reason=f"{rows:.4g} rows of an expert on average, more than {MOST_ROWS}")
    found = TUNING.configuration(layer, tokens)
    if found is None:
        return Choice(path="two launches", reason="no configuration was measured for one launch")
    return Choice(path="one launch", reason=f"{rows:.4g} rows of an expert on average", configuration=found)


def fp8_experts(
    *,
    hidden_states: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    spec: moecheck.ExpertSpec,
) -> tuple[torch.Tensor, Choice]:
    """The weighted sum of each token's experts by the way that the rule chooses, and that choice, which is logged.

    hidden_states: [T, H]. w13: [L, 2I, H] fp8. w2: [L, H, I] fp8. w13_scale, w2_scale: float32, of blocks of any size.
    Others as those of triton/fp8_block. Returns [T, H] and the Choice. Each way rounds elsewhere, so that this is no
    kernel of one contract: each of the three is checked under its own name.
    """
    choice = choose(
        layer_of(w13, w2, topk_ids, weights=SCHEME),
        len(hidden_states),
        capability=torch.cuda.get_device_capability(w13.device) if w13.is_cuda else None,
        scale_block=_block(w13, w13_scale),
        biases=w13_bias is not None or w2_bias is not None,
        gate_up_layout=spec.gate_up_layout,
    )
    log.info("%d tokens: %s", len(hidden_states), choice.words())
    if choice.path == "one launch":
        out = one_launch(
            hidden_states, (w13, w13_scale), (w2, w2_scale), topk_weights, topk_ids, expert_map, spec,
            ordered=False, tiles=choice.configuration,
        )  # fmt: skip
    elif choice.path == "two launches":
        out = quantised_experts(
            hidden_states, topk_weights, topk_ids, expert_map, spec,
            first=(w13, w13_scale, w13_bias, None), second=(w2, w2_scale, w2_bias, None), group=BLOCK,
        )  # fmt: skip
    else:
        dtype = hidden_states.dtype
        out = fused_gate_up(
            hidden_states=hidden_states, w13=dequantise(w13, w13_scale, dtype), w2=dequantise(w2, w2_scale, dtype),
            topk_weights=topk_weights, topk_ids=topk_ids, w13_bias=w13_bias, w2_bias=w2_bias, expert_map=expert_map,
            spec=spec,
        )  # fmt: skip
    return out, choice


def dequantise(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Codes [L, N, K] times the scales of their blocks [L, n, k], rounded once to `dtype`, an expert at a time."""
    rows, columns = _block(codes, scale)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for expert, matrix in enumerate(codes):
        each = scale[expert].repeat_interleave(rows, dim=0)[: codes.shape[1]]
        out[expert] = matrix.float() * each.repeat_interleave(columns, dim=1)[:, : codes.shape[2]]
    return out


def _block(codes: torch.Tensor, scale: torch.Tensor) -> tuple[int, int]:
    """Rows and columns that share a scale: 128 where so many scales are of 128, else what divides the sizes."""
    sizes = [
        BLOCK if -(-size // BLOCK) == count else -(-size // count)
        for size, count in zip(codes.shape[1:], scale.shape[1:], strict=True)
    ]
    return sizes[0], sizes[1]
