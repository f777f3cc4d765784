"""Writes docs/mutants.md from the mutants and the published score.

python tools/write_mutants_document.py
"""

from __future__ import annotations

from pathlib import Path

from moecheck.report.mutants_document import document

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "reports" / "mutants"


if __name__ == "__main__":
    measured = PUBLISHED / "mutants.md"
    text = document(measured.read_text(encoding="utf-8") if measured.exists() else "")
    (ROOT / "docs" / "mutants.md").write_text(text, encoding="utf-8")
