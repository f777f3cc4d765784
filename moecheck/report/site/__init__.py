"""A folder of linked pages over many runs, to be opened from disk or put behind any web server."""

from __future__ import annotations

from .build import build_site

__all__ = ["build_site"]
