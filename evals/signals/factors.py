"""Names for a component's weight: 0.400 with a routed scaling factor of 2.5 is 1/routed_scaling_factor."""

from __future__ import annotations

from collections.abc import Iterator

from moecheck.evals.backends.records import ModelFacts

RANKS = (2, 4, 8, 16)
FACTOR = "routed_scaling_factor"


def name_weights(alpha: float, beta: float | None, facts: ModelFacts, tolerance: float) -> str:
    """What is wrong with y = alpha * routed + beta * shared, in words; empty where nothing is.

    tolerance: relative, of each of them. beta: None without shared experts.
    """
    wrong_alpha = abs(alpha - 1) > tolerance
    wrong_beta = beta is not None and abs(beta - 1) > tolerance
    if beta is not None and wrong_alpha and wrong_beta and abs(alpha - beta) <= tolerance * abs(alpha):
        return f"whole layer {_weighted(alpha, facts, tolerance)}"
    parts = [f"routed experts {_weighted(alpha, facts, tolerance)}"] if wrong_alpha else []
    parts += [f"shared expert {_weighted(beta, facts, tolerance)}"] if beta is not None and wrong_beta else []
    return "; ".join(parts)


def name_factor(value: float, facts: ModelFacts, tolerance: float) -> str:
    """The formulas that give `value` within a relative tolerance, `a or b` where several do; empty without any."""
    names = [name for name, expected in _candidates(facts) if abs(value - expected) <= tolerance * abs(expected)]
    return " or ".join(dict.fromkeys(names))


def _weighted(value: float, facts: ModelFacts, tolerance: float) -> str:
    if abs(value) <= tolerance:
        return "dropped"
    name = name_factor(value, facts, tolerance)
    return f"weighted {value:.3f}" + (f" = {name}" if name else "")


def _candidates(facts: ModelFacts) -> Iterator[tuple[str, float]]:
    """The simplest first; a number that two formulas give is listed under both."""
    factor = facts.routed_scaling_factor
    if factor != 1:
        yield f"1/{FACTOR}", 1 / factor
        yield FACTOR, factor
        yield f"{FACTOR}^2", factor**2
        yield f"1/{FACTOR}^2", 1 / factor**2
        yield f"{FACTOR}/(1 + {FACTOR}), as if the shared expert were among the renormalised", factor / (1 + factor)
        for ranks in RANKS:
            yield f"{FACTOR} x {ranks} ranks", factor * ranks
            yield f"{ranks} ranks/{FACTOR}", ranks / factor
    for ranks in RANKS:
        yield f"{ranks} ranks" if ranks > 2 else "2 (added twice, or by 2 ranks)", float(ranks)
        yield f"1/{ranks} (ranks)", 1 / ranks
    yield "top_k/(top_k + 1)", facts.top_k / (facts.top_k + 1)
    yield "-1 (subtracted)", -1.0
