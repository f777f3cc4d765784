"""What identification found, in words that a kernel's author recognises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import lru_cache

from moecheck.numerics import INPUT, QUANTISERS, STORES, Numerics
from moecheck.quantizer import Quantizer

# Stores that few kernels make; not spoken of where they are not made.
SELDOM = ("before_bias", "sigmoid", "up")
# What a store holds, as words that follow "stores" and "keeps".
NAMES = {
    "scores": "router scores",
    "dequantised": "dequantised weights",
    "before_bias": "GEMM outputs before their bias",
    "gate_up": "gate/up",
    "sigmoid": "sigmoid(alpha*g)",
    "act": "act(g)",
    "up": "u + beta",
    "act_times_up": "act(g)*u",
    "per_expert": "expert outputs",
    "weighted": "weighted expert outputs",
    "a1_quant": "GEMM inputs",
    "a2_quant": "act(g)*u",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """The contract that explains a kernel's outputs best.

    numerics: it, where several give the same bits the one with the fewest stores. agreement: share of the outputs that
    it reproduces bit for bit (fp32 outputs: within fp32 arithmetic), averaged over the cases. expected: the agreement
    that a kernel with this contract reaches, given fp32 accumulation. runner_up: the best contract that gives other
    bits, None where there is none. equivalent: the others that give the same bits on these observations. stores: those
    that can matter here. elements: outputs compared. known: whether the agreement is what is to be expected. dtypes:
    formats observed. by_case: the contract of each case by its id, where no one contract explains them all but each
    case has its own. compare, discordant: any two contracts on the same outputs, see search.Search.
    """

    numerics: Numerics
    agreement: float
    expected: float
    runner_up: Numerics | None
    runner_up_agreement: float
    equivalent: tuple[Numerics, ...]
    stores: tuple[str, ...]
    elements: int
    known: bool
    dtypes: tuple[str, ...]
    by_case: tuple[tuple[str, Identified], ...] = ()
    compare: Callable[[Numerics, Numerics], Comparison] = field(repr=False, compare=False)
    discordant: Callable[[Numerics, Numerics], tuple[float, float]] = field(repr=False, compare=False)

    def words(self) -> str:
        """One or two sentences: what the kernel does, how sure that is, and what comes next."""
        if self.by_case:
            return f"changes its contract between cases: {'; '.join(self._of_cases())}."
        if not self.known:
            return (
                f"contract unknown: the best of the contracts tried reproduces {self.agreement:.3f} of the outputs, "
                f"{self.expected:.3f} were to be expected."
            )
        text = f"{describe(self.numerics, self.stores)}; agreement {self.agreement:.4f}"
        if self.runner_up is not None:
            other = difference(self.runner_up, self.numerics, self.stores)
            text += f", runner-up {self.runner_up_agreement:.3f} ({other})"
        others = [difference(other, self.numerics, self.stores) for other in self.equivalent[:2]]
        if others:
            more = f" or {len(self.equivalent) - 2} others" if len(self.equivalent) > 2 else ""
            text += f". The same bits come from: {'; '.join(others)}{more}"
        return text + "."

    def _of_cases(self) -> list[str]:
        """Each contract of `by_case` once, with the cases that have it."""
        cases: dict[str, list[str]] = {}
        for case, found in self.by_case:
            cases.setdefault(describe(found.numerics, found.stores), []).append(case)
        return [f"on {' and '.join(names)} it {text}" for text, names in cases.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Agreement of each of two contracts in the cases where their outputs differ; in all cases if same_bits."""

    first: float
    second: float
    same_bits: bool


