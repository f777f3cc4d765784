"""A small corpus of outputs that are known to be right, wrong, or to show nothing: what any checker must tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np

from moecheck.cases import Case
from moecheck.checks import finding, judge
from moecheck.formats import AnyArray, Float64, store, to_float64, ulp
from moecheck.numerics import INPUT, Numerics
from moecheck.oracle import Oracle, reference_modules
from moecheck.quantizer import Quantizer
from moecheck.spec import MoESpec, RoutingSpec

from .outputs import honest_outputs
from .variants import Variant

Kind = Literal["right", "wrong", "nothing"]
STORES = Numerics(gate_up=INPUT, act_times_up=INPUT)
PLAIN = Variant(contract=STORES)
UNKNOWN = Variant(contract=STORES, known="unknown")
FP8 = Variant(contract=Numerics(a2_quant=Quantizer(group=32)))
TOP2 = MoESpec(routing=RoutingSpec(top_k=2, renormalize=True))
BF16 = Case(op="fused_experts", spec=TOP2, num_tokens=64, hidden_size=128, intermediate_size=64, num_experts=8)
FP32 = replace(BF16, dtype="fp32")
INTEGER = replace(BF16, stratum="integer")
PADDED = replace(FP32, load="padding")
NO_TOKENS = replace(FP32, num_tokens=0)
ALL_PADDING = replace(PADDED, num_tokens=1, seed=7)
ROUTED = Case(op="topk_routing", spec=TOP2, num_tokens=64, num_experts=16, dtype="fp32", load="gapped")
WEIGHED = replace(ROUTED, load="random")
TIES = replace(ROUTED, load="ties", num_experts=64)
EXTREME = replace(ROUTED, load="extreme")
FEW = replace(WEIGHED, num_tokens=8)  # too few weights for statistics
TINY = replace(FP32, num_tokens=2, hidden_size=16, intermediate_size=32)  # too few elements
BLOCKS = Case(op="align_block_size", spec=TOP2, load="block_edges", num_tokens=96)
GROUPED = Case(op="grouped_gemm", spec=TOP2, dtype="fp32", hidden_size=128, intermediate_size=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One output and what must be said of it. make: (honest outputs, oracle) -> outputs."""

    name: str
    kind: Kind
    case: Case
    make: Callable[[tuple[AnyArray, ...], Oracle], tuple[AnyArray, ...]]
    variant: Variant = PLAIN
    tol: float = 1e-2


def self_test() -> list[str]:
    """Names of the items of which the checker says something else than it must."""
    wrong = []
    for item in items():
        try:
            said = verdict(item)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, Warning) as error:
            said = type(error).__name__  # a checker that falls over is seen, too
        if said not in _MEANT[item.kind]:
            wrong.append(f"{item.name}: {said}, and it is {item.kind}")
    return wrong


def verdict(item: Item) -> str:
    """What the checker, as it is at this moment, says of an item."""
    oracle = Oracle()
    outputs = item.make(_honest(item.case, item.variant), oracle)
    told = item.variant.judged_under
    judged = judge.judge(
        item.case,
        outputs,
        oracle,
        judge.Limits(tol=item.tol),
        told,
        tie="lowest_index" if item.case.op == "topk_routing" else None,
        declared=item.variant.declared,
    )
    return finding.verdict_of(judged.judgements).value


def items() -> Iterator[Item]:
    """The corpus: the right half first."""
    for name, case, variant in (
        ("bf16, declared", BF16, PLAIN),
        ("bf16, nothing known", BF16, UNKNOWN),
        ("fp32", FP32, PLAIN),
        ("backward chunks, split-K", BF16, replace(PLAIN, chunk=16, order="backward", splits=3)),
        ("integers", INTEGER, PLAIN),
        ("padding", PADDED, PLAIN),
        ("requantised to fp8", BF16, FP8),
        ("routing without ties", ROUTED, PLAIN),
        ("routing with ties", TIES, PLAIN),
        ("blocks", BLOCKS, PLAIN),
        ("grouped GEMM", GROUPED, PLAIN),
    ):
        yield Item(name=f"right: {name}", kind="right", case=case, make=_unchanged, variant=variant)
    yield Item(name="right: routing, slots in another order", kind="right", case=ROUTED, make=_slots_reversed)
    yield Item(name="nothing: no tokens", kind="nothing", case=NO_TOKENS, make=_unchanged)
    yield Item(name="nothing: zeros pass at this tolerance", kind="nothing", case=BF16, make=_unchanged, tol=100.0)
    yield from _wrong_values()
    yield from _wrong_others()


