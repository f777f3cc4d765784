"""The backend of the embedded models: which there are, and how to open one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moecheck.errors import UsageError
from moecheck.evals.tiny.architectures import ARCHITECTURES
from moecheck.runner.missing import missing_package

if TYPE_CHECKING:
    from .embedded_arms import EmbeddedModel

MODELS = tuple(ARCHITECTURES)


def open_model(name: str) -> EmbeddedModel:
    """An embedded model by name, or a folder in the same layout; on the GPU where there is one.

    Raises UsageError where the weights or the packages to run them are missing.
    """
    try:
        from moecheck.evals.tiny.models import default_device, load_model

        from .embedded_arms import EmbeddedModel
    except ModuleNotFoundError as error:
        reason = missing_package(error)
        if reason is None:
            raise
        raise UsageError(f"An embedded model {reason}.") from error
    return EmbeddedModel(load_model(name, device=default_device()))
