"""Calls over several ranks, as a user's own test gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moecheck.curated import cases_for
from moecheck.errors import CaseError
from moecheck.runner.target import Target, load
from moecheck.testing.given import given

CASES = {case.name: case for case in cases_for("expert_parallel_moe", profile="quick", seed=0) if case.name}


@pytest.mark.parametrize("name", ["plain-bf16", "uneven-tokens", "shuffled-placement", "swigluoai-biases"])
def test_a_call_is_the_case_that_it_was_made_from(name: str) -> None:
    case = CASES[name]

    found = given(case.inputs(), spec=case.spec).case

    assert found.op == case.op
    assert (found.num_ranks, found.uneven_ranks) == (case.num_ranks, case.uneven_ranks)
    assert (found.map_style == "linear") == (case.map_style == "linear")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank_tokens": np.array([1, 2, 3, 4])}, "must be shares of the 24 tokens"),
        ({"rank_tokens": np.array([12, 12])}, "expected .4.: P .ranks. is 4 by num_ranks"),
        ({"expert_placement": np.zeros(8, np.int32)}, "names no place of expert 1"),
        ({"expert_placement": np.arange(9) % 8}, "has 9 places, which 4 ranks cannot share evenly"),
        ({"expert_placement": np.arange(8) + 1}, "must lie between 0 and 7"),
    ],
    ids=["sum", "ranks", "absent", "uneven", "range"],
)
def test_what_does_not_fit_is_told(changes: dict[str, Any], sentence: str) -> None:
    case = CASES["four-ranks"]

    with pytest.raises(CaseError, match=sentence):
        given({**case.inputs(), **changes}, spec=case.spec)


@pytest.mark.parametrize(("names", "op"), [("", "moe_layer"), (", num_ranks", "expert_parallel_moe")])
def test_a_plain_function_of_a_layer_is_of_ranks_where_it_names_them(tmp_path: Any, names: str, op: str) -> None:
    path = tmp_path / "layer.py"
    path.write_text(f"import numpy\ndef layer(*, hidden_states, router_logits, w13, w2, spec{names}): ...\n")

    _, declaration = load(Target(spec_string=f"{path}:layer"))

    assert declaration.op == op
