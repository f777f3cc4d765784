"""Questions in gsm8k's form: JSON lines with `question` and `answer`, read from a file or from the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moecheck.errors import UsageError
from moecheck.json_text import loads

HUB = "openai/gsm8k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """doc_id: its line, from 0. answer: with the steps and `#### NUMBER`. cluster: its template, None if unknown."""

    doc_id: int
    question: str
    answer: str
    cluster: str | None = None


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """The questions of a file, the first `limit` of them.

    Raises UsageError naming file and line for a line that is no JSON object with both texts, or for no question at all.
    """
    found: list[Question] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(found) == limit:
                    break
                if line.strip():
                    found.append(_question(line, path, number, len(found)))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not found:
        raise UsageError(f"{path} has no questions.")
    return found


def hub_file(split: str, folder: Path) -> Path:
    """`split` of the real gsm8k as a file in `folder`, from the hub or its local cache.

    Raises UsageError without the package or the network.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError("gsm8k from the hub needs moecheck[e2e]; or give --data FILE.jsonl.") from error
    path = folder / f"gsm8k-{split}.jsonl"
    try:
        rows = datasets.load_dataset(HUB, "main", split=split)
    except Exception as error:  # whatever the hub's client raises without a network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"Cannot load {HUB} ({reason[:160]}); give --data FILE.jsonl, such as grade_school_math/data/test.jsonl."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in _plain(rows)), encoding="utf-8")
    return path


def _plain(rows: object) -> Iterator[dict[str, str]]:
    for row in rows:  # type: ignore[attr-defined]  # a datasets.Dataset
        yield {"question": str(row["question"]), "answer": str(row["answer"])}


def _question(line: str, path: Path, number: int, doc_id: int) -> Question:
    where = f"{path}, line {number}"
    try:
        data = loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}).") from error
    if not isinstance(data, dict):
        raise UsageError(f"{where}: must be a JSON object, not {type(data).__name__}.")
    for name in ("question", "answer"):
        if not isinstance(data.get(name), str):
            raise UsageError(f"{where}: needs the text {name!r}.")
    if "#### " not in data["answer"]:
        raise UsageError(f"{where}: the answer does not end in '#### NUMBER'.")
    cluster = data.get("cluster")
    return Question(
        doc_id=doc_id,
        question=data["question"],
        answer=data["answer"],
        cluster=cluster if isinstance(cluster, str) else None,
    )
