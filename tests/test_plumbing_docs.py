"""docs/plumbing.md names only what exists."""

from __future__ import annotations

import re
from pathlib import Path

from moecheck.curated import cases_for
from moecheck.ops import ALTERNATIVES, OPS
from moecheck.relations.relation import relations

TEXT = (Path(__file__).parents[1] / "docs" / "plumbing.md").read_text(encoding="utf-8")


def test_every_check_exists() -> None:
    rows = [line.split("|") for line in TEXT.split("## Experts on ranks")[1].splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([a-z0-9_-]+)`", row[3])}
    cases = {case.name for op in OPS for case in cases_for(op, profile="quick", seed=0, examples=0)}
    assert len(named) > 20
    assert named <= cases | relations().keys()


def test_every_op_and_argument_exists() -> None:
    assert set(re.findall(r"op `(\w+)`", TEXT)) == {"batched_experts", "expert_counts"} <= OPS.keys()
    assert "`expert_mask`" in TEXT
    assert "expert_mask" in ALTERNATIVES
