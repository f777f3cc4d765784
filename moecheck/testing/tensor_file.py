"""Safetensors files: tensors are mapped into memory, so that only those which are used are read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from moecheck.errors import UsageError
from moecheck.formats import AnyArray

_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """An open file's names and metadata; `tensor` maps one of its tensors."""

    metadata: dict[str, str]
    data: AnyArray  # uint8, the file after its header
    entries: dict[str, dict[str, Any]]  # name -> dtype, shape, data_offsets; checked by safetensors

    def tensor(self, name: str) -> AnyArray:
        """One tensor, read-only, of its stored dtype and shape; UsageError for a dtype that NumPy does not have."""
        entry = self.entries[name]
        stored, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if stored not in _DTYPES:
            raise UsageError(f"{name} has dtype {stored}, which cannot be read.")
        flat = self.data[start:end].view(_DTYPES[stored])
        return np.asarray(flat.reshape(shape))


def open_tensors(path: Path) -> TensorFile:
    """Check a file and map it; UsageError with one sentence when it is missing, truncated or of another format."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            entries = json.loads(raw.read(length))
        data = np.memmap(path, np.uint8, "r")[8 + length :]
    except SafetensorError as error:
        reason = str(error).rpartition(": ")[2]
        raise UsageError(f"it is no complete safetensors file ({reason}); capture or copy it again.") from error
    except FileNotFoundError as error:
        raise UsageError("there is no such file.") from error
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else f"it cannot be read: {error.strerror or error}"
        raise UsageError(f"{reason}.") from error
    entries.pop("__metadata__", None)
    return TensorFile(metadata=metadata, data=data.view(np.ndarray), entries=entries)


def save_tensors(path: Path, tensors: Mapping[str, AnyArray], metadata: dict[str, str]) -> None:
    """Write a file that is complete or not there; an older one of that name is replaced.

    Raises UsageError when it cannot be written.
    """
    # The library writes the memory of an array, whatever its strides say.
    dense = {name: np.array(array, order="C", copy=None) for name, array in tensors.items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        mode = unfinished.stat().st_mode
        save_file(dense, unfinished, metadata=metadata)
        unfinished.chmod(mode)  # the library's files are for their owner only
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UsageError(f"Cannot write {path}: {error}.") from error
