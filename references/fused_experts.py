"""Reference of `fused_experts`: the experts of a layer, from ids and weights to the summed output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from moecheck.formats import AnyArray, Float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import ExpertSpec

from ._combine import EstimatedSummands, Summands, combine, combine_estimates
from ._errors import Errors, FactorError, Question, SharedError, answer, questions
from ._expert import (
    EstimatedOutput,
    ExpertArrays,
    GroupedWeights,
    Weights,
    expert_estimates,
    expert_output,
    expert_slope,
)
from ._experts_of_slots import batches_of_experts, blocks, rows_of_experts
from ._parallel import each
from ._quantized_experts import experts_of
from ._row_groups import Group
from ._stores import (
    EXACT,
    Estimate,
    contract,
    decode,
    exactly,
    given,
    nothing,
    product,
    rounded,
    stored,
    stored_or_kept,
    stored_unless_kept,
)
from ._variants import Noise, expert_variants, finished_sum


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
    both: bool = False,
    weights: Estimate | None = None,
    hidden: Estimate | None = None,
) -> Errors:
    """Value and error of a kernel's y. flips: about the reference rounded as in `numerics`, not about the true y.

    rows: whether sums along a row will be asked of the result, which costs a quarter more. both: the error about the
    true y, and as its `about_rounded` the other, of which alone sums along a row may be asked. hidden: the estimate of
    hidden_states, [T, H], before their store at `gate_up`, where the kernel computes them itself; their errors in the
    experts of one token, which are the same, go through unrelated matrices and are taken as independent.
    V_y = sum_s (w^2 V_z + z^2 V_w) + a store of each w z, of each partial sum, and of y. V_w: of weights stored low, or
    that of `weights`, an estimate [T, k] where the kernel computes them itself. weight_on_input: V_y = sum_s V_z +
    (dz/dw)^2 V_w. numerics: None for all kept in fp32 but the output. Other arguments as above.
    Rows that nothing contributes to have sigma 0: equality is required.
    """
    stores = contract(numerics, dtype, hidden_states, undeclared=Numerics())
    x = decode(hidden_states)
    scale = exactly(decode(topk_weights), flips=False) if weights is None else weights
    weighted = _weighted_before if spec.weight_on_input else _weighted_after

    def errors(asked: Sequence[Question], w13: ExpertArrays, w2: ExpertArrays) -> list[Errors]:
        scales = [stored_unless_kept(given(scale, flips=q.flips), stores.topk_weights) for q in asked]
        inputs = None if hidden is None else [stored(given(hidden, flips=q.flips), stores.gate_up) for q in asked]
        sources: list[list[SharedError | FactorError]] = [[] for _ in asked]

        def summands() -> Iterator[list[EstimatedSummands]]:
            for t, s, experts in batches_of_experts(topk_ids, expert_map):
                arrays = grouped(experts, w13, w2, w13_bias, w2_bias, (a1_scale, a2_scale))
                ws = [_picked(one, (t, s, None)) for one in scales]
                xs = _exactly(x[t], asked) if inputs is None else [_picked(one, t) for one in inputs]
                outputs = weighted(xs, ws, arrays, spec, stores, asked, exact_input=inputs is None)
                for w, (y, along), its in zip(ws, outputs, sources, strict=True):
                    if y.v_h is not None and y.step is not None:
                        factor = np.ones(len(t)) if spec.weight_on_input else w.value[:, 0]
                        its.append(SharedError(rows=t, scale=factor, variance=y.v_h, step=y.step, groups=arrays.w2))
                    if along is not None:
                        step = ulp(w.value[:, 0], stores.topk_weights)
                        its.append(FactorError(rows=t, variance=w.variance[:, 0], along=along, step=step))
                yield [EstimatedSummands(t, s, y.z, y.shared) for y, _ in outputs]

        terms = stores.per_expert if spec.weight_on_input else stores.weighted
        sums = combine_estimates(summands(), x.shape, stores, terms, asked)
        parts = zip(sums, sources, asked, strict=True)
        return [Errors(y, shared, tuple(its), rows=q.rows) for (y, shared), its, q in parts]

    answers = []
    for some, low in _by_weights(questions(flips=flips, rows=rows, both=both), spec, stores):
        answers += errors(some, *(experts_of(w, spec.quantization, low) for w in (w13, w2)))
    return answer(answers)


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

    def of_expert(rows: tuple[int, AnyArray, AnyArray]) -> list[Summands]:
        expert, tokens, slots = rows
        weights = weights_of(expert, w13, w2, w13_bias, w2_bias, (a1_scale, a2_scale))
        own, found = noise.at(expert), []
        for part in blocks(len(tokens)):
            t, s = tokens[part], slots[part]
            w = scale[:, t, s][..., None]
            if spec.weight_on_input:
                w = w if topk_weights.ndim == 3 else w[0]
                y = expert_variants(rounded(w * x[t], stores.weighted), weights, spec, stores, own)
            else:
                y = rounded(expert_variants(x[t], weights, spec, stores, own) * w, stores.weighted)
            places = (np.arange(noise.variants)[:, None] * len(x) + t).ravel()  # a variant's tokens follow another's
            found.append(Summands(places, np.tile(s, noise.variants), y.reshape(-1, y.shape[-1])))
        return found

    shape = (noise.variants * len(x), x.shape[1])
    summands = chain.from_iterable(each(of_expert, rows_of_experts(topk_ids, expert_map)))
    total = combine(summands, shape, replace(stores, out="fp32"))
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
    return Weights(
        w13=decode(w13[expert]),
        w2=decode(w2[expert]),
        b13=None if w13_bias is None else decode(w13_bias[expert]),
        b2=None if w2_bias is None else decode(w2_bias[expert]),
        a1=_number(static[0]),
        a2=_number(static[1]),
    )


class _Output(NamedTuple):
    """What some rows add to their tokens, and its derivative by the routing weight where that has an error."""

    y: EstimatedOutput
    along: AnyArray | None = None


def _exactly(x: Float64, asked: Sequence[Question]) -> list[Estimate]:
    return [exactly(x, flips=q.flips) for q in asked]


def _picked(estimate: Estimate, index: Any) -> Estimate:
    """Some of an estimate's elements."""
    return Estimate(*(None if part is None else part[index] for part in estimate))  # type: ignore[arg-type]  # as in estimate


