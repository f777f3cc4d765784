"""What a night runs on, and what it lacks."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from moecheck.report.environment import environment
from moecheck.runner.missing import missing_package

CUDA = "cuda"


def machine() -> str:
    """Processor and GPUs: numbers are compared only where these are the same."""
    facts = environment({})
    names = gpus()
    gpu = f" + {len(names)} x {names[0]}" if names else ""
    return f"{facts['cpu'] or facts['machine']}{gpu}"


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def lacking(needs: tuple[str, ...]) -> str | None:
    """Why a part cannot run here, None if it can. needs: `cuda`, and packages by the name that is imported."""
    for name in needs:
        if name == CUDA:
            if not gpus():
                return "needs a CUDA device, and nvidia-smi shows none"
        elif importlib.util.find_spec(name) is None:
            return f"needs the package {name}"
    return None


def missing_weights(model: str | None) -> str | None:
    """Why an embedded model cannot be opened, None if it can, and for a model of another kind.

    model: as for `moecheck e2e --model`; None for the one that it takes by default.
    """
    from moecheck.evals.backends.embedded import MODELS

    name = model or MODELS[0]
    if name not in MODELS:
        return None
    try:
        from moecheck.evals.tiny.config import CONFIG
        from moecheck.evals.tiny.models import FOLDER, TOKENIZER
        from moecheck.evals.tiny.weights import WEIGHTS
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        if reason is None:
            raise
        return reason
    folder: Path = FOLDER / name
    missing = [file for file in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / file).is_file()]
    return f"needs the weights of {name}, and {folder} has no {missing[0]}" if missing else None
