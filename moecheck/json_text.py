"""JSON from files and servers, whatever they hold."""

from __future__ import annotations

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """As `json.loads`; raises ValueError for all that is no JSON it can hold, also for lists nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deeply") from error
