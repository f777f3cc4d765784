"""Signals 1 and 3: each arm's MoE blocks on the very hidden states of the baseline, and on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moecheck.errors import HarnessError
from moecheck.evals.backends.backend import SeesExperts, WhiteBox
from moecheck.evals.backends.records import FloatRows, LayerCapture
from moecheck.evals.signals.attribution import LayerFit, fit_layer
from moecheck.evals.signals.inferred import with_inferred_choice
from moecheck.evals.signals.limits import LIMITS
from moecheck.evals.signals.routing import LayerAgreement, agreement

from .settings import PLANS, Settings
from .watcher import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDepth:
    """How far an arm is from the baseline at one MoE layer, |cand - base| / |base| over all tokens.

    isolated: of the block's output on the baseline's hidden states. hidden, output: of the block's input and output on
    the arm's own hidden states. kl: mean KL per token of gold answers where this layer alone is the arm's, None where
    layers cannot be exchanged.
    """

    layer: int
    isolated: float
    hidden: float
    output: float
    kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolated:
    """Of one arm: fits of each layer and plan of calls, agreement of its routers, departure over depth."""

    fits: tuple[LayerFit, ...]
    agreements: tuple[LayerAgreement, ...]
    depth: tuple[LayerDepth, ...]


class References:
    """The baseline's captures of the sample, taken once and held against every other arm."""

    def __init__(self, baseline: WhiteBox, settings: Settings) -> None:
        self._pairs = [settings.pair(index) for index in settings.sample[: settings.captured]]
        self._row_limit = LIMITS[settings.precision].row
        self._baseline = baseline
        self._experts: dict[int, FloatRows] = {}
        self.captures = baseline.capture(self._pairs)

    def against(self, arm: WhiteBox, watcher: Watcher) -> Isolated:
        """One arm's blocks on them."""
        own = {capture.layer: capture for capture in arm.capture(self._pairs)}
        fits, agreements, depth = [], [], []
        for reference in self.captures:
            replays = {plan: _replay(arm, reference, size, most) for plan, size, most in PLANS}
            whole = replays["whole"]
            for plan, replayed in replays.items():
                part = _rows(reference, slice(0, len(replayed.output)))
                fits.append(fit_layer(part, replayed, plan=plan, row_limit=self._row_limit))
                chosen = self._with_choice(part, replayed)
                found = agreement(part, chosen, own.get(reference.layer) if plan == "whole" else None)
                if found is not None and (plan == "whole" or found.isolated < 1):
                    agreements.append(found)
            depth.append(_depth(reference, whole, own[reference.layer]))
            watcher.step()
        return Isolated(fits=tuple(fits), agreements=tuple(agreements), depth=tuple(depth))

    def _with_choice(self, reference: LayerCapture, replayed: LayerCapture) -> LayerCapture:
        """Where a kernel of the whole layer hides its choice: as its output shows it."""
        if replayed.topk_ids is not None or not isinstance(self._baseline, SeesExperts):
            return replayed
        if reference.layer not in self._experts:
            whole = next(one for one in self.captures if one.layer == reference.layer)
            self._experts[reference.layer] = self._baseline.expert_outputs(whole.layer, whole.hidden)
        return with_inferred_choice(reference, replayed, self._experts[reference.layer][: len(reference.hidden)])


def _replay(arm: WhiteBox, reference: LayerCapture, size: int | None, most: int | None) -> LayerCapture:
    """The arm's block on the first `most` rows of a capture, `size` at a call."""
    tokens = len(reference.hidden) if most is None else min(most, len(reference.hidden))
    step = size or tokens
    parts = []
    for start in range(0, tokens, step):
        asked = _rows(reference, slice(start, min(start + step, tokens)))
        given = asked.hidden.copy()
        part = arm.replay(reference.layer, replace(asked, hidden=given))
        if part.output.shape != asked.hidden.shape:
            raise HarnessError(f"layer {reference.layer}: a replay of {asked.hidden.shape} gave {part.output.shape}.")
        if not np.array_equal(given, asked.hidden):
            raise HarnessError(f"layer {reference.layer}: the replay changed the hidden states that it was given.")
        parts.append(part)
    return _joined(parts)


def _rows(capture: LayerCapture, rows: slice) -> LayerCapture:
    return _mapped([capture], lambda arrays: arrays[0][rows])


def _joined(captures: Sequence[LayerCapture]) -> LayerCapture:
    return captures[0] if len(captures) == 1 else _mapped(captures, np.concatenate)


def _mapped(captures: Sequence[LayerCapture], join: Callable[[Sequence[Any]], Any]) -> LayerCapture:
    """Every array of the captures, which have the same ones, joined to one."""
    names = ("hidden", "output", "topk_ids", "topk_weights", "routed", "shared", "choice_gap", "choice_seen")
    changes: dict[str, Any] = {}
    for name in names:
        arrays = [getattr(capture, name) for capture in captures]
        changes[name] = None if any(array is None for array in arrays) else join(arrays)
    return replace(captures[0], **changes)


def _depth(reference: LayerCapture, replayed: LayerCapture, own: LayerCapture) -> LayerDepth:
    return LayerDepth(
        layer=reference.layer,
        isolated=_departure(reference.output, replayed.output),
        hidden=_departure(reference.hidden, own.hidden),
        output=_departure(reference.output, own.output),
    )


def _departure(one: FloatRows, two: FloatRows) -> float:
    if one.shape != two.shape:
        raise HarnessError(f"captures of {one.shape} and {two.shape} cannot be compared.")
    size = float(np.linalg.norm(one.astype(np.float64)))
    gone = float(np.linalg.norm(two.astype(np.float64) - one.astype(np.float64)))
    return gone / size if size else gone


def worst_by_layer(several: Sequence[Isolated]) -> Iterator[LayerDepth]:
    """At each layer the largest departures among several arms, for the band of legal variants."""
    for layers in zip(*(one.depth for one in several), strict=True):
        yield LayerDepth(
            layer=layers[0].layer,
            isolated=max(layer.isolated for layer in layers),
            hidden=max(layer.hidden for layer in layers),
            output=max(layer.output for layer in layers),
        )
