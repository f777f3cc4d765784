"""Reference of `fused_experts`: the experts of a layer, from ids and weights to the summed output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._combine import EstimatedSummands, Summands, combine, combine_estimates
from ._errors import Errors, FactorError, SharedError
from ._expert import EstimatedOutput, ExpertArrays, Weights, expert_estimate, expert_output, expert_slope
from ._experts_of_slots import rows_of_experts
from ._quantized_experts import experts_of
from ._stores import EXACT, Estimate, contract, decode, exactly, product, rounded, stored, stored_or_kept
from ._variants import Noise, expert_variants, finished_sum

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
    w13_scale: AnyArray | None = None,
    w2_scale: AnyArray | None = None,
    w13_zeros: AnyArray | None = None,
    w2_zeros: AnyArray | None = None,
    w13_global_scale: AnyArray | None = None,
    w2_global_scale: AnyArray | None = None,
    a1_scale: AnyArray | None = None,
    a2_scale: AnyArray | None = None,
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
    format of hidden_states: topk_weights, those of an expert, weighted, combine in its order, out.
    Quantised weights (spec.quantization): w13 and w2 are codes, with the arrays of moecheck.quantization, or float64
    numbers that were dequantised before; they are rounded at `dequantised`. a1_scale, a2_scale: [1], of static
    quantisers in front of the GEMMs.
    Sources: Shazeer et al. 2017 (arXiv:1701.06538) equation 1; Mixtral (arXiv:2401.04088) section 2.1.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=EXACT)
    x = decode(hidden_states)
    scale = rounded(decode(topk_weights), stores.topk_weights)
    low, scheme = stores.dequantised, spec.quantization
    w13 = experts_of(w13, scheme, low, scales=w13_scale, zeros=w13_zeros, global_scales=w13_global_scale)
    w2 = experts_of(w2, scheme, low, scales=w2_scale, zeros=w2_zeros, global_scales=w2_global_scale)

    def summands() -> Iterator[Summands]:
        for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
            weights = weights_of(expert, w13, w2, w13_bias, w2_bias, (a1_scale, a2_scale))
            for part in blocks(len(tokens)):
                t, s = tokens[part], slots[part]
                w = scale[t, s][:, None]
                if spec.weight_on_input:
                    y = expert_output(rounded(w * x[t], stores.weighted), weights, spec, stores)
                else:
                    y = expert_output(x[t], weights, spec, stores)
                    y *= w
                    y = rounded(y, stores.weighted)
                yield Summands(t, s, y)

    return combine(summands(), hidden_states.shape, stores)


def estimate(
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
    a1_scale: AnyArray | None = None,
    a2_scale: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    rows: bool = True,
    weights: Estimate | None = None,
    hidden: Estimate | None = None,
) -> Errors:
    """Value and error of a kernel's y. flips: about the reference rounded as in `numerics`, not about the true y.

    rows: whether sums along a row will be asked of the result, which costs a quarter more. hidden: the estimate of
    hidden_states, [T, H], where the kernel computes them itself; their errors in the experts of one token, which are
    the same, go through unrelated matrices and are taken as independent.
    V_y = sum_s (w^2 V_z + z^2 V_w) + a store of each w z, of each partial sum, and of y. V_w: of weights stored low, or
    that of `weights`, an estimate [T, k] where the kernel computes them itself. weight_on_input: V_y = sum_s V_z +
    (dz/dw)^2 V_w. numerics: None for all kept in fp32 but the output. Other arguments as above.
    Rows that nothing contributes to have sigma 0: equality is required.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = exactly(decode(hidden_states), flips=flips) if hidden is None else hidden
    exact = hidden is None
    scale = exactly(decode(topk_weights), flips=flips) if weights is None else weights
    if stores.topk_weights != "fp32":
        scale = stored(scale, stores.topk_weights)
    w13 = experts_of(w13, spec.quantization, stores.dequantised if flips else "fp32")
    w2 = experts_of(w2, spec.quantization, stores.dequantised if flips else "fp32")
    sources = list[SharedError | FactorError]()
    weighted = _weighted_before if spec.weight_on_input else _weighted_after

    def summands() -> Iterator[EstimatedSummands]:
        for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
            arrays = weights_of(expert, w13, w2, w13_bias, w2_bias, (a1_scale, a2_scale))
            for block in blocks(len(tokens)):
                t, s = tokens[block], slots[block]
                w = Estimate(*(None if field is None else field[t, s][:, None] for field in scale))  # type: ignore[arg-type]  # as in scale
                given = Estimate(*(None if field is None else field[t] for field in x))  # type: ignore[arg-type]  # as in x
                y, along = weighted(given, w, arrays, spec, stores, rows=rows, exact_input=exact)
                factor = np.ones(len(t)) if spec.weight_on_input else w.value[:, 0]
                matrix = partial(decoded, w2, expert)
                if y.v_h is not None and y.step is not None:
                    sources.append(SharedError(rows=t, scale=factor, variance=y.v_h, step=y.step, matrix=matrix))
                if along is not None:
                    step = ulp(w.value[:, 0], stores.topk_weights)
                    sources.append(FactorError(rows=t, variance=w.variance[:, 0], along=along, step=step))
                yield EstimatedSummands(t, s, y.z, y.shared)

    terms = stores.per_expert if spec.weight_on_input else stores.weighted
    y, shared = combine_estimates(summands(), x.value.shape, stores, terms, flips=flips)
    return Errors(y, shared, tuple(sources), rows=rows)


