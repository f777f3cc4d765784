"""What a kernel's own process does for `moecheck bench`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecheck.bench.timing import SETS, Timing, time_call
from moecheck.cases import Case
from moecheck.errors import Unsupported
from moecheck.relations.relation import Inputs
from moecheck.relations.rows import PER_ROW, take_rows
from moecheck.runner.arguments import native_arguments
from moecheck.runner.target import Target
from moecheck.runner.worker import given_inputs, loaded, sentence_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """timing, or the sentence why there is none."""

    timing: Timing | None = None
    problem: str = ""


def time_case(target: Target, case: Case, seconds: float) -> Timed:
    """The time of a kernel on a case: the tokens in other orders are the further sets of inputs."""
    try:
        function, declaration = loaded(target)
        inputs = given_inputs(case)
        first = native_arguments(declaration, case, inputs)
        sets = [first]
        for shift in range(1, SETS if case.op in PER_ROW or case.op == "unpermute" else 1):
            moved = _rolled(case, inputs, shift)
            changed = {name for name in moved if moved[name] is not inputs[name]}
            others = native_arguments(declaration, case, moved)
            sets.append({**first, **{name: others[name] for name in changed & others.keys()}})
        return Timed(timing=time_call(function, sets, declaration.backend, seconds=seconds))
    except Unsupported as error:
        return Timed(problem=str(error))
    except BaseException as error:
        return Timed(problem=sentence_of(error, target.place))


def _rolled(case: Case, inputs: Inputs, number: int) -> Inputs:
    """The same rows, beginning elsewhere."""
    names = PER_ROW.get(case.op, ("topk_weights",))
    count = len(inputs[next(name for name in names if name in inputs)])
    order = np.roll(np.arange(count), number * max(1, count // SETS))
    return take_rows(case, inputs, order).inputs
