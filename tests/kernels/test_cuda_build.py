"""How the CUDA kernels are built: once, whatever is killed meanwhile, with a sentence where a compiler refuses."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

from moecheck.errors import HarnessError, Unsupported
from moecheck.kernels.cuda import _build
from moecheck.kernels.cuda._build import Recipe, built, cache_folder, lacking_tools


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_build, "lacking_tools", lambda: None)
    source = tmp_path / "kernels.cu"
    source.write_text("int f() { return 1; }\n", encoding="utf-8")
    return Recipe(name="some_kernels", sources=(source,), headers=())


class Loader:
    """Stands for cpp_extension.load: writes a library, after a while, or fails as a compiler does."""

    def __init__(self, *, error: str = "", seconds: float = 0.0) -> None:
        self.error, self.seconds, self.folders = error, seconds, list[Path]()

    def __call__(self, name: str, sources: list[str], *, build_directory: str, **_: Any) -> None:
        folder = Path(build_directory)
        self.folders.append(folder)
        assert not (folder / "lock").exists(), "PyTorch would wait for this lock for ever"
        time.sleep(self.seconds)
        if self.error:
            raise RuntimeError(self.error)
        (folder / f"{name}.so").write_text("built", encoding="utf-8")


def test_a_library_is_built_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader()
    monkeypatch.setattr(cpp_extension, "load", loader)
    first, second = built(recipe), built(recipe)
    assert first == second
    assert first.read_text(encoding="utf-8") == "built"
    assert first.is_relative_to(cache_folder())
    assert len(loader.folders) == 1


def test_two_at_once_build_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(seconds=0.2)
    monkeypatch.setattr(cpp_extension, "load", loader)
    threads = [threading.Thread(target=built, args=(recipe,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(loader.folders) == 1
    assert built(recipe).exists()


def test_what_a_killed_build_left_behind_neither_hangs_nor_stays(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = cache_folder() / f"{recipe.key}.attempt-killed"
    left.mkdir(parents=True)
    (left / "lock").touch()  # as PyTorch's loader leaves it
    (left / "some_kernels.so").write_text("half", encoding="utf-8")
    (cache_folder() / f"{recipe.key}.lock").touch()
    monkeypatch.setattr(cpp_extension, "load", Loader())
    assert built(recipe).read_text(encoding="utf-8") == "built"
    assert not left.exists()


def test_a_compilers_error_is_one_sentence_with_the_log(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Error building extension 'x': [1/2] nvcc\nkernels.cu(3): error: foo is undefined\nninja: stopped"
    monkeypatch.setattr(cpp_extension, "load", Loader(error=text))
    with pytest.raises(HarnessError, match=r"cannot be built \(kernels\.cu\(3\): error: foo .* see .*\.log\.$") as e:
        built(recipe)
    assert "\n" not in str(e.value)
    assert (cache_folder() / f"{recipe.key}.log").read_text(encoding="utf-8").strip() == text
    monkeypatch.setattr(cpp_extension, "load", Loader())
    assert built(recipe).exists()  # a failure is not remembered


def test_a_folder_that_cannot_be_written_is_one_sentence(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(HarnessError, match=r"Cannot build CUDA kernels in .* point XDG_CACHE_HOME elsewhere"):
        built(recipe)


def test_without_a_compiler_it_is_unsupported(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "lacking_tools", lambda: "needs nvcc to be built")
    with pytest.raises(Unsupported, match="needs nvcc"):
        built(recipe)


def test_what_a_build_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert "needs nvcc" in (lacking_tools() or "")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert "needs nvcc" in (lacking_tools() or "")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: False)
    assert "needs ninja" in (lacking_tools() or "")
    monkeypatch.setattr(cpp_extension, "is_ninja_available", lambda: True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no no-such-compiler" in (lacking_tools() or "")


def test_the_key_follows_content_flags_and_headers(recipe: Recipe, tmp_path: Path) -> None:
    keys = {recipe.key, replace(recipe, cuda_flags=("-O3",)).key, replace(recipe, python=True).key}
    header = tmp_path / "common.cuh"
    header.write_text("// a", encoding="utf-8")
    keys.add(replace(recipe, headers=(header,)).key)
    header.write_text("// b", encoding="utf-8")
    keys.add(replace(recipe, headers=(header,)).key)
    recipe.sources[0].write_text("int f() { return 2; }\n", encoding="utf-8")
    assert len(keys | {recipe.key}) == 6
