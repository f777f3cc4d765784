"""Problems that add up products: purchases, wages, rows of plants, legs of a trip, crates, sets of an exercise."""

from __future__ import annotations

from dataclasses import dataclass

from .draw import Draw
from .story import LARGEST, Problem, calculation, small_factor, told
from .words import DAYS, PEOPLE, PLANTS, PURCHASES, THINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """A subject. Slots: n a person; i what distinguishes a term; a, b its factors; t a number of a tail; e as ever.

    term: a fact, line: of the solution. total: line of a sum. asked: the question about the sum. tails: operator,
    question with {t}, line, for one operation more. factors: ranges of a and b. between: of which words the terms are.
    """

    name: str
    between: tuple[str, ...]
    term: str
    line: str
    total: str
    asked: str
    tails: tuple[tuple[str, str, str], ...]
    factors: tuple[tuple[int, int], tuple[int, int]]
    money: bool = False


PRODUCTS = (
    Products(
        name="shopping",
        between=THINGS,
        term="{n} buys {a} {i} for ${b} each.",
        line="The {i} cost {e}.",
        total="Together that is {e}.",
        asked="How many dollars does {n} spend?",
        tails=(
            ("r-", "{n} pays with ${t}. How many dollars does {n} get back?", "{n} gets back {e}."),
            ("-", "A coupon takes off ${t}. How many dollars does {n} pay?", "{n} pays {e}."),
            ("/", "{n} and some friends share the cost, {t} people in all. How many dollars does each of them pay?",
             "Each of them pays {e}."),
        ),
        factors=((2, 15), (2, 30)),
        money=True,
    ),
    Products(
        name="wages",
        between=DAYS,
        term="On {i} {n} works {a} hours for ${b} an hour.",
        line="On {i} {n} earns {e}.",
        total="So far {n} earns {e}.",
        asked="How many dollars does {n} earn?",
        tails=(
            ("-", "{n} spends ${t} on {buy}. How many dollars are left?", "There is {e} left."),
            ("+", "{n} also gets a tip of ${t}. How many dollars does {n} have?", "{n} has {e}."),
            ("r-", "{n} saves for a trip that costs ${t}. How many dollars does {n} still need?", "{n} needs {e}."),
        ),
        factors=((2, 10), (8, 40)),
        money=True,
    ),
    Products(
        name="garden",
        between=PLANTS,
        term="{n} plants {a} rows of {i} with {b} plants in each row.",
        line="There are {e} plants of {i}.",
        total="Together there are {e} plants.",
        asked="How many plants does {n} have?",
        tails=(
            ("-", "Rabbits eat {t} of the plants. How many plants are left?", "There are {e} plants left."),
            ("*", "Each plant needs {t} cups of water. How many cups does {n} need?", "{n} needs {e} cups."),
        ),
        factors=((2, 12), (3, 30)),
    ),
    Products(
        name="trip",
        between=DAYS,
        term="On {i} {n} drives {a} hours at {b} miles an hour.",
        line="On {i} {n} drives {e} miles.",
        total="So far {n} drives {e} miles.",
        asked="How many miles does {n} drive?",
        tails=(
            ("r-", "The whole way is {t} miles long. How many miles are left?", "There are {e} miles left."),
            ("/", "The car needs one gallon for every {t} miles. How many gallons does it need?",
             "It needs {e} gallons."),
        ),
        factors=((2, 9), (20, 70)),
    ),
    Products(
        name="crates",
        between=THINGS,
        term="A truck carries {a} crates with {b} {i} in each.",
        line="There are {e} {i}.",
        total="Together there are {e} things.",
        asked="How many things does the truck carry?",
        tails=(
            ("-", "On the road {t} of the things break. How many are left?", "There are {e} things left."),
            ("/", "They go to {t} shops, as many to each. How many things does one shop get?",
             "One shop gets {e} things."),
        ),
        factors=((2, 20), (2, 40)),
    ),
    Products(
        name="exercise",
        between=DAYS,
        term="On {i} {n} runs {a} laps of {b} meters.",
        line="On {i} {n} runs {e} meters.",
        total="So far {n} runs {e} meters.",
        asked="How many meters does {n} run?",
        tails=(
            ("+", "{n} also walks {t} meters. How many meters does {n} run and walk?",
             "{n} runs and walks {e} meters."),
            ("r-", "The goal of {n} is {t} meters. How many meters are missing?", "There are {e} meters missing."),
        ),
        factors=((2, 8), (20, 90)),
    ),
)  # fmt: skip


def products(draw: Draw, operations: int) -> Problem | None:
    """A sum of 1 to 4 products, with one operation more where `operations` is even; None where numbers do not fit."""
    tailed = operations % 2 == 0
    terms = operations // 2 if tailed else (operations + 1) // 2
    subject = draw.pick(PRODUCTS)
    slots: dict[str, object] = {"n": draw.pick(PEOPLE), "buy": draw.pick(PURCHASES)}
    facts, lines, skeleton, numbers, values = [], [], [str(terms)], [], []
    for i in draw.some(subject.between, terms):
        a, b = (draw.between(*limits) for limits in subject.factors)
        text, value = calculation(a, "*", b, money=subject.money)
        facts.append(subject.term.format(a=a, b=b, i=i, **slots))
        lines.append(subject.line.format(e=text, i=i, **slots))
        numbers += [a, b]
        values.append(value)
    total = values[0]
    for value in values[1:]:
        text, total = calculation(total, "+", value, money=subject.money)
        lines.append(subject.total.format(e=text, **slots))
    if total > LARGEST:
        return None
    question = subject.asked.format(**slots)
    if tailed:
        operator, question, line = tail = draw.pick(subject.tails)
        number = _tail_number(draw, total, operator)
        if number is None:
            return None
        left, right = (number, total) if operator == "r-" else (total, number)
        text, total = calculation(left, operator[-1], right, money=subject.money)
        question = question.format(t=number, **slots)
        lines.append(line.format(e=text, **slots))
        skeleton.append(f"tail{subject.tails.index(tail)}")
        numbers.append(number)
    return told(
        draw, kind=subject.name, skeleton=skeleton, numbers=numbers, facts=facts, question=question, lines=lines,
        value=total, ordered=False,
    )  # fmt: skip


def _tail_number(draw: Draw, total: int, operator: str) -> int | None:
    if operator == "r-":
        return total + draw.between(1, 200) if draw.chance(0.5) else (total // 100 + draw.between(1, 3)) * 100
    if operator == "+":
        return draw.between(2, 99)
    if operator == "-":
        return draw.between(1, min(99, total - 1))
    if operator == "*":
        return small_factor(draw, range(2, 8), lambda k: total * k <= LARGEST)
    return small_factor(draw, range(2, 13), lambda k: total % k == 0 and total > k)
