"""Case records: stable ids, exact round trips, and one sentence for each thing that does not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from moecheck.cases import Case, read_case
from moecheck.curated import cases_for
from moecheck.errors import CaseError, SpecError, UsageError
from moecheck.ops import OPS
from moecheck.spec import LATER, MoESpec, RoutingSpec, identity

SIGMOID = MoESpec(routing=RoutingSpec(top_k=8, scoring="sigmoid"))


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        pytest.param(
            Case(op="fused_experts"), "fused_experts/bf16/T64-E8-k2-H256-I128/random/881c8ac7", id="all defaults"
        ),
        pytest.param(
            Case(op="topk_routing", load="ties", num_experts=64, spec=SIGMOID),
            "topk_routing/bf16/T64-E64-k8-H256-I128/ties/a5a6cb29",
            id="load and spec",
        ),
        pytest.param(
            Case(op="permute", name="n", reason="r"), "permute/bf16/T64-E8-k2-H256-I128/n/ae803702", id="named"
        ),
    ],
)
def test_ids_never_change(case: Case, wanted: str) -> None:
    assert case.id == wanted


def test_name_and_reason_are_no_part_of_the_identity() -> None:
    case = Case(op="permute")

    assert replace(case, name="x", reason="y").key == case.key


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"num_tokens": 65}, {"dtype": "fp32"}, {"layout": "strided"}, {"load": "skewed"}, {"spec": SIGMOID}],
    ids=str,
)
def test_every_other_field_is(change: dict[str, Any]) -> None:
    case = Case(op="permute")

    assert replace(case, **change).digest != case.digest
    assert replace(case, **change).key != case.key


@dataclass(frozen=True, kw_only=True)
class _Grown:
    first: int = 1
    second: float = field(default=2.0, metadata=LATER)
    spec: MoESpec = field(default_factory=MoESpec, metadata=LATER)


def test_a_field_that_came_later_changes_the_identity_only_away_from_its_default() -> None:
    assert identity(_Grown()) == {"first": 1}
    assert identity(_Grown(first=3, second=4.0)) == {"first": 3, "second": 4.0}
    assert identity(_Grown(spec=SIGMOID)) == {"first": 1, "spec": identity(SIGMOID)}


@pytest.mark.parametrize("op", list(OPS))
def test_json_round_trip_of_every_case(op: str) -> None:
    for case in cases_for(op, profile="nightly", seed=3, examples=20):
        again = Case.from_json(json.loads(json.dumps(case.to_json())))

        assert again == case
        assert again.id == case.id


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"num_token": 3}, "A case has no field 'num_token'. Did you mean 'num_tokens'?", id="near name"),
        pytest.param({"op": "topk_route"}, "Unknown op 'topk_route'. Did you mean 'topk_routing'?", id="unknown op"),
        pytest.param({"dtype": "fp64"}, "Unknown dtype 'fp64'. Did you mean 'fp16'?", id="unknown dtype"),
        pytest.param({"load": "tie"}, "Unknown load 'tie'.", id="logits' load for an op with ids"),
        pytest.param({"dtype": 16}, "dtype=16 must be of type str.", id="number for a name"),
        pytest.param({"num_tokens": -1}, "num_tokens=-1 must be an integer of at least 0.", id="negative size"),
        pytest.param({"num_tokens": 2.0}, "num_tokens=2.0 must be an integer of at least 0.", id="float size"),
        pytest.param({"num_experts": True}, "num_experts=True must be an integer of at least 1.", id="boolean size"),
        pytest.param({"hidden_size": "64"}, "hidden_size='64' must be an integer of at least 1.", id="text size"),
        pytest.param({"seed": "0"}, "seed='0' must be of type int.", id="text seed"),
        pytest.param({"seed": False}, "seed=False must be of type int.", id="boolean seed"),
        pytest.param({"hidden_scale": "no"}, "hidden_scale='no' must be of type bool.", id="text flag"),
        pytest.param({"name": None}, "name=None must be of type str.", id="no name"),
        pytest.param(
            {"num_local_experts": "4"},
            "num_local_experts='4' must be an integer and lie between 1 and num_experts=8.",
            id="text local experts",
        ),
        pytest.param(
            {"num_local_experts": 9},
            "num_local_experts=9 must be an integer and lie between 1 and num_experts=8.",
            id="more local experts than experts",
        ),
        pytest.param(
            {"shared_intermediate_size": 32},
            "shared_experts='none' contradicts shared_intermediate_size=32.",
            id="shared size without shared expert",
        ),
        pytest.param({"spec": None}, "The case's spec does not fit: A spec must be a JSON object", id="no spec"),
        pytest.param(
            {"spec": {"routing": {"topk": 2}}},
            "The case's spec does not fit: RoutingSpec has no field 'topk'. Did you mean 'top_k'?",
            id="near name in the spec",
        ),
        pytest.param(
            {"spec": {"routing": {"renormalize": "false"}}},
            "The case's spec does not fit: renormalize='false' must be true or false.",
            id="text for a flag in the spec",
        ),
        pytest.param(
            {"spec": {"routing": {"top_k": 2.5}}},
            "The case's spec does not fit: top_k=2.5 must be an integer.",
            id="fraction of a slot",
        ),
        pytest.param(
            {"spec": {"experts": {"swiglu_limit": "7"}}},
            "The case's spec does not fit: swiglu_limit='7' must be a finite number.",
            id="text for a number in the spec",
        ),
        pytest.param(
            {"spec": {"routing": {"top_k": 9}}},
            "The case's spec does not fit: top_k=9 must be ≤ num_experts=8.",
            id="more slots than experts",
        ),
    ],
)
def test_a_record_that_does_not_fit(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Case.from_json({"op": "permute", **change})

    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True], ids=str)
def test_a_factor_must_be_a_finite_number(value: float) -> None:
    with pytest.raises(SpecError, match=r"routed_scaling_factor=.* must be a finite number"):
        RoutingSpec(routed_scaling_factor=value)


def test_a_case_must_be_an_object() -> None:
    with pytest.raises(CaseError, match="A case must be a JSON object, not list"):
        Case.from_json([])  # type: ignore[arg-type]  # what a file may hold


def test_a_case_needs_an_op() -> None:
    with pytest.raises(CaseError, match="The case record does not fit"):
        Case.from_json({})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param('{"op": "permute", "num_tok', "is not complete JSON", id="truncated"),
        pytest.param("", "is not complete JSON", id="empty"),
        pytest.param("[1, 2]", "must hold a JSON object, not list", id="list"),
        pytest.param('{"case": {"op": "permut"}}', "does not fit: Unknown op 'permut'. Did you mean", id="near op"),
        pytest.param('{"case": 3}', "does not fit: A case must be a JSON object, not int", id="number as a case"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "case.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(CaseError) as caught:
        read_case(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(CaseError, match="is not complete JSON"):
        read_case(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"Cannot read the case file .*nowhere\.json: No such file"):
        read_case(tmp_path / "nowhere.json")


def test_a_file_gives_its_case_and_its_other_fields(tmp_path: Path) -> None:
    path, case = tmp_path / "case.json", Case(op="permute", seed=5, num_tokens=3)
    path.write_text(json.dumps({"case": case.to_json(), "kernel": "k.py:f", "tol": 0.01}), encoding="utf-8")

    assert read_case(path) == (case, {"kernel": "k.py:f", "tol": 0.01})


def test_a_file_may_hold_the_bare_case(tmp_path: Path) -> None:
    path, case = tmp_path / "case.json", Case(op="permute", seed=5)
    path.write_text(json.dumps(case.to_json()), encoding="utf-8")

    assert read_case(path)[0] == case
