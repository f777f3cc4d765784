"""A tolerance criterion as data: what a test demands of a kernel's output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from moecheck.errors import UsageError, check_known
from moecheck.formats import AnyArray, Float64, to_float64

from .formulas import calc_diff, cosine, relative_l2

RelativeTo = Literal["reference", "output"]
NotFinite = Literal["mismatch", "reject", "ignored"]
Ids = Literal["exact", "sorted", "unchecked"]
EITHER_EPS = 1e-8  # flashinfer-bench's, in |d| / (|ref| + eps)
TOLERANCES = ("atol", "rtol", "atol_of_max")
LIMITS = ("max_abs", "max_calc_diff", "max_relative_l2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """What an output has to fulfil to be accepted; with several parts, all of them. d = out - ref, per element.

    atol, rtol, atol_of_max: an element matches where |d| <= atol + atol_of_max max|ref| + rtol |y|, y being the
    reference or, for tests that hand the two over in that order, the output (relative_to). either: it matches where one
    of |d| <= atol and |d| / (|ref| + 1e-8) <= rtol holds. share: of the elements that must match. not_finite: NaN and
    an infinity that is not the reference's, is a `mismatch` of its element, makes the test `reject` the output, or is
    `ignored`, as in `count(|d| > limit)`. max_abs: of |d|. max_calc_diff, min_cosine, max_relative_l2: of the formulas
    of that name; an undefined one fails. ids: of a router, expert ids `exact` slot by slot, `sorted` in each token.
    """

    atol: float | None = None
    rtol: float | None = None
    atol_of_max: float = 0.0
    share: float = 1.0
    either: bool = False
    relative_to: RelativeTo = "reference"
    not_finite: NotFinite = "mismatch"
    max_abs: float | None = None
    max_calc_diff: float | None = None
    max_relative_l2: float | None = None
    min_cosine: float | None = None
    ids: Ids = "exact"

    def __post_init__(self) -> None:
        for name in (*TOLERANCES, *LIMITS):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UsageError(f"{name}={value} must be a finite number of at least 0.")
        if not 0 < self.share <= 1:
            raise UsageError(f"share={self.share} must lie above 0 and be at most 1.")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"min_cosine={self.min_cosine} must lie between -1 and 1.")
        for name, known in (("relative_to", RelativeTo), ("not_finite", NotFinite), ("ids", Ids)):
            check_known(name, getattr(self, name), get_args(known))
        if self.either and (self.atol is None or self.rtol is None):
            raise UsageError("either=True needs both atol and rtol.")
        if not self.elementwise and self.share < 1:
            raise UsageError(f"share={self.share} needs atol or rtol.")
        if not self.elementwise and all(getattr(self, name) is None for name in (*LIMITS, "min_cosine")):
            raise UsageError("A criterion needs a tolerance: atol, rtol, max_abs, calc_diff, cosine or relative L2.")

    @property
    def elementwise(self) -> bool:
        """Whether elements are compared with a tolerance of their own."""
        return self.atol is not None or self.rtol is not None or self.atol_of_max > 0

    def accepts(self, outputs: tuple[AnyArray, ...], reference: tuple[AnyArray, ...]) -> bool:
        """Whether a test with this criterion passes. outputs, reference: the op's, weights and ids for a router."""
        out, ref = to_float64(outputs[0]), to_float64(reference[0])
        if len(outputs) > 1 and not self._ids_match(outputs[1], reference[1]):
            return False
        if self.not_finite == "reject" and not np.isfinite(out).all():
            return False
        return all(self._parts(out, ref))

    @np.errstate(all="ignore")  # NaN and infinities are judged as the criterion says
    def _parts(self, out: Float64, ref: Float64) -> Iterator[bool]:
        if self.elementwise:
            yield bool(self._matches(out, ref).mean() >= self.share) if out.size else True
        if self.max_abs is not None:
            yield bool(np.max(np.abs(out - ref), initial=0.0) <= self.max_abs)
        if self.max_calc_diff is not None:
            yield calc_diff(out, ref) <= self.max_calc_diff
        if self.max_relative_l2 is not None:
            yield relative_l2(out, ref) <= self.max_relative_l2
        if self.min_cosine is not None:
            yield cosine(out, ref) >= self.min_cosine

    def _matches(self, out: Float64, ref: Float64) -> npt.NDArray[np.bool_]:
        error = np.abs(out - ref)
        if self.either:
            within = (error <= (self.atol or 0.0)) | (error / (np.abs(ref) + EITHER_EPS) <= (self.rtol or 0.0))
        else:
            within = np.isfinite(out) & (error <= self.room(ref, out))
        matches = within | (out == ref)
        return np.asarray(matches | ~np.isfinite(out) if self.not_finite == "ignored" else matches)

    @np.errstate(all="ignore")
    def room(self, ref: Float64, out: Float64 | None = None) -> Float64:
        """How far each element may be off, [rows, columns]; infinite where only global statistics count.

        out: the output that a relative tolerance refers to where it does, else the reference stands for it.
        """
        if not self.elementwise:
            return np.full(ref.shape, np.inf if self.max_abs is None else self.max_abs)
        size = np.abs(out if out is not None and self.relative_to == "output" else ref)
        absolute = (self.atol or 0.0) + self.atol_of_max * float(np.max(np.abs(ref), initial=0.0))
        relative = (self.rtol or 0.0) * size
        room = np.maximum(absolute, relative + (self.rtol or 0.0) * EITHER_EPS) if self.either else absolute + relative
        return np.minimum(room, np.inf if self.max_abs is None else self.max_abs)

    @property
    def relative_size(self) -> float | None:
        """The relative L2 norm of a zero-mean error that the tightest global statistic lets pass; None without one.

        For such errors calc_diff and 1 - cosine are half the square of the relative L2 norm.
        """
        sizes = [] if self.max_relative_l2 is None else [self.max_relative_l2]
        if self.max_calc_diff is not None:
            sizes.append(math.sqrt(2.0 * self.max_calc_diff))
        if self.min_cosine is not None:
            sizes.append(math.sqrt(2.0 * (1.0 - self.min_cosine)))
        return min(sizes, default=None)

    def _ids_match(self, ids: AnyArray, reference: AnyArray) -> bool:
        if ids.dtype.kind not in "iu":
            return False
        if self.ids == "unchecked":
            return True
        if self.ids == "sorted":
            ids, reference = np.sort(ids, axis=1), np.sort(reference, axis=1)
        return bool(np.array_equal(ids, reference))

    def words(self) -> str:
        """`|d| <= 0.02 + 0.01 |ref| in 92.5 % of the elements`."""
        parts = []
        if self.elementwise:
            parts.append(self._tolerance() + (f" in {100 * self.share:g} % of the elements" if self.share < 1 else ""))
        names = {"max|d|": self.max_abs, "calc_diff": self.max_calc_diff, "relative L2": self.max_relative_l2}
        parts += [f"{name} <= {limit:g}" for name, limit in names.items() if limit is not None]
        if self.min_cosine is not None:
            parts.append(f"cosine >= {self.min_cosine:g}")
        return ", ".join(parts)

    def _tolerance(self) -> str:
        if self.either:
            return f"|d| <= {self.atol:g} or |d| <= {self.rtol:g} |ref|"
        size = "|out|" if self.relative_to == "output" else "|ref|"
        terms = [(self.atol, ""), (self.atol_of_max, " max|ref|"), (self.rtol, f" {size}")]
        shown = [f"{number:g}{of}" for number, of in terms if number]
        return "|d| <= " + (" + ".join(shown) or "0")

    def to_json(self) -> dict[str, object]:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
