"""Problems about one quantity that changes step by step: things that are owned, passengers, money, points."""

from __future__ import annotations

from dataclasses import dataclass

from .draw import Draw
from .story import Problem, calculation, first_number, second_number, small_factor, told
from .words import BOXES, JOBS, PARTS, PEOPLE, PURCHASES, THINGS, TIMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A subject. Slots: n, f people; i things; k the step's number in digits, times, part in words; e the calculation.

    opening: has {v}. steps: operator, sentence, line of the solution; `x` and `:` are * and / in words. asked: the
    question without another operation. ends: operator, question with {k}, line; `$` before an operator: dollars.
    """

    name: str
    opening: str
    steps: tuple[tuple[str, str, str], ...]
    asked: str
    ends: tuple[tuple[str, str, str], ...]
    money: bool = False


CHAINS = (
    Chain(
        name="collection",
        opening="{n} has {v} {i}.",
        steps=(
            ("+", "{n} buys {k} more {i}.", "After buying more, {n} has {e} {i}."),
            ("+", "{f} gives {n} {k} {i}.", "With those from {f}, {n} has {e} {i}."),
            ("-", "{n} gives {k} {i} to {f}.", "After giving some to {f}, {n} has {e} {i}."),
            ("-", "{n} loses {k} {i} on the way home.", "After losing some, {n} has {e} {i}."),
            ("x", "A month later {n} has {times} as many {i}.", "A month later {n} has {e} {i}."),
            (":", "{n} keeps {part} of the {i} and gives away the rest.", "{n} keeps {e} {i}."),
        ),
        asked="How many {i} does {n} have now?",
        ends=(
            ("/", "{n} puts the {i} into {k} {box}, the same number in each. How many {i} are in one of the {box}?",
             "In one of the {box} there are {e} {i}."),
            ("$*", "{n} sells all the {i} for ${k} each. How many dollars does {n} get?", "{n} gets {e}."),
        ),
    ),
    Chain(
        name="bus",
        opening="A bus leaves the station with {v} passengers.",
        steps=(
            ("+", "At the next stop {k} people get on.", "After that stop there are {e} passengers."),
            ("+", "At the school {k} children get on.", "After the school there are {e} passengers."),
            ("-", "At the market {k} people get off.", "After the market there are {e} passengers."),
            ("-", "At the park {k} people leave the bus.", "After the park there are {e} passengers."),
            ("x", "At the stadium the bus becomes {times} as full.", "After the stadium there are {e} passengers."),
            (":", "At the harbor only {part} of the passengers stay.", "After the harbor there are {e} passengers."),
        ),
        asked="How many passengers are on the bus at the end?",
        ends=(
            ("$*", "Each of the remaining passengers pays ${k}. How many dollars do they pay?", "They pay {e}."),
            ("/", "The passengers sit in {k} rows, the same number in each. How many sit in one row?",
             "In one row sit {e} passengers."),
        ),
    ),
    Chain(
        name="money",
        opening="{n} has ${v}.",
        steps=(
            ("+", "{n} earns ${k} by {job}.", "After the work, {n} has {e}."),
            ("+", "{f} pays ${k} back to {n}.", "With the money from {f}, {n} has {e}."),
            ("-", "{n} spends ${k} on {buy}.", "After buying {buy}, {n} has {e}."),
            ("-", "{n} lends ${k} to {f}.", "After lending some, {n} has {e}."),
            ("x", "A year later {n} has {times} as much money.", "A year later {n} has {e}."),
            (":", "{n} keeps {part} of the money and spends the rest.", "{n} keeps {e}."),
        ),
        asked="How many dollars does {n} have now?",
        ends=(
            ("/", "{n} shares the money equally among {k} children. How many dollars does each child get?",
             "Each child gets {e}."),
            ("*", "{f} has {k} times as much money as {n}. How many dollars does {f} have?", "{f} has {e}."),
        ),
        money=True,
    ),
    Chain(
        name="tank",
        opening="A tank contains {v} liters of water.",
        steps=(
            ("+", "Rain adds {k} liters.", "After the rain there are {e} liters."),
            ("+", "{n} pours in {k} liters.", "With the water of {n} there are {e} liters."),
            ("-", "{n} takes out {k} liters for the garden.", "After watering the garden there are {e} liters."),
            ("-", "In the sun {k} liters dry up.", "After the sun there are {e} liters."),
            ("x", "A storm leaves {times} as much water in it.", "After the storm there are {e} liters."),
            (":", "A leak leaves only {part} of the water.", "After the leak there are {e} liters."),
        ),
        asked="How many liters are in the tank at the end?",
        ends=(
            ("/", "{n} fills all of it into {k} equal bottles. How many liters does one bottle hold?",
             "One bottle holds {e} liters."),
            ("$*", "{n} sells the water for ${k} a liter. How many dollars does {n} get?", "{n} gets {e}."),
        ),
    ),
    Chain(
        name="reading",
        opening="On the first day {n} reads {v} pages.",
        steps=(
            ("+", "On the next day {n} reads {k} more pages than the day before.", "On that day {n} reads {e} pages."),
            ("-", "On the next day {n} reads {k} fewer pages than the day before.", "On that day {n} reads {e} pages."),
            ("x", "On the next day {n} reads {times} as many pages as the day before.",
             "On that day {n} reads {e} pages."),
            (":", "On the next day {n} reads {part} of the pages of the day before.",
             "On that day {n} reads {e} pages."),
        ),
        asked="How many pages does {n} read on the last day?",
        ends=(
            ("*", "From then on {n} reads as many pages every day. How many pages does {n} read in {k} such days?",
             "In these days {n} reads {e} pages."),
            ("+", "{f} reads {k} pages more than {n} on the last day. How many pages does {f} read?",
             "{f} reads {e} pages."),
        ),
    ),
    Chain(
        name="game",
        opening="{n} starts a game with {v} points.",
        steps=(
            ("+", "{n} wins {k} points.", "After winning, {n} has {e} points."),
            ("+", "A bonus gives {n} {k} points.", "With the bonus, {n} has {e} points."),
            ("-", "{n} loses {k} points.", "After losing, {n} has {e} points."),
            ("-", "A foul costs {n} {k} points.", "After the foul, {n} has {e} points."),
            ("x", "A lucky card makes the points {times} as many.", "After the lucky card, {n} has {e} points."),
            (":", "A bad card leaves {n} only {part} of the points.", "After the bad card, {n} has {e} points."),
        ),
        asked="How many points does {n} have at the end?",
        ends=(
            ("-", "{f} ends with {k} points fewer than {n}. How many points does {f} have?", "{f} has {e} points."),
            ("*", "Each point is worth {k} coins. How many coins does {n} get?", "{n} gets {e} coins."),
        ),
    ),
    Chain(
        name="farm",
        opening="A farm has {v} hens.",
        steps=(
            ("+", "The farmer buys {k} hens.", "After buying some there are {e} hens."),
            ("+", "In spring {k} young hens are added.", "In spring there are {e} hens."),
            ("-", "The farmer sells {k} hens.", "After selling some there are {e} hens."),
            ("-", "A fox takes {k} hens.", "After the fox there are {e} hens."),
            ("x", "The next year there are {times} as many hens.", "The next year there are {e} hens."),
            (":", "The farmer keeps {part} of the hens and sells the rest.", "The farmer keeps {e} hens."),
        ),
        asked="How many hens does the farm have now?",
        ends=(
            ("*", "Each hen lays {k} eggs. How many eggs are there?", "There are {e} eggs."),
            ("/", "The hens live in {k} sheds, the same number in each. How many hens are in one shed?",
             "In one shed there are {e} hens."),
        ),
    ),
    Chain(
        name="library",
        opening="A library has {v} books on a shelf.",
        steps=(
            ("+", "Then {k} books are brought back.", "With those brought back there are {e} books."),
            ("+", "The library buys {k} new books.", "With the new ones there are {e} books."),
            ("-", "Readers borrow {k} books.", "After the readers came there are {e} books."),
            ("-", "Then {k} old books are thrown away.", "Without the old ones there are {e} books."),
            ("x", "A gift makes it {times} as many books.", "After the gift there are {e} books."),
            (":", "Only {part} of the books stay on the shelf.", "On the shelf stay {e} books."),
        ),
        asked="How many books are on the shelf in the end?",
        ends=(
            ("*", "Each book has {k} pictures. How many pictures are in the books?", "There are {e} pictures."),
            ("/", "The books are sorted into {k} equal groups. How many books are in one group?",
             "In one group there are {e} books."),
        ),
    ),
)  # fmt: skip
MIXES = ("+-", "+-", "+-x", "+-:", "+-x:")
WORDS_ONLY = {"x": "*", ":": "/"}


def chain(draw: Draw, operations: int) -> Problem | None:
    """A story of so many operations; None where the numbers that were drawn do not allow it."""
    subject = draw.pick(CHAINS)
    n, f = draw.some(PEOPLE, 2)
    slots: dict[str, object] = {
        "n": n, "f": f, "i": draw.pick(THINGS), "box": draw.pick(BOXES), "buy": draw.pick(PURCHASES),
        "job": draw.pick(JOBS),
    }  # fmt: skip
    value = first_number(draw)
    facts, lines, skeleton, numbers = [subject.opening.format(v=value, **slots)], [], [], [value]
    ended = draw.chance(0.5)
    allowed = draw.pick(MIXES)
    for _ in range(operations - ended):
        operator, sentence, line = step = draw.pick([step for step in subject.steps if step[0] in allowed])
        number = _number(draw, value, operator)
        if number is None:
            return None
        text, value = calculation(value, WORDS_ONLY.get(operator, operator), number, money=subject.money)
        if operator in WORDS_ONLY:
            slots.update(times=TIMES[number], part=PARTS[number])
        facts.append(sentence.format(k=number, **slots))
        lines.append(line.format(e=text, **slots))
        skeleton.append(str(subject.steps.index(step)))
        numbers.append(number)
    question = subject.asked.format(**slots)
    if ended:
        operator, question, line = end = draw.pick(subject.ends)
        number = second_number(draw, value, operator[-1])
        if number is None:
            return None
        text, value = calculation(value, operator[-1], number, money=subject.money or operator[0] == "$")
        question = question.format(k=number, **slots)
        lines.append(line.format(e=text, **slots))
        skeleton.append(f"end{subject.ends.index(end)}")
        numbers.append(number)
    return told(
        draw, kind=subject.name, skeleton=skeleton, numbers=numbers, facts=facts, question=question, lines=lines,
        value=value,
    )  # fmt: skip


def _number(draw: Draw, value: int, operator: str) -> int | None:
    if operator == "x":
        return small_factor(draw, tuple(TIMES), lambda k: value * k <= 999)
    if operator == ":":
        return small_factor(draw, tuple(PARTS), lambda k: value % k == 0 and value > k)
    return second_number(draw, value, operator)
