"""The site in a real browser: pages load, narrow and sort their tables, lead to each other, and run nothing foreign."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moecheck.report.runs import find_runs
from moecheck.report.site import build_site
from tests.report.browser import Browser, find_chromium
from tests.report.nights import HOSTILE, kernel_names, write_nights
from tests.report.other_runs import write_bench_run, write_e2e_run, write_mutants_run

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium, and none is installed")
OPEN_SECONDS = 2.0  # the site's promise


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nights of four good kernels, one of which fails in the last, and of kernels with hostile names."""
    parent = tmp_path_factory.mktemp("nights")
    names = [*kernel_names(4), *HOSTILE]
    bad = [(2, index) for index in range(4, len(names))]
    write_nights(parent, nights=3, names=names, broken=[(2, 1), (1, 0), *bad], hostile=True)
    write_e2e_run(parent / "e2e")
    write_bench_run(parent / "bench")
    write_mutants_run(parent / "mutants")
    runs, notes = find_runs([parent])
    assert notes == []
    build_site(parent / "site", runs, title=HOSTILE[0])
    return parent / "site"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def index(browser: Browser, site: Path) -> Browser:
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.open(site / "index.html")
    return browser


def shown(browser: Browser) -> list[str]:
    """The kernels that the table shows, from above."""
    rows = "[...document.querySelectorAll('#kernels tbody tr')].filter(row => !row.hidden)"
    names = browser.run(f"{rows}.map(row => row.cells[0].textContent.trim())")
    assert isinstance(names, list)
    return names


def test_every_page_loads_without_a_problem_a_request_or_a_foreign_script(browser: Browser, site: Path) -> None:
    browser.problems.clear()
    browser.requests.clear()
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        browser.open(page)
        assert "owned" not in (browser.run("document.title"), browser.run("document.body.className"))
        assert browser.run("document.scripts.length") == 1
        assert browser.run("document.querySelectorAll('img, iframe, object, embed, link, base, form').length") == 0
        handlers = "[...document.querySelectorAll('*')].some(e => [...e.attributes].some(a => a.name.startsWith('on')))"
        assert browser.run(handlers) is False
    assert browser.problems == []
    assert {request for request in browser.requests if not request.startswith(("file://", "data:"))} == set()


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_the_window(browser: Browser, site: Path, width: int) -> None:
    browser.resize(width, 800)
    wide = []
    for page in sorted(site.rglob("*.html")):
        browser.open(page)
        if browser.run("document.documentElement.scrollWidth") > width:
            wide.append(page.name)
    assert wide == []


def test_links_lead_to_pages_and_places_that_exist(index: Browser, site: Path) -> None:
    broken = []
    for page in sorted(site.rglob("*.html")):
        index.open(page)
        for address in index.run("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"):
            name, _, place = address.partition("#")
            target = (page.parent / name).resolve() if name else page
            there = target.is_file() and target.is_relative_to(site.resolve())
            if not there or (place and f'id="{place}"' not in target.read_text(encoding="utf-8")):
                broken.append((page.name, address))
    assert broken == []


def test_the_table_is_narrowed_by_words_and_by_verdict(index: Browser) -> None:
    everything = shown(index)
    assert len(everything) == 4 + len(HOSTILE)

    index.run("{ const i = document.querySelector('#kernels input'); i.value = 'kernel_01'; "
              "i.dispatchEvent(new Event('input')); }")  # fmt: skip
    assert shown(index) == ["torch/kernel_01"]
    assert index.run("document.querySelector('#kernels .shown').textContent") == f"1 of {len(everything)} shown"

    index.run("{ const i = document.querySelector('#kernels input'); i.value = ''; "
              "const s = document.querySelector('#kernels select'); s.value = 'pass'; "
              "s.dispatchEvent(new Event('change')); }")  # fmt: skip
    assert shown(index) == ["torch/kernel_03", "triton/kernel_00", "triton/kernel_02"]


def test_the_table_is_sorted_by_a_column_both_ways(index: Browser) -> None:
    column = "[...document.querySelectorAll('#kernels thead th')].findIndex(c => c.textContent.trim() === 'worst z')"
    values = f"[...document.querySelectorAll('#kernels tbody tr')].map(r => Number(r.cells[{column}].dataset.sort))"
    click = f"document.querySelectorAll('#kernels thead th')[{column}].querySelector('button').click()"

    index.run(click)
    down = index.run(values)
    index.run(click)
    up = index.run(values)

    assert down == sorted(down, reverse=True)
    assert up == sorted(up)
    assert len(set(up)) > 2


def test_a_reader_gets_from_the_red_tile_to_the_picture_of_the_error(index: Browser) -> None:
    index.click(".tile.bad")
    index.wait()
    assert "kernels failed" in index.run("document.querySelector('h1').textContent")
    index.run("[...document.querySelectorAll('.listing a')].find(a => a.textContent.includes('kernel_01')).id = 'go'")
    index.click("#go")
    index.wait()
    assert "torch/kernel_01" in index.run("document.querySelector('h1').textContent")
    assert index.run("document.querySelectorAll('figure svg').length") == 2
    index.run("[...document.querySelectorAll('nav a')].find(a => a.textContent.includes('kernel_01')).id = 'go'")
    index.click("#go")
    index.wait()
    assert index.run("document.querySelectorAll('.panels svg').length") == 7


def test_dark_is_dark_and_light_is_light(browser: Browser, site: Path) -> None:
    shades = []
    for dark in (False, True):
        browser.resize(800, 600, dark=dark)
        browser.open(site / "index.html")
        shades.append(browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
    light, dark_shade = shades
    assert min(light) > 200 > 60 > max(dark_shade)


def test_the_index_opens_in_time(browser: Browser, site: Path) -> None:
    start = time.monotonic()
    browser.open(site / "index.html")
    seconds = browser.run("performance.timing.loadEventStart - performance.timing.navigationStart") / 1000

    assert 0 < seconds < OPEN_SECONDS
    assert time.monotonic() - start >= seconds
