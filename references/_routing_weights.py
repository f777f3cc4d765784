"""The routing weights that belong to given ids, rounded where a kernel rounds them, and how far off they may be.

Two stores of a contract concern them: `scores`, of all experts, and `topk_weights`, at the end. Where both are low a
kernel may compute what lies between in fp32, or, as eager code does, store each step: the sum, the quotient and the
products (`low_steps`; transformers' DeepseekV4TopKRouter). A softmax over the chosen logits and sparsemixer have no
scores to store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from moecheck.formats import AnyArray, Float64, to_float64, ulp
from moecheck.numerics import Numerics
from moecheck.spec import RoutingSpec

from ._errors import Errors, FactorError
from ._stores import EXACT, Estimate, contract, exact_in, product, stored
from .topk_routing import guarded, logits_of, routed_factor, weights_of_ids

U32 = 2.0**-24
# Standard deviations in units of 2^-24, relative: of an exponential and what follows it up to the score, half of it
# common to a row (the sum of a softmax), and of each later step in fp32. Libraries' exponentials are good to 1 or 2
# ulps, device instructions (ex2.approx, div.full) to 2; built-in routers measure 0.5 to 2 of these units.
SCORE_UNITS, ROW_UNITS, STEP_UNITS = 4.0, 4.0, 2.0
LARGEST_ARGUMENT = 128.0  # of an exponential that does not underflow in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFactor(FactorError):
    """The error of a factor that is stored low: one flip changes it by `step` [n]."""

    step: Float64

    def projected(self, c: Float64) -> tuple[Float64, Float64]:
        """[n], [n]: Var of sum_i c_i error_i, and what one flip adds to it. c: [rows, columns]."""
        along = np.einsum("nh,nh->n", c[self.rows], self.along)
        return self.variance * np.square(along), np.abs(along) * self.step


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def estimate(
    *,
    router_logits: AnyArray,
    topk_ids: npt.NDArray[np.integer],
    spec: RoutingSpec,
    correction_bias: AnyArray | None = None,
    per_expert_scale: AnyArray | None = None,
    numerics: Numerics | None = None,
    dtype: str | None = None,
    flips: bool = False,
    low_steps: bool = False,
) -> Errors:
    """Value and error of the weights of topk_ids, both [num_tokens, top_k].

    topk_ids: [num_tokens, top_k] int, routed experts only. low_steps: each step after the scores is stored as they are.
    flips: about the reference rounded as in `numerics`. Other arguments as in topk_routing.
    """
    stores = contract(numerics, dtype, router_logits, undeclared=EXACT)
    if not np.isfinite(to_float64(router_logits).max(axis=1, initial=0.0)).all():
        raise ValueError("a row of logits without a defined softmax has no weights.")
    scored = has_scores(spec)
    kept = stores.scores if scored else "fp32"
    steps = kept if low_steps else "fp32"
    score = weights_of_ids(
        router_logits=router_logits, topk_ids=topk_ids, spec=_scores_alone(spec), correction_bias=correction_bias
    )
    logits = logits_of(router_logits=router_logits, spec=spec, correction_bias=correction_bias)
    noise = np.square(U32 * score) * (SCORE_UNITS**2 + np.square(_argument(logits, topk_ids, spec)))
    s = Estimate(score, noise, *((np.zeros(score.shape), np.zeros(score.shape)) if flips else (None, None)))
    if steps != "fp32" and spec.scoring == "sqrt_softplus":
        s = _root(stored(s.scaled(score)._replace(value=np.square(score)), steps))
    s = stored(s, kept)
    w, sources = s, [_score_flips(s, kept)] if kept != "fp32" else []
    if spec.renormalize:
        w, of_sum, sources = _renormalized(s, spec, steps, sources)
        sources.append(of_sum)
    if spec.scaling_placement == "topk_weights" and routed_factor(spec) != 1.0:
        w = _step(w.scaled(routed_factor(spec)), steps)
    if spec.per_expert_scale:
        if per_expert_scale is None:
            raise ValueError("the spec needs per_expert_scale, which was not given.")
        w = _step(w.scaled(to_float64(per_expert_scale)[topk_ids]), steps)
    common = np.full(len(score), np.square(ROW_UNITS * U32))
    if steps == "fp32":
        w = w._replace(dense=w.dense + common[:, None] * np.square(w.value))
        sources.append(FactorError(rows=np.arange(len(score)), variance=common, along=np.ones(score.shape)))
    sources = [_absolute(source, w.value) for source in sources]
    if kept == "fp32" and stores.topk_weights != "fp32":
        return Errors(_known(stored(w, stores.topk_weights)))  # flips of the last store alone are independent
    if stores.topk_weights != "fp32" and (steps == "fp32" or not exact_in(steps, stores.topk_weights)):
        w = stored(w, stores.topk_weights)
    shared = np.zeros(score.shape)
    for source in sources:
        np.add.at(shared, source.rows, np.square(source.along) * source.variance[:, None])
    return Errors(_known(w), shared, tuple(sources))


@lru_cache(maxsize=1 << 10)
def _scores_alone(spec: RoutingSpec) -> RoutingSpec:
    """The spec whose weights are the scores."""
    return replace(spec, renormalize=False, routed_scaling_factor=1.0, per_expert_scale=False)


def _absolute(source: FactorError, weights: Float64) -> FactorError:
    """A source whose `along` is relative to the weights; where that is undefined it adds nothing."""
    along = source.along * weights[source.rows]
    return replace(source, along=np.nan_to_num(along, posinf=0.0, neginf=0.0), variance=_finite(source.variance))


def _known(w: Estimate) -> Estimate:
    """NaN, and no error, where a contract gives no weight: its scores are all rounded to 0."""
    known = np.isfinite(w.value) & np.isfinite(w.variance)
    parts = (None if part is None else np.where(known, part, 0.0) for part in w)
    return Estimate(*parts)._replace(value=np.where(known, w.value, np.nan))  # type: ignore[arg-type]  # as in w


def _finite(values: Float64) -> Float64:
    return np.where(np.isfinite(values), values, 0.0)


def has_scores(spec: RoutingSpec) -> bool:
    """Whether the weights are taken from scores of all experts."""
    return spec.selection != "sparsemixer" and not spec.softmax_over_selected


def _renormalized(
    s: Estimate, spec: RoutingSpec, steps: str, sources: list[FactorError]
) -> tuple[Estimate, FactorError, list[FactorError]]:
    """The quotient s / d, d's error as a source, and the sources of s as they act on it; all relative to it."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = np.linalg.norm(s.value, ord=spec.renorm_norm, axis=1, keepdims=True)
        share = np.where(s.value > 0.0, (s.value / total) ** (spec.renorm_norm - 1.0), 0.0)  # d total / d s
        d = _step(_row_sums(s.scaled(share))._replace(value=total), steps)
        d = d._replace(value=guarded(d.value, spec=spec))
        if spec.renorm_eps_rule == "add" and spec.renorm_eps > 0.0:
            d = _step(d, steps)
        inverse = d.scaled(1.0 / np.square(d.value))._replace(value=1.0 / d.value)
        quotient = _step(product(s, inverse)._replace(value=s.value / d.value), steps)
        relative = np.where(d.value > 0.0, share / d.value, 0.0)
        variance = np.where(d.value > 0.0, d.variance / np.square(d.value), 0.0)[:, 0]
        flip = np.where(d.value > 0.0, ulp(d.value, steps) / d.value, 0.0)[:, 0]
    rows, along = np.arange(len(total)), np.ones(s.value.shape)
    of_sum = FactorError(rows=rows, variance=variance, along=along)
    if steps != "fp32":
        of_sum = StoredFactor(rows=rows, variance=variance, along=along, step=flip)
    # One score changes its own weight and, through the sum, those of its row.
    moved = [replace(one, along=one.along - relative.reshape(-1, 1)) for one in sources]
    return quotient, of_sum, moved


