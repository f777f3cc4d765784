"""The PyTorch kernels of rarer semantics, judged as a run judges them; packing of ids and weights bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moecheck import Unsupported
from moecheck.cases import Case
from moecheck.checks.finding import Verdict
from moecheck.checks.judge import Limits, judge
from moecheck.curated import cases_for
from moecheck.curated_semantics import SEMANTICS
from moecheck.kernels.torch.activation import act_and_mul
from moecheck.kernels.torch.expert_outputs import expert_outputs
from moecheck.kernels.torch.index_add import fused_experts
from moecheck.kernels.torch.moe_layer import moe_layer
from moecheck.kernels.torch.packed_routing import LARGEST_ID, pack, packed_topk_routing, unpack
from moecheck.kernels.torch.routing import topk_routing
from moecheck.oracle import Oracle, spec_part
from moecheck.runner.plan import lacking
from tests.checks.honest import verdict_of
from tests.kernels.torch_bridge import on_torch, to_numpy

KERNELS: tuple[Any, ...] = (topk_routing, packed_topk_routing, act_and_mul, fused_experts, expert_outputs, moe_layer)
CASES = [case for op in SEMANTICS for case in cases_for(op, profile="quick", seed=0, examples=0)]
RARE = {row[0] for rows in SEMANTICS.values() for row in rows}
CALLS = [
    pytest.param(kernel, case, id=f"{kernel.__moecheck__.name}: {case.name}")
    for kernel in KERNELS
    for case in CASES
    if case.op == kernel.__moecheck__.op
    and (case.name in RARE or case.op == "expert_outputs")
    and case.num_tokens
    and lacking(kernel.__moecheck__, case) is None
]


@pytest.mark.parametrize(("kernel", "case"), CALLS)
def test_it_passes(kernel: Any, case: Case) -> None:
    declared, oracle = kernel.__moecheck__, Oracle()
    result = kernel(**on_torch(oracle.inputs(case)), spec=spec_part(case.op, case.spec))
    outputs = tuple(to_numpy(out.contiguous()) for out in (result if isinstance(result, tuple) else (result,)))

    judged = judge(case, outputs, oracle, Limits(), declared.numerics, tie=declared.tie)

    assert verdict_of(judged) is Verdict.PASS, [found.message for found in judged.judgements]


def test_packing_rounds_weights_to_bf16_and_keeps_ids() -> None:
    """1 + 2^-8 lies half way between 1 and 1 + 2^-7 and goes to the even one; 1 + 3 * 2^-8 too."""
    weights = torch.tensor([[1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 0.0, -2.5]])
    ids = torch.tensor([[0, 7, LARGEST_ID, 300]], dtype=torch.int32)

    packed = pack(weights, ids)
    seen, same = unpack(packed)

    assert packed[0, 1].item() == (7 << 16) | 0x3F82
    assert seen.tolist() == [[1.0, 1.0 + 2.0**-6, 0.0, -2.5]]
    assert same.tolist() == ids.tolist()


def test_an_id_of_16_bits_is_declined() -> None:
    with pytest.raises(Unsupported, match="15 bits, and 32768"):
        pack(torch.ones(1, 1), torch.tensor([[LARGEST_ID + 1]]))


def test_a_packed_weight_is_not_what_an_fp32_contract_says() -> None:
    """The bf16 store is part of the kernel's declaration: without it the same outputs fail."""
    case = next(case for case in CASES if case.op == "topk_routing" and case.name == "two-norm")
    oracle = Oracle()
    result = packed_topk_routing(**on_torch(oracle.inputs(case)), spec=case.spec.routing)
    outputs = tuple(to_numpy(out) for out in result)

    fp32 = judge(case, outputs, oracle, Limits(), KERNELS[0].__moecheck__.numerics)

    assert verdict_of(fp32) is Verdict.FAIL
    assert not np.array_equal(outputs[0], oracle.outputs(case)[0].astype(np.float32))
