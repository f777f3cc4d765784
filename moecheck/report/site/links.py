"""Where pages lie in a site's folder; names of kernels and runs never reach the file system as they are."""

from __future__ import annotations

from moecheck.report.names import slug


def run_path(run: str) -> str:
    return f"runs/{slug(run)}.html"


def subject_path(part: str, subject: str) -> str:
    return f"{part}/{slug(subject)}.html"


def case_path(run: str, kernel: str) -> str:
    return f"cases/{slug(run)}/{slug(kernel)}.html"
