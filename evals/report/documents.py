"""report.html and summary.md of a paired run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moecheck.evals.paired.result import RunResult
from moecheck.report.markdown import code, escape
from moecheck.report.text import duration, printable

from .tables import lm_eval_table, number, paired_markdown
from .views import (
    TONES,
    WORDS,
    facts_line,
    headline,
    kl_by_position,
    layer_rows,
    question_views,
    variant_rows,
    worst_tokens,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What is known of a run beside its result. seconds: of wall time. started: ISO 8601. git: commit, if any."""

    command: str
    started: str
    seconds: float
    git: str | None


def html_page(result: RunResult, run: RunFacts) -> str:
    """One self-contained page; every text is escaped, and it may load nothing and run no script but its own."""
    from .pictures import depth_svg, positions_svg  # matplotlib takes a second to import

    script = _file("moecheck.report", "report.js")
    questions = question_views(result)
    points = kl_by_position(result)
    environment = _environment(autoescape=True)
    environment.finalize = lambda value: printable(value) if type(value) is str else value
    return environment.get_template("e2e.html").render(
        **_shared(result, run),
        layers=layer_rows(result),
        depth=depth_svg(result.depth, result.depth_band) if result.depth else None,
        positions=positions_svg(points) if points else None,
        tokens=worst_tokens(result),
        changed=[view for view in questions if view.kind != "identical"],
        identical=[view for view in questions if view.kind == "identical"],
        variants=list(variant_rows(result)),
        style=Markup(_file("moecheck.report", "report.css") + _file("moecheck.evals.report", "e2e.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tone=TONES.__getitem__,
    )


def markdown_summary(result: RunResult, run: RunFacts) -> str:
    """To be pasted into a pull request."""
    environment = _environment(autoescape=False)
    environment.filters.update(escape=escape, code=code)
    return environment.get_template("e2e.md").render(
        **_shared(result, run),
        wrong_layers=[row for row in layer_rows(result) if row.words],
        square=paired_markdown,
    )


def arm_tables(result: RunResult) -> list[tuple[str, str]]:
    """Each arm's words and its table as lm-eval prints it; lm-eval's own where it asked."""
    tables = []
    for number_of_arm, (name, arm) in enumerate((("baseline", result.baseline), ("candidate", result.candidate))):
        answers = [pair[number_of_arm] for pair in result.pairs]
        own = result.lm_eval.get(name)
        text = own if own is not None else lm_eval_table(answers, result.few_shot)
        tables.append((f"{name}: {arm.arm}", text))
    return tables


def _shared(result: RunResult, run: RunFacts) -> Mapping[str, Any]:
    return {
        "r": result,
        "run": run,
        "headline": headline(result),
        "facts": facts_line(result),
        "tables": arm_tables(result),
        "words": WORDS.__getitem__,
    }


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("moecheck.evals.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number, duration=duration)
    return environment


def _file(package: str, name: str) -> str:
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")
