"""Which experts a kernel of the whole layer chose, read from its output: y_t = sum_e w_te f_e(x_t) + beta_t shared_t.

The reference's experts give every f_e(x_t). Where the layer is wider than it has experts, least squares over them tells
each weight with its standard error; experts whose weights stand out of the noise are those that were chosen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moecheck.evals.backends.records import FloatRows, LayerCapture

STANDS_OUT = 6.0  # standard errors of a weight: not once in a hundred million elements by chance


def with_inferred_choice(reference: LayerCapture, candidate: LayerCapture, experts: FloatRows) -> LayerCapture:
    """`candidate` with ids and weights as its output shows them, and `choice_seen`; as it is where nothing can be seen.

    reference: the same T tokens, with ids, weights and summands. experts: [T, E, H], every expert on every token. A
    token's choice is seen where its smallest reference weight would stand out twice over; elsewhere ids are the
    reference's. Fewer than top_k experts that stand out leave ids of -1.
    """
    tokens, count, width = experts.shape
    columns = count + (reference.shared is not None)
    if reference.topk_ids is None or reference.topk_weights is None or width <= 2 * columns:
        return candidate
    if not np.isfinite(candidate.output).all():
        return candidate
    weights, errors = _per_token(candidate.output, experts, reference.shared)
    size = np.abs(weights[:, :count])
    noise = STANDS_OUT * errors[:, :count]
    top_k = reference.topk_ids.shape[1]
    order = np.argsort(-size, axis=1, kind="stable")[:, :top_k]
    stands = np.take_along_axis(size > noise, order, axis=1)
    smallest = np.abs(reference.topk_weights).min(axis=1)
    # A row of which nothing stands out is no mixture of experts: that is for the attribution to say.
    seen = (smallest > 2 * noise.max(axis=1)) & stands.any(axis=1)
    ids = np.where(seen[:, None], np.where(stands, order, -1), reference.topk_ids).astype(np.int32)
    chosen = np.take_along_axis(weights, order, axis=1)
    found = np.where(seen[:, None], np.where(stands, chosen, 0.0), reference.topk_weights).astype(np.float32)
    assert ids.shape == (tokens, top_k)
    return replace(candidate, topk_ids=ids, topk_weights=found, choice_seen=seen)


def _per_token(
    output: FloatRows, experts: FloatRows, shared: FloatRows | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights and standard errors of each token's own fit: [T, E or E + 1] each."""
    parts = experts if shared is None else np.concatenate([experts, shared[:, None]], axis=1)
    parts, y = parts.astype(np.float64), output.astype(np.float64)
    inverse = np.linalg.pinv(parts @ parts.transpose(0, 2, 1), hermitian=True)
    weights = (inverse @ (parts @ y[:, :, None]))[:, :, 0]
    rest = y - (weights[:, None] @ parts)[:, 0]
    variance = np.square(rest).sum(axis=1) / (parts.shape[2] - parts.shape[1])
    diagonal = np.maximum(np.diagonal(inverse, axis1=1, axis2=2), 0.0)
    return weights, np.sqrt(diagonal * variance[:, None])
