"""Tries a kernel as engines call it on a device, in its process; and judges there what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.checks.finding import FAILURES, Judgement, Verdict, verdict_of
from moecheck.errors import Unsupported
from moecheck.formats import AnyArray
from moecheck.kernel import Declaration
from moecheck.runner.arguments import native_arguments
from moecheck.runner.arrays import TORCH_BACKENDS, to_native, to_numpy
from moecheck.runner.layout import as_declared, cut
from moecheck.runner.on_device import LAWS, TRIALS, CudaDevice, Device, other_values
from moecheck.runner.plan import Plan
from moecheck.runner.poison import poisoned_allocations
from moecheck.runner.target import Target
from moecheck.runner.worker import given_inputs, loaded, sentence_of

Outputs = tuple[AnyArray, ...]
# What came of a trial: outputs, or why there are none.
Tried = Outputs | str
FEWEST_TOKENS = 2
HELD = "held"


def triable(plan: Plan, case: Case) -> bool:
    """Whether the trials say anything of a kernel on a case."""
    on_device = plan.device == "cuda" and plan.declaration.backend in TORCH_BACKENDS
    return on_device and not case.sampled and case.num_tokens >= FEWEST_TOKENS


def run_trials(target: Target, case: Case, device: Device | None = None) -> dict[str, Tried]:
    """Name of each trial -> its outputs, or the sentence why there are none. device: the CUDA device for None."""
    function, declaration = loaded(target)
    inputs = given_inputs(case)
    device = device or CudaDevice()
    found: dict[str, Tried] = {}
    for name, trial in TRIALS.items():
        arguments = native_arguments(declaration, case, inputs)
        laid_out = as_declared(case, {**inputs, **other_values(case, inputs)}, declaration)
        others = {
            other: to_native(laid_out[other], declaration.backend)
            for other in other_values(case, inputs)
            if other in arguments
        }
        try:
            with poisoned_allocations():
                result = trial(device, _with_out(function), arguments, others)
            found[name] = _outputs(case, result, declaration)
        except Unsupported as error:
            found[name] = str(error)
        except BaseException as error:
            found[name] = sentence_of(error, target.place)
    return found


def judge_trials(
    tried: Mapping[str, Tried],
    base: Outputs,
    judge: Callable[[Outputs], tuple[Judgement, ...]],
    declaration: Declaration,
) -> list[Judgement]:
    """What the trials say of a case whose own outputs passed; those that hold have one judgement together.

    base: the case's own outputs; other bits than theirs are judged as those were. A call that no graph can hold is a
    property that is reported, and breaks the law only where the kernel declares that it can.
    """
    facts: dict[str, str] = {}
    broken: list[Judgement] = []
    for name, outcome in tried.items():
        if isinstance(outcome, str):
            facts[name] = f"not tried: {outcome}"
            if name == "graph_replay" and declaration.capturable:
                message = f"It declares capturable=True, and no graph can hold its call: {outcome}"
                broken.append(Judgement(check=name, verdict=Verdict.PROVEN_WRONG, message=message))
            continue
        if _same_bits(outcome, base):
            facts[name] = HELD
            continue
        judgements = judge(outcome)
        verdict = verdict_of(judgements)
        if verdict not in FAILURES:
            facts[name] = f"{HELD}, with other bits"
            continue
        facts[name] = "broken"
        first = next((j for j in judgements if j.verdict is verdict), judgements[-1])
        message = f"{LAWS[name][0].upper()}{LAWS[name][1:]}. {first.message}"
        broken.append(Judgement(check=name, verdict=verdict, message=message, where=first.where))
    captured = not isinstance(tried.get("graph_replay", ""), str)
    numbers = {"capturable_observed": float(captured)}
    return [*broken, Judgement(check="on_device", verdict=Verdict.PASS, numbers=numbers, facts=facts)]


def _with_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which returns its `out` where it returns nothing."""

    def call(**arguments: Any) -> Any:
        result = function(**arguments)
        return arguments.get("out") if result is None else result

    return call


def _outputs(case: Case, result: Any, declaration: Declaration) -> Outputs:
    layout = declaration.weight_layout
    results = result if isinstance(result, tuple | list) else (result,)
    arrays = (np.zeros(0) if value is None else to_numpy(value) for value in results)
    return tuple(array if layout is None else cut(case, array, layout) for array in arrays)


def _same_bits(outputs: Outputs, base: Outputs) -> bool:
    return len(outputs) == len(base) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(outputs, base, strict=True)
    )