def _row_sums(parts: Estimate) -> Estimate:
    """The estimate of each row's sum, [num_tokens, 1]."""
    return Estimate(*(None if part is None else part.sum(axis=1, keepdims=True) for part in parts))  # type: ignore[arg-type]  # as in parts


def _step(estimate: Estimate, name: str) -> Estimate:
    """The result of one more operation in fp32, stored in format `name`."""
    dense = estimate.dense + np.square(STEP_UNITS * U32 * estimate.value)
    return stored(estimate._replace(dense=dense), name)


def _score_flips(s: Estimate, name: str) -> FactorError:
    """The error of each score, one source for each, as it acts on the scores; relative to them."""
    T, k = s.value.shape
    with np.errstate(divide="ignore"):
        own = np.where(s.value > 0.0, 1.0 / s.value, 0.0)
    return StoredFactor(
        rows=np.repeat(np.arange(T), k),
        variance=s.variance.ravel(),
        along=(np.eye(k)[None] * own[:, :, None]).reshape(T * k, k),
        step=ulp(s.value, name).ravel(),
    )


def _root(square: Estimate) -> Estimate:
    """The estimate of the square root."""
    value = np.sqrt(square.value)
    with np.errstate(divide="ignore"):
        slope = np.where(value > 0.0, 0.5 / value, 0.0)
    return square.scaled(slope)._replace(value=value)


def _argument(logits: Float64, ids: npt.NDArray[np.integer], spec: RoutingSpec) -> Float64:
    """[num_tokens, slots]: size of the exponential's argument, whose rounding is relative to it; at most 128.

    A softmax subtracts the largest logit first; a sigmoid's or softplus's is the logit, and matters where it is
    negative. Capped and biased logits are themselves rounded.
    """
    chosen = np.take_along_axis(logits, ids, axis=1)
    with np.errstate(invalid="ignore"):
        size = np.max(logits, axis=1, keepdims=True) - chosen if spec.scoring == "softmax" else np.maximum(-chosen, 0.0)
        if spec.softcap is not None or spec.correction_bias == "logits":
            size = size + np.max(np.abs(np.where(np.isfinite(logits), logits, 0.0)), axis=1, keepdims=True)
    return np.minimum(np.where(np.isfinite(size), size, 0.0), LARGEST_ARGUMENT)