def _by_weights(asked: list[Question], spec: ExpertSpec, stores: Numerics) -> list[tuple[list[Question], str]]:
    """The questions about the same matrices, and the format of these: the rounded reference's are stored as a kernel
    stores what it dequantises.
    """
    if spec.quantization is None or stores.dequantised == "fp32":
        return [(asked, "fp32")]
    return [([q], stores.dequantised if q.flips else "fp32") for q in asked]


def _weighted_after(
    xs: Sequence[Estimate],
    ws: Sequence[Estimate],
    weights: GroupedWeights,
    spec: ExpertSpec,
    stores: Numerics,
    asked: Sequence[Question],
    *,
    exact_input: bool,
) -> list[_Output]:
    """The estimates of w E(x)."""
    outputs = []
    estimates = expert_estimates(xs, weights, spec, stores, asked, exact_input=exact_input)
    for w, output, q in zip(ws, estimates, asked, strict=True):
        z, v_h, step, shared = output
        if shared is not None:
            shared *= np.square(w.value)
        if not np.any(w.variance > 0.0):
            y = stored_or_kept(z.scaled(w.value), stores.weighted)
            outputs.append(_Output(EstimatedOutput(y, v_h, step, shared)))
            continue
        if shared is not None:
            shared += np.square(z.value) * w.variance
        y = stored_or_kept(product(z, w), stores.weighted)
        along = z.value.astype(np.float32) if q.rows else None
        outputs.append(_Output(EstimatedOutput(y, v_h, step, shared), along))
    return outputs


def _weighted_before(
    xs: Sequence[Estimate],
    ws: Sequence[Estimate],
    weights: GroupedWeights,
    spec: ExpertSpec,
    stores: Numerics,
    asked: Sequence[Question],
    *,
    exact_input: bool,
) -> list[_Output]:
    """The estimates of E(w x); a whole row shares the error of w.

    The product w x is rounded, so the experts' input has an error whether or not x has.
    """
    del exact_input
    exact = [w._replace(dense=nothing(w.value)) for w in ws]
    scaled = [stored(product(x, w), stores.weighted) for x, w in zip(xs, exact, strict=True)]
    outputs = []
    estimates = expert_estimates(scaled, weights, spec, stores, asked, exact_input=False)
    for x, w, output in zip(xs, ws, estimates, strict=True):
        if not np.any(w.variance > 0.0):
            outputs.append(_Output(output))
            continue
        along = expert_slope(w.value * x.value, x.value, weights, spec)
        by_weight = np.square(along) * w.variance
        y, v_h, step, shared = output
        y = y._replace(dense=y.dense + by_weight)
        if shared is None:
            outputs.append(_Output(EstimatedOutput(y, v_h, step, None)))
        else:
            outputs.append(_Output(EstimatedOutput(y, v_h, step, shared + by_weight), along.astype(np.float32)))
    return outputs


def grouped(
    experts: Sequence[tuple[int, slice]],
    w13: ExpertArrays,
    w2: ExpertArrays,
    w13_bias: AnyArray | None,
    w2_bias: AnyArray | None,
    static: tuple[AnyArray | None, AnyArray | None] = (None, None),
) -> GroupedWeights:
    """The weights of the experts that consecutive rows belong to. static: as in weights_of."""
    of_rows = np.repeat([expert for expert, _ in experts], [rows.stop - rows.start for _, rows in experts])
    return GroupedWeights(
        w13=[Group(rows, partial(_decoded, w13, expert)) for expert, rows in experts],
        w2=[Group(rows, partial(_decoded, w2, expert)) for expert, rows in experts],
        b13=None if w13_bias is None else decode(w13_bias[of_rows]),
        b2=None if w2_bias is None else decode(w2_bias[of_rows]),
        a1=_number(static[0]),
        a2=_number(static[1]),
    )


def _number(scale: AnyArray | None) -> float | None:
    return None if scale is None else float(decode(scale).reshape(-1)[0])


def _decoded(w: ExpertArrays, expert: int) -> Float64:
    return decode(w[expert])
