"""Writes docs/mutants.md from the mutants.

python tools/write_mutants_document.py
"""

from __future__ import annotations

from pathlib import Path

from moecheck.report.mutants_document import document

if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("docs", "mutants.md").write_text(document(), encoding="utf-8")
