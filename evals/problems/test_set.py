"""The shipped test set: held-out problems, each content once, and the few that stand in front of a question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .generator import is_held_out, problems
from .story import Problem

HERE = Path(__file__).parent
SEED = 20_251_119
FEW_SHOTS = 8
# Operations -> problems of the test set: enough to exclude a drop of two points, few enough for two cores. Models are
# trained on at most six operations; the share of seven decides about the reference's accuracy, .90 to .97.
SIZES = {1: 80, 2: 120, 3: 170, 4: 200, 5: 220, 6: 220, 7: 90}


def held_out() -> Path:
    """The test set: JSON lines with `question`, `answer`, `cluster` and `operations`."""
    return HERE / "test.jsonl"


def few_shot() -> Path:
    """Problems of the training share, in the same form, for prompts with examples."""
    return HERE / "few_shot.jsonl"


@cache
def chosen_problems() -> tuple[Problem, ...]:
    """SIZES[n] held-out problems of n operations each, in random order."""
    left, seen, chosen = dict(SIZES), set(), []
    for problem in problems(SEED, operations=tuple(SIZES)):
        if left[problem.operations] and is_held_out(problem.content) and problem.content not in seen:
            left[problem.operations] -= 1
            seen.add(problem.content)
            chosen.append(problem)
            if not any(left.values()):
                break
    # The last ones found would all be of the largest class: order by a hash of the content.
    return tuple(sorted(chosen, key=lambda problem: hashlib.sha256(f"order:{problem.content}".encode()).digest()))


def few_shot_problems() -> Iterator[Problem]:
    """FEW_SHOTS problems of 2 to 4 operations that are not held out, of different kinds."""
    kinds: set[str] = set()
    for problem in problems(SEED + 1, operations=(2, 3, 4)):
        kind = problem.cluster.partition("/")[0]
        if not is_held_out(problem.content) and kind not in kinds:
            kinds.add(kind)
            yield problem
            if len(kinds) == FEW_SHOTS:
                return


def as_json_lines(chosen: Iterable[Problem]) -> bytes:
    """One JSON object a line, UTF-8."""
    lines = (
        json.dumps(
            {
                "question": problem.question,
                "answer": problem.answer,
                "cluster": problem.cluster,
                "operations": problem.operations,
            }
        )
        for problem in chosen
    )
    return "".join(f"{line}\n" for line in lines).encode()


def files() -> dict[str, bytes]:
    """Name -> content of every shipped file, SHA256SUMS as `sha256sum --check` reads it included."""
    written = {"test.jsonl": as_json_lines(chosen_problems()), "few_shot.jsonl": as_json_lines(few_shot_problems())}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in written.items())
    return {**written, "SHA256SUMS": sums.encode()}
