"""What the newest nights' comparison with the nights before said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BAD = ("regression", "new failure", "still failing", "drift", "unexpected pass", "broken", "bad options")


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One sentence of the comparison about one subject. night: the name that all nights of one configuration have."""

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
    """Of the newest night of each configuration in the store; empty where they said nothing."""
    from moecheck.history import History  # pandas takes half a second

    with History.open(path, read_only=True) as history:
        newest = history.nights().groupby("name").tail(1)
        rows = [row for night in newest["night"] for row in history.statuses(night=str(night)).to_dict("records")]
    return [
        Status(
            night=str(row["name"]),
            part=str(row["label"]),
            subject=str(row["subject"]),
            device=str(row["device"]),
            status=str(row["status"]),
            message=str(row["message"]),
        )
        for row in rows
    ]
