"""The tables of a history. Rows are only ever added: triggers refuse every change and every deletion."""

from __future__ import annotations

SCHEMA = 1
TABLES = {
    "nights": """
        night TEXT PRIMARY KEY, name TEXT NOT NULL, started TEXT NOT NULL, seconds REAL, exit_code INTEGER NOT NULL,
        folder TEXT NOT NULL, machine TEXT NOT NULL, git TEXT, seed INTEGER""",
    "runs": """
        run TEXT PRIMARY KEY, night TEXT REFERENCES nights (night), part TEXT NOT NULL, label TEXT NOT NULL,
        started TEXT NOT NULL, seconds REAL, command TEXT NOT NULL, machine TEXT NOT NULL, folder TEXT NOT NULL,
        git TEXT, profile TEXT, seed INTEGER""",
    "results": """
        run TEXT NOT NULL REFERENCES runs (run), subject TEXT NOT NULL, op TEXT NOT NULL, backend TEXT NOT NULL,
        device TEXT NOT NULL, verdict TEXT NOT NULL, judged INTEGER NOT NULL, passed INTEGER NOT NULL,
        failed INTEGER NOT NULL, "check" TEXT NOT NULL, message TEXT NOT NULL, diagnosis TEXT NOT NULL,
        worst_case TEXT NOT NULL, reproduce TEXT NOT NULL, PRIMARY KEY (run, subject, device)""",
    "failures": """
        run TEXT NOT NULL REFERENCES runs (run), subject TEXT NOT NULL, device TEXT NOT NULL, "case" TEXT NOT NULL,
        "check" TEXT NOT NULL, verdict TEXT NOT NULL, message TEXT NOT NULL""",
    "metrics": """
        run TEXT NOT NULL REFERENCES runs (run), subject TEXT NOT NULL, device TEXT NOT NULL, metric TEXT NOT NULL,
        value REAL, PRIMARY KEY (run, subject, device, metric)""",
    "statuses": """
        night TEXT NOT NULL REFERENCES nights (night), label TEXT NOT NULL, subject TEXT NOT NULL,
        device TEXT NOT NULL, status TEXT NOT NULL, "check" TEXT NOT NULL, message TEXT NOT NULL""",
}
INDEXES = (
    "CREATE INDEX runs_of_night ON runs (night)",
    "CREATE INDEX metrics_of_subject ON metrics (subject, metric)",
    "CREATE INDEX failures_of_run ON failures (run)",
)


def statements() -> list[str]:
    """The SQL that makes an empty history."""
    lines = [f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()]
    lines += INDEXES
    for name in TABLES:
        for event in ("UPDATE", "DELETE"):
            lines.append(
                f"CREATE TRIGGER {name}_no_{event.lower()} BEFORE {event} ON {name} "
                f"BEGIN SELECT RAISE(ABORT, 'a history is append-only'); END"
            )
    return [*lines, f"PRAGMA user_version = {SCHEMA}"]
