"""Begins with the reference of a large case while the kernel is still imported and compiled."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from moecheck.cases import Case
from moecheck.kernel import Declaration
from moecheck.numerics import Numerics
from moecheck.oracle import Oracle
from moecheck.runner.judges import Judging


def foresee(declaration: Declaration, cases: Sequence[Case], judging: Judging) -> threading.Thread | None:
    """Let a process that judges compute the first sampled case's values; the thread that waits for it.

    None where there is no such case, or where the kernel declares no contract: it is first asked for it by a few calls.
    """
    large = next((case for case in cases if case.sampled), None)
    if large is None or declaration.numerics is None:
        return None

    def begin() -> None:
        with contextlib.suppress(Exception):  # what goes wrong here goes wrong again where it is needed
            judging(values_of, large, declaration.numerics)

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    return thread


def values_of(oracle: Oracle, case: Case, numerics: Numerics | None) -> None:
    """Compute what the case should give, which the oracle keeps for whoever asks next."""
    oracle.values(case, numerics)
