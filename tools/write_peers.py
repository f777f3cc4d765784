"""Puts the tables of an audit into docs/peers.md, between its markers.

moecheck audit --all --out audit.json
python tools/write_peers.py audit.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from moecheck.audit import AuditRecord, Criterion
from moecheck.audit.record import MutantRecord, Ranked, SettingRecord
from moecheck.audit.run import HINDSIGHT
from moecheck.audit.trial import Sigmas
from moecheck.audit.view import ranking_grid, records_grid, settings_grid

DOCUMENT = Path("docs/peers.md")


def main() -> None:
    """Replace the tables in the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", type=Path, help="what moecheck audit --all --out wrote")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    a = parser.parse_args()
    data = json.loads(a.audit.read_text(encoding="utf-8"))
    records = [_record(one) for one in data["audits"]]
    tables = {
        "tests": records_grid(records).markdown(),
        "ranking": ranking_grid([_ranked(row) for row in data["ranking"]], hindsight=HINDSIGHT).markdown(),
        "settings": "\n".join(f"**{r.name}** ({r.source})\n\n{settings_grid(r).markdown()}" for r in records),
        "bugs": "\n".join(f"- {r.name}: {', '.join(r.passing) or 'none'}" for r in records) + "\n",
    }
    text = a.document.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{a.document} must hold the markers {begin.strip()} and {end.strip()} once each.")
        text = re.sub(f"{begin}.*?{end}", lambda _, t=table, b=begin, e=end: f"{b}\n{t}\n{e}", text, flags=re.DOTALL)  # type: ignore[misc]  # defaults bind the loop's values
    a.document.write_text(text, encoding="utf-8")


def _record(data: dict[str, Any]) -> AuditRecord:
    """An AuditRecord as `to_json` wrote it."""
    values = {name: data[name] for name in AuditRecord.__dataclass_fields__}
    values["criterion"] = Criterion(**data["criterion"])
    values["settings"] = tuple(
        SettingRecord(**{**one, "sigmas": one["sigmas"] and Sigmas(**one["sigmas"])}) for one in data["settings"]
    )
    values["mutants"] = tuple(MutantRecord(**one) for one in data["mutants"])
    return AuditRecord(**values)


def _ranked(data: dict[str, Any]) -> Ranked:
    return Ranked(**{name: data[name] for name in Ranked.__dataclass_fields__})


if __name__ == "__main__":
    main()
