"""The check of a kernel's contract: what it declares is what it does, and what it hides is not below the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moecheck.checks.finding import Judgement, Verdict
from moecheck.formats import FORMATS
from moecheck.kernel import Declaration
from moecheck.numerics import INPUT, QUANTISERS, STORES, Numerics

from .candidates import ROUTER, stores_of_op
from .quantisers import differs_in_arithmetic
from .result import NAMES, Identified, declaration_sentence, describe, difference

# Kept in fp32 by a kernel that declares nothing, whatever its inputs are.
FP32_FLOOR = ("scores", "topk_weights", "combine")
MARGIN = 0.05  # in agreement: a contract that explains this much more is what the kernel does
# Of the outputs that only one of two contracts reproduces, nearly all belong to the true one: only flips, a share of
# a few percent of them, go to the other. Where four of five are against the declared one, it is not the true one.
DISCORDANT, LEAST = 4.0, 0.01
UNKNOWN = "unknown"  # the fact about a contract that nothing tried explains


def below_floor(numerics: Numerics, *, dtypes: Iterable[str]) -> tuple[str, ...]:
    """The stores that round below the floor for inputs of any of these formats.

    The floor: scores, routing weights and combine in fp32, every other store no narrower than the input, in precision
    and in range, and nothing requantised.
    """
    low = [name for name in STORES if any(_too_narrow(numerics, name, dtype) for dtype in dtypes)]
    return (*low, *(name for name in QUANTISERS if getattr(numerics, name) is not None))


def judge_numerics(
    declared: Numerics | None, identified: Identified, *, require: Mapping[str, str] | None = None
) -> Judgement:
    """PASS with the contract in words, or FAIL: another contract than declared, a hidden one below the floor, or one
    that `require` (store -> format, at least) forbids.

    Where no contract explains the outputs the verdict is left to the smooth model: PASS, and the words say so.
    """
    numbers = {
        "agreement": identified.agreement,
        "runner_up_agreement": identified.runner_up_agreement,
        "expected_agreement": identified.expected,
        "known": 1.0 if identified.known else 0.0,
    }
    verdict, message = _judged(declared, identified, require or {})
    return Judgement(
        check="numerics",
        verdict=verdict,
        message=message[0].upper() + message[1:],
        numbers=numbers,
        facts=_facts(identified),
    )


def judge_unseen(declaration: Declaration, require: Mapping[str, str]) -> Judgement | None:
    """What `require` has against a kernel whose contract no output shows; None where it has nothing.

    Only its declaration is left to judge by. Scores and routing weights of a router are in fp32 unless it declares
    otherwise, since its results are compared at that precision.
    """
    router = declaration.op == ROUTER
    stores = ("scores", "topk_weights") if router else stores_of_op(declaration.op, declaration.specs)
    for name, wanted in require.items():
        if name not in stores:
            continue
        declared = declaration.numerics
        if declared is not None and _narrower(_formats_of(declared, name, declaration.dtypes), wanted):
            message = f"The run requires {name}={wanted}, the kernel declares {name}={getattr(declared, name)}."
            return Judgement(check="numerics", verdict=Verdict.FAIL, message=message)
        if not router:
            message = f"The run requires {name}={wanted}, which could not be shown: no output tells where it rounds."
            return Judgement(check="numerics", verdict=Verdict.INCONCLUSIVE, message=message)
    return None


def _facts(found: Identified) -> dict[str, str]:
    """The contract, and the runner-up's difference from it, in words."""
    if found.by_case:
        return {"contract": found.words().rstrip(".")}
    if not found.known:
        return {"contract": UNKNOWN}
    facts = {"contract": describe(found.numerics, found.stores)}
    if found.runner_up is not None:
        facts["runner_up"] = difference(found.runner_up, found.numerics, found.stores)
    return facts


