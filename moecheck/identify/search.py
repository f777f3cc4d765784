"""The search for a contract: all those of a pool, then step by step those near the best one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle

from .candidates import contracts, narrowed, neighbours, resolved, stores_of_all
from .floor import below_floor
from .outputs import CaseOutputs, Scores
from .quantisers import quantiser_neighbours, rarity, requantising
from .result import Comparison, formats_of, stored

KEPT_POOLS, KEPT_CASES = 16, 48
STEPS = 12  # of the search beyond the pool; each adds a store in a format of its own
ENOUGH = 0.8  # agreement beyond which no other start is tried
GAIN = 0.01  # in merit, for a step to be taken
ALIKE = 0.001  # in merit, what a few flips of a kernel may cost the right quantiser
# Agreement at which no store in a format of its own is looked for: one changes 2 to 8 % of the outputs.
SETTLED = 0.99


@lru_cache(maxsize=KEPT_CASES)
def outputs_of(case: Case, oracle: Oracle) -> CaseOutputs:
    """The outputs on a case, kept for the other pools that it is in."""
    return CaseOutputs(case, oracle)


@lru_cache(maxsize=KEPT_POOLS)
def pool_of(cases: tuple[Case, ...], oracle: Oracle) -> Pool:
    """The pool of these cases, kept for the other kernels that are observed on them."""
    return Pool(cases, oracle)


class Pool:
    """The contracts that are tried on some cases, with their outputs, computed once for all kernels."""

    def __init__(self, cases: tuple[Case, ...], oracle: Oracle) -> None:
        self.outputs = [outputs_of(case, oracle) for case in cases]
        self.contracts = contracts(cases)
        self.stores = stores_of_all(cases)
        self.dtypes = tuple(dict.fromkeys(case.dtype for case in cases))
        self.cases = cases
        self._bits: dict[Numerics, tuple[int, ...]] = {}

    def bits(self, numerics: Numerics) -> tuple[int, ...]:
        """The number of the contract's output on each case: equal for contracts that the cases cannot tell apart."""
        if numerics not in self._bits:
            self._bits[numerics] = tuple(outputs.number(numerics) for outputs in self.outputs)
        return self._bits[numerics]

    def expected(self, numerics: Numerics) -> float:
        """Mean agreement of simulated kernels that have the contract."""
        return float(np.mean([outputs.expected(numerics) for outputs in self.outputs]))


