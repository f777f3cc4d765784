"""`python -m moecheck`, the same as the console script."""

from __future__ import annotations

from moecheck.cli import main

main()