def describe(numerics: Numerics, stores: tuple[str, ...]) -> str:
    """What a contract does, in words; only `stores` are spoken of."""
    named = [name for name in stores if name in NAMES]
    passed_on = ("act_times_up",) if numerics.a2_quant is not None else ()  # to the quantiser, of which more is said
    kept = [n for n in named if getattr(numerics, n) == "fp32" and n not in (*SELDOM, *passed_on)]
    parts = []
    formats = list(dict.fromkeys(getattr(numerics, name) for name in named))
    for fmt in [fmt for fmt in formats if fmt != "fp32"]:
        held = [NAMES[name] for name in named if getattr(numerics, name) == fmt]
        parts.append(f"stores {_listed(held)} in {_format(fmt)}")
    if kept:
        parts.append(f"keeps {_listed([NAMES[name] for name in kept])} in fp32")
    parts += [f"requantises {where} to {how}" for how, where in _quantisers(numerics).items()]
    if "topk_weights" in stores:
        low = numerics.topk_weights != "fp32"
        verb = "returns" if set(stores) <= {"scores", "topk_weights"} else "multiplies by"
        rounding = f" rounded to {_format(numerics.topk_weights)}" if low else " in fp32"
        parts.append(f"{verb} routing weights{rounding}")
    if "combine" in stores:
        parts.append(_combining(numerics))
    return ", ".join(parts) or "keeps everything in fp32 until the one store of the output"


def difference(numerics: Numerics, other: Numerics, stores: tuple[str, ...]) -> str:
    """In what `numerics` differs from `other`, in words."""
    parts = []
    if (numerics.a1_quant, numerics.a2_quant) != (other.a1_quant, other.a2_quant):
        parts += [f"{where} in {how}" for how, where in _quantisers(numerics).items()] or ["no requantisation"]
    for name in stores:
        fmt = getattr(numerics, name)
        if name == "combine":
            if (numerics.combine, numerics.combine_order) != (other.combine, other.combine_order):
                parts.append(_combining(numerics))
        elif fmt != getattr(other, name):
            what = "routing weights" if name == "topk_weights" else NAMES[name]
            parts.append(f"{what} in {_format(fmt)}")
    return ", ".join(parts) or "no difference here"


def declaration_sentence(numerics: Numerics) -> str:
    """The argument of `@moecheck.kernel` that declares a contract."""
    return f"numerics=moecheck.{_call(numerics)}"


@lru_cache(maxsize=1 << 14)
def stored(numerics: Numerics) -> int:
    """How many stores round, quantisers among them."""
    quantisers = [name for name in QUANTISERS if getattr(numerics, name) is not None]
    return len(quantisers) + len([name for name in STORES if getattr(numerics, name) != "fp32"])


@lru_cache(maxsize=1 << 14)
def formats_of(numerics: Numerics) -> frozenset[str]:
    """The formats of a contract's stores, with fp32 and `input`, which any may have."""
    return frozenset({"fp32", INPUT, *(getattr(numerics, name) for name in STORES)})


def _quantisers(numerics: Numerics) -> dict[str, str]:
    """How a contract requantises -> what."""
    found: dict[str, list[str]] = {}
    for name in QUANTISERS:
        quantizer: Quantizer | None = getattr(numerics, name)
        if quantizer is not None:
            found.setdefault(quantizer.words(), []).append(NAMES[name])
    return {how: _listed(names) for how, names in found.items()}


def _call(record: Numerics | Quantizer) -> str:
    """The call that makes a record, with what differs from the defaults."""
    default = type(record)()
    given = []
    for f in fields(record):
        value = getattr(record, f.name)
        if value != getattr(default, f.name):
            text = f"moecheck.{_call(value)}" if isinstance(value, Quantizer) else json.dumps(value)
            given.append(f"{f.name}={text}")
    return f"{type(record).__name__}({', '.join(given)})"


def _combining(numerics: Numerics) -> str:
    if numerics.combine == "fp32" or numerics.combine_order == "tree":
        return "adds in fp32"
    return f"adds in {_format(numerics.combine)} in {numerics.combine_order} order"


def _format(name: str) -> str:
    return "the input's format" if name == INPUT else name


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
