"""What the newest night's comparison with the nights before said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BAD = ("regression", "new failure", "drift", "lost", "unexpected pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One sentence of the comparison about one subject."""

    night: str
    part: str
    subject: str
    device: str
    status: str
    message: str

    @property
    def tone(self) -> str:
        return "bad" if self.status in BAD else "good" if self.status == "fixed" else "unsure"


def statuses_of_history(path: Path) -> list[Status]:
    """Of the newest night in the store; empty where it said nothing."""
    from moecheck.history import History  # pandas takes half a second

    with History.open(path, read_only=True) as history:
        nights = history.nights()
        if nights.empty:
            return []
        night = str(nights.iloc[-1]["night"])
        rows = history.statuses(night=night).to_dict("records")
    return [
        Status(
            night=night,
            part=str(row.get("label") or row.get("part") or ""),
            subject=str(row["subject"]),
            device=str(row["device"] or ""),
            status=str(row["status"]),
            message=str(row["message"] or ""),
        )
        for row in rows
    ]
