"""Reference of `fused_experts`: the experts of a layer, from ids and weights to the summed output."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moecheck.formats import AnyArray, Float64
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._combine import Contribution, combine, combine_with_variance
from ._expert import ExpertArrays, Weights, expert_output, expert_slope, expert_with_variance
from ._experts_of_slots import rows_of_experts
from ._stores import EXACT, contract, decode, rounded, store_variance

ROWS = 256  # rows of one expert computed at a time: bounds the extra memory


def fused_experts(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_weights: AnyArray,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """y_t = sum over slots s of w_ts E_e(x_t), e = topk_ids[t, s], E_e(x) = W2_e f(W13_e x + b13_e) + b2_e.

    hidden_states: [T, H]. w13: [E_local, 2I, H] ([E_local, I, H] not gated). w2: [E_local, H, I]. topk_weights,
    topk_ids: [T, k], ids global, int. w13_bias: [E_local, 2I]. w2_bias: [E_local, H]; it is weighted like the rest.
    expert_map: [E] int, global to local id. Arrays in storage dtype or float64; w13 and w2 may be lazy (ExpertArrays):
    only experts with rows are asked for, in ascending order, one at a time. Returns [T, H] float64.
    Padding: an id of -1, or one mapped to -1, contributes exactly 0, whatever its weight; its rows are not read.
    weight_on_input: E_e(w x) without an output weight; w x is rounded at `weighted`.
    numerics: None for the mathematics; else every declared store rounds (`fp32` keeps), `input` being `dtype` or the
    format of hidden_states: topk_weights, gate_up, act, act_times_up, per_expert, weighted, combine in its order, out.
    Sources: Shazeer et al. 2017 (arXiv:1701.06538) equation 1; Mixtral (arXiv:2401.04088) section 2.1.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=EXACT)
    x = decode(hidden_states)
    scale = rounded(decode(topk_weights), stores.topk_weights)

    def contributions() -> Iterator[Contribution]:
        for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
            weights = weights_of(expert, w13, w2, w13_bias, w2_bias)
            for part in _blocks(len(tokens)):
                t, s = tokens[part], slots[part]
                w = scale[t, s][:, None]
                if spec.weight_on_input:
                    y = expert_output(rounded(w * x[t], stores.weighted), weights, spec, stores)
                else:
                    y = expert_output(x[t], weights, spec, stores)
                    y *= w
                    y = rounded(y, stores.weighted)
                yield from map(Contribution, t, s, y)

    return combine(contributions(), hidden_states.shape, stores)


def value_and_sigma(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_weights: AnyArray,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    weight_variance: Float64 | None = None,
) -> tuple[Float64, Float64]:
    """The unrounded y and the standard deviation of a kernel's error, both [T, H] float64.

    V_y = sum_s (w^2 V_z + z^2 V_w + ulp(w z)^2/12) + ulp^2/12 per partial sum + ulp(y)^2/12. V_w = ulp(w)^2/12 if the
    routing weights are stored low, + weight_variance [T, k] where the kernel computes them itself. weight_on_input:
    V_y = sum_s V_z + (dz/dw)^2 V_w. numerics: None for all kept in fp32 but the output. Other arguments as above.
    Rows that nothing contributes to have sigma 0: equality is required.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x, scale = decode(hidden_states), decode(topk_weights)
    v_scale = np.zeros(scale.shape) if weight_variance is None else weight_variance
    if stores.topk_weights != "fp32":
        v_scale = v_scale + store_variance(scale, stores.topk_weights)

    def contributions() -> Iterator[Contribution]:
        for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
            weights = weights_of(expert, w13, w2, w13_bias, w2_bias)
            for part in _blocks(len(tokens)):
                t, s = tokens[part], slots[part]
                w, v_w = scale[t, s][:, None], v_scale[t, s][:, None]
                if spec.weight_on_input:
                    y, v_y = _weighted_before(x[t], w, v_w, weights, spec, stores)
                else:
                    y, v_y = _weighted_after(x[t], w, v_w, weights, spec, stores)
                yield from map(Contribution, t, s, y, v_y)

    terms = stores.per_expert if spec.weight_on_input else stores.weighted
    value, variance = combine_with_variance(contributions(), hidden_states.shape, stores, terms)
    return value, np.sqrt(variance)


def weights_of(
    expert: int, w13: ExpertArrays, w2: ExpertArrays, w13_bias: AnyArray | None, w2_bias: AnyArray | None
) -> Weights:
    """One expert's matrices and biases in float64."""
    return Weights(
        w13=decode(w13[expert]),
        w2=decode(w2[expert]),
        b13=None if w13_bias is None else decode(w13_bias[expert]),
        b2=None if w2_bias is None else decode(w2_bias[expert]),
    )


def _weighted_after(
    x: Float64, w: Float64, v_w: Float64, weights: Weights, spec: ExpertSpec, stores: Numerics
) -> tuple[Float64, Float64]:
    z, v_z = expert_with_variance(x, None, weights, spec, stores)
    y = w * z
    return y, w * w * v_z + z * z * v_w + store_variance(y, stores.weighted)


def _weighted_before(
    x: Float64, w: Float64, v_w: Float64, weights: Weights, spec: ExpertSpec, stores: Numerics
) -> tuple[Float64, Float64]:
    v_x = store_variance(w * x, stores.weighted)
    y, v_y = expert_with_variance(w * x, v_x, weights, spec, stores)
    if np.any(v_w > 0.0):  # one error shared by the whole row, unlike v_x
        v_y += np.square(expert_slope(w * x, x, weights, spec)) * v_w
    return y, v_y


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, start + ROWS)
