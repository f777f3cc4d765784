"""Problems about rectangles: fences around them, tiles on them, and what those cost."""

from __future__ import annotations

from .draw import Draw
from .story import LARGEST, Problem, calculation, told
from .words import PEOPLE

PLACES = ("garden", "yard", "room", "field")


def rectangle(draw: Draw, operations: int) -> Problem | None:
    """Perimeter or area (its length may be given by comparison), their price, and what remains of a sum of money."""
    if not 1 <= operations <= 6:
        return None
    n, place = draw.pick(PEOPLE), draw.pick(PLACES)
    width = draw.between(3, 30)
    fenced = draw.chance(0.5)
    needed = 2 if fenced else 1  # operations for perimeter or area
    extras = operations - needed
    if not 0 <= extras <= 3:
        return None
    compared = extras == 3 or (extras > 0 and draw.chance(0.4))
    priced, paid = extras - compared >= 1, extras - compared >= 2
    lines, numbers, skeleton = [], [width], [f"{fenced}{compared}{priced}{paid}"]
    other = draw.between(2, 20)
    numbers.append(other)
    if compared:
        facts = [f"The {place} of {n} is {width} feet wide and {other} feet longer than wide."]
        text, length = calculation(width, "+", other)
        lines.append(f"The {place} is {text} feet long.")
    else:
        length = width + other
        facts = [f"The {place} of {n} is {width} feet wide and {length} feet long."]
    if fenced:
        text, half = calculation(width, "+", length)
        lines.append(f"Two sides are {text} feet.")
        text, size = calculation(half, "*", 2)
        lines.append(f"All sides are {text} feet.")
        question = f"How many feet of fence go around the {place}?"
    else:
        text, size = calculation(width, "*", length)
        lines.append(f"The {place} has {text} square feet.")
        question = f"How many square feet does the {place} have?"
    value = size
    if priced:
        price = draw.between(2, 9)
        what = "A foot of fence" if fenced else "A square foot of floor"
        facts.append(f"{what} costs ${price}.")
        text, value = calculation(size, "*", price, money=True)
        lines.append(f"That costs {text}.")
        numbers.append(price)
        question = f"How many dollars does {n} need for the {place}?"
    if paid:
        have = value + draw.between(1, 300)
        facts.append(f"{n} has ${have}.")
        text, value = calculation(have, "-", value, money=True)
        lines.append(f"{n} has {text} left.")
        numbers.append(have)
        question = f"How many dollars does {n} have left after the {place} is done?"
    if max(numbers) > LARGEST or value > LARGEST or size > LARGEST:
        return None
    return told(
        draw, kind="fence" if fenced else "floor", skeleton=skeleton, numbers=numbers, facts=facts, question=question,
        lines=lines, value=value,
    )  # fmt: skip