def _wrong_values() -> Iterator[Item]:
    def item(
        name: str, change: Callable[[Float64, Float64], Float64], case: Case = BF16, variant: Variant = PLAIN
    ) -> Item:
        return Item(name=f"wrong: {name}", kind="wrong", case=case, make=_values(change, variant), variant=variant)

    yield item("all too small", lambda out, sigma: out - 60.0 * sigma)
    yield item("all too large", lambda out, sigma: out + 60.0 * sigma)
    yield item("zeros", lambda out, sigma: np.zeros(out.shape))
    yield item("zeros, fp32", lambda out, sigma: np.zeros(out.shape), FP32)
    yield item("one NaN", lambda out, sigma: _with(out, (3, 5), np.nan))
    yield item("all NaN", lambda out, sigma: np.full(out.shape, np.nan))
    yield item("one infinity", lambda out, sigma: _with(out, (3, 5), np.inf))
    yield item("one element off by 15 sigma", lambda out, sigma: _with(out, (9, 9), out[9, 9] + 15 * sigma[9, 9]))
    yield item("one element too small by 15 sigma", lambda out, sigma: _with(out, (9, 9), out[9, 9] - 15 * sigma[9, 9]))
    yield item("a column off by 5 sigma", lambda out, sigma: _part(out, (slice(None), 7), 5 * sigma), variant=UNKNOWN)
    yield item("a row off by 8 sigma", lambda out, sigma: _part(out, (7, slice(None)), 8 * sigma), variant=UNKNOWN)
    yield item("a factor of 1.002", lambda out, sigma: out * 1.002)
    yield item("a factor of 0.998", lambda out, sigma: out * 0.998)
    yield item("a factor of 1.004, nothing known", lambda out, sigma: out * 1.004, variant=UNKNOWN)
    yield item("an offset of a sigma", lambda out, sigma: out + sigma, variant=UNKNOWN)
    yield item("an offset of minus a sigma", lambda out, sigma: out - sigma, variant=UNKNOWN)
    yield item("noise of two sigma", lambda out, sigma: out + 2 * sigma * _signs(out.shape), variant=UNKNOWN)
    yield item("half of the bits other", lambda out, sigma: out * (1.0 + 2.0**-8 * (_signs(out.shape) > 0)))
    yield item("one bit in fourteen other", lambda out, sigma: _some_bits(out))
    yield item("one of few off by 12 sigma", lambda out, sigma: _with(out, (1, 3), out[1, 3] + 12 * sigma[1, 3]),
               TINY)  # fmt: skip
    yield item("two rows exchanged", lambda out, sigma: out[_exchanged(len(out))])
    yield item("an integer off by a bit", lambda out, sigma: _next(out), INTEGER)
    yield item("a padding row that is not zero", _padding_row, PADDED)
    yield item("fp8: a factor of 1.02", lambda out, sigma: out * 1.02, variant=FP8)
    yield item("fp8: a row exchanged", lambda out, sigma: out[_exchanged(len(out))], variant=FP8)
    yield item("GEMM: a row of zeros", lambda out, sigma: _with(out, (4, slice(None)), 0.0), GROUPED)


def _wrong_others() -> Iterator[Item]:
    for name, case, make in (
        ("a column too few", BF16, lambda out, oracle: (out[0][:, :-1],)),
        ("a row too few", BF16, lambda out, oracle: (out[0][:-1],)),
        ("no tokens, but rows", NO_TOKENS, lambda out, oracle: (np.zeros((1, out[0].shape[1]), np.float32),)),
        ("float64", BF16, lambda out, oracle: (out[0].astype(np.float64),)),
        ("two outputs", BF16, lambda out, oracle: (out[0], out[0])),
        ("an expert out of range", ROUTED, lambda out, oracle: (out[0], _with(out[1], (2, 0), 16))),
        ("an expert twice", ROUTED, lambda out, oracle: (out[0], _with(out[1], (2, 0), out[1][2, 1]))),
        ("the wrong expert", ROUTED, lambda out, oracle: (out[0], _with(out[1], (2, 0), _other(out[1][2])))),
        ("another expert with its own weight", ROUTED, _wrong_expert),
        ("an expert twice where the logits are NaN", EXTREME, _twice_where_undefined),
        (
            "one of few weights 1e-4 too large",
            FEW,
            lambda out, oracle: (_with(out[0], (2, 0), out[0][2, 0] * 1.0001), out[1]),
        ),
        ("weights of two tokens exchanged", FEW, lambda out, oracle: (out[0][_exchanged(len(out[0]))], out[1])),
        ("weights of the next token", WEIGHED, lambda out, oracle: (np.roll(out[0], 1, axis=0), out[1])),
        ("weights 1e-4 too large", ROUTED, lambda out, oracle: (out[0] * np.float32(1.0001), out[1])),
        ("weights 1e-4 too small", ROUTED, lambda out, oracle: (out[0] * np.float32(0.9999), out[1])),
        ("a NaN weight", ROUTED, lambda out, oracle: (_with(out[0], (2, 0), np.nan), out[1])),
        ("a lost row of a block", BLOCKS, lambda out, oracle: (_with(out[0], 0, 96 * 2), *out[1:])),
        ("a block of another expert", BLOCKS, lambda out, oracle: (out[0], _with(out[1], 0, 5), out[2])),
        ("too large a count", BLOCKS, lambda out, oracle: (*out[:2], out[2] + np.int32(16))),
    ):
        yield Item(name=f"wrong: {name}", kind="wrong", case=case, make=make)


