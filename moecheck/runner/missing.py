"""Tells a package that is not installed from one whose import is broken."""

from __future__ import annotations

import importlib.util

EXTRAS = {
    "torch": "torch",
    "jax": "jax",
    "triton": "triton",
    "transformers": "transformers",
    "safetensors": "e2e",
    "lm_eval": "e2e",
}


def missing_package(error: ModuleNotFoundError) -> str | None:
    """`needs jax, which is not installed: pip install ...`, or None when the package is there but broken."""
    package = (error.name or "").partition(".")[0]
    if not package or importlib.util.find_spec(package) is not None:
        return None
    wanted = f"'moecheck[{EXTRAS[package]}]'" if package in EXTRAS else package
    return f"needs {package}, which is not installed: pip install {wanted}"
