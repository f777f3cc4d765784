"""Builds C++ and CUDA sources once for each content, PyTorch, and GPU, and keeps the library in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from moecheck.errors import HarnessError, Unsupported


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to build. name: of the library. sources: files to compile; headers: files that these include.

    flags: for the C++ compiler, cuda_flags: for nvcc. python: whether it is a Python module.
    """

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    flags: tuple[str, ...] = ("-O2",)
    cuda_flags: tuple[str, ...] = ()
    python: bool = False

    @property
    def key(self) -> str:
        """Name of the recipe's folder: its content, and what its result depends on besides."""
        content = hashlib.sha256()
        abi = (sys.implementation.cache_tag, torch.__version__) if self.python else ()
        for text in (self.name, *self.flags, *self.cuda_flags, torch.version.cuda, *abi):
            content.update(f"{text}\0".encode())
        for file in (*self.sources, *self.headers):
            content.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
        return f"{self.name}-{content.hexdigest()[:16]}"


def cache_folder() -> Path:
    """Where built libraries are kept: $XDG_CACHE_HOME/moecheck/cuda, else ~/.cache/moecheck/cuda."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moecheck" / "cuda"


def built(recipe: Recipe) -> Path:
    """The library of a recipe, built now unless it is in the cache.

    Raises Unsupported without a compiler, and HarnessError, naming the log, where it refuses the sources.
    """
    root, key = cache_folder(), recipe.key
    library = root / key / f"{recipe.name}.so"
    if library.exists():
        return library
    reason = lacking_tools()
    if reason is not None:
        raise Unsupported(reason)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root / f"{key}.lock"):
            if not library.exists():  # else another process has built it meanwhile
                _build(recipe, root, key)
    except OSError as error:
        raise HarnessError(
            f"Cannot build CUDA kernels in {root}: {error.strerror or error}; point XDG_CACHE_HOME elsewhere."
        ) from error
    return library


def lacking_tools() -> str | None:
    """What a build needs and does not find here, as a sentence for the user."""
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    if home is None or not (Path(home) / "bin" / "nvcc").exists():
        return "needs nvcc to be built, and neither PATH nor CUDA_HOME leads to one: install the CUDA toolkit"
    if not cpp_extension.is_ninja_available():
        return "needs ninja to be built: pip install ninja"
    compiler = os.environ.get("CXX", "c++")
    return None if shutil.which(compiler) else f"needs a C++ compiler to be built, and there is no {compiler}"


def _build(recipe: Recipe, root: Path, key: str) -> None:
    """Compile in a folder of this attempt's own, which takes its place only when it is complete.

    PyTorch's loader holds a file as its lock, which it waits for for ever after a build was killed; in a fresh folder
    there is none, nor half a library, nor a compiler that such a build has left running.
    """
    for left in root.glob(f"{key}.attempt-*"):  # nobody else builds this key now: it is of a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    attempt = Path(tempfile.mkdtemp(prefix=f"{key}.attempt-", dir=root))
    log = root / f"{key}.log"
    from torch.utils import cpp_extension

    try:
        cpp_extension.load(
            recipe.name,
            [str(source) for source in recipe.sources],
            extra_cflags=list(recipe.flags),
            extra_cuda_cflags=list(recipe.cuda_flags),
            build_directory=str(attempt),
            with_cuda=True,
            is_python_module=recipe.python,
        )
    except (RuntimeError, ImportError) as error:
        log.write_text(f"{error}\n", encoding="utf-8")
        shutil.rmtree(attempt, ignore_errors=True)
        raise HarnessError(f"The CUDA kernels cannot be built ({_first_error(str(error))}); see {log}.") from error
    attempt.rename(root / key)


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    compilers = [line for line in lines if "error:" in line or ": error" in line]
    return (compilers or lines or ["the compiler gave no reason"])[0][:200]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel takes back from a process that dies, in whatever way."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
