"""Files of configurations: each mistake is one sentence, and a call goes on without them after one warning."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moecheck.errors import Unsupported, UsageError
from moecheck.tuning import VARIABLE, Configuration, Layer, Tuning, pinned
from moecheck.tuning.table import Table, load, write
from moecheck.tuning.tunable import forget

LAYER = Layer(device="some GPU", experts=8, intermediate=64, hidden=128, top_k=2, weights="fp8-block")
GOOD = {"rows": 16, "stages": 2}
FALLBACK = "uses two launches instead"
Change = Callable[[dict[str, Any]], object]


def too_large(found: Configuration, layer: Layer) -> str | None:
    return (
        f"{found['rows']} rows of {found['stages']} stages do not fit" if found["rows"] * found["stages"] > 64 else None
    )


TUNING = Tuning(
    kernel="mine/one_launch",
    values={"rows": (16, 32, 64), "stages": (1, 2, 4)},
    start=lambda layer, tokens: GOOD,
    fallback=FALLBACK,
    problem=too_large,
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered of another test's file."""
    monkeypatch.delenv(VARIABLE, raising=False)
    forget()
    yield
    forget()


def content(**changes: Any) -> dict[str, Any]:
    layer = {"device": "some GPU", "experts": 8, "intermediate": 64, "hidden": 128, "top_k": 2,
             "weights": "fp8-block", "tokens": {"16": dict(GOOD), "64": {"rows": 32, "stages": 1}}}  # fmt: skip
    return {"schema": 2, "kernel": TUNING.kernel, "layers": [layer | changes]}


def saved(path: Path, data: object) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    table = Table(kernel=TUNING.kernel, layers={LAYER: {64: {"rows": 32, "stages": 1}, 1: GOOD}})
    write(tmp_path / "new" / "tuned.json", table)
    assert load(tmp_path / "new" / "tuned.json", TUNING.values, TUNING.problem) == table
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tuned.json"]


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    saved(tmp_path / "file", "")
    with pytest.raises(UsageError, match="Cannot write the configurations"):
        write(tmp_path / "file" / "tuned.json", Table(kernel="x", layers={}))


