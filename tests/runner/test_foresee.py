"""The reference begins with a large case before the kernel has been called."""

from __future__ import annotations

from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import pytest

from moecheck.cases import Case
from moecheck.errors import HarnessError
from moecheck.kernel import Declaration, describe
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.foresee import foresee, values_of

LARGE = Case(op="fused_experts", num_tokens=40, num_experts=6, hidden_size=64, intermediate_size=32, sampled=8)
SMALL = replace(LARGE, sampled=0)
CONTRACT = Numerics(act_times_up="input")


def declared(numerics: Numerics | None) -> Declaration:
    def kernel(hidden_states: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
        raise AssertionError("it is not called")

    return describe(kernel, op="fused_experts", backend="numpy", numerics=numerics)


class Asked:
    """A process that judges, which notes what it is asked and cannot do it."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.put((function, *args))
        raise HarnessError("the process was ended")


def test_the_first_large_case_under_the_declared_contract() -> None:
    """And what goes wrong then is told where the values are needed, not here."""
    asked = Asked()
    thread = foresee(declared(CONTRACT), [SMALL, LARGE, replace(LARGE, seed=1)], asked)
    assert thread is not None
    thread.join(timeout=60.0)
    assert asked.calls.get(timeout=60.0) == (values_of, LARGE, CONTRACT)
    assert asked.calls.empty()


@pytest.mark.parametrize(
    ("numerics", "cases"), [(None, [LARGE]), (CONTRACT, [SMALL])], ids=["nothing declared", "no large case"]
)
def test_nothing_is_asked_without_need(numerics: Numerics | None, cases: list[Case]) -> None:
    assert foresee(declared(numerics), cases, Asked()) is None


def test_the_oracle_keeps_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle()
    values_of(oracle, LARGE, CONTRACT)
    monkeypatch.setattr(Oracle, "_values", None)
    assert oracle.values(LARGE, CONTRACT).true.shape == (LARGE.sampled, LARGE.hidden_size)
