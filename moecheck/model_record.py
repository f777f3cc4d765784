"""The record of one published MoE layer, and of where its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .spec import MoESpec

Kind = Literal["library", "read", "recalled", "assumed"]
# Letters of the numbers that a source is about.
NUMBERS = {
    "E": "experts",
    "k": "experts per token",
    "H": "hidden size",
    "I": "intermediate size",
    "S": "width of all shared experts",
    "r": "routed scaling factor",
    "G": "expert groups",
    "n": "whether weights are normalised",
    "X": "width of latent experts",
    "L": "limits, caps and betas",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where some numbers of a model come from. numbers: letters of NUMBERS.

    kind: `library` default of transformers' configuration class of model type `where`, compared by a test; `read` in a
    published configuration or documentation at the address `where`; `recalled` from memory of the checkpoint's
    config.json, not looked up; `assumed` where nothing was found. Scoring, bias and eps are those of the family's
    modelling code, against which the references are tested.
    """

    kind: Kind
    numbers: str
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model's MoE layer. shared_intermediate_size: of all shared experts together, 0 for none. latent_size: of
    latent experts, 0 without. note: what the preset leaves out.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    spec: MoESpec
    shared_intermediate_size: int = 0
    latent_size: int = 0
    sources: tuple[Source, ...] = ()
    note: str = ""


def library(where: str, numbers: str) -> Source:
    """Numbers of the default configuration of a model type."""
    return Source(kind="library", numbers=numbers, where=where)


def read(where: str, numbers: str) -> Source:
    """Numbers read at an address."""
    return Source(kind="read", numbers=numbers, where=where)


def recalled(numbers: str) -> Source:
    """Numbers from memory."""
    return Source(kind="recalled", numbers=numbers)


def assumed(numbers: str) -> Source:
    """Numbers that stand in for unknown ones."""
    return Source(kind="assumed", numbers=numbers)