@pytest.mark.parametrize(("tokens", "rows"), [(1, 16), (16, 16), (31, 16), (33, 32), (1024, 32)])
def test_the_nearest_number_of_tokens_is_used(
    tokens: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = saved(tmp_path / "others.json", content() | {"kernel": "mine/other"})
    mine = saved(tmp_path / "mine.json", content())
    monkeypatch.setenv(VARIABLE, f"{others}{os.pathsep}{mine}")
    found = TUNING.configuration(LAYER, tokens)
    assert found is not None
    assert found["rows"] == rows


def layer_of(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["layers"][0]
    return found


# What is wrong with a file, and what is said of it.
WRONG: dict[str, tuple[Change, str]] = {
    "another schema": (lambda d: d.update(schema=1), "schema 1 is not 2"),
    "no kernel": (lambda d: d.pop("kernel"), "the file lacks 'kernel'"),
    "an unknown key": (lambda d: d.update(note="x"), "the file has the unknown 'note'"),
    "a number for the kernel": (lambda d: d.update(kernel=3), "kernel = 3 is not of type str"),
    "no list": (lambda d: d.update(layers={}), "layers = {} is not of type list"),
    "a list for a layer": (lambda d: d.update(layers=[[]]), "layer 0 must be an object, not list"),
    "the same layer twice": (lambda d: d["layers"].append(d["layers"][0]), "layer 1 repeats 8 experts"),
    "no top_k": (lambda d: layer_of(d).pop("top_k"), "layer 0 lacks 'top_k'"),
    "no experts": (lambda d: layer_of(d).update(experts=0), "experts = 0 is not positive"),
    "text for a number": (lambda d: layer_of(d).update(hidden="128"), "hidden = '128' is not of type int"),
    "true for a number": (lambda d: layer_of(d).update(hidden=True), "hidden = True is not of type int"),
    "a list of tokens": (lambda d: layer_of(d).update(tokens=[]), "tokens = [] is not of type dict"),
    "no number of tokens": (lambda d: layer_of(d)["tokens"].update({"many": GOOD}), "'many' is no number of tokens"),
    "no tokens": (lambda d: layer_of(d)["tokens"].update({"0": GOOD}), "'0' is no number of tokens"),
    "a zero in front": (lambda d: layer_of(d)["tokens"].update({"016": GOOD}), "'016' is no number of tokens"),
    "a list of numbers": (lambda d: layer_of(d)["tokens"].update({"16": [16]}), "16 tokens = [16] is not of type dict"),
    "a fraction": (lambda d: layer_of(d)["tokens"]["16"].update(rows=16.0), "rows = 16.0 is not of type int"),
    "a number is missing": (lambda d: layer_of(d)["tokens"]["16"].pop("rows"), "the configuration lacks 'rows'"),
    "an unknown number": (lambda d: layer_of(d)["tokens"]["16"].update(warps=4), "has the unknown 'warps'"),
    "an unknown value": (lambda d: layer_of(d)["tokens"]["16"].update(rows=48), "rows = 48 is none of 16, 32, 64"),
    "an impossible one": (lambda d: layer_of(d)["tokens"]["16"].update(rows=64), "64 rows of 2 stages do not fit"),
}  # fmt: skip
TEXTS = {
    "broken": ("{", "are not JSON"),
    "empty": ("", "are not JSON"),
    "too deep": ("[" * 100_000, "are not JSON"),
    "a list": ("[]", "the file must be an object, not list"),
    "a name twice": ('{"schema": 2, "schema": 2}', "'schema' is there twice"),
}
BAD: list[Any] = [
    *(pytest.param(change, said, id=name) for name, (change, said) in WRONG.items()),
    *(pytest.param(text, said, id=name) for name, (text, said) in TEXTS.items()),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_wrong_file_is_one_sentence_and_the_stated_fallback(
    change: Change | str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = change
    if not isinstance(change, str):
        data = content()
        change(data)
    path = saved(tmp_path / "tuned.json", data)
    with pytest.raises(UsageError) as caught:
        load(path, TUNING.values, TUNING.problem)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.warns(UserWarning, match=FALLBACK) as warned:
        assert [TUNING.configuration(LAYER, tokens) for tokens in (16, 16, 17, 4096)] == [None] * 4
    assert len(warned) == 1
    assert said in str(warned[0].message)


def test_a_file_that_is_no_text_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="are not JSON"):
        load(path)


@pytest.mark.parametrize(
    ("named", "tokens", "said"),
    [
        pytest.param("none.json", 16, "none.json: No such file or directory", id="a missing file"),
        pytest.param("", 16, f"No file named by {VARIABLE} holds configurations of mine/one_launch", id="no file"),
        pytest.param("shape.json", 16, "are for another shape (8 experts of 64 x 256, top 2", id="another shape"),
        pytest.param("nothing.json", 16, "are for another shape (no layer)", id="an empty file"),
        pytest.param("good.json", 4096, "have none near 4096 tokens, only for 16, 64", id="no entry near"),
        pytest.param("other.json", 16, f"No file named by {VARIABLE} holds", id="another kernel's file"),
    ],
)
def test_what_is_not_there_is_one_warning_and_the_fallback(
    named: str, tokens: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "shape.json", content(hidden=256))
    saved(tmp_path / "nothing.json", content() | {"layers": []})
    saved(tmp_path / "good.json", content())
    saved(tmp_path / "other.json", content() | {"kernel": "mine/other"})
    monkeypatch.setenv(VARIABLE, str(tmp_path / named) if named else "")
    with pytest.warns(UserWarning, match=FALLBACK) as warned:
        assert [TUNING.configuration(LAYER, tokens), TUNING.configuration(LAYER, tokens + 1)] == [None, None]
    assert len(warned) == 1
    assert said in str(warned[0].message)
    assert str(warned[0].message).endswith(f"mine/one_launch {FALLBACK}.")


def test_a_good_file_beside_a_missing_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [str(tmp_path / "none.json"), str(saved(tmp_path / "good.json", content()))]
    monkeypatch.setenv(VARIABLE, os.pathsep.join(named))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TUNING.configuration(LAYER, 16) == GOOD


def test_a_packaged_file_without_the_layer_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packaged = saved(tmp_path / "packaged.json", content(hidden=256))
    tuning = Tuning(
        kernel=TUNING.kernel, values=TUNING.values, start=TUNING.start, fallback=FALLBACK, packaged=packaged
    )
    with caplog.at_level("INFO", logger="moecheck.tuning.tunable"):
        assert tuning.configuration(LAYER, 16) is None
    assert "are for another shape" in caplog.text
    assert FALLBACK in caplog.text


def test_a_packaged_file_that_is_lost_is_a_warning(tmp_path: Path) -> None:
    lost = Tuning(kernel="x", values={}, start=TUNING.start, fallback=FALLBACK, packaged=tmp_path / "lost.json")
    with pytest.warns(UserWarning, match="Cannot read the configurations"):
        assert lost.configuration(LAYER, 16) is None


def test_a_pinned_configuration_is_used_and_one_that_cannot_work_is_declined() -> None:
    with pinned({"rows": 32, "stages": 1}) as pin:
        assert TUNING.configuration(LAYER, 5) == {"rows": 32, "stages": 1}
    assert pin.asked == [(LAYER, 5, {"rows": 32, "stages": 1})]
    with pinned(None):
        assert TUNING.configuration(LAYER, 5) == GOOD
    with pinned({"rows": 64, "stages": 4}), pytest.raises(Unsupported, match="do not fit"):
        TUNING.configuration(LAYER, 5)
