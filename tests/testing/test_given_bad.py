"""Arrays that do not fit together are refused in one sentence, which names the argument and its value."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from moecheck.errors import UsageError
from moecheck.spec import ExpertSpec, RoutingSpec
from moecheck.testing.given import given
from tests.testing.calls import LAYER, TOP2, small_case


def changed(op: str = "fused_experts", **changes: Any) -> dict[str, Any]:
    """The inputs of a small case with some of them replaced; a function is applied to the array, None removes it."""
    inputs = small_case(op).inputs()
    for name, change in changes.items():
        inputs[name] = change(inputs[name]) if callable(change) else change
    return {name: value for name, value in inputs.items() if value is not None}


def at(value: int) -> Any:
    """Puts a value at [3, 1], or at [1] of a vector."""

    def put(array: Any) -> Any:
        array = array.copy()
        array[(3, 1) if array.ndim == 2 else 1] = value
        return array

    return put


def two(array: Any) -> Any:
    return array[:2]


def three(array: Any) -> Any:
    return array[:3]


MAP = np.array([-1, -1, 0, 1], np.int32)
BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("no arguments", {}, {}, "Which op takes no arguments?"),
    ("one missing", changed(w2=None), {}, r"Which op takes .*\(fused_experts lacks w2"),
    (
        "one missing, op named",
        changed(w2=None),
        {"op": "fused_experts"},
        "fused_experts needs w2; given: hidden_states",
    ),
    (
        "misspelt",
        {**changed(), "w13_biases": MAP},
        {"op": "fused_experts"},
        "no argument 'w13_biases'. Did you mean 'w13_bias'",
    ),
    ("unlike any", {**changed(), "zzz": MAP}, {"op": "fused_experts"}, "no argument 'zzz'. It takes hidden_states"),
    ("unknown op", changed(), {"op": "fused_expert"}, "Did you mean 'fused_experts'"),
    ("a list", changed(w2=lambda a: a.tolist()), {}, "w2 must be a torch, jax or NumPy array, not list"),
    (
        "float64",
        changed(w2=lambda a: a.astype(np.float64)),
        {},
        "w2 has dtype float64, expected float32 or float16 or bf",
    ),
    ("fp8", changed(w2=lambda a: a.astype(ml_dtypes.float8_e4m3fn)), {}, "w2 has dtype float8_e4m3fn, expected"),
    (
        "torch fp8",
        changed(w2=torch.zeros(4, 64, 32).to(torch.float8_e4m3fn)),
        {},
        "w2 has dtype float8_e4m3fn, expected",
    ),
    ("two formats", changed(w2=lambda a: a.astype(np.float16)), {}, "w2 is fp16 and hidden_states is bf16"),
    ("float ids", changed(topk_ids=lambda a: a.astype(np.float32)), {}, "topk_ids has dtype float32, expected int32"),
    (
        "integer weights",
        changed(topk_weights=lambda a: a.astype(np.int32)),
        {},
        "topk_weights has dtype int32, expected",
    ),
    ("id too large", changed(topk_ids=at(4)), {}, r"topk_ids\[3, 1\]=4 must lie between -1 and 3.*pass expert_map"),
    ("id below -1", changed(topk_ids=at(-2)), {}, r"topk_ids\[3, 1\]=-2 must lie between -1 and 3"),
    (
        "id beyond 32 bits",
        changed(topk_ids=lambda a: at(1 << 40)(a.astype(np.int64))),
        {},
        r"topk_ids\[3, 1\] is 1099511627776",
    ),
    ("axes missing", changed(topk_ids=lambda a: a[:, 0]), {}, r"topk_ids has shape \[12\], expected 2 axes: \[12, 2\]"),
    (
        "other slots",
        changed(topk_ids=lambda a: a[:, :1]),
        {},
        r"topk_ids has shape \[12, 1\], expected \[12, 2\]: k \(slots\) is 2 by",
    ),
    ("other tokens", changed(topk_ids=lambda a: a[:5]), {}, r"expected \[12, 2\]: T \(tokens\) is 12 by hidden_states"),
    ("other hidden size", changed(w2=lambda a: a[:, :60]), {}, r"w2 has shape \[4, 60, 32\], expected \[4, 64, I\]"),
    ("half of w13", changed(w13=lambda a: a[:, :32]), {}, "w13 has 32 rows of an expert, expected 2 x 32"),
    ("odd columns", {"x": np.ones((3, 5), np.float32)}, {}, "x has 5 columns, which cannot be split"),
    ("map too short", changed(expert_map=MAP[:3], w13=two, w2=two), {}, r"topk_ids.* must lie between -1 and 2"),
    ("map beyond", changed(expert_map=MAP + 1, w13=two, w2=two), {}, r"expert_map\[3\]=2 must lie"),
    ("map of nothing", changed("permute", expert_map=np.full(4, -1, np.int32)), {}, "names no local expert"),
    ("no spec", changed("moe_layer"), {}, "moe_layer needs a spec"),
    ("expert spec", changed("moe_layer"), {"spec": ExpertSpec()}, "moe_layer needs a spec"),
    (
        "spec without bias",
        changed("moe_layer"),
        {"spec": TOP2},
        "correction_bias is given, which contradicts spec.routing",
    ),
    ("bias without spec", changed("moe_layer", correction_bias=None), {"spec": LAYER}, "correction_bias is not given"),
    (
        "no shared experts",
        changed("moe_layer", shared_w2=None),
        {"spec": LAYER},
        "shared_w2 is not given, which contradicts",
    ),
    ("no shared gate", changed("moe_layer", shared_gate=None), {"spec": LAYER}, "spec.shared_experts='gated'"),
    (
        "no expert bias",
        changed("moe_layer", w13_bias=None),
        {"spec": LAYER},
        "w13_bias is not given, which contradicts",
    ),
    (
        "an expert too few",
        changed("moe_layer", w13=three, w2=three, w13_bias=three),
        {"spec": LAYER},
        "w13 holds 3 experts, expected 4",
    ),
    ("too many slots", changed("topk_routing"), {"spec": RoutingSpec(top_k=9)}, "top_k=9 must be ≤ num_experts=4"),
    (
        "slots against spec",
        changed(),
        {"spec": RoutingSpec(top_k=3, renormalize=True)},
        "ids have 2 slots, which contradicts spec.routing.top_k=3",
    ),
    ("ends fall", changed("grouped_gemm", expert_ends=at(0)), {}, r"expert_ends\[1\]=0 is less than the one before"),
    (
        "ends beyond",
        changed("grouped_gemm", expert_ends=lambda a: a + 1),
        {},
        r"expert_ends\[3\]=25 must lie between 0 and 24",
    ),
    ("row beyond", changed("shuffle_rows", row_map=at(12)), {}, r"row_map\[1\]=12 must lie between 0 and 11"),
    ("no row", changed("shuffle_rows", row_map=at(-1)), {}, r"row_map\[1\]=-1 must lie between 0 and 11"),
    ("slot beyond", changed("unpermute", inv_permuted_idx=at(24)), {}, r"inv_permuted_idx\[3, 1\]=24 must lie"),
    ("no block", changed("align_block_size", block_size=0), {}, "block_size=0 must be an integer of at least 1"),
    ("a float block", changed("align_block_size", block_size=16.0), {}, "block_size=16.0 must be an integer"),
    ("two blocks", changed("align_block_size", block_size=np.array([16, 16])), {}, "must be an integer"),
    ("a true block", changed("align_block_size", block_size=True), {}, "block_size=True must be an integer"),
    ("other experts", changed("align_block_size", expert_map=MAP[:3]), {}, r"E \(experts\) is 4 by num_experts"),
    (
        "bf16 scale",
        changed("permute", hidden_scale=np.ones((12, 1), ml_dtypes.bfloat16)),
        {},
        "hidden_scale has dtype bfloat16",
    ),
]


@pytest.mark.parametrize(("inputs", "more", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_does_not_fit_is_one_sentence(inputs: dict[str, Any], more: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        given(inputs, **more)
    assert "\n" not in str(caught.value)
