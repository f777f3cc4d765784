"""Each parser takes any document or refuses it in one sentence; tools/fuzz_parsers.py tries many more of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from moecheck.errors import MoecheckError
from tests.fuzz.documents import encoded
from tests.fuzz.fuzzing import fuzz
from tests.fuzz.parsers import CASE_FILE, FILES, FINDING, OPTIONS, PARSERS, SUMMARY

DOCUMENTS = 40


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_documents_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    found = fuzz(name, tmp_path, documents=DOCUMENTS)
    assert found.tried >= DOCUMENTS
    assert {place: document[:300] for place, (document, _) in found.bugs.items()} == {}


DEEP, LONG = b"[" * 100_000, b"9" * 5000


def options(**changes: object) -> bytes:
    return encoded({"options": {**asdict(OPTIONS), **changes}})


# Each ended in a traceback once.
@pytest.mark.parametrize("document", [DEEP, LONG], ids=["nested too deeply", "a number of 5000 digits"])
@pytest.mark.parametrize(
    "name",
    [
        "case files",
        "specs as JSON",
        "options of a run",
        "findings.jsonl",
        "summary.json",
        "runs, by the history",
        "e2e questions",
        "e2e answers",
        "e2e options",
        "e2e servers",
        "embedded models' config.json",
    ],
)
def test_json_that_python_gives_up_on(name: str, document: bytes, tmp_path: Path) -> None:
    read(name, document, tmp_path)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        pytest.param("case files, by moecheck replay", encoded({**CASE_FILE, "tol": "x"}), id="tol is a text"),
        pytest.param("case files, by moecheck replay", encoded({**CASE_FILE, "max_mismatch": {}}), id="an object"),
        pytest.param("case files, by moecheck replay", encoded({**CASE_FILE, "tol": 10**400}), id="tol is no float"),
        pytest.param("options of a run", options(seed="x"), id="seed"),
        pytest.param("options of a run", options(profile=[]), id="profile"),
        pytest.param("findings.jsonl", encoded({**FINDING.to_json(), "case": False}), id="case of a finding"),
        pytest.param("findings.jsonl", encoded({**FINDING.to_json(), "kernel": []}), id="kernel of a finding"),
        pytest.param("findings.jsonl", encoded({**FINDING.to_json(), "seconds": 10**400}), id="seconds of a finding"),
        pytest.param("summary.json", encoded({**SUMMARY.to_json(), "command": 3}), id="command of a run"),
        pytest.param("summary.json", encoded({**SUMMARY.to_json(), "a\nb": 3}), id="a key of two lines"),
        pytest.param("summary.json", encoded({**SUMMARY.to_json(), "kernels": [[]]}), id="a kernel is a list"),
        pytest.param("specs as JSON", encoded({"sum_factor": 10**400}), id="a factor that is no float"),
        pytest.param("values of options", "1,²".encode(), id="a digit that is no number"),
        pytest.param("e2e answers", b'{"key": "k", "answers": [{}]}', id="an answer without a text"),
        pytest.param("e2e answers", b'{"key": "k", "answers": [{"logprobs": {}}]}', id="no list of logprobs"),
        pytest.param("e2e servers", b"{}", id="an answer without choices"),
        pytest.param("e2e servers", b'{"choices": [{}]}', id="a choice without a text"),
        pytest.param("e2e servers", b'{"choices": [{"text": {}, "finish_reason": "stop"}]}', id="a text that is none"),
        pytest.param("e2e servers", b"[]", id="a list"),
        pytest.param("e2e servers", b"data: 3\n\n", id="an event that is no object"),
    ],
)
def test_a_document_of_wrong_types(name: str, document: bytes, tmp_path: Path) -> None:
    read(name, document, tmp_path)


def read(name: str, document: bytes, folder: Path) -> None:
    """Read it; a refusal is one line."""
    path = folder / FILES.get(name, "document")
    path.write_bytes(document)
    refusal = ""
    try:
        PARSERS[name].read(path)
    except MoecheckError as error:
        refusal = str(error)
    assert "\n" not in refusal
