"""All that presents or writes results; nothing else in moecheck writes files."""

from __future__ import annotations

from .folder import ReportFolder
from .picture import ErrorPicture, picture_of
from .results import KernelSummary, RunSummary, Skipped
from .summarise import reproduce_line, summarise

__all__ = [
    "ErrorPicture",
    "KernelSummary",
    "ReportFolder",
    "RunSummary",
    "Skipped",
    "picture_of",
    "reproduce_line",
    "summarise",
]
