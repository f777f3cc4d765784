"""What a tolerance is worth: how many sigma it is, whether zeros pass, which known bugs do."""

from .criterion import Criterion
from .preset import Preset, Setting
from .presets import PRESETS
from .recipe import Draw, Recipe
from .record import AuditRecord
from .run import audit, audit_presets, rank
from .subject import Subject

__all__ = [
    "PRESETS",
    "AuditRecord",
    "Criterion",
    "Draw",
    "Preset",
    "Recipe",
    "Setting",
    "Subject",
    "audit",
    "audit_presets",
    "rank",
]
