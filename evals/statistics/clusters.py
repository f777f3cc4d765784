"""Questions that come in families (templates), or tokens that come in answers: they are not independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from moecheck.errors import HarnessError

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanTest:
    """A mean over groups, its standard error, t = mean / error and the two-sided p-value with groups - 1 freedoms."""

    mean: float
    standard_error: float
    t: float
    p: float
    groups: int


def clustered_standard_error(differences: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Of the mean of `differences`: sqrt(sum_g (sum_{i in g} (d_i - mean))^2) / n (Miller 2024, arXiv 2411.00640)."""
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        return math.nan
    sums = _sums(values - values.mean(), clusters)
    return float(math.sqrt(np.square(sums).sum()) / values.size)


def sign_flip_test(differences: Sequence[int], clusters: Sequence[Hashable]) -> float:
    """Exact one-sided p-value of "differences are symmetric about 0" against "they are negative".

    differences: candidate minus baseline, -1, 0 or 1 a question. The sign of a whole cluster is flipped at a time, and
    the distribution of the total over all 2^clusters flips is built by convolution.
    """
    sums = [int(value) for value in _sums(np.asarray(differences, dtype=np.float64), clusters) if value]
    reach = sum(map(abs, sums))
    chances = np.zeros(2 * reach + 1)  # of totals -reach .. reach
    chances[reach] = 1.0
    for value in map(abs, sums):
        chances = (np.roll(chances, value) + np.roll(chances, -value)) / 2
    return float(min(1.0, chances[: reach + sum(sums) + 1].sum()))


def mean_test(values: Sequence[float]) -> MeanTest:
    """Student's t of one value a group, such as the mean change of log-probability over an answer's tokens."""
    groups = np.asarray(values, dtype=np.float64)
    if groups.size < 2:
        mean = float(groups.mean()) if groups.size else math.nan
        return MeanTest(mean=mean, standard_error=math.nan, t=math.nan, p=math.nan, groups=int(groups.size))
    mean, error = float(groups.mean()), float(groups.std(ddof=1) / math.sqrt(groups.size))
    t = (0.0 if mean == 0 else math.copysign(math.inf, mean)) if error == 0 else mean / error
    p = float(2 * stats.t.sf(abs(t), groups.size - 1))
    return MeanTest(mean=mean, standard_error=error, t=t, p=p, groups=int(groups.size))


def _sums(values: Float64, clusters: Sequence[Hashable]) -> Float64:
    if len(values) != len(clusters):
        raise HarnessError(f"{len(values)} differences need as many clusters, not {len(clusters)}.")
    index: dict[Hashable, int] = {}
    places = np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)
    return np.bincount(places, weights=values, minlength=len(index)).astype(np.float64)
