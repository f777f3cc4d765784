"""Reads a TOML file of a user."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from moecheck.errors import UsageError


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text and what it says; raises UsageError for a file that cannot be read, or is no TOML."""
    try:
        text = path.read_bytes().decode("utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:  # also of text that is not UTF-8
        raise UsageError(f"{path} is no TOML: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is no TOML that can be read: it is nested too deeply.") from error
