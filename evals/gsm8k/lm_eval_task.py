"""The task gsm8k through lm-eval itself: its installed task file, run on local data with any of our backends.

Facts about lm-eval 0.4.13 that this file minds: a task dictionary does not merge with the built-in one of that name,
so it must be complete; the default sampler's examples depend on the subset (hence first_n); building the default task
index reads thousands of files (hence include_defaults=False); its own cache forgets which model answered (hence ours,
keyed by the arm's fingerprint and by whole batches).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecheck.errors import HarnessError, UsageError
from moecheck.evals.backends.records import Generation

from .prompts import TASK

if TYPE_CHECKING:
    from moecheck.evals.backends.backend import Backend

Done = Callable[[Sequence[str], Sequence[Generation]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessSample:
    """What lm-eval says of one question: its prompt's hash and whether each filter's result is right."""

    doc_id: int
    prompt_hash: str
    strict: str
    flexible: str
    strict_right: bool
    flexible_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessResult:
    """samples: by doc_id. results: lm-eval's own metrics. table: in its usual Markdown form. version: of lm-eval."""

    samples: tuple[HarnessSample, ...]
    results: dict[str, float]
    table: str
    version: str


def available() -> bool:
    """Whether lm-eval is installed."""
    import importlib.util

    return importlib.util.find_spec("lm_eval") is not None


def task_dictionary(test: Path, shots: Path | None, num_fewshot: int) -> dict[str, Any]:
    """The complete task: the installed gsm8k.yaml on local files, with the first `num_fewshot` lines of `shots`."""
    import lm_eval
    import yaml

    source = Path(lm_eval.__file__).parent / "tasks" / TASK / f"{TASK}.yaml"
    task: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    task.pop("tag", None)
    task.update(
        task=TASK,
        dataset_path="json",
        dataset_name=None,
        dataset_kwargs={"data_files": {"train": str(shots or test), "test": str(test)}},
        fewshot_config={"sampler": "first_n"},
        num_fewshot=num_fewshot,
    )
    return task


def evaluate(
    backend: Backend,
    *,
    test: Path,
    shots: Path | None,
    num_fewshot: int,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    done: Done | None = None,
) -> HarnessResult:
    """One arm through lm_eval.simple_evaluate; done: told of every finished batch (prompts, answers).

    Raises UsageError where lm-eval is not installed.
    """
    if not available():
        raise UsageError("--harness lm-eval needs lm-eval: pip install 'moecheck[e2e]'.")
    with _quiet():
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table

        from .lm_eval_model import BackendLM

        found = lm_eval.simple_evaluate(
            model=BackendLM(backend, batch_size=batch_size, max_new_tokens=max_new_tokens, done=done),
            tasks=[task_dictionary(test, shots, num_fewshot)],
            task_manager=TaskManager(include_defaults=False),
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
        )
    if found is None:
        raise HarnessError("lm-eval returned no result.")
    metrics = {name: float(value) for name, value in found["results"][TASK].items() if isinstance(value, float | int)}
    return HarnessResult(
        samples=tuple(_samples(found["samples"][TASK])),
        results=metrics,
        table=make_table(found),
        version=str(lm_eval.__version__),
    )


def _samples(rows: list[dict[str, Any]]) -> Iterator[HarnessSample]:
    """lm-eval has one row for each question and filter."""
    table: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        table.setdefault(int(row["doc_id"]), {})[str(row["filter"])] = row
    for doc_id, by_filter in sorted(table.items()):
        strict, flexible = by_filter["strict-match"], by_filter["flexible-extract"]
        yield HarnessSample(
            doc_id=doc_id,
            prompt_hash=str(strict["prompt_hash"]),
            strict=_text(strict["filtered_resps"]),
            flexible=_text(flexible["filtered_resps"]),
            strict_right=bool(strict["exact_match"]),
            flexible_right=bool(flexible["exact_match"]),
        )


def _text(filtered: Any) -> str:
    return str(filtered[0]) if isinstance(filtered, list | tuple) else str(filtered)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and datasets print bars, logs and git's complaints; none of them is about the user's kernel."""
    names = ("lm_eval", "datasets", "lm-eval")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = bars
