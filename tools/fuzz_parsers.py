"""Fuzzes every parser: python tools/fuzz_parsers.py [--documents 10000] [--only NAME] [--out FILE.md]."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.modules["tests"] = ModuleType("tests")  # some packages install one of that name
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from tests.fuzz.fuzzing import fuzz  # noqa: E402
from tests.fuzz.parsers import PARSERS  # noqa: E402


def main() -> int:
    """Print and write a table; 1 where anything else than a refusal in one sentence was seen."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--documents", type=int, default=10_000)
    options.add_argument("--start", type=int, default=0, help="of the drawing of documents")
    options.add_argument("--only", action="append", metavar="NAME", choices=sorted(PARSERS))
    options.add_argument("--out", type=Path)
    asked = options.parse_args()
    rows, bugs = [], 0
    for name in asked.only or PARSERS:
        begin = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, Path(folder), documents=asked.documents, start=asked.start)
        bugs += len(found.bugs)
        rows.append(
            f"| {name} | {found.tried} | {found.refused} | {len(found.bugs)} | {time.process_time() - begin:.0f} |"
        )
        print(rows[-1], flush=True)  # noqa: T201
        for place, (document, text) in found.bugs.items():
            print(f"--- {place}\n    {document[:300]!r}\n    {text[-700:]}", flush=True)  # noqa: T201
    if asked.out is not None:
        head = [
            "# Fuzzed parsers", "",
            f"`python tools/fuzz_parsers.py --documents {asked.documents} --start {asked.start}`: each parser reads "
            "damaged and made-up documents (tests/fuzz); it must take each or refuse it in one sentence.", "",
            "| parser | documents | refused | tracebacks | CPU s |", "|---|---|---|---|---|",
        ]  # fmt: skip
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    return min(bugs, 1)


if __name__ == "__main__":
    sys.exit(main())
