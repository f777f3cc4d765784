"""Cases with quantised weights: what kernels get, the numbers that the references use, and what does not fit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecheck import CaseError, ExpertSpec, MoESpec, Quantization, RoutingSpec, SpecError, UsageError
from moecheck.cases import Case
from moecheck.formats import round_to
from moecheck.kernel import describe
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle, call_reference, essence
from moecheck.quantised_cases import cases_of_scheme, quantised_cases, schemes
from moecheck.quantization import SCHEMES
from moecheck.quantized_inputs import dequantised
from moecheck.quantizer import Quantizer
from moecheck.references.fused_experts import estimate, fused_experts
from moecheck.runner.arrays import to_native
from moecheck.runner.input_store import shared_inputs
from moecheck.runner.plan import array_arguments, lacking
from moecheck.testing import assert_moe_close


def case_of(name: str, **changes: Any) -> Case:
    """A small case of a scheme; no width is a multiple of a block."""
    sizes = {"num_tokens": 6, "num_experts": 3, "hidden_size": 152, "intermediate_size": 72}
    spec = MoESpec(routing=RoutingSpec(top_k=2), experts=ExpertSpec(quantization=SCHEMES[name]))
    return Case(**{"op": "fused_experts", "spec": spec, **sizes, **changes})


def numbers_by_hand(inputs: dict[str, Any], name: str, expert: int, quantization: Quantization) -> list[list[Fraction]]:
    """The weights of one expert from its bytes, with ml_dtypes for the codes and exact fractions for the products."""
    codes = inputs[name][expert].view(np.uint8)
    if quantization.packed:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    formats = {
        "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "fp6_e2m3": ml_dtypes.float6_e2m3fn,
        "fp6_e3m2": ml_dtypes.float6_e3m2fn,
        "fp4_e2m1": ml_dtypes.float4_e2m1fn,
        "int8": np.int8,
        "int4": ml_dtypes.int4,
    }
    if quantization.weights in formats:
        q = codes.view(formats[quantization.weights]).astype(np.float64)
    else:
        q = codes.astype(np.float64) - {"uint4b8": 8, "uint8b128": 128, "uint4": 0}[quantization.weights]
    scale = inputs[f"{name}_scale"][expert]
    if quantization.scale == "e8m0":
        scale = scale.view(ml_dtypes.float8_e8m0fnu)
    rows, columns = quantization.rows or len(q), quantization.columns or q.shape[1]
    whole = inputs[f"{name}_global_scale"][expert] if quantization.scale == "e4m3" else 1.0
    found = []
    for n in range(len(q)):
        line = []
        for k in range(q.shape[1]):
            i, j = n // rows, k // columns
            if quantization.swizzled:  # byte of the tile's row and column
                across = scale.shape[1] // 4
                place = (i // 128 * across + j // 4) * 512 + i % 32 * 16 + i % 128 // 32 * 4 + j % 4
                of_block = scale.reshape(-1)[place]
            else:
                of_block = scale[i, j]
            zero = int(inputs[f"{name}_zeros"][expert][i, j]) if quantization.zero_points else 0
            line.append((Fraction(float(q[n, k])) - zero) * Fraction(float(of_block)) * Fraction(float(whole)))
        found.append(line)
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_the_references_use_the_numbers_that_the_codes_stand_for(name: str) -> None:
    case = case_of(name, num_experts=2, hidden_size=40, intermediate_size=18)
    inputs = case.inputs()
    plain = dequantised(case, inputs)
    for matrix in ("w13", "w2"):
        wanted = numbers_by_hand(inputs, matrix, 1, SCHEMES[name])
        found = [[Fraction(value) for value in row] for row in plain[matrix][1].tolist()]
        assert found == wanted
    assert not [key for key in plain if key.endswith(("_zeros", "global_scale")) or key in ("w13_scale", "w2_scale")]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_reference_takes_codes_as_it_takes_numbers(name: str) -> None:
    case = case_of(name)
    inputs = case.inputs()
    from_codes = call_reference(fused_experts, case, inputs)
    assert np.array_equal(from_codes, call_reference(fused_experts, case, dequantised(case, inputs)))
    assert np.array_equal(from_codes, Oracle().values(case, None).true)
    assert np.sqrt(np.mean(from_codes**2)) > 0.1  # not a case that shows nothing
    with pytest.raises(ValueError, match="without their scales"):
        call_reference(estimate, case, inputs)


@pytest.mark.parametrize("name", SCHEMES)
def test_arguments_are_those_that_the_scheme_names(name: str) -> None:
    case, quantization = case_of(name), SCHEMES[name]
    inputs = case.inputs()
    assert set(inputs) == array_arguments(case)
    assert set(quantization.arguments) <= set(inputs)
    experts, halves = 3, 2 * 72
    columns = {"w13": 152, "w2": 72}
    for matrix, rows in (("w13", halves), ("w2", 152)):
        assert inputs[matrix].shape == (experts, rows, columns[matrix] // (2 if quantization.packed else 1))
        if not quantization.swizzled:
            blocks = -(-rows // (quantization.rows or rows)), -(-columns[matrix] // (quantization.columns or 10**9))
            assert inputs[f"{matrix}_scale"].shape == (experts, *blocks)


@pytest.mark.parametrize("name", SCHEMES)
def test_scales_differ_from_block_to_block(name: str) -> None:
    case = case_of(name)
    scale = np.asarray(case.inputs()["w2_scale"]).astype(np.float64)
    if SCHEMES[name].scale == "e8m0":
        scale = np.exp2(scale)
    used = scale[scale > 0]
    if SCHEMES[name].columns in (16, 32):  # many groups: as far apart as a scale read from elsewhere must be to show
        assert used.max() / used.min() >= 2.0**5
    assert len(np.unique(used)) > 1


@pytest.mark.parametrize(
    "name", ["fp8-block", "fp8-fnuz-channel", "int4-group64-zeros", "mxfp4", "nvfp4", "int8-channel"]
)
def test_arrays_go_to_torch_and_to_disk_bit_for_bit(name: str, tmp_path: Any) -> None:
    case = case_of(name, num_experts=8, hidden_size=256, intermediate_size=192)
    inputs = case.inputs()
    (tmp_path / "store").mkdir()
    shared_inputs(case, str(tmp_path / "store"))
    again = shared_inputs(case, str(tmp_path / "store"))
    for key, value in inputs.items():
        assert again[key].dtype == value.dtype
        assert again[key].tobytes() == value.tobytes()
        native = to_native(value, "torch")
        assert native.element_size() == value.itemsize
        assert native.contiguous().view(torch.uint8).numpy().tobytes() == value.tobytes()


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_drawn_cases_have_inputs_and_come_back_from_json(data: st.DataObject) -> None:
    case = data.draw(cases_of_scheme(data.draw(schemes()), small=True))
    assert Case.from_json(case.to_json()) == case
    assert set(case.inputs()) == array_arguments(case)


def test_named_cases_cover_ragged_blocks_and_are_distinct() -> None:
    cases = quantised_cases(tuple(SCHEMES.values()), profile="nightly", seed=0, dtypes=("bf16",), examples=0)
    assert len({case.id for case in cases}) == len(cases)
    assert any(case.hidden_size % 128 and case.intermediate_size % 128 for case in cases)
    assert {case.spec.experts.quantization for case in cases} == set(SCHEMES.values())


def test_a_store_of_dequantised_weights_rounds_them() -> None:
    case = case_of("int4-group32", dtype="bf16")
    inputs = Oracle().inputs(case)
    low = {**inputs, **{name: round_to(inputs[name], "bf16") for name in ("w13", "w2")}}
    assert not np.array_equal(low["w2"], inputs["w2"])  # 4 bits times 8 bits need up to 12
    stored = call_reference(fused_experts, case, inputs, numerics=Numerics(out="fp32", dequantised="bf16"))
    assert np.array_equal(stored, call_reference(fused_experts, case, low, numerics=Numerics(out="fp32")))


def test_sigma_allows_for_a_store_of_dequantised_weights() -> None:
    case, oracle = case_of("int4-group32", dtype="fp32"), Oracle()
    kept = oracle.values(case, Numerics(gate_up="fp32"))
    low = oracle.values(case, Numerics(dequantised="bf16"))
    assert np.median(low.sigma) > 10 * np.median(kept.sigma)
    assert np.array_equal(low.true, kept.true)
    assert not np.array_equal(low.rounded, kept.rounded)


def test_contracts_of_plain_weights_do_not_depend_on_the_store_of_dequantised_ones() -> None:
    plain = Case(op="fused_experts")
    assert essence(Numerics(dequantised="bf16"), plain) == essence(Numerics(), plain)
    assert essence(Numerics(dequantised="bf16"), case_of("mxfp4")) != essence(Numerics(), case_of("mxfp4"))


def test_static_scales_are_used_where_a_contract_says_so() -> None:
    case, oracle = case_of("fp8-tensor-static"), Oracle()
    static = Quantizer(static=True)
    contract = Numerics(out="fp32", a1_quant=static, a2_quant=static)
    inputs = oracle.inputs(case)
    value = call_reference(fused_experts, case, inputs, numerics=contract)
    other = call_reference(fused_experts, case, {**inputs, "a2_scale": inputs["a1_scale"]}, numerics=contract)
    assert not np.array_equal(value, other)
    assert np.array_equal(oracle.values(case, contract).rounded, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "fp7"}, "must be one of fp8_e4m3fn"),
        ({"rows": -1}, "must be 0"),
        ({"scale": "fp64"}, "must be float32"),
        ({"scale": "e4m3"}, "of nvfp4"),
        ({"weights": "uint4"}, "without zero_points"),
        ({"zero_points": True}, "needs weights='uint4'"),
        ({"swizzled": 1}, "must be true or false"),
    ],
)
def test_schemes_that_do_not_exist_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Quantization(**fields)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fp8-block", {"op": "moe_layer"}, "not of moe_layer"),
        ("fp8-block", {"stratum": "integer"}, "lost in quantised weights"),
        ("mxfp4", {"hidden_size": 33}, "must be even"),
    ],
)
def test_cases_that_cannot_be_quantised_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        case_of(name, **changes)


def test_a_kernel_is_given_the_schemes_that_it_takes() -> None:
    def plain(*, hidden_states, w13, w2, topk_weights, topk_ids, spec):  # type: ignore[no-untyped-def]
        """A kernel without scales."""

    def scaled(*, hidden_states, w13, w2, topk_weights, topk_ids, w13_scale, w2_scale, spec):  # type: ignore[no-untyped-def]
        """A kernel that needs them."""

    blocks = (SCHEMES["fp8-block"],)
    without = describe(plain, op="fused_experts", backend="numpy")
    declared = describe(scaled, op="fused_experts", backend="numpy", quantizations=blocks)
    assert lacking(without, case_of("fp8-block")) == "takes no w13_scale, w2_scale"
    assert lacking(declared, case_of("fp8-block")) is None
    assert "takes no int8 weights with a scale for each row" in str(lacking(declared, case_of("int8-channel")))
    assert "needs w13_scale" in str(lacking(declared, Case(op="fused_experts")))
    assert describe(scaled, op="fused_experts", backend="numpy").quantizations == tuple(SCHEMES.values())
    with pytest.raises(UsageError, match="takes no w13_scale"):
        describe(plain, op="fused_experts", backend="numpy", quantizations=blocks)
    numerics = Numerics(a1_quant=Quantizer(static=True))
    with pytest.raises(UsageError, match="must need a1_scale"):
        describe(scaled, op="fused_experts", backend="numpy", quantizations=blocks, numerics=numerics)


def test_tests_of_other_projects_are_told_to_give_plain_weights() -> None:
    case = case_of("fp8-block")
    inputs = case.inputs()
    with pytest.raises(UsageError, match=r"Quantised weights \(w13_scale, w2_scale\)"):
        assert_moe_close(np.zeros((6, 152), np.float32), inputs, op="fused_experts")
