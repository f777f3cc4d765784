"""Exceptions that moecheck raises, each carrying one sentence for the user.

MoecheckError
 |- UsageError      bad input: exit code 2
 |   |- CaseError   a case record that cannot be read or built
 |   `- SpecError   a spec field out of its range
 |- Unsupported     a kernel declines a case: SKIP with that reason
 `- HarnessError    the harness itself broke: exit code 3
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoecheckError(Exception):
    """Base of all moecheck errors; its text is one sentence: what is wrong, where, and what to do."""


class UsageError(MoecheckError):
    """The user gave something that cannot work (exit code 2)."""


class CaseError(UsageError):
    """A case record that cannot be read or built."""


class SpecError(UsageError):
    """A field of a spec is out of its range or contradicts another one."""


class Unsupported(MoecheckError):
    """Raised by a kernel that cannot run a case; the case is SKIPPED with this text as the reason."""


class HarnessError(MoecheckError):
    """moecheck itself broke (exit code 3)."""


def near(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UsageError naming the near name unless `name` is one of `known`."""
    names = sorted(known)
    if name not in names:
        hint = near(name, names) or f" Known: {', '.join(names)}."
        raise UsageError(f"Unknown {kind} {name!r}.{hint}")
