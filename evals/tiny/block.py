"""What computes a Mixture-of-Experts block of the model: the reference path, or whatever takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from .config import TinyConfig
from .experts import Experts, feed_forward, weighted_sum
from .rounding import operand_of, store_of
from .routing import route, router_logits
from .weights import DenseWeights, MoEWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOutput:
    """output: [T, H] float32. The others are None where they cannot be seen.

    topk_weights, topk_ids: [T, k]. choice: [T, E], the scores that choose. routed, shared: [T, H], summands of output.
    """

    output: torch.Tensor
    topk_weights: torch.Tensor | None = None
    topk_ids: torch.Tensor | None = None
    choice: torch.Tensor | None = None
    routed: torch.Tensor | None = None
    shared: torch.Tensor | None = None


class Block(Protocol):
    """hidden: [T, H] float32, normalised. No part of it may be changed."""

    def __call__(self, hidden: torch.Tensor) -> BlockOutput: ...


class ReferenceBlock:
    """Routing, experts and shared experts in torch, eagerly; the experts in a precision, sums in fp32.

    backwards: a token's experts are added up from its last slot to its first.
    """

    def __init__(self, weights: MoEWeights, config: TinyConfig, *, precision: str, backwards: bool = False) -> None:
        self.weights, self.spec, self.precision, self.backwards = weights, config.spec, precision, backwards
        self.experts = Experts.prepared(weights.w13, weights.w2, precision)
        self.shared = None if weights.shared is None else rounded(weights.shared, precision)

    def __call__(self, hidden: torch.Tensor) -> BlockOutput:
        logits = router_logits(hidden, self.weights.router)
        topk_weights, ids, choice = self.route(logits)
        routed = self.routed(hidden, topk_weights, ids)
        return self.finished(hidden, routed, topk_weights, ids, choice)

    def route(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights and ids [T, k] and choice scores [T, E]."""
        return route(logits, self.weights.correction_bias, self.spec.routing)

    def routed(self, hidden: torch.Tensor, topk_weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The routed experts' sum, stored: [T, H]."""
        total = weighted_sum(self.experts.slots(hidden, ids), topk_weights, backwards=self.backwards)
        return store_of(self.precision)(total)

    def finished(
        self,
        hidden: torch.Tensor,
        routed: torch.Tensor,
        topk_weights: torch.Tensor,
        ids: torch.Tensor,
        choice: torch.Tensor,
    ) -> BlockOutput:
        """The block's output from its routed experts' sum, with the shared experts added."""
        shared = None
        output = routed
        if self.shared is not None:
            shared = feed_forward(hidden, self.shared, self.precision)
            output = store_of(self.precision)(routed + shared)
        return BlockOutput(
            output=output, topk_weights=topk_weights, topk_ids=ids, choice=choice, routed=routed, shared=shared
        )


def rounded(weights: DenseWeights, precision: str) -> DenseWeights:
    """The weights as GEMMs of this precision get them."""
    operand = operand_of(precision)
    return DenseWeights(w13=operand(weights.w13), w2=operand(weights.w2))
