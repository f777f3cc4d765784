"""The report of a paired run: what a reader must find in it, and that nothing in it can act."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("scipy", reason="needs moecheck[e2e]: scipy")

from moecheck.errors import UsageError
from moecheck.evals.backends.records import Arm, Generation
from moecheck.evals.gsm8k.answers import scored_answer
from moecheck.evals.gsm8k.data import Question
from moecheck.evals.paired.journal import Journal
from moecheck.evals.paired.model_run import run_model
from moecheck.evals.paired.result import RunResult
from moecheck.evals.paired.settings import Settings
from moecheck.evals.paired.watcher import Watcher
from moecheck.evals.report.documents import RunFacts, html_page, markdown_summary
from moecheck.evals.report.folder import RunFolder
from moecheck.evals.report.tables import lm_eval_table
from moecheck.evals.report.terminal import run_view
from moecheck.evals.report.views import layer_rows, question_views, worst_tokens
from moecheck.report.terminal import render
from tests.evals.fake_model import FakeModel

FACTS = RunFacts(command="moecheck e2e --task gsm8k", started="2026-11-22T02:00:00+00:00", seconds=12.0, git=None)
HOSTILE = "What <script>alert(1)</script> is the number 3?"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run with a fault in the shared expert, and with a question that contains a script."""
    asked = [f"What is the number {index}?" for index in range(40)]
    questions = [
        Question(doc_id=i, question=text, answer=f"{i}.\n#### {i}") for i, text in enumerate([*asked, HOSTILE])
    ]
    return run_model(
        FakeModel(),
        Arm(kernel="good", precision="bf16", mutant="shared-0.4"),
        Settings(questions=questions, data="41 generated questions", batch_size=16, captured=2, forced=4),
        journal=Journal(tmp_path_factory.mktemp("run") / "answers.jsonl"),
        watcher=Watcher(),
    )


class Page(HTMLParser):
    """Tags and text of a page; raises for what is opened and never closed."""

    VOID = ("meta", "br", "input", "path", "use", "rect", "line", "circle", "stop", "image")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_tells_the_verdict_the_layers_and_both_texts(result: RunResult) -> None:
    page = Page(html_page(result, FACTS))
    text = " ".join(" ".join(page.words).split())
    assert "shared expert weighted 0.400 = 1/routed_scaling_factor" in text
    for part in ("α routed", "Departure over depth", "Tokens that diverge most", "exact_match,strict-match", "lost"):
        assert part in text
    assert sum(tag == "mark" for tag, _ in page.tags) == 2 * sum(
        one.kind != "identical" for one in question_views(result)
    )
    assert sum(tag == "svg" for tag, _ in page.tags) == 2


def test_the_page_loads_nothing_and_runs_only_its_own_script(result: RunResult) -> None:
    page = Page(html_page(result, FACTS))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    for _, attributes in page.tags:
        assert not any((value or "").startswith(("http:", "https:", "//")) for value in attributes.values())
        assert not any(name.startswith("on") for name in attributes)
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)
    assert HOSTILE in "".join(page.words)


def test_the_summary_is_markdown_for_a_pull_request(result: RunResult) -> None:
    text = markdown_summary(result, FACTS)
    assert text.startswith("## moecheck e2e: FAIL: ")
    assert "|Tasks|Version|" in text
    assert "| baseline right |" in text
    assert "moecheck e2e --task gsm8k" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| component") or "| signal |" in line}
    assert len(widths) == 1


def test_the_terminal_has_a_line_for_each_signal(result: RunResult) -> None:
    text = render(run_view(result, report="reports/x"), width=120, color=False)
    assert text.count("✘ fail") >= 3
    assert "report: reports/x" in text


def test_a_divergence_is_marked_where_the_texts_part(result: RunResult) -> None:
    changed = next(view for view in question_views(result) if view.kind == "lost")
    assert changed.place == len(changed.same)
    assert changed.left != changed.right


def test_layers_and_tokens_are_listed(result: RunResult) -> None:
    rows = layer_rows(result)
    assert len(rows) == 2 * 4
    assert all("shared expert weighted 0.400" in row.words for row in rows)
    kls = [float(row.kl) for row in worst_tokens(result)]
    assert kls == sorted(kls, reverse=True)


def test_the_table_is_lm_evals() -> None:
    question = Question(doc_id=0, question="q", answer="#### 1")
    answers = [scored_answer(question, "p", Generation(text=text, finish="stop")) for text in ("#### 1", "1", "2", "2")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lm_eval_table(answers, 5).splitlines()]
    assert lines[0] == ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"]
    assert lines[2] == ["gsm8k", "3", "flexible-extract", "5", "exact_match", "↑", "0.5000", "±", "0.2887"]
    assert lines[3] == ["", "", "strict-match", "5", "exact_match", "↑", "0.2500", "±", "0.2500"]


def test_the_folder_keeps_options_and_answers(tmp_path: Path, result: RunResult) -> None:
    folder = RunFolder.create(tmp_path, {"limit": 3})
    answer = {"text": "a", "finish": "stop", "token_ids": None, "timing": None}
    folder.journal.put("k", "arm", [answer])
    again = RunFolder.open(tmp_path / folder.path.name)
    assert again.options() == {"limit": 3}
    assert again.journal.get("k") == [answer]
    assert folder.finish(result, FACTS) == []
    data = json.loads((tmp_path / "latest" / "e2e.json").read_text(encoding="utf-8"))
    assert (data["command"], data["verdict"]["outcome"]) == (FACTS.command, "fail")
    assert {path.name for path in folder.path.iterdir()} == {
        "environment.json", "answers.jsonl", "e2e.json", "summary.md", "report.html",
    }  # fmt: skip


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of an end-to-end run"):
        RunFolder.open(tmp_path)
    (tmp_path / "environment.json").write_text('{"options": {}}', encoding="utf-8")
    with pytest.raises(UsageError, match="report of another command"):
        RunFolder.open(tmp_path)
