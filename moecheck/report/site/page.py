"""One page as data, and how it becomes a file: in any of several processes, since drawing takes most of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jinja2 import Environment

from moecheck.errors import UsageError
from moecheck.report.e2e_record import OUTCOMES
from moecheck.report.findings_file import replace_file
from moecheck.report.html import page_environment
from moecheck.report.site.panels import sees_point, trend_words
from moecheck.report.trend_plots import trend_svg

LONGEST = 120  # characters of a name in a table; its own page has all of it
CHUNK = 8  # pages that a process gets at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """path: below the site's folder. values: what the template shows; can be pickled."""

    path: str
    template: str
    values: Mapping[str, Any]


def write_pages(folder: Path, pages: Sequence[Page], *, processes: int) -> None:
    """Write all pages below `folder`; raises UsageError where the disk does not take them."""
    for parent in {(folder / page.path).parent for page in pages}:
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"Cannot write {parent}: {error.strerror}.") from error
    if processes < 2 or len(pages) <= CHUNK:
        for page in pages:
            _write(folder, page)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
        for _ in pool.map(_write, [folder] * len(pages), pages, chunksize=CHUNK):
            pass


def _write(folder: Path, page: Page) -> None:
    root = "../" * page.path.count("/")
    text = _environment().get_template(f"site/{page.template}.html").render(**page.values, root=root)
    replace_file(folder / page.path, text)


@cache
def _environment() -> Environment:
    style = (resources.files("moecheck.report") / "templates" / "site" / "site.css").read_text(encoding="utf-8")
    environment = page_environment(style=style)
    environment.filters.update(clip=_clip, day=lambda time: time.strftime("%Y-%m-%d %H:%M"))
    environment.globals.update(trend=trend_svg, trend_words=trend_words, sees_point=sees_point, outcomes=OUTCOMES)
    return environment


def _clip(text: str, longest: int = LONGEST) -> str:
    """The text, or its beginning and end where it is very long."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"
