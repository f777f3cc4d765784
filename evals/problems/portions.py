"""Problems about portions of a whole: percentages and what remains, means of several numbers, equal rates."""

from __future__ import annotations

from .draw import Draw
from .story import LARGEST, Problem, calculation, small_factor, told
from .words import BOXES, DAYS, PEOPLE, THINGS

PERCENTAGES = (10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90)


def percentages(draw: Draw, operations: int) -> Problem | None:
    """Days on which a percentage of what is left is sold: two operations each, the last one may ask for the part."""
    if operations > 6:
        return None
    n, things = draw.pick(PEOPLE), draw.pick(THINGS)
    left = draw.between(2, 40) * draw.pick((10, 20, 20, 25))
    facts, lines, numbers = [f"{n} has {left} {things} to sell."], [], [left]
    days = draw.some(DAYS, (operations + 1) // 2)
    asks_part = operations % 2 == 1
    part = 0
    for day in days:
        fitting = [p for p in PERCENTAGES if left * p % 100 == 0 and left * p >= 100]
        if not fitting:
            return None
        percent = draw.pick(fitting)
        of = "the" if day == days[0] else "the remaining"
        facts.append(f"On {day} {n} sells {percent}% of {of} {things}.")
        text, part = calculation(left, "%", percent)
        lines.append(f"On {day} {n} sells {text} {things}.")
        numbers.append(percent)
        if day != days[-1] or not asks_part:
            text, left = calculation(left, "-", part)
            lines.append(f"Then {n} has {text} {things} left.")
    question = f"How many {things} does {n} sell on {days[-1]}?" if asks_part else f"How many {things} are left?"
    return told(
        draw, kind="percentages", skeleton=[str(len(days)), str(asks_part)], numbers=numbers, facts=facts,
        question=question, lines=lines, value=part if asks_part else left,
    )  # fmt: skip


def mean(draw: Draw, operations: int) -> Problem | None:
    """The mean of `operations` numbers: one sum fewer than numbers, and one division."""
    if not 2 <= operations <= 6:
        return None
    n, things = draw.pick(PEOPLE), draw.pick(THINGS)
    days = draw.some(DAYS, operations)
    values = [draw.between(2, draw.pick((30, 120))) for _ in days]
    values[-1] += -sum(values) % operations
    counts = [f"{value} on {day}" for value, day in zip(values, days, strict=True)]
    listed = f"{', '.join(counts[:-1])} and {counts[-1]}"
    lines, total = [], values[0]
    for day, value in zip(days[1:], values[1:], strict=True):
        text, total = calculation(total, "+", value)
        lines.append(f"Up to {day} there are {text} {things}.")
    text, average = calculation(total, "/", operations)
    lines.append(f"The mean of {operations} days is {text} {things}.")
    return told(
        draw, kind="mean", skeleton=[], numbers=values, facts=[f"{n} finds some {things}: {listed}."],
        question=f"How many {things} does {n} find per day on average?", lines=lines, value=average,
    )  # fmt: skip


def rate(draw: Draw, operations: int) -> Problem | None:
    """So many in some minutes: how many in others, without the broken ones, per box, for a price."""
    if not 1 <= operations <= 5:
        return None
    things, box = draw.pick(THINGS), draw.pick(BOXES)
    minutes, each = draw.between(2, 12), draw.between(2, 25)
    made = minutes * each
    facts, numbers = [f"A machine makes {made} {things} in {minutes} minutes."], [made, minutes]
    text, value = calculation(made, "/", minutes)
    lines, skeleton = [f"In one minute it makes {text} {things}."], ["minute"]
    question = f"How many {things} does it make in one minute?"
    for step in ("other", "broken", "boxes", "price")[: operations - 1]:
        number = _rate_number(draw, value, step)
        if number is None:
            return None
        operator = {"other": "*", "broken": "-", "boxes": "/", "price": "*"}[step]
        text, value = calculation(value, operator, number, money=step == "price")
        fact, question, line = _rate_words(step, things, box, number)
        facts.append(fact)
        lines.append(line.format(e=text))
        skeleton.append(step)
        numbers.append(number)
    return told(
        draw, kind="rate", skeleton=skeleton, numbers=numbers, facts=facts, question=question, lines=lines, value=value
    )


def _rate_number(draw: Draw, value: int, step: str) -> int | None:
    if step == "other":
        return draw.between(2, min(40, LARGEST // value))
    if step == "broken":
        return draw.between(1, min(50, value - 1)) if value > 1 else None
    if step == "boxes":
        return small_factor(draw, range(2, 13), lambda k: value % k == 0 and value > k)
    return draw.between(2, 12) if value * 12 <= LARGEST else None


def _rate_words(step: str, things: str, box: str, number: int) -> tuple[str, str, str]:
    """Fact, question and line of a step."""
    if step == "other":
        return f"It runs for {number} minutes.", f"How many {things} does it make?", f"It makes {{e}} {things}."
    if step == "broken":
        fact = f"Of what it makes, {number} {things} are broken."
        return fact, f"How many {things} are not broken?", f"There are {{e}} good {things}."
    if step == "boxes":
        fact = f"The good ones go into {box} of {number}."
        return fact, f"How many {box} are filled?", f"They fill {{e}} {box}."
    return f"All {box} are sold for ${number} each.", "How many dollars is that?", "That is {e}."
