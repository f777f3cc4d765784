"""Where an error is: the rows, columns, experts and tile edges that carry it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moecheck.bounds import SLACK, z_limit
from moecheck.checks.place import names
from moecheck.formats import Float64
from moecheck.mutants.call import Ids

from .evidence import Evidence, z_of

TILES = (256, 128, 64, 32, 16, 8)
BEYOND = 4.0  # standard deviations from which on an element counts as wrong
SHARE = 0.95  # of the error that the named rows or columns carry
MOST = 0.5  # of the error that elements which stand out must carry; else all elements count
MANY = 16  # more columns than this are a place only where they follow each other
FEW = 0.5  # more than this share of all rows or columns is no place


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Coordinates that carry an error; empty where it is everywhere.

    rows, columns: indices. experts: those that all of these rows have in common, and that other rows lack. share: of
    the sum of z^2 in these rows and columns. edge: what the columns have to do with tiles. row: what a row is called.
    """

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    share: float = 1.0
    edge: str = ""
    row_edge: str = ""
    row: str = "token"

    def words(self) -> str:
        """One sentence."""
        places = []
        if self.rows:
            places.append(names(self.row, np.array(self.rows)) + (f" ({self.row_edge})" if self.row_edge else ""))
        if self.columns:
            places.append(names("column", np.array(self.columns)) + (f" ({self.edge})" if self.edge else ""))
        if not places:
            return f"The error is spread over all {self.row}s and columns."
        text = f"{self.share:.0%} of the error is in {', '.join(places)}"
        if self.experts:
            text += f"; these {self.row}s all belong to {names('expert', np.array(self.experts))}"
        return text + "."


def locate(evidence: Evidence, experts: Ids | None, row: str) -> Location:
    """Where the output differs from the reference by more than rounding. experts: [rows, k] int, -1 for none."""
    z = np.where(evidence.judged, z_of(evidence.out, evidence.reference), 0.0)
    energy = np.where(z > BEYOND, np.square(z), 0.0)
    excess = float((np.square(z) - 1.0)[evidence.judged].sum())  # beyond what rounding explains
    if energy.sum() <= MOST * excess or not np.any(
        z > z_limit(z.size) / SLACK
    ):  # the tail of an error that is everywhere
        energy = np.maximum(np.square(z) - 1.0, 0.0)
    total = float(energy.sum())
    if total <= 0.0:
        return Location(row=row)
    rows, columns = _carriers(energy.sum(axis=1)), _carriers(energy.sum(axis=0))
    if len(columns) > MANY and not edge_of(columns, z.shape[1]):
        columns = ()
    inside = energy[np.ix_(rows if rows else range(z.shape[0]), columns if columns else range(z.shape[1]))]
    return Location(
        rows=rows,
        columns=columns,
        experts=_common(rows, experts) if len(rows) > 1 and experts is not None else (),
        share=float(inside.sum()) / total,
        edge=edge_of(columns, z.shape[1]),
        row_edge=edge_of(rows, z.shape[0]) if len(rows) > 1 else "",
        row=row,
    )


def edge_of(indices: tuple[int, ...], size: int) -> str:
    """What a run of indices has to do with tiles: it is the last tile, a tail beyond the last full one, or starts one.

    Empty for anything but an unbroken run that is not the whole.
    """
    if not indices or len(indices) == size or indices[-1] - indices[0] != len(indices) - 1:
        return ""
    first, count = indices[0], len(indices)
    for tile in TILES:
        if first and first % tile == 0 and indices[-1] == size - 1:
            return (
                f"the tail beyond the last full tile of {tile}" if count < tile else f"all from a multiple of {tile} on"
            )
    for tile in TILES:
        if first % tile == 0 and count % tile == 0:
            return f"{'a' if count == tile else count // tile} whole tile{'s' if count > tile else ''} of {tile}"
    return "the last ones" if indices[-1] == size - 1 else ""


def _carriers(energy: Float64) -> tuple[int, ...]:
    """The fewest indices that hold SHARE of the energy, ascending; none where these are most."""
    order = np.argsort(-energy, kind="stable")
    held = np.cumsum(energy[order]) / energy.sum()
    count = int(np.searchsorted(held, SHARE)) + 1
    if count > FEW * len(energy):
        return ()
    smallest = energy[order[count - 1]] * 0.1  # whoever is of the same size belongs to them
    chosen = np.flatnonzero(energy >= max(smallest, 1e-300))
    return tuple(chosen.tolist()) if len(chosen) <= FEW * len(energy) else ()


def _common(rows: tuple[int, ...], experts: Ids) -> tuple[int, ...]:
    """Experts that all of the rows have, and fewer than half of the other rows."""
    bad = set.intersection(*(set(experts[r][experts[r] >= 0].tolist()) for r in rows))
    others = np.setdiff1d(np.arange(len(experts)), rows)
    return tuple(sorted(e for e in bad if not len(others) or (experts[others] == e).any(axis=1).mean() < FEW))
