"""What a linear map makes of an output's errors: those of latent experts on their way back to the hidden size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from moecheck.formats import Float64, ulp
from moecheck.numerics import Numerics

from ._errors import Errors, FactorError, SharedError
from ._row_groups import Group, whole
from ._stores import linear_estimates, stored


def projected(errors: Errors, up: Float64, stores: Numerics) -> Errors:
    """The estimate of x up^T, stored at `out`, for an x with errors. up: [H, X]. errors: of x, [T, X], one answer only.

    All columns of a row share every error of x: those with a source keep it, with `up` behind its own matrix, and the
    others become one source more. Only the sums of the map itself and the store are a column's own.
    """
    x = errors.estimate
    (y,), _ = linear_estimates([x], whole(x.value, up), accumulate=stores.accumulate)
    y = stored(y, stores.out)
    if errors.shared is None:
        return Errors(y, rows=errors.rows)
    sources = [_through(source, up) for source in errors.sources]
    own = np.maximum(x.variance - errors.shared, 0.0)
    step = np.zeros((1, 1)) if stores.out == "fp32" or x.rare is None else ulp(x.value, stores.out)
    alone = SharedError(
        rows=np.arange(len(own)), scale=np.ones(len(own)), variance=own, step=step, groups=whole(own, up)
    )
    return Errors(y, x.variance @ np.square(up).T, (*sources, alone), rows=errors.rows)


def _through(source: SharedError | FactorError, up: Float64) -> SharedError | FactorError:
    if isinstance(source, FactorError):
        return replace(source, along=source.along @ up.T)
    return replace(source, groups=[Group(rows, partial(_product, up, matrix)) for rows, matrix in source.groups])


def _product(up: Float64, matrix: Callable[[], Float64]) -> Float64:
    product: Float64 = up @ matrix()
    return product
