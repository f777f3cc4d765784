"""The closed vocabulary of the problems: people, things and places."""

from __future__ import annotations

PEOPLE = (
    "Ana", "Ben", "Carla", "Dan", "Ella", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kate", "Leo",
    "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Umar", "Vera", "Will", "Yara", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "books", "cards", "coins", "cookies", "pencils", "stickers", "marbles", "shells", "stamps", "balloons",
    "oranges", "toys", "beads", "buttons", "stones", "candles", "cups", "eggs", "flowers", "lemons", "masks",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLANTS = ("corn", "beans", "carrots", "tomatoes", "peas", "onions")
BOXES = ("boxes", "bags", "baskets", "jars")
PURCHASES = ("a coat", "a lamp", "a game", "a ticket", "a meal", "a bike")
JOBS = ("walking dogs", "washing cars", "painting a fence", "selling lemonade")
TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
PARTS = {2: "half", 3: "one third", 4: "one quarter", 5: "one fifth"}

# Sentences with a number that has nothing to do with the question.
DISTRACTORS = (
    ("age", "{f} is {k} years old."),
    ("house", "{f} lives in house number {k}."),
    ("walk", "The walk home takes {k} minutes."),
    ("weather", "It is {k} degrees outside."),
    ("cat", "{f} has a cat that weighs {k} pounds."),
    ("friends", "There are {k} other people in the street."),
)
