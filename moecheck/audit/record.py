"""What an audit found: of a criterion on all settings and seeds, and of many criteria on the same outputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .criterion import Criterion
from .trial import BLANKS, MutantTrial, Sigmas, Trial

CAUGHT = 0.95  # share of seeds in which a mutant must be caught to count as caught


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRecord:
    """One parametrisation, over all seeds.

    rms, largest: of the reference, the largest over seeds. sigmas: of the first seed. accepted: name of a blank output
    (zeros, ...) -> whether it passes in every seed. tried, passing: pairs of a mutant and a seed; those that pass.
    """

    note: str
    criterion: str
    rms: float
    largest: float
    sigmas: Sigmas | None
    honest: int
    refused: int
    accepted: dict[str, bool]
    tried: int
    passing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MutantRecord:
    """A mutant over all seeds. seeds: in which it changed an output of some setting; in how many of them the test fails
    it (in any setting), and moecheck, on the same inputs. own_seeds, own_caught: the same on moecheck's own inputs.
    """

    mutant: str
    seeds: int
    caught: int
    seen: int
    own_seeds: int
    own_caught: int

    @property
    def by_test(self) -> bool:
        return self.caught >= CAUGHT * self.seeds

    @property
    def by_moecheck(self) -> bool:
        return self.seen >= CAUGHT * self.seeds

    @property
    def by_moecheck_on_own(self) -> bool:
        return self.own_seeds > 0 and self.own_caught >= CAUGHT * self.own_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A criterion's audit. name: of the preset, or of the op. source: where the test is. scaled: what is smaller here.

    honest: right outputs, of which the test refused some, and moecheck false_alarms (own_* on its own inputs). untried:
    mutants that cannot be simulated under the kernel's contract.
    """

    name: str
    source: str
    criterion: Criterion
    op: str
    dtype: str
    seeds: int
    scaled: str
    settings: tuple[SettingRecord, ...]
    mutants: tuple[MutantRecord, ...]
    honest: int
    refused: int
    false_alarms: int
    own_honest: int
    own_false_alarms: int
    untried: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """Whether the criterion accepts every right output: one that does not says nothing by refusing a wrong one."""
        return self.refused == 0

    @property
    def passing(self) -> tuple[str, ...]:
        """The mutants that the test does not catch."""
        return tuple(one.mutant for one in self.mutants if not one.by_test)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The mutants that moecheck does not catch on the same inputs."""
        return tuple(one.mutant for one in self.mutants if not one.by_moecheck)

    @property
    def own(self) -> tuple[MutantRecord, ...]:
        """The mutants that mean something on moecheck's own inputs too."""
        return tuple(one for one in self.mutants if one.own_seeds)

    @property
    def own_unseen(self) -> tuple[str, ...]:
        """The mutants that moecheck does not catch on its own inputs."""
        return tuple(one.mutant for one in self.own if not one.by_moecheck_on_own)

    def accepts(self, blank: str) -> int:
        """In how many settings an output like `zeros` passes."""
        return sum(setting.accepted[blank] for setting in self.settings)

    def to_json(self) -> dict[str, object]:
        """Plain data, with what the properties say."""
        said = ("counts", "passing", "unseen", "own_unseen")
        record = {**asdict(self), "criterion": self.criterion.to_json(), "criterion_words": self.criterion.words()}
        return {**record, **{name: getattr(self, name) for name in said}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A criterion on outputs that many criteria were tried on. origin: where it comes from. caught: mutants."""

    origin: str
    criterion: str
    honest: int
    refused: int
    caught: int
    tried: int
    zeros: bool

    @property
    def counts(self) -> bool:
        return self.refused == 0


def record_of(
    *,
    name: str,
    source: str,
    scaled: str,
    criteria: Sequence[Criterion],
    op: str,
    dtype: str,
    trials: Sequence[Sequence[Trial]],
    own: Sequence[Sequence[Trial]],
) -> AuditRecord:
    """The record of a criterion. trials, own: of each seed, the trials of all settings, and on moecheck's own inputs.

    criteria: of each setting; each trial was made with that one alone.
    """
    settings = [_setting(criterion, [seed[i] for seed in trials]) for i, criterion in enumerate(criteria)]
    flat, own_flat = [t for seed in trials for t in seed], [t for seed in own for t in seed]
    return AuditRecord(
        name=name,
        source=source,
        criterion=criteria[0],
        op=op,
        dtype=dtype,
        seeds=len(trials),
        scaled=scaled,
        settings=tuple(settings),
        mutants=_mutants(trials, own),
        honest=sum(t.honest for t in flat),
        refused=sum(t.refused[0] for t in flat),
        false_alarms=sum(t.false_alarms for t in flat),
        own_honest=sum(t.honest for t in own_flat),
        own_false_alarms=sum(t.false_alarms for t in own_flat),
        untried=tuple(sorted({name for t in flat for name in t.untried})),
    )


def _setting(criterion: Criterion, trials: list[Trial]) -> SettingRecord:
    return SettingRecord(
        note=trials[0].note,
        criterion=criterion.words(),
        rms=max(t.rms for t in trials),
        largest=max(t.largest for t in trials),
        sigmas=trials[0].sigmas[0],
        honest=sum(t.honest for t in trials),
        refused=sum(t.refused[0] for t in trials),
        accepted={name: all(t.blanks[name][0] for t in trials) for name in BLANKS},
        tried=sum(len(t.mutants) for t in trials),
        passing=sum(one.accepted[0] for t in trials for one in t.mutants),
    )


def _mutants(trials: Sequence[Sequence[Trial]], own: Sequence[Sequence[Trial]]) -> tuple[MutantRecord, ...]:
    there = [_by_name(seed) for seed in trials]
    here = [_by_name(seed) for seed in own]
    names = sorted({name for seed in there for name in seed})
    records = []
    for name in names:
        found = [seed[name] for seed in there if name in seed]
        found_own = [seed[name] for seed in here if name in seed]
        records.append(
            MutantRecord(
                mutant=name,
                seeds=len(found),
                caught=sum(any(not one.accepted[0] for one in seed) for seed in found),
                seen=sum(any(one.seen for one in seed) for seed in found),
                own_seeds=len(found_own),
                own_caught=sum(any(one.seen for one in seed) for seed in found_own),
            )
        )
    return tuple(records)


def ranking(origins: Sequence[str], criteria: Sequence[Criterion], trials: Sequence[Sequence[Trial]]) -> list[Ranked]:
    """Every criterion, and moecheck, on the same outputs, best first. trials: of each seed, all cases."""
    by_seed = [_by_name(seed) for seed in trials]
    names = sorted({name for seed in by_seed for name in seed})
    flat = [t for seed in trials for t in seed]
    honest = sum(t.honest for t in flat)
    rows = []
    for i, (origin, criterion) in enumerate(zip(origins, criteria, strict=True)):
        rows.append(
            Ranked(
                origin=origin,
                criterion=criterion.words(),
                honest=honest,
                refused=sum(t.refused[i] for t in flat),
                caught=sum(_share(name, by_seed, lambda one: not one.accepted[i]) >= CAUGHT for name in names),  # noqa: B023  # called at once
                tried=len(names),
                zeros=any(t.blanks["zeros"][i] for t in flat),
            )
        )
    seen = sum(_share(name, by_seed, lambda one: one.seen) >= CAUGHT for name in names)
    alarms = sum(t.false_alarms for t in flat)
    rows.append(
        Ranked(
            origin="moecheck",
            criterion="derived from the error model",
            honest=honest,
            refused=alarms,
            caught=seen,
            tried=len(names),
            zeros=False,
        )
    )
    return sorted(rows, key=lambda row: (not row.counts, -row.caught))


def _share(name: str, seeds: list[dict[str, list[MutantTrial]]], caught: object) -> float:
    found = [seed[name] for seed in seeds if name in seed]
    return sum(any(caught(one) for one in seed) for seed in found) / len(found)  # type: ignore[operator]  # a predicate


def _by_name(trials: Iterable[Trial]) -> dict[str, list[MutantTrial]]:
    named: dict[str, list[MutantTrial]] = defaultdict(list)
    for trial in trials:
        for one in trial.mutants:
            named[one.mutant].append(one)
    return dict(named)
