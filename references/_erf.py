"""The complementary error function in float64, for whole arrays."""

from __future__ import annotations

import numpy as np

from moecheck.formats import Float64

# W. J. Cody, Rational Chebyshev Approximations for the Error Function, Math. Comp. 23 (1969) 631-637, with the
# coefficients of his CALERF (SPECFUN, netlib): numerators and denominators in descending powers.
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)
_MIDDLE = (
    (
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ),
    (
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ),
)  # fmt: skip
_LARGE = (
    (
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ),
    (
        1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
        2.33520497626869185e-3,
    ),
)  # fmt: skip


def erfc(x: Float64) -> Float64:
    """The integral of 2/sqrt(pi) exp(-t^2) from x to infinity, to a few float64 ulps; NaN stays NaN.

    x: any shape float64. With y = |x|: y <= 0.46875: 1 - x R(y^2); y <= 4: exp(-y^2) R(y); beyond:
    exp(-y^2)/y (1/sqrt(pi) - R(1/y^2)/y^2); and erfc(-y) = 2 - erfc(y).
    """
    y = np.abs(x)
    out = np.full(x.shape, np.nan)
    small, large = y <= 0.46875, y > 4.0
    middle = (y > 0.46875) & ~large
    v = x[small]
    out[small] = 1.0 - v * _ratio(_SMALL, v * v)
    v = y[middle]
    out[middle] = _exp_minus_square(v) * _ratio(_MIDDLE, v)
    v = np.minimum(y[large], 40.0)  # erfc(40) is 0 in float64
    inverse = 1.0 / (v * v)
    out[large] = _exp_minus_square(v) / v * (1.0 / np.sqrt(np.pi) - inverse * _ratio(_LARGE, inverse))
    return np.where(x < -0.46875, 2.0 - out, out)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64) -> Float64:
    numerator, denominator = (np.polyval(part, x) for part in coefficients)
    return numerator / denominator


def _exp_minus_square(y: Float64) -> Float64:
    # exp(-y^2) with y = a + b, a a multiple of 1/16: a^2 is exact, so the exponent's rounding does not grow with y^2
    a = np.floor(y * 16.0) / 16.0
    return np.exp(-a * a) * np.exp(-(y - a) * (y + a))