def _judged(declared: Numerics | None, found: Identified, require: Mapping[str, str]) -> tuple[Verdict, str]:
    parts = [part for _, part in found.by_case] or [found]
    if declared is not None:
        for part in parts:
            if part.known and (refuted := _refuted(declared, part)) is not None:
                return Verdict.FAIL, refuted + _changes(found)
    for part in parts:
        forbidden = _forbidden(declared, part, require)
        if forbidden is not None:
            return forbidden
    for part in parts:
        low = below_floor(part.numerics, dtypes=part.dtypes)
        if declared is None and part.known and low:
            return Verdict.FAIL, (
                f"rounds {store_words(low)} below the floor without declaring it: {part.words()} If that is meant, "
                f"declare {declaration_sentence(part.numerics)}.{_changes(found)}"
            )
    return Verdict.PASS, found.words() + _other_arithmetic(declared, found)


def _other_arithmetic(declared: Numerics | None, found: Identified) -> str:
    """What a kernel may add to its declaration, which ordinary numbers do not show."""
    if declared is None or not found.known or not differs_in_arithmetic(declared, found.numerics):
        return ""
    return (
        " Where codes tie or tokens are next to nothing its quantisers are not quite those that it declares: "
        f"{difference(found.numerics, declared, found.stores)}. Declare {declaration_sentence(found.numerics)}."
    )


def _changes(found: Identified) -> str:
    return f" It {found.words()}" if found.by_case else ""


def _refuted(declared: Numerics, found: Identified) -> str | None:
    """The sentence that says what the kernel does instead of what it declares; None where it does what it declares."""
    seen = found.compare(declared, found.numerics)
    for_declared, against = found.discordant(declared, found.numerics)
    proof = against >= LEAST and against >= DISCORDANT * for_declared
    if seen.same_bits or not (seen.second - seen.first >= MARGIN or proof):
        return None
    return (
        f"declares {difference(declared, found.numerics, found.stores)}, which reproduces {seen.first:.3f} of the "
        f"outputs; it does something else, which reproduces {seen.second:.3f}: "
        f"{describe(found.numerics, found.stores)}. Declare {declaration_sentence(found.numerics)}."
    )


def _forbidden(declared: Numerics | None, found: Identified, require: Mapping[str, str]) -> tuple[Verdict, str] | None:
    """What `require` has against the declared or the found contract; None where it is met."""
    for name, wanted in require.items():
        if declared is not None and _narrower(_formats_of(declared, name, found.dtypes), wanted):
            return (
                Verdict.FAIL,
                f"the run requires {name}={wanted}, the kernel declares {name}={getattr(declared, name)}.",
            )
        if name not in found.stores:
            continue
        if not found.known:
            return Verdict.INCONCLUSIVE, f"the run requires {name}={wanted}, which could not be shown: {found.words()}"
        alike = (found.numerics, *found.equivalent)
        if all(_narrower(_formats_of(numerics, name, found.dtypes), wanted) for numerics in alike):
            return Verdict.FAIL, f"the run requires {name}={wanted}, the kernel does otherwise: {found.words()}"
    return None


def _formats_of(numerics: Numerics, name: str, dtypes: Iterable[str]) -> set[str]:
    """What a store's format is for inputs of these formats."""
    if name == "combine" and numerics.combine_order == "tree":
        return {"fp32"}
    value = getattr(numerics, name)
    return set(dtypes) if value == INPUT else {value}


def _narrower(formats: Iterable[str], wanted: str) -> bool:
    """Whether any of the formats has less precision or range than the wanted one."""
    least = FORMATS[wanted]
    held = [FORMATS[fmt] for fmt in formats]
    # bf16 reaches as far as fp32, up to its last place
    return any(fmt.precision < least.precision or fmt.max_value < 0.99 * least.max_value for fmt in held)


def _too_narrow(numerics: Numerics, name: str, dtype: str) -> bool:
    wanted = "fp32" if name in FP32_FLOOR else dtype
    return _narrower(_formats_of(numerics, name, (dtype,)), wanted)


def store_words(stores: Iterable[str]) -> str:
    """The stores' names in words."""
    return " and ".join(_FLOOR_NAMES.get(name, NAMES.get(name, name)) for name in stores)


_FLOOR_NAMES = {"topk_weights": "routing weights", "combine": "the sum over experts"}
