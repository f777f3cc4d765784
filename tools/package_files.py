"""Checks that a wheel and an sdist hold what a checkout holds: `package_files.py SOURCE WHEEL SDIST`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

LINKED = ("references", "kernels", "evals")
CODE = {".py", ".j2", ".css", ".js", ".html", ".typed", ".cu", ".cuh", ".cpp", ".h"}
SUFFIXES = CODE | {".md", ".json", ".yaml", ".jsonl", ".safetensors"}
NAMES = {"py.typed", "SHA256SUMS"}


def expected(source: Path) -> set[str]:
    """Names below moecheck/ that a package must hold, the linked folders' files as if they lay there."""
    folders = {"moecheck": source / "moecheck", **{f"moecheck/{name}": source / name for name in LINKED}}
    return {"moecheck_pytest.py"} | {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for prefix, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES) and "__pycache__" not in path.parts
    }


def names(package: Path) -> set[str]:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            return set(archive.namelist())
    with tarfile.open(package) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def main() -> None:
    """Exit with a sentence for the first package that lacks a file or holds a test."""
    source, *packages = map(Path, sys.argv[1:])
    for package in packages:
        held = names(package)
        missing = sorted(expected(source) - held)
        tests = sorted(name for name in held if name.startswith("tests/") and package.suffix == ".whl")
        if missing or tests:
            sys.exit(f"{package.name}: missing {missing[:5]}, tests {tests[:5]}")
        sys.stdout.write(f"ok {package.name}: {len(held)} files\n")


main()
