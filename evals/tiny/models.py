"""The embedded models as folders: where they lie, and what identifies one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from moecheck.errors import UsageError, check_known

from .architectures import ARCHITECTURES
from .config import CONFIG, TinyConfig, read_config
from .weights import WEIGHTS, TinyWeights, read_weights

FOLDER = Path(__file__).with_name("checkpoints")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model in memory. digest: SHA-256 of its weights, configuration and tokenizer."""

    name: str
    folder: Path
    config: TinyConfig
    weights: TinyWeights
    digest: str


def load_model(name_or_path: str, *, device: str) -> Checkpoint:
    """An embedded model by name, or a folder in the same layout.

    Raises UsageError for an unknown name, and for a folder that is not there or not complete.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        check_known("embedded model", name_or_path, ARCHITECTURES)
        folder = FOLDER / name_or_path
    missing = [file for file in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / file).exists()]
    if missing and folder.parent == FOLDER:
        raise UsageError(
            f"The weights of {name_or_path} are not in {folder}; "
            f"train them on a GPU with: python -m moecheck.evals.train {name_or_path} --out {folder}."
        )
    if missing:
        raise UsageError(f"{folder} has no {missing[0]}.")
    config = read_config(folder)
    digest = hashlib.sha256()
    for file in (CONFIG, WEIGHTS, TOKENIZER):
        digest.update((folder / file).read_bytes())
    return Checkpoint(
        name=folder.name,
        folder=folder,
        config=config,
        weights=read_weights(folder, config, device),
        digest=digest.hexdigest(),
    )


def default_device() -> str:
    """`cuda` where there is a GPU that torch can use."""
    return "cuda" if torch.cuda.is_available() else "cpu"
