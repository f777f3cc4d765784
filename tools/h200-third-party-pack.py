"""Packs other projects' wheels for a GPU host without a network: vLLM's, of 261 MB, becomes 22 MB.

    pip download --no-deps -d wheels vllm==0.22.0 liger-kernel==0.8.5 moe-ops==0.1.0 pydantic pydantic-core ...
    python tools/h200-third-party-pack.py wheels .whl-third-party

Of vLLM it takes the Python files, DeepGEMM, and the three libraries that hold its MoE kernels. In these, machine code
for architectures other than sm_90 is overwritten with zeros, which compress to nothing. Wheels below 8 MB go along as
they are.
"""

# ruff: noqa: T201  # a command-line tool: printing is what it is for

from __future__ import annotations

import io
import lzma
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = tuple(f"vllm/{name}.abi3.so" for name in ("_C", "_C_stable_libtorch", "_moe_C"))
LARGE = 8 << 20
WANTED = 90
# A fat binary: magic, version 1, header size 16, size; then entries of kind (1 PTX, 2 machine code), header size, size
# and architecture.
MAGIC = b"\x50\xed\x55\xba"
PTX, MACHINE_CODE = 1, 2
SMALL_PTX = 200_000  # kept where a module has no machine code for the wanted architecture
Entry = tuple[int, int, int, int]  # kind, start, size, architecture


def main() -> None:
    """Pack every wheel of a folder into another one."""
    source, target = map(Path, sys.argv[1:])
    target.mkdir(exist_ok=True)
    for wheel in sorted(source.glob("*.whl")):
        if wheel.name.startswith("vllm-"):
            _pack(wheel, target / "vllm.tar.xz")
        elif wheel.stat().st_size < LARGE:
            shutil.copy(wheel, target)
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:10} {path.name}")


def _pack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as files, tarfile.open(fileobj=lzma.open(target, "wb", preset=3), mode="w") as packed:
        for name in files.namelist():
            if _is_wanted(name):
                content = files.read(name)
                info = tarfile.TarInfo(name)
                content = _without_other_architectures(content) if name in LIBRARIES else content
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))


def _is_wanted(name: str) -> bool:
    if name.endswith(".so"):
        return name in LIBRARIES or "deep_gemm/_C.cpython-312" in name
    return not name.endswith(("vllm-rs", ".js", ".css", "/")) and not name.startswith("vllm/vllm_flash_attn")


def _without_other_architectures(content: bytes) -> bytes:
    kept = bytearray(content)
    for entries in _fat_binaries(content):
        ours = any(kind == MACHINE_CODE and architecture == WANTED for kind, _, _, architecture in entries)
        for kind, start, size, architecture in entries:
            code = kind == MACHINE_CODE and architecture == WANTED
            if not (code or (not ours and kind == PTX and size < SMALL_PTX)):
                kept[start : start + size] = bytes(size)
    return bytes(kept)


def _fat_binaries(content: bytes) -> Iterator[list[Entry]]:
    start = content.find(MAGIC)
    while start >= 0:
        version, header, size = struct.unpack_from("<HHQ", content, start + 4)
        end = start + header + size
        if version == 1 and header == 16 and end <= len(content):
            yield list(_entries(content, start + header, end))
            start = content.find(MAGIC, end)
        else:
            start = content.find(MAGIC, start + 4)


def _entries(content: bytes, start: int, end: int) -> Iterator[Entry]:
    while start < end:
        kind, _, header, size, _, _, _, _, architecture = struct.unpack_from("<HHIQIIHHI", content, start)
        yield kind, start + header, size, architecture
        start += header + size


if __name__ == "__main__":
    main()
