"""What every kind of problem is made of: facts, a question, lines of a solution, and the key of its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .draw import Draw
from .words import DISTRACTORS, PEOPLE

LARGEST = 2000  # no number of a problem is larger
DISTRACTED = 0.15  # share of problems with a sentence that does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One word problem in gsm8k's form.

    question, answer: as in gsm8k, the answer with one line per operation, `<<calculations>>` and `#### N` at its end.
    operations: how many. cluster: what problems have in common that are likely to be solved alike: kind and number of
    operations. content: skeleton and numbers, without names and things; problems of equal content are the same problem.
    """

    question: str
    answer: str
    operations: int
    cluster: str
    content: str


def calculation(left: int, operator: str, right: int, *, money: bool = False) -> tuple[str, int]:
    """`12 + 5 = <<12+5=17>>17` and 17; operator `%` takes `right` percent of `left`. Divisions must be exact."""
    if operator == "%":
        value = left * right // 100
        return f"{left} * {right} / 100 = <<{left}*{right}/100={value}>>{value}", value
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    else:
        value = left // right
    dollar = "$" if money else ""
    return f"{left} {operator} {right} = {dollar}<<{left}{operator}{right}={value}>>{value}", value


def second_number(draw: Draw, value: int, operator: str) -> int | None:
    """A number that keeps `value operator number` a positive integer of at most LARGEST; None where there is none."""
    if operator == "+":
        room = min(LARGEST - value, draw.pick((20, 99, 400)))
        return draw.between(2, room) if room >= 2 else None
    if operator == "-":
        room = min(value - 1, draw.pick((20, 99, 400)))
        return draw.between(1, room) if room >= 1 else None
    if operator == "*":
        return small_factor(draw, range(2, 13), lambda k: value * k <= LARGEST)
    return small_factor(draw, range(2, 10), lambda k: value % k == 0 and value > k)


def small_factor(draw: Draw, factors: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """One of the factors that fit."""
    fitting = [k for k in factors if fits(k)]
    return draw.pick(fitting) if fitting else None


def first_number(draw: Draw) -> int:
    """The number that a story begins with: of one, two or three digits."""
    return draw.between(*draw.pick(((4, 20), (10, 99), (10, 99), (100, 600))))


def told(
    draw: Draw,
    *,
    kind: str,
    skeleton: Sequence[str],
    numbers: Sequence[int],
    facts: Sequence[str],
    question: str,
    lines: Sequence[str],
    value: int,
    ordered: bool = True,
) -> Problem:
    """The finished problem. ordered: whether the facts must be told in their order."""
    facts = list(facts)
    if not ordered and draw.chance(0.3):
        facts = draw.some(facts, len(facts))
    if draw.chance(DISTRACTED):
        sentence = draw.pick(DISTRACTORS)[1].format(f=draw.pick(PEOPLE), k=draw.between(3, 60))
        facts.insert(draw.between(1, len(facts)), sentence)
    operations = len(lines)
    return Problem(
        question=" ".join([*facts, question]),
        answer="\n".join([*lines, f"#### {value}"]),
        operations=operations,
        cluster=f"{kind}/{operations}",
        content=f"{kind}:{','.join(skeleton)}:{','.join(map(str, numbers))}",
    )
