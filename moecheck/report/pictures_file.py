"""pictures/*.json of a report folder: where the error of a kernel's worst case is, to be drawn later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moecheck.errors import UsageError
from moecheck.report.findings_file import replace_file
from moecheck.report.names import slug
from moecheck.report.picture import ErrorPicture
from moecheck.report.strict_json import dumps

PICTURES = "pictures"


def write_pictures(folder: Path, pictures: Sequence[ErrorPicture]) -> None:
    """One file for each kernel, below `folder`; raises UsageError where the disk does not take it."""
    for picture in pictures:
        path = folder / PICTURES / f"{slug(picture.kernel)}.json"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"Cannot write {path.parent}: {error.strerror}.") from error
        replace_file(path, dumps(picture.to_json()) + "\n")


def read_picture(folder: Path, kernel: str) -> ErrorPicture | None:
    """The picture of a kernel's worst case; None where none was kept. Raises UsageError for a file that is none."""
    path = folder / PICTURES / f"{slug(kernel)}.json"
    try:
        return ErrorPicture.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path} cannot be read as a picture: {error}.") from error
