"""Mean squares of the error in units of sigma: of all elements, of the worst row, column and expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moecheck.bounds import mean_square_limit
from moecheck.checks.sample import FEWEST, Bool, Sample, Squares, Statistic
from moecheck.formats import AnyArray, Float64
from moecheck.null_ensemble import limit_of

ROW_FREEDOM = 4  # independent errors that the elements of a row are worth at least (docs/error-model.md)


def limited_mean_squares(sample: Sample, *, row: str, groups: dict[str, AnyArray]) -> Iterator[Statistic]:
    """Root mean squares of z, with limits from the null ensemble where there is one."""
    members = {
        row: _Groups.of_rows(sample.used),
        **{noun: _Groups.of(ids, sample.used) for noun, ids in groups.items()},
    }
    found = list(_mean_squares(sample, sample.squares, members))
    if sample.expected.ensemble is None:
        yield from found
        return
    values: dict[str, list[float]] = {statistic.name: [] for statistic in found}
    closed: dict[str, list[float]] = {statistic.name: [] for statistic in found}
    for squares in sample.simulated:
        for statistic in _mean_squares(sample, squares, members):
            values[statistic.name].append(statistic.value)
            closed[statistic.name].append(statistic.limit)
    for one in found:
        yield replace(one, limit=limit_of(values[one.name], closed[one.name], one.limit, one.flip))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Groups:
    """The rows of each group, all one after the other, with where each group that has any begins.

    rows: [members]. starts, sizes, groups: [groups that have rows]. counts: elements used of each of these.
    total: number of groups, those without rows too.
    """

    rows: AnyArray
    starts: AnyArray
    sizes: AnyArray
    groups: AnyArray
    counts: AnyArray
    total: int

    @classmethod
    def of_rows(cls, used: Bool) -> _Groups:
        """Each row as a group of its own."""
        rows = np.arange(len(used))
        return cls(
            rows=rows, starts=rows, sizes=np.ones_like(rows), groups=rows, counts=used.sum(axis=1), total=len(used)
        )

    @classmethod
    def of(cls, ids: AnyArray, used: Bool) -> _Groups:
        """The rows of each id. ids: [rows, slots] int, -1 for none."""
        rows, slots = np.nonzero(ids >= 0)
        pairs = np.unique(
            np.stack([ids[rows, slots], rows], axis=1), axis=0
        )  # a row that names a group twice is in once
        groups, starts, sizes = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        rows = pairs[:, 1]
        counts = np.add.reduceat(used.sum(axis=1)[rows], starts) if len(rows) else sizes
        total = int(ids.max(initial=-1)) + 1
        return cls(rows=rows, starts=starts, sizes=sizes, groups=groups, counts=counts, total=total)


def _mean_squares(sample: Sample, squares: Squares, members: dict[str, _Groups]) -> Iterator[Statistic]:
    """Root mean square of z: of all elements, of the worst row, column and group."""
    used = sample.used
    rows = np.flatnonzero(used.any(axis=1))
    ensemble = sample.expected.ensemble
    flip = 0.0 if ensemble is None else float(ensemble.flip[rows].max(initial=0.0))
    yield Statistic(
        name="rms_z",
        value=float(np.sqrt(squares.total / np.count_nonzero(used))),
        limit=mean_square_limit(len(rows) * ROW_FREEDOM, groups=1),
        said="The error is {value:.3g} times what rounding explains on average (up to {limit:.3g} is normal): "
        "something is rounded once more, or to fewer bits, than assumed.",
        where={},
        flip=flip / np.sqrt(len(rows)),
    )
    for noun, groups in members.items():
        worst = _worst_group(squares.by_row, groups)
        if worst is not None:
            group, value, limit, size = worst
            yield _grouped(noun, group, value, limit, flip=flip / np.sqrt(size))
    counts = used.sum(axis=0)
    if len(rows) >= FEWEST // 4 and counts.any():
        means = np.sqrt(squares.by_column / np.maximum(counts, 1))
        excess = np.where(counts >= FEWEST // 4, means, 0.0)
        column = int(np.argmax(excess))
        limit = mean_square_limit(int(counts[column]), groups=len(means))
        # The largest of some hundred normal numbers, one for each column of a flip, is four times their usual size.
        yield _grouped("column", column, float(means[column]), limit, flip=4.0 * flip / np.sqrt(len(rows)))


def _worst_group(by_row: Float64, groups: _Groups) -> tuple[int, float, float, int] | None:
    """(group, rms z, limit, rows) of the group that is furthest beyond what is normal for its size."""
    enough = np.flatnonzero(groups.counts >= FEWEST)
    if not len(enough):
        return None
    values = np.sqrt(np.add.reduceat(by_row[groups.rows], groups.starts)[enough] / groups.counts[enough])
    sizes = groups.sizes[enough]
    limits = {size: mean_square_limit(size * ROW_FREEDOM, groups=groups.total) for size in set(sizes.tolist())}
    worst = int(np.argmax(values / np.array([limits[size] for size in sizes.tolist()])))
    size = int(sizes[worst])
    return int(groups.groups[enough[worst]]), float(values[worst]), limits[size], size


def _grouped(noun: str, group: int, value: float, limit: float, *, flip: float) -> Statistic:
    return Statistic(
        name=f"worst_{noun}_rms_z",
        value=value,
        limit=limit,
        said=f"The error in {noun} {group} is {{value:.3g}} times what rounding explains on average (up to "
        "{limit:.3g} is normal).",
        where={noun: group},
        flip=flip,
    )
