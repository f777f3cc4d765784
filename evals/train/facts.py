"""How a model was trained, kept beside its weights from the first evaluation on: training.json."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moecheck.errors import UsageError

FACTS = "training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """validation: accuracy of the kept weights by number of operations. machine: where, with which torch."""

    steps: int
    tokens: int
    seconds: float
    seed: int
    precision: str
    machine: str
    validation: dict[int, float]


def machine(device: str) -> str:
    """`NVIDIA H200, torch 2.11.0`."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "CPU"
    return f"{name}, torch {torch.__version__}"


def write_facts(folder: Path, facts: Facts) -> None:
    """Write them into a model's folder."""
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> Facts:
    """Those of a model's folder; raises UsageError where they are missing or broken."""
    try:
        data: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        validation = {int(key): float(value) for key, value in data.pop("validation").items()}
        return Facts(validation=validation, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"Cannot read {folder / FACTS}: {error}.") from error