class Search:
    """One kernel's outputs on a pool's cases, and the contracts that were compared with them."""

    def __init__(self, pool: Pool, outs: Sequence[AnyArray]) -> None:
        self._pool = pool
        self._scores = [Scores(outputs, out) for outputs, out in zip(pool.outputs, outs, strict=True)]
        self.tried: dict[Numerics, None] = {}
        self._merits: dict[Numerics, float] = {}
        self.elements = sum(scores.size for scores in self._scores)

    def best(self) -> Numerics:
        """The best contract of the pool, or one near it with formats of its own (bf16 for fp32 inputs).

        Where that explains little, every contract of the pool is tried with its stores in bf16 and in fp16.
        """
        best = self._climb(self._pool.contracts)
        if self.agreement(best) >= ENOUGH:
            return best
        narrow = [narrowed(other, fmt) for fmt in ("bf16", "fp16") for other in self._pool.contracts]
        return max(best, self._climb(narrow), key=self._merit)

    def near(self, declared: Numerics) -> Numerics:
        """The best contract near a declared one: itself, unless one that differs in little explains clearly more."""
        return self._climb([declared])

    def best_requantising(self) -> Numerics:
        """The best contract with a quantiser; which one to start from is decided on the first case alone.

        Quantisers that differ in a few bits only, such as of groups of 64 and 128 with powers of two as scales, are
        then told apart by all cases; where these do not tell, the commoner one is taken.
        """
        quantization = self._pool.cases[0].spec.experts.quantization
        starts = requantising(
            static=quantization is not None and quantization.static_activations,
            microscaling=quantization is not None and quantization.scale == "e8m0",
        )
        self.tried |= dict.fromkeys(starts)
        first, outputs = self._scores[0], self._pool.outputs[0]
        best = self._climb([max(starts, key=lambda c: first.merit(outputs.number(c)))])
        alike = quantiser_neighbours(best)
        self.tried |= dict.fromkeys(alike)
        least = max(self._merit(other) for other in (best, *alike)) - ALIKE
        return min((other for other in (best, *alike) if self._merit(other) >= least), key=rarity)

    def _climb(self, starts: Sequence[Numerics]) -> Numerics:
        """From the best of some contracts to better neighbours, as long as there are any."""
        self.tried |= dict.fromkeys(starts)
        best = max(starts, key=self._merit)
        settled = self.agreement(best) >= SETTLED
        candidates = [] if settled else [narrowed(best, fmt) for fmt in ("bf16", "fp16")]
        for _ in range(STEPS):
            candidates += [*neighbours(best, self._pool.stores), *quantiser_neighbours(best)]
            if settled:
                candidates = [other for other in candidates if formats_of(other) <= formats_of(best)]
            if not candidates:
                break
            self.tried |= dict.fromkeys(candidates)
            step = max(candidates, key=self._merit)
            if self._merit(step) < self._merit(best) + GAIN:
                break
            best, candidates = step, []
        return best

    def equivalent(self, best: Numerics) -> list[Numerics]:
        """The contracts with the best one's bits, the plainest first; those that mean the same appear once.

        The plainest: least below the floor, then no formats of its own, then the fewest stores, then the commonest
        quantisers.
        """
        same = [other for other in self.tried if self._pool.bits(other) == self._pool.bits(best)]
        dtypes = self._pool.dtypes
        same.sort(key=lambda c: (len(below_floor(c, dtypes=dtypes)), len(formats_of(c)), stored(c), rarity(c)))
        meanings: dict[tuple[Numerics, ...], Numerics] = {}
        for other in same:
            meanings.setdefault(tuple(resolved(other, case) for case in self._pool.cases), other)
        return list(meanings.values())

    def rivals(self, best: Numerics) -> list[Numerics]:
        """One contract for each set of bits other than the best one's, that with the fewest stores.

        Where there are any, only contracts with the best one's formats, fp32 and the input's: a bf16 kernel with one
        store in fp16 differs from one without it in a few percent of the outputs, however sure the best one is.
        """
        found: dict[tuple[int, ...], Numerics] = {}
        for other in sorted(self.tried, key=lambda c: (stored(c), not formats_of(c) <= formats_of(best))):
            found.setdefault(self._pool.bits(other), other)
        del found[self._pool.bits(best)]
        usual = [other for other in found.values() if formats_of(other) <= formats_of(best)]
        return usual or list(found.values())

    def agreement(self, numerics: Numerics) -> float:
        """Mean agreement over the cases."""
        bits = self._pool.bits(numerics)
        return float(np.mean([scores.agreement(number) for scores, number in zip(self._scores, bits, strict=True)]))

    def compare(self, first: Numerics, second: Numerics) -> Comparison:
        """Two contracts on the same outputs, in the cases where they differ."""
        pairs = zip(self._scores, self._pool.bits(first), self._pool.bits(second), strict=True)
        apart = [(scores, a, b) for scores, a, b in pairs if a != b]
        if not apart:
            return Comparison(first=self.agreement(first), second=self.agreement(second), same_bits=True)
        means = np.mean([(s.agreement(a), s.agreement(b)) for s, a, b in apart], axis=0)
        return Comparison(first=float(means[0]), second=float(means[1]), same_bits=False)

    def discordant(self, first: Numerics, second: Numerics) -> tuple[float, float]:
        """Shares of elements that only the first, and only the second, reproduces, in the cases where they differ."""
        pairs = zip(self._scores, self._pool.bits(first), self._pool.bits(second), strict=True)
        shares = [scores.only(a, b) for scores, a, b in pairs if a != b] or [(0.0, 0.0)]
        only_first, only_second = np.mean(shares, axis=0)
        return float(only_first), float(only_second)

    def _merit(self, numerics: Numerics) -> float:
        if numerics not in self._merits:
            bits = self._pool.bits(numerics)
            merits = [scores.merit(number) for scores, number in zip(self._scores, bits, strict=True)]
            self._merits[numerics] = float(np.mean(merits))
        return self._merits[numerics]
