"""Inputs of cases on disk for the length of a run: drawn once, mapped by every process that needs them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from moecheck.cases import Case
from moecheck.formats import AnyArray

WORTH_SHARING = 1 << 18  # expert weights; smaller cases are drawn faster than they are mapped


def shared_inputs(case: Case, folder: str | None) -> dict[str, Any]:
    """`case.inputs()`, from `folder` where another process has put them, else drawn and put there.

    Arrays from the folder are mapped copy-on-write: a kernel that writes into its inputs changes its own copy only.
    """
    if folder is None or case.elements < WORTH_SHARING or case.layout != "contiguous":
        return case.inputs()
    place = Path(folder) / case.digest
    if place.is_dir():
        return _mapped(place)
    inputs = case.inputs()
    try:
        _save(inputs, place)
    except OSError:  # a full disk: every process draws its own, the same bits
        return inputs
    return _mapped(place)


def _save(inputs: dict[str, Any], place: Path) -> None:
    """Write under a temporary name first, so that a reader finds all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as draft:
        for name, value in inputs.items():
            array = np.asarray(value)
            np.save(Path(draft) / f"{name}.{array.dtype.name}.npy", _plain(array))
        try:
            os.rename(draft, place)
        except OSError:  # another process was first; the drawn bits are the same
            if not place.is_dir():
                raise


def _mapped(place: Path) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for path in place.glob("*.npy"):
        name, dtype, _ = path.name.split(".")
        array = np.load(path, mmap_mode="c").view(np.ndarray)
        inputs[name] = array.view(_dtype(dtype)) if array.ndim else int(array)
    return inputs


def _plain(array: AnyArray) -> AnyArray:
    """Formats that are not NumPy's own as integers of their bits: NumPy's files do not know them."""
    foreign = array.dtype.name == "bfloat16" or array.dtype.name.startswith("float8")
    return array.view(f"u{array.itemsize}") if foreign else array


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))
