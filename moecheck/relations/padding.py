"""Widths that are filled up with zeros change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moecheck.cases import Case
from moecheck.ops import LAYERS
from moecheck.relations.premises import plain_weights, tokens
from moecheck.relations.relation import Call, Calls, Inputs, Pair, Subject, Trial, relation
from moecheck.relations.rows import EVERY, like_the_case
from moecheck.weight_layout import Sizes, WeightLayout, to_layout

MORE_HIDDEN = 128  # what is a multiple of a tile stays one
MORE_INTERMEDIATE = 128


def one_width(subject: Subject) -> str | None:
    """The experts work on the hidden states as they are."""
    return "has experts of a latent width" if subject.case.spec.latent_experts else None


@relation(
    "zeros behind the hidden and the intermediate columns change nothing, and stay zeros",
    ops=("fused_experts", *LAYERS),
    premises=(tokens(1), one_width, plain_weights),
    optional=True,
)
def padded_widths(case: Case, inputs: Inputs) -> Trial:
    """Weights, biases and hidden states filled up with zeros, as engines do for widths that a kernel does not take.

    A kernel may refuse the larger ones.
    """
    H, I = case.hidden_size, case.intermediate_size  # noqa: E741  # the sizes of moecheck.ops
    layout = WeightLayout(hidden_multiple=H + MORE_HIDDEN, intermediate_multiple=I + MORE_INTERMEDIATE)
    shared = case.shared_intermediate_size
    padded = to_layout(inputs, layout, spec=case.spec, sizes=Sizes(H, I, shared))
    changed = replace(
        case,
        hidden_size=H + MORE_HIDDEN,
        intermediate_size=I + MORE_INTERMEDIATE,
        shared_intermediate_size=padded["shared_w2"].shape[-1] if shared else 0,
    )

    def pairs(calls: Calls) -> tuple[Pair, ...]:
        whole = calls.outputs[1]
        same = like_the_case(calls, 1, rows=EVERY)
        rest = np.zeros((len(whole), MORE_HIDDEN))
        return (
            replace(same, got=whole[:, :H]),
            Pair(wanted=rest, got=whole[:, H:], allowed=lambda: rest),
        )

    return Trial(calls=(Call(case=changed, inputs=padded),), pairs=pairs)
