"""Expert weights of a case as codes and scales, drawn from its plain weights, and the numbers that these stand for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np

from . import draw
from .cases import Case
from .elements import ELEMENTS
from .formats import AnyArray, Float64, to_float64
from .quantization import Quantization
from .weights import ExpertWeights, pre_activation

# Blocks along a sum are larger or smaller by up to 2^3, whole rows and matrices by less, so that a scale read from the
# wrong place shows and yet every expert and column counts.
SPANS = {"blocks": 3.0, "rows": 1.0, "matrix": 0.5}
CODE_DTYPES = {
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "int8": np.int8,
}
MATRICES = ("w13", "w2")
# Static scales: the largest few numbers saturate, and the two are neither equal nor powers of two.
STATIC_REACH = (0.8, 9.0)


def quantized_arrays(case: Case, weights: ExpertWeights) -> dict[str, AnyArray]:
    """Arguments w13, w2 and those of `Quantization.arguments`, one row for each of the rank's experts."""
    quantization = case.spec.experts.quantization
    assert quantization is not None
    quantise = import_module("moecheck.references.quantize_weights").quantize_weights
    arrays: dict[str, AnyArray] = {}
    for name in MATRICES:
        of_expert = weights.w13 if name == "w13" else weights.w2
        parts = [
            quantise(_signed(to_float64(of_expert(e)), case, f"{name}/{e}", quantization), quantization, case.dtype)
            for e in range(weights.count)
        ]
        codes = np.stack([part.codes for part in parts])
        arrays[name] = codes.view(CODE_DTYPES[quantization.weights]) if quantization.weights in CODE_DTYPES else codes
        scales = np.stack([part.scales for part in parts])
        arrays[f"{name}_scale"] = scales.view(ml_dtypes.float8_e4m3fn) if quantization.scale == "e4m3" else scales
        if quantization.zero_points:
            arrays[f"{name}_zeros"] = np.stack([part.zeros for part in parts])
        if quantization.scale == "e4m3":
            arrays[f"{name}_global_scale"] = np.array([part.global_scale for part in parts], np.float32)
    return arrays


def static_scales(case: Case, hidden_states: AnyArray) -> dict[str, AnyArray]:
    """Arguments a1_scale and a2_scale, [1] float32, where the case's quantisers are static."""
    quantization = case.spec.experts.quantization
    if quantization is None or not quantization.static_activations:
        return {}
    limit = ELEMENTS[quantization.weights].max_value
    first = STATIC_REACH[0] * max(float(np.max(np.abs(to_float64(hidden_states)), initial=0.0)), 1.0)
    second = STATIC_REACH[1] * pre_activation(case.spec.experts)
    return {
        "a1_scale": np.array([first / limit], np.float32),
        "a2_scale": np.array([second / limit], np.float32),
    }


def dequantised(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with w13 and w2 as the float64 numbers that their codes and scales stand for, and without scales.

    Inputs of a case whose weights are not quantised, or that were dequantised before, are returned as they are.
    """
    quantization = case.spec.experts.quantization
    if quantization is None or "w13_scale" not in inputs:
        return inputs
    of_weights = {f"{name}_{part}" for name in MATRICES for part in ("scale", "zeros", "global_scale")}
    plain = {name: value for name, value in inputs.items() if name not in of_weights}
    stack = import_module("moecheck.references._quantized_experts").QuantizedExperts
    for name in MATRICES:
        experts = stack(
            inputs[name],
            inputs[f"{name}_scale"],
            quantization,
            zeros=inputs.get(f"{name}_zeros"),
            global_scales=inputs.get(f"{name}_global_scale"),
        )
        plain[name] = np.stack([experts[e] for e in range(len(inputs[name]))])
    return plain


def _signed(w: Float64, case: Case, name: str, quantization: Quantization) -> Float64:
    """The weights times a factor of each block, whose mean square is 1: a signature of the block's scale."""
    rows, columns = quantization.rows or w.shape[0], quantization.columns or w.shape[1]
    kind = "blocks" if columns < w.shape[1] else "rows" if rows < w.shape[0] else "matrix"
    span, count = SPANS[kind], (-(-w.shape[0] // rows), -(-w.shape[1] // columns))
    exponent = span * (2.0 * draw.uniforms((case.key, "signature", name), count) - 1.0)
    mean_square = np.sinh(2.0 * span * np.log(2.0)) / (2.0 * span * np.log(2.0))
    factor = np.rint(np.exp2(exponent) / np.sqrt(mean_square) * 4096.0) / 4096.0  # coarser than any libm's error
    each = np.repeat(np.repeat(factor, rows, axis=0), columns, axis=1)[: w.shape[0], : w.shape[1]]
    narrow: Float64 = (w * each).astype(np.float32).astype(np.float64)
    return narrow