def variants(
    *,
    hidden_states: AnyArray,
    w13: ExpertArrays,
    w2: ExpertArrays,
    topk_weights: AnyArray,
    topk_ids: AnyArray,
    spec: ExpertSpec,
    noise: Noise,
    w13_bias: AnyArray | None = None,
    w2_bias: AnyArray | None = None,
    expert_map: AnyArray | None = None,
    a1_scale: AnyArray | None = None,
    a2_scale: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
) -> Float64:
    """Outputs of simulated kernels of the contract, [V, T, H] float64, which differ in their fp32 errors only.

    topk_weights: [T, k], or [V, T, k] where each variant has its own. numerics: None for all kept in fp32 but the
    output. Other arguments as above.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    scale = np.broadcast_to(rounded(decode(topk_weights), stores.topk_weights), (noise.variants, *topk_ids.shape))
    w13, w2 = (experts_of(w, spec.quantization, stores.dequantised) for w in (w13, w2))

    def summands() -> Iterator[Summands]:
        for expert, tokens, slots in rows_of_experts(topk_ids, expert_map):
            weights = weights_of(expert, w13, w2, w13_bias, w2_bias, (a1_scale, a2_scale))
            for part in blocks(len(tokens)):
                t, s = tokens[part], slots[part]
                w = scale[:, t, s][..., None]
                if spec.weight_on_input:
                    y = expert_variants(rounded(w[0] * x[t], stores.weighted), weights, spec, stores, noise)
                else:
                    y = rounded(expert_variants(x[t], weights, spec, stores, noise) * w, stores.weighted)
                rows = (np.arange(noise.variants)[:, None] * len(x) + t).ravel()  # a variant's tokens follow another's
                yield Summands(rows, np.tile(s, noise.variants), y.reshape(-1, y.shape[-1]))

    shape = (noise.variants * len(x), x.shape[1])
    total = combine(summands(), shape, replace(stores, out="fp32"))
    return finished_sum(total, stores.out, noise).reshape(noise.variants, *x.shape)


def weights_of(
    expert: int,
    w13: ExpertArrays,
    w2: ExpertArrays,
    w13_bias: AnyArray | None,
    w2_bias: AnyArray | None,
    static: tuple[AnyArray | None, AnyArray | None] = (None, None),
) -> Weights:
    """One expert's matrices and biases in float64. static: a1_scale and a2_scale, one number each."""
    a1, a2 = (None if scale is None else float(decode(scale).reshape(-1)[0]) for scale in static)
    return Weights(
        a1=a1,
        a2=a2,
        w13=decode(w13[expert]),
        w2=decode(w2[expert]),
        b13=None if w13_bias is None else decode(w13_bias[expert]),
        b2=None if w2_bias is None else decode(w2_bias[expert]),
    )


def _weighted_after(
    x: Estimate, w: Estimate, weights: Weights, spec: ExpertSpec, stores: Numerics, *, rows: bool, exact_input: bool
) -> tuple[EstimatedOutput, AnyArray | None]:
    """The estimate of w E(x), and its derivative by w where w has an error."""
    z, v_h, step, shared = expert_estimate(x, weights, spec, stores, rows=rows, exact_input=exact_input)
    if not np.any(w.variance > 0.0):
        y = stored_or_kept(z.scaled(w.value), stores.weighted)
        return EstimatedOutput(y, v_h, step, None if shared is None else shared * np.square(w.value)), None
    if shared is not None:
        shared = shared * np.square(w.value) + np.square(z.value) * w.variance
    y = stored_or_kept(product(z, w), stores.weighted)
    return EstimatedOutput(y, v_h, step, shared), z.value.astype(np.float32) if rows else None


def _weighted_before(
    x: Estimate, w: Estimate, weights: Weights, spec: ExpertSpec, stores: Numerics, *, rows: bool, exact_input: bool
) -> tuple[EstimatedOutput, AnyArray | None]:
    """The estimate of E(w x), and its derivative by w where w has an error: a whole row shares that one.

    The product w x is rounded, so the experts' input has an error whether or not x has.
    """
    del exact_input
    exact = w._replace(dense=np.zeros(w.value.shape))
    scaled = stored(product(x, exact), stores.weighted)
    y, v_h, step, shared = expert_estimate(scaled, weights, spec, stores, exact_input=False, rows=rows)
    if not np.any(w.variance > 0.0):
        return EstimatedOutput(y, v_h, step, shared), None
    along = expert_slope(w.value * x.value, x.value, weights, spec)
    by_weight = np.square(along) * w.variance
    y = y._replace(dense=y.dense + by_weight)
    if shared is None:
        return EstimatedOutput(y, v_h, step, None), None
    return EstimatedOutput(y, v_h, step, shared + by_weight), along.astype(np.float32)


def decoded(w: ExpertArrays, expert: int) -> Float64:
    """One expert's matrix in float64."""
    return decode(w[expert])


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most ROWS rows."""
    for start in range(0, count, ROWS):
        yield slice(start, start + ROWS)
