"""Draws problems of all kinds, and says which of them no model may be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from .chains import chain
from .comparisons import comparison
from .draw import Draw
from .portions import mean, percentages, rate
from .products import products
from .shapes import rectangle
from .story import Problem

MOST_OPERATIONS = 8  # of which there are problems
TRAINED = (1, 2, 3, 4, 5, 6)
# A kind stands here as often as it should come up.
KINDS = (chain, chain, chain, chain, products, products, products, comparison, comparison, percentages, mean, rate,
         rectangle)  # fmt: skip
# One in so many contents is held out.
HELD_OUT_SHARE = 50


def problem(draw: Draw, operations: int) -> Problem:
    """A problem of so many operations, 1 to MOST_OPERATIONS; kinds that have none are passed over."""
    while True:
        found = draw.pick(KINDS)(draw, operations)
        if found is not None:
            return found


def problems(seed: int, *, operations: tuple[int, ...] = TRAINED) -> Iterator[Problem]:
    """Endless problems from a seed, the number of operations drawn from `operations`; held-out ones among them."""
    draw = Draw(seed)
    while True:
        yield problem(draw, draw.pick(operations))


def is_held_out(content: str) -> bool:
    """Whether a content belongs to the test set's share: by its hash, so that no list must be kept."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0
