"""Names of files and links inside a report folder."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path


def folder_name() -> str:
    """`20261121T161904Z-3f9a1c`: sorts by time, and two runs in one second do not collide."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def slug(text: str) -> str:
    """A file name for any text: readable, without separators or leading dots, and different for different texts."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{readable}-{digest}" if readable else digest


def point_latest(folder: Path) -> str | None:
    """Make `latest` beside `folder` a link to it, in one step; with several runs the one that does so last wins.

    Returns a sentence for the user where that is impossible, None when it is done.
    """
    link, temporary = folder.parent / "latest", folder.parent / f".latest-{folder.name}"
    try:
        temporary.symlink_to(folder.name, target_is_directory=True)
        os.replace(temporary, link)
    except (OSError, NotImplementedError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        return f"{link} was not updated ({reason}); this report is in {folder}."
    return None
