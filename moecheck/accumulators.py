"""Hardware profiles of accumulators: how exactly a matrix unit adds up products."""

from __future__ import annotations

from dataclasses import dataclass

BRIDGE, DRIFT = 0.03, 0.06  # of fp32 accumulation rounded to nearest, see linear_estimate
TRUNCATION = 4.0  # E e^2 of an error uniform on [0, ulp), over that of one uniform about 0: 1/3 over 1/12


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulator:
    """The parameters of the error model of one accumulator.

    fraction_bits: bits kept after the leading one of the partial sum when a product is added. truncating: the rest is
    cut off instead of rounded to nearest. promoted_every: terms after which the partial sum goes to an fp32 register, 0
    for never.
    """

    fraction_bits: int
    truncating: bool = False
    promoted_every: int = 0

    def variance_factors(self, terms: int) -> tuple[float, float]:
        """b, d in V = b x^2 . w^2 + d y^2, of y = x . w over `terms` products (derived at linear_estimate).

        With promotion the terms of one part count, whose end is y times its share of all terms.
        """
        unit = 2.0 ** -(self.fraction_bits + 1)
        together = min(terms, self.promoted_every or terms)
        share = together / max(terms, 1)
        each = unit**2 * together * (TRUNCATION if self.truncating else 1.0)
        return BRIDGE * each, DRIFT * each * share + self.bias(terms) ** 2

    def bias(self, terms: int) -> float:
        """The most by which truncation makes a sum of `terms` positive products too small, relatively.

        Each product loses half of the last bit kept, 2^-f of the partial sum at most, which grows linearly to y:
        terms / 4 2^-f. Products that have few bits themselves lose less: of fp8 numbers, 10.9 % were measured where
        22 % are allowed (K = 7168, f = 13). 0 where sums are rounded to nearest.
        """
        if not self.truncating:
            return 0.0
        return min(terms, self.promoted_every or terms) / 4.0 * 2.0**-self.fraction_bits


# fp32-rn: fp32 sums, each rounded to nearest. hopper-fp8: fp8 tensor cores of Hopper keep 13 fractional bits and
# truncate (DeepSeek-V3, arXiv:2412.19437, section 3.3.2: "around 14 bits"); promoted-128: its remedy, partial sums of
# 128 terms are added in fp32. tensor-core-truncating: bf16 and fp16 operands, 24 bits kept and truncated.
ACCUMULATORS = {
    "fp32-rn": Accumulator(fraction_bits=23),
    "hopper-fp8": Accumulator(fraction_bits=13, truncating=True),
    "hopper-fp8-promoted-128": Accumulator(fraction_bits=13, truncating=True, promoted_every=128),
    "tensor-core-truncating": Accumulator(fraction_bits=23, truncating=True),
}
