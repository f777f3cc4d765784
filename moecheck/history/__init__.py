"""What earlier nights found: an append-only store, its queries, and the statistics of drift."""

from moecheck.history.records import Failure, Night, Result, Run, Status
from moecheck.history.store import History

__all__ = ["Failure", "History", "Night", "Result", "Run", "Status"]
