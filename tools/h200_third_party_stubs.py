"""Stands in for packages that vLLM imports, that its kernels do not need and that are not installed.

Installed as sitecustomize.py by tools/h200-third-party.sh; a package that is there is never replaced.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

NAMES = {"cbor2", "gguf", "openai", "openai_harmony", "zmq", *os.environ.get("STAND_INS", "").split()}


class _Anything(type):
    """The type of stand-ins: any attribute, subscript or union of one is a stand-in."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub

    def __getitem__(cls, item: object) -> type:
        return cls

    def __or__(cls, other: object) -> type:
        return object

    __ror__ = __or__


class Stub(metaclass=_Anything):
    """A class, a function or a decorator that does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Stub

    def __call__(self, *args: object, **kwargs: object) -> object:
        return args[0] if len(args) == 1 and callable(args[0]) else self


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # a package without files

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Stub,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, when nobody else has the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(_Finder())
