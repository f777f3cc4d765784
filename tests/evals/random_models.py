"""Models of random weights in Hugging Face layout, for tests that need no answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from moecheck.evals.tiny.architectures import ARCHITECTURES
from moecheck.evals.tiny.config import CONFIG, TinyConfig, to_json
from moecheck.evals.tiny.text import TOKENIZER
from moecheck.evals.tiny.weights import WEIGHTS, random_tensors


def small(name: str) -> TinyConfig:
    """The architecture with fewer and smaller parts."""
    config = ARCHITECTURES[name]
    return replace(
        config,
        hidden_size=64,
        num_layers=3,
        num_heads=2,
        num_key_value_heads=1,
        head_size=32,
        rotary_size=config.rotary_size * 32 // config.head_size,
        intermediate_size=64,
        num_experts=8,
        expert_intermediate_size=32,
        shared_intermediate_size=32 if config.shared_intermediate_size else 0,
    )


def write_random(folder: Path, config: TinyConfig, seed: int = 0) -> Path:
    """A checkpoint of random weights in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(config, seed), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(to_json(config)), encoding="utf-8")
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder
