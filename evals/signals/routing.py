"""Signal 3: does the candidate choose the same experts, on the reference's hidden states and on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moecheck.errors import HarnessError
from moecheck.evals.backends.records import LayerCapture

from .limits import ROUTER_AGREEMENT, TIE_GAP
from .signal import Outcome, Signal, absent

NAME = "router agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAgreement:
    """One layer. isolated: mean over tokens of |S_ref & S_cand| / k on the reference's hidden states, ties left out.

    propagated: the same on each arm's own hidden states, all tokens, None where it was not measured. ties: tokens left
    out. tokens: those that counted. weight_error: max |w_cand - w_ref| / max w_ref over tokens with equal experts,
    None where weights are hidden. inferred: whether the choice was read from the output.
    """

    layer: int
    isolated: float
    propagated: float | None
    ties: int
    tokens: int
    weight_error: float | None
    inferred: bool = False


def agreement(
    reference: LayerCapture, replayed: LayerCapture, own: LayerCapture | None = None
) -> LayerAgreement | None:
    """Of one layer; None where the candidate hides its choice."""
    if reference.topk_ids is None or replayed.topk_ids is None:
        return None
    if reference.topk_ids.shape != replayed.topk_ids.shape:
        raise HarnessError(f"layer {reference.layer}: ids of {reference.topk_ids.shape} and {replayed.topk_ids.shape}.")
    share = _share(reference.topk_ids, replayed.topk_ids)
    clear = np.ones(len(share), np.bool_) if reference.choice_gap is None else reference.choice_gap > TIE_GAP
    clear = clear if replayed.choice_seen is None else clear & replayed.choice_seen
    propagated = None
    if own is not None and own.topk_ids is not None and own.topk_ids.shape == reference.topk_ids.shape:
        propagated = float(_share(reference.topk_ids, own.topk_ids).mean())
    return LayerAgreement(
        layer=reference.layer,
        isolated=float(share[clear].mean()) if clear.any() else float("nan"),
        propagated=propagated,
        ties=int((~clear).sum()),
        tokens=int(clear.sum()),
        weight_error=_weight_error(reference, replayed),
        inferred=replayed.choice_seen is not None,
    )


def router_agreement(layers: Sequence[LayerAgreement], floors: Sequence[LayerAgreement]) -> Signal:
    """The signal of all layers; floors: the same of the legal variants."""
    if not layers:
        return absent(NAME, "the candidate's choice of experts cannot be seen")
    judged = [layer for layer in layers if layer.tokens]
    if not judged and any(layer.inferred for layer in layers):
        return absent(NAME, "the candidate's choice of experts cannot be read from its output")
    if not judged:
        return Signal(name=NAME, outcome=Outcome.INCONCLUSIVE, message="every token is a tie of its router's scores")
    least = min((layer.isolated for layer in floors if layer.tokens), default=None)
    limit = ROUTER_AGREEMENT if least is None else min(ROUTER_AGREEMENT, least)
    worst = min(judged, key=lambda layer: layer.isolated)
    passed = worst.isolated >= limit
    seen = f"{100 * worst.isolated:.4g} % of the chosen experts of layer {worst.layer} are the reference's"
    read = ", as its output tells" if worst.inferred else ""
    propagated = [layer.propagated for layer in layers if layer.propagated is not None]
    return Signal(
        name=NAME,
        outcome=Outcome.PASS if passed else Outcome.FAIL,
        message=(f"{seen}, on the same hidden states" if not passed else f"at least {seen}") + read,
        value=worst.isolated,
        limit=limit,
        floor=least,
        numbers={
            "ties": float(sum(layer.ties for layer in layers)),
            **({"min_propagated": min(propagated)} if propagated else {}),
        },
    )


def _share(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """[T] share of equal experts; ids [T, k]. An id of -1 is no expert and equals nothing."""
    equal = (one[:, :, None] == two[:, None, :]) & (one[:, :, None] >= 0)
    real = np.maximum((one >= 0).sum(axis=1), 1)
    return np.asarray(equal.any(axis=2).sum(axis=1) / real)


def _weight_error(reference: LayerCapture, replayed: LayerCapture) -> float | None:
    if reference.topk_weights is None or replayed.topk_weights is None:
        return None
    assert reference.topk_ids is not None
    assert replayed.topk_ids is not None
    left, right = np.argsort(reference.topk_ids, axis=1), np.argsort(replayed.topk_ids, axis=1)
    ids = np.take_along_axis(reference.topk_ids, left, 1) == np.take_along_axis(replayed.topk_ids, right, 1)
    same = ids.all(axis=1)
    if not same.any():
        return None
    one = np.take_along_axis(reference.topk_weights, left, 1)[same].astype(np.float64)
    two = np.take_along_axis(replayed.topk_weights, right, 1)[same].astype(np.float64)
    return float(np.abs(two - one).max() / np.abs(one).max())
