"""The protocol between the end-to-end harness and what runs a model; a backend is one arm of one model.

The harness decides which prompts share a batch: one call of `generate`, `score` or `capture` is one batch, and both
arms are called with the same ones. A backend must not split, merge or reorder it, nor look at earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .records import Arm, Evidence, Fingerprint, FloatRows, Generation, LayerCapture, ModelFacts, Precision, Scored

# (context, continuation): its tokens are those of encode(context + continuation) after the first len(encode(context)).
ScoredPair = tuple[str, str]


class Backend(Protocol):
    """One arm of one model, open and ready."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What decides its outputs; caches and resumed runs are keyed by it."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids without special tokens."""
        ...

    def generate(self, prompts: Sequence[str], *, until: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Greedy answers to one batch, in its order.

        An answer ends at the first occurrence of any of `until` (which is cut off), at the end token, or after
        max_new_tokens. Argmax takes the lowest token id among equal logits.
        """
        ...

    def score(self, pairs: Sequence[ScoredPair], *, rows: bool = False) -> list[Scored]:
        """Log-probabilities of gold continuations of one batch, by one forward pass; rows: of the vocabulary too.

        Raises Unsupported where the backend has no log-probabilities.
        """
        ...

    def close(self) -> None:
        """Give memory and processes back; calling it twice is allowed."""
        ...


@runtime_checkable
class WhiteBox(Protocol):
    """What a backend offers beyond Backend where it can look into its MoE layers."""

    def capture(self, pairs: Sequence[ScoredPair]) -> list[LayerCapture]:
        """What goes through each MoE block on one batch, in the order of layers, on this arm's own hidden states."""
        ...

    def replay(self, layer: int, hidden: LayerCapture) -> LayerCapture:
        """The block `layer` of this arm on the rows `hidden.hidden` of another arm's capture, as one call of T tokens.

        A kernel gets these rows in the arm's precision, as it would inside the model.
        """
        ...

    def evidence(self, pairs: Sequence[ScoredPair]) -> Evidence:
        """Calls so far, and the watermark tried on this batch: each layer's kernel result doubled once."""
        ...


@runtime_checkable
class SeesExperts(Protocol):
    """A WhiteBox of the reference path that can compute every expert, whatever the router says."""

    def expert_outputs(self, layer: int, hidden: FloatRows) -> FloatRows:
        """Each of the E experts on each row of hidden [T, H]: [T, E, H]."""
        ...


@runtime_checkable
class OneLayerAlone(Protocol):
    """A WhiteBox whose layers can be exchanged one by one with another arm's of the same model."""

    def alone(self, layer: int, others: Backend) -> Backend:
        """An arm with the block of this one in `layer`, and that of `others` in every other layer."""
        ...


class Model(Protocol):
    """A checkpoint from which arms are opened; the arms of one model may share its weights."""

    @property
    def facts(self) -> ModelFacts: ...

    def open(self, arm: Arm) -> Backend:
        """One arm. Raises UsageError for a kernel or a mutant that is unknown or does not fit this model, and
        Unsupported for one that cannot run here.
        """
        ...

    def variants(self, precision: Precision) -> tuple[Arm, ...]:
        """Legal variants of the reference path at `precision`: another order of sums, experts in that precision.

        Their largest departure from the baseline is the floor of the signals.
        """
        ...

    def mutants(self) -> tuple[str, ...]:
        """Names that `Arm.mutant` may have."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...
