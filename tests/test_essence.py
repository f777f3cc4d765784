"""What of a contract matters on a case: contracts with the same essence give the same values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.numerics import STORES, Numerics
from moecheck.oracle import Oracle, essence

ALL = Numerics(**dict.fromkeys(STORES, "input"), combine_order="slot")  # type: ignore[arg-type]  # the stores are strings


@pytest.mark.parametrize("op", ["act_and_mul", "grouped_gemm", "unpermute", "fused_experts", "moe_layer"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_is_left_out_changes_nothing(op: str, dtype: str) -> None:
    case = Case(op=op, dtype=dtype, num_tokens=16)
    inputs = Oracle().inputs(case)

    whole, kept = (Oracle._values(case, contract, inputs, {}) for contract in (ALL, essence(ALL, case)))

    np.testing.assert_array_equal(whole.rounded, kept.rounded)
    np.testing.assert_array_equal(whole.true, kept.true)
    np.testing.assert_array_equal(whole.sigma, kept.sigma)


def test_contracts_that_differ_in_what_matters_stay_apart() -> None:
    case = Case(op="unpermute", dtype="bf16")

    assert essence(Numerics(gate_up="input"), case) == essence(Numerics(), case)
    assert essence(Numerics(weighted="input"), case) != essence(Numerics(), case)
    assert essence(replace(ALL, combine_order="expert"), case) != essence(ALL, case)
    assert essence(ALL, replace(case, dtype="fp32")) == essence(Numerics(), replace(case, dtype="fp32"))