def _values(
    change: Callable[[Float64, Float64], Float64], variant: Variant
) -> Callable[[tuple[AnyArray, ...], Oracle], tuple[AnyArray, ...]]:
    """A change of a value op's output, given its sigma, stored as a kernel would."""

    def make(outputs: tuple[AnyArray, ...], oracle: Oracle) -> tuple[AnyArray, ...]:
        del oracle
        (out,) = outputs
        case = next(case for case in (BF16, FP32, INTEGER, PADDED, GROUPED, TINY) if _is_of(out, case, variant))
        wrong = change(to_float64(out), _sigma(case, variant))
        return (store(wrong, case.dtype),)

    return make


def _is_of(out: AnyArray, case: Case, variant: Variant) -> bool:
    return out is _honest(case, variant)[0]


def _unchanged(outputs: tuple[AnyArray, ...], oracle: Oracle) -> tuple[AnyArray, ...]:
    del oracle
    return outputs


def _slots_reversed(outputs: tuple[AnyArray, ...], oracle: Oracle) -> tuple[AnyArray, ...]:
    del oracle
    return outputs[0][:, ::-1].copy(), outputs[1][:, ::-1].copy()


@cache
def _honest(case: Case, variant: Variant) -> tuple[AnyArray, ...]:
    return honest_outputs(case, Oracle(), variant)


@cache
def _sigma(case: Case, variant: Variant) -> Float64:
    return Oracle().values(case, variant.contract).sigma


def prepare() -> None:
    """Compute what the items start from, before a checker is changed: it must not change what it is given."""
    for item in items():
        _honest(item.case, item.variant)
        if item.case.op in ("fused_experts", "grouped_gemm") and item.case.num_tokens:
            _sigma(item.case, item.variant)


def _with(array: AnyArray, at: Any, value: Any) -> AnyArray:
    changed = array.copy()
    changed[at] = value
    return changed


def _part(out: Float64, at: Any, more: Float64) -> Float64:
    """The output with more or less added along a row or a column, by turns."""
    changed = out.copy()
    signs = _signs(out.shape)
    changed[at] += (signs * more)[at]
    return changed


def _signs(shape: tuple[int, ...]) -> Float64:
    """Plus and minus 1 by turns, in a pattern that no row or column averages out alike."""
    rows, columns = np.indices(shape)
    return np.where((rows * 7 + columns * 3 + rows * columns) % 5 % 2 == 0, 1.0, -1.0)


def _exchanged(rows: int) -> list[int]:
    return [1, 0, *range(2, rows)]


def _next(out: Float64) -> Float64:
    row, column = np.argwhere(out != 0)[0]
    return np.asarray(_with(out, (row, column), out[row, column] * (1.0 + 2.0**-7)))


def _some_bits(out: Float64) -> Float64:
    """One element in fourteen one unit in the last place away, up and down by turns."""
    at = np.arange(out.size).reshape(out.shape)
    signs = np.where(at // 14 % 2 == 0, 1.0, -1.0)
    return np.where(at % 14 == 3, out + signs * ulp(out, "bf16"), out)


def _wrong_expert(outputs: tuple[AnyArray, ...], oracle: Oracle) -> tuple[AnyArray, ...]:
    """Token 2 has another expert, and the weights that belong to its experts."""
    ids = _with(outputs[1], (2, 0), _other(outputs[1][2]))
    arguments = {"router_logits": oracle.inputs(ROUTED)["router_logits"], "spec": ROUTED.spec.routing}
    weights = reference_modules()["topk_routing"].weights_of_ids(**arguments, topk_ids=ids)
    return weights.astype(np.float32), ids


def _twice_where_undefined(outputs: tuple[AnyArray, ...], oracle: Oracle) -> tuple[AnyArray, ...]:
    (row, *_) = np.flatnonzero(np.isnan(oracle.inputs(EXTREME)["router_logits"]).all(axis=1))
    return outputs[0], _with(outputs[1], (int(row), 0), outputs[1][int(row), 1])


def _padding_row(out: Float64, sigma: Float64) -> Float64:
    empty = np.flatnonzero((sigma == 0).all(axis=1))
    return np.asarray(_with(out, (int(empty[0]), 3), 1e-6))


def _other(ids: AnyArray) -> int:
    return next(e for e in range(16) if e not in ids.tolist())


_MEANT: dict[Kind, tuple[str, ...]] = {
    "right": ("pass",),
    "wrong": ("fail", "proven_wrong"),
    "nothing": ("vacuous", "inconclusive"),
}
