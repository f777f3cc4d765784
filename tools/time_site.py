"""How long the site over 30 made-up nights of 60 kernels takes to build and to open: python tools/time_site.py."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from moecheck.report.runs import find_runs
from moecheck.report.site import build_site

TESTS = Path(__file__).parents[1] / "tests" / "report"
BUILD, OPEN = 30.0, 2.0  # seconds that are promised, on two cores that have nothing else to do


def main() -> int:
    """Print both times; 1 where the site opens too late, or took more than two cores' share of BUILD."""
    nights, browser = _module("nights"), _module("browser")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nights.write_nights(
            folder / "reports", nights=30, names=nights.kernel_names(60), broken=[(29, 7), (12, 7), (12, 20)]
        )
        start, used = time.monotonic(), _processor_seconds()
        runs, _ = find_runs([folder / "reports"])
        pages, _ = build_site(folder / "site", runs, processes=1)
        cpu = _processor_seconds() - used
        sys.stdout.write(
            f"{pages} pages, built in {cpu:.1f} s of one core ({time.monotonic() - start:.1f} s by the clock)" + "\n"
        )
        program = browser.find_chromium()
        if program is None:
            sys.stdout.write("not opened: no Chromium is installed" + "\n")
            return int(cpu > 2 * BUILD)
        with browser.Browser(program, folder / "profile") as page:
            page.open(folder / "site" / "index.html")
            seconds = page.run("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
            rows = page.run("document.querySelectorAll('#kernels tbody tr').length")
        sys.stdout.write(
            f"index.html with {rows} kernels opened in {seconds:.2f} s; load average {os.getloadavg()[0]:.1f}" + "\n"
        )
    return int(cpu > 2 * BUILD or not 0 < seconds < OPEN)


def _processor_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
