"""Problems that compare people: one has more, fewer, or some times as many as another."""

from __future__ import annotations

from itertools import pairwise

from .draw import Draw
from .story import LARGEST, Problem, calculation, first_number, second_number, small_factor, told
from .words import PARTS, PEOPLE, THINGS, TIMES

RELATIONS = {
    "+": "{a} has {k} more {i} than {b}.",
    "-": "{a} has {k} fewer {i} than {b}.",
    "*": "{a} has {times} as many {i} as {b}.",
    "/": "{a} has {part} as many {i} as {b}.",
}


def comparison(draw: Draw, operations: int) -> Problem | None:
    """People who each have a number of things by comparison with the one before; asks for one, a sum or a difference.

    `operations` relations for the last one's things; half as many where the sum of all is asked; one fewer for the
    difference of the last and the first. None where the numbers that were drawn do not allow it.
    """
    ending = draw.pick(("last", "total", "total", "difference"))
    if (ending == "total" and operations % 2) or (ending == "difference" and operations == 1):
        return None
    relations = operations // 2 if ending == "total" else operations - (ending == "difference")
    if relations > 4:
        return None
    people, things = draw.some(PEOPLE, relations + 2), draw.pick(THINGS)
    value = first_number(draw)
    facts, lines, values = [f"{people[0]} has {value} {things}."], [], [value]
    skeleton, numbers = [], [value]
    for b, a in pairwise(people[: relations + 1]):
        operator = draw.pick("+-*/++--")
        number = _number(draw, value, operator)
        if number is None:
            return None
        text, value = calculation(value, operator, number)
        facts.append(
            RELATIONS[operator].format(a=a, b=b, i=things, k=number, times=TIMES.get(number), part=PARTS.get(number))
        )
        lines.append(f"{a} has {text} {things}.")
        values.append(value)
        skeleton.append(operator)
        numbers.append(number)
    if draw.chance(0.15):  # somebody who is not asked about
        facts.append(f"{people[-1]} has {draw.between(2, 99)} {_other(draw, things)}.")
    first, last = people[0], people[relations]
    question = f"How many {things} does {last} have?"
    if ending == "total":
        question = f"How many {things} do {_listed(people[: relations + 1])} have together?"
        value = values[0]
        for a, own in zip(people[1:], values[1:], strict=False):
            text, value = calculation(value, "+", own)
            lines.append(f"With those of {a} there are {text} {things}.")
    elif ending == "difference":
        if values[-1] == values[0]:
            return None
        more, fewer = (last, first) if values[-1] > values[0] else (first, last)
        question = f"How many more {things} does {more} have than {fewer}?"
        text, value = calculation(max(values[0], values[-1]), "-", min(values[0], values[-1]))
        lines.append(f"{more} has {text} more {things}.")
    if value > LARGEST:
        return None
    return told(
        draw, kind="comparison-" + ending, skeleton=skeleton, numbers=numbers, facts=facts, question=question,
        lines=lines, value=value, ordered=False,
    )  # fmt: skip


def _number(draw: Draw, value: int, operator: str) -> int | None:
    if operator == "*":
        return small_factor(draw, tuple(TIMES), lambda k: value * k <= 999)
    if operator == "/":
        return small_factor(draw, tuple(PARTS), lambda k: value % k == 0 and value > k)
    return second_number(draw, value, operator)


def _listed(people: list[str]) -> str:
    return f"{', '.join(people[:-1])} and {people[-1]}"


def _other(draw: Draw, things: str) -> str:
    return draw.pick([other for other in THINGS if other != things])
