"""The arithmetic of legal variants in NumPy's float32: GEMMs, activations, quantisers, sums in an order of their own.

Nothing here is shared with the references but the definitions of layouts and of rarely used activation functions.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from moecheck.formats import FORMATS, AnyArray
from moecheck.numerics import Numerics
from moecheck.oracle import reference_modules
from moecheck.quantizer import CODES, Quantizer
from moecheck.spec import ExpertSpec

from .variants import Variant, chunks_of

Float32 = npt.NDArray[np.float32]
_QUANTISED = {"fp8_e4m3fn": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
_PLAIN_FIELDS = {"activation", "gated", "gate_up_layout", "swiglu_alpha", "swiglu_beta", "swiglu_limit",
                 "limit_position", "weight_on_input", "w13_bias", "w2_bias", "quantization"}  # fmt: skip


def linear(x: Float32, w: AnyArray, bias: AnyArray | None, variant: Variant, stores: Numerics) -> Float32:
    """X W^T + bias with fp32 partial sums. x: [n, K]. w: [N, K]."""
    w32 = single(w)
    parts = chunks_of(variant, x.shape[1])
    partial = [np.zeros((len(x), len(w32)), np.float32) for _ in range(variant.splits)]
    for number, part in enumerate(parts):
        at = number % variant.splits
        product = x[:, part] @ w32[:, part].T
        partial[at] = product if number < variant.splits else partial[at] + product
    total = partial[0]
    for other in partial[1:]:
        total = total + other
    return total if bias is None else stored(total, stores.before_bias) + single(bias)


def hidden(gate_up: Float32, spec: ExpertSpec, variant: Variant, stores: Numerics) -> Float32:
    """act(gate) * (up + beta), [n, I]."""
    module = reference_modules()["act_and_mul"]
    own = spec.activation in ("silu", "relu2", "gelu_tanh") and stores.sigmoid == "fp32"
    plain = all(getattr(spec, name) == getattr(ExpertSpec(), name) for name in _other_fields(spec))
    if not (own and plain):
        return single(module.activated(gate_up.astype(np.float64), spec, stores))
    gate, up = module.split(gate_up, spec)
    limit = None if spec.swiglu_limit is None else np.float32(spec.swiglu_limit)
    if limit is not None and spec.limit_position == "before":
        gate = np.minimum(gate, limit)
    a = stored(_activation(gate, spec, variant), stores.act)
    if limit is not None and spec.limit_position == "after":
        a = np.minimum(a, limit)
    if up is None:
        return stored(a, stores.act_times_up)
    if limit is not None:
        up = np.clip(up, -limit, limit)
    if spec.swiglu_beta != 0.0:
        up = stored(up + np.float32(spec.swiglu_beta), stores.up)
    return stored(a * up, stores.act_times_up)


def _other_fields(spec: ExpertSpec) -> list[str]:
    return [name for name in spec.__dataclass_fields__ if name not in _PLAIN_FIELDS]


def _activation(gate: Float32, spec: ExpertSpec, variant: Variant) -> Float32:
    one = np.float32(1)
    if spec.activation == "relu2":
        return np.square(np.maximum(gate, np.float32(0)))
    if spec.activation == "silu":
        z = np.float32(spec.swiglu_alpha) * gate
    else:  # 0.5 (1 + tanh z) = sigmoid(2 z), without the cancellation
        z = np.float32(1.5957691216057308) * (gate + np.float32(0.044715) * gate * gate * gate)
    below = one + np.exp(-z)
    return np.asarray(gate * (one / below) if variant.reciprocal else gate / below)


def requantised(x: Float32, quantizer: Quantizer, given: AnyArray | None = None) -> Float32:
    """What the codes of x [n, K] stand for, computed in fp32. given: the scale of a static quantiser, [1]."""
    width, largest = x.shape[1], np.float32(CODES[quantizer.format].max_value)
    group = quantizer.group or max(width, 1)
    padded = np.pad(x, ((0, 0), (0, -width % group))).reshape(len(x), -1, group)
    amax = np.maximum(np.abs(padded).max(axis=2, keepdims=True), np.float32(quantizer.eps))
    scale = amax / largest
    if quantizer.scale == "power_of_two":
        bits = scale.view(np.int32)
        scale = ((bits + np.int32(0x007FFFFF)) & np.int32(0x7F800000)).view(np.float32)
    if quantizer.static:
        assert given is not None, "a static quantiser needs the scale that the call is given"
        scale = single(given).reshape(1, 1, 1)
    scaled = padded / scale if quantizer.division == "divide" else padded * (np.float32(1) / scale)
    scaled = np.clip(scaled, -largest, largest)
    coded = _QUANTISED.get(quantizer.format)
    codes = np.rint(scaled) if coded is None else scaled.astype(coded).astype(np.float32)
    return np.asarray((codes * scale).reshape(len(x), -1)[:, :width])


def combined(terms: Float32, by_expert: npt.NDArray[np.intp], variant: Variant, stores: Numerics) -> Float32:
    """The sum over slots [slots, T, H] -> [T, H]. by_expert: [T, slots], the slots of each token in expert order."""
    low = stores.combine != "fp32" and stores.combine_order != "tree"
    if stores.combine_order == "expert" or (not low and variant.order == "backward"):
        terms = np.take_along_axis(terms, by_expert.T[:, :, None], axis=0)
    if low:
        total = np.zeros(terms.shape[1:], np.float32)
        for term in terms:
            total = stored(total + term, stores.combine)
        return total
    parts = list(terms)
    while variant.tree and len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + (parts[-1:] if len(parts) % 2 else [])
    total = parts[0]
    for term in parts[1:]:
        total = total + term
    return np.asarray(total)


def single(values: AnyArray) -> Float32:
    return np.asarray(values).astype(np.float32)


def stored(values: Float32, name: str) -> Float32:
    """Values as a store in format `name` leaves them."""
    return values if name == "fp32" else values.astype(FORMATS[name].storage).astype(np.float32)
