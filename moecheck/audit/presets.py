"""The published tests that `moecheck audit` knows, by name."""

from __future__ import annotations

from .preset import Preset
from .presets_others import OTHERS
from .presets_vllm import VLLM

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*VLLM, *OTHERS)}
