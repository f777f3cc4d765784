"""Mutants of precision: operands of GEMMs cut short, partial sums kept low, stores that truncate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from moecheck.cases import Case
from moecheck.formats import Float64, round_to, ulp

from .call import Call, value
from .expert_maths import Maths, Multiply, right_hidden, right_product, value_by
from .registry import mutant

GEMMS = ("grouped_gemm", "fused_experts", "moe_layer")
TWO_GEMMS = ("fused_experts", "moe_layer")
ROUNDED = ("fused_experts", "moe_layer", "grouped_gemm", "unpermute", "act_and_mul")
TF32_BITS = 11  # of the significand, the implicit one included
SPLITS = (2, 4, 8)
CHUNKS = (16, 32, 64)  # terms that a GEMM adds up before it stores its accumulator
WHERE = {"both": "the GEMMs'", "first": "the first GEMM's", "second": "the second GEMM's"}


def in_fp32(case: Case) -> bool:
    return case.dtype == "fp32"


def stored_low(case: Case) -> bool:
    return case.dtype != "fp32"


def truncated(values: Float64, step: Float64) -> Float64:
    """Values cut off towards zero to multiples of `step`."""
    return np.trunc(values / step) * step


def truncated_to(values: Float64, name: str) -> Float64:
    """Values as a store that truncates leaves them in format `name`."""
    return truncated(values, ulp(values, name))


def _tf32(values: Float64) -> Float64:
    step = _tf32_step(values)
    return np.rint(values / step) * step


def _tf32_step(values: Float64) -> Float64:
    return ulp(values, "fp32") * 2.0 ** (24 - TF32_BITS)


def _of_rounded(cut: Callable[[Float64], Float64], x: Float64, w: Float64) -> Float64:
    return right_product(cut(x), cut(w))


def _of_three_parts(x: Float64, w: Float64) -> Float64:
    """X W^T without the product of the low parts: how fp32 is emulated with three bf16 products."""
    x_high, w_high = round_to(x, "bf16"), round_to(w, "bf16")
    x_low, w_low = round_to(x - x_high, "bf16"), round_to(w - w_high, "bf16")
    return x_high @ w_high.T + x_high @ w_low.T + x_low @ w_high.T


def _split(x: Float64, w: Float64, *, chunk: int, name: str, running: bool) -> Float64:
    """X W^T by chunks of terms: each chunk's sum stored in format `name`, or with `running` the sum so far."""
    total = np.zeros((len(x), len(w)))
    for start in range(0, x.shape[1], chunk):
        part = x[:, start : start + chunk] @ w[:, start : start + chunk].T
        total = round_to(total + part, name) if running else total + round_to(part, name)
    return total


def _with_products(call: Call, product: Multiply, where: str) -> Float64:
    first = product if where != "second" else right_product
    second = product if where != "first" else right_product
    return value_by(call, first=first, second=second)


def _operands(name: str, words: str, product: Multiply, where: str) -> None:
    @mutant(
        name,
        f"{WHERE[where]} operands are {words}",
        *(GEMMS if where == "both" else TWO_GEMMS),
        variant="" if where == "both" else where,
        when=in_fp32,
        rough=True,
        sources=("vllm-project/vllm#11921",) if name == "fp16_operands" else (),
    )
    def change(call: Call) -> Float64:
        return _with_products(call, product, where)


for _where in WHERE:
    _operands("tf32", "rounded to TF32 (10 bits)", partial(_of_rounded, _tf32), _where)
    _operands(
        "tf32_truncated",
        "cut off to TF32 (10 bits)",
        partial(_of_rounded, lambda values: truncated(values, _tf32_step(values))),
        _where,
    )
    _operands(
        "bf16_operands",
        "rounded to bf16",
        partial(_of_rounded, lambda values: round_to(values, "bf16")),
        _where,
    )
_operands(
    "fp16_operands",
    "computed from fp16 although they are fp32",
    partial(_of_rounded, lambda values: round_to(values, "fp16")),
    "both",
)
_operands(
    "bf16x3", "two bf16 parts each, multiplied without the product of the low parts (bf16x3)", _of_three_parts, "both"
)


class LowSums(NamedTuple):
    """A way of keeping a GEMM's sums low. where: `both` GEMMs or the `second`. product: of x, W and a format's name.

    terms: the fewest that a sum must have. With less than a chunk behind the last low store that one is nearly the
    output's own, which is right.
    """

    name: str
    variant: str
    words: str
    where: str
    terms: int
    product: Callable[..., Float64]

    def applies(self, case: Case) -> bool:
        terms = min(case.hidden_size, case.intermediate_size) if case.op in TWO_GEMMS else case.hidden_size
        ops = GEMMS if self.where == "both" else TWO_GEMMS
        return case.op in ops and stored_low(case) and terms >= self.terms


def _low_sums() -> Iterator[LowSums]:
    for splits in SPLITS:
        for where in ("both", "second"):
            words = (
                f"{WHERE[where]} sums are split in {splits}, and the partial sums are stored in the input's dtype "
                "(split-K)"
            )
            yield LowSums("low_partial_sums", f"{splits} {where}", words, where, 2 * splits, partial(_split_in, splits))
    for chunk in CHUNKS:
        words = f"the GEMMs' accumulator is stored in the input's dtype after every {chunk} terms"
        product = partial(_split, chunk=chunk, running=True)
        yield LowSums("low_accumulator", f"{chunk}", words, "both", 2 * chunk, product)


def _split_in(splits: int, x: Float64, w: Float64, *, name: str) -> Float64:
    return _split(x, w, chunk=-(-x.shape[1] // splits), name=name, running=False)


LOW_SUMS = tuple(_low_sums())


def _register(low: LowSums) -> None:
    @mutant(
        low.name,
        low.words,
        *(GEMMS if low.where == "both" else TWO_GEMMS),
        variant=low.variant,
        when=low.applies,
        rough=True,
        slight=True,
        sources=("vllm-project/vllm#56887", "vllm-project/vllm#54706"),
    )
    def change(call: Call) -> Float64:
        return _with_products(call, partial(low.product, name=call.case.dtype), low.where)


for _low in LOW_SUMS:
    _register(_low)


@mutant(
    "truncating_store",
    "the output's store truncates instead of rounding to nearest",
    *ROUNDED,
    when=stored_low,
    fitted=True,
    slight=True,
)
def truncated_output(call: Call) -> Float64:
    return truncated_to(value(call), call.case.dtype)


@mutant(
    "truncating_store",
    "the store of h, the second GEMM's input, truncates instead of rounding to nearest",
    *TWO_GEMMS,
    variant="h",
    when=stored_low,
    fitted=True,
    slight=True,
)
def truncated_h(call: Call) -> Float64:
    return value_by(call, partial(_truncated_hidden, name=call.case.dtype, before=False))


@mutant(
    "truncating_store",
    "every store (of both GEMMs' outputs, h and the output) truncates instead of rounding to nearest",
    *TWO_GEMMS,
    variant="all",
    when=stored_low,
    fitted=True,
    slight=True,
)
def truncated_everywhere(call: Call) -> Float64:
    name = call.case.dtype

    def product(x: Float64, w: Float64) -> Float64:
        return truncated_to(right_product(x, w), name)

    hidden = partial(_truncated_hidden, name=name, before=True)
    return truncated_to(value_by(call, hidden, second=product), name)


def _truncated_hidden(maths: Maths, gate: Float64, up: Float64, *, name: str, before: bool) -> Float64:
    if before:
        gate, up = truncated_to(gate, name), truncated_to(up, name)
    return truncated_to(right_hidden(maths, gate, up), name)
