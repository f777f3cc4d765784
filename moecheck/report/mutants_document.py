"""docs/mutants.md: how the score is made, every mutant, and every published bug with the mutants that it is."""

from __future__ import annotations

from collections.abc import Sequence

from moecheck.mutants import all_mutants
from moecheck.mutants.bugs import known_bugs, sources_of
from moecheck.scoring.checker import checker_mutants
from moecheck.scoring.result import CLASSES
from moecheck.scoring.run import REAL_KERNELS

HEAD = """\
# Mutants: the judge judged

Written by `python tools/write_mutants_document.py` from the mutants themselves; a test fails when it is out of date.

A mutant is a known bug: one change of the mathematics, of what a kernel is given, or of a kernel's source. `moecheck
mutants` plants each into correct kernels and counts how many the checks see. A harness that sees them all may still be
useless, because it accuses correct kernels too, so both numbers are published together.

* **Where they are planted.** Mutants of the references are planted into *legal variants*: kernels in NumPy's float32
  that round at declared places (bf16, fp16 or fp8 stores, low combines), and add up in an order of their own (chunks
  forward, backward or shuffled, split-K 1 to 4, pairwise). No limit of any check was fitted on them. Each seed draws
  another variant and other inputs. Mutants of real kernels are the built-in Triton, CUDA, PyTorch and Pallas sources
  with one expression or statement changed in the parse tree, run in processes of their own (Triton's and Pallas' under
  their interpreters; Pallas' in the nightly profile, or where `--op` or `--mutant` asks for them).
  Mutants of the checker are moecheck's own functions, changed in the same way, and tried on a self-test of outputs that
  are known to be right, wrong, or to show nothing.
* **What they are tried on.** The very cases that `moecheck kernels` runs in the same profile, judged by the same
  function. A mutant counts as killed if some case fails in 95 % of 20 seeds, in every op that it is defined for; a seed
  in which no case gives it a meaning counts as missed. Real kernels are tried in one seed by default and in three in
  the nightly profile, the checker in one: its self-test has no other.
* **Equivalent mutants** are not counted. Each is argued in one sentence, and its outputs must be the right ones bit for
  bit on every case and seed, or the command fails.
* **The score** is the share of killed mutants, and the mean of that over the classes. The command fails below 95 %
  (98 % in the nightly profile), on any false alarm, and on any mutant that is called equivalent and is not. Every
  survivor is named with what is known of it.
* **False alarms** are counted over 320 legal variants (1000 nightly) of each of bf16, fp16, fp32 and fp8-requantised
  numerics, a third of which declare their contract, a third of which have been found out, and a third of which say
  nothing.
* **What is just seen** is the smallest factor on all routing weights, the smallest error of one element, and the
  fewest of 65,536 elements that are off by four standard deviations, that 95 % of the seeds see.
* **Kernels that declare nothing** are judged by what rounding anywhere would explain, unless their contract is found
  out (docs/error-model.md). How many mutants are killed in such kernels, not found out either, is counted by itself
  over three seeds of the default profile's cases (five nightly): the least that anybody gets. Bugs of quantisers of
  activations are left out there, for without a contract nothing says what they should be.
* **Unique kills** of a check are the mutants that no other check saw on any named case of the first seed; each
  statistic counts as a check of its own. The coverage matrix counts the same cases. The quick profile knows the first
  failing case only.

    moecheck mutants                                    # the default profile: minutes
    python tools/publish_mutants.py                     # the same, into reports/mutants and this page
    moecheck mutants --profile nightly
    moecheck mutants --mutant drop_r --op moe_layer     # one mutant, one op
    moecheck list mutants

A new mutant is one decorated function in a module of `moecheck/mutants`, a row in `moecheck/scoring/sources.py` (a real
kernel) or one in `moecheck/scoring/checker.py`. If a check cannot see it, that is a finding about the checks.
"""

FOOT = (
    "All of it, with every mutant's p_kill and the coverage matrix, is in "
    "[reports/mutants/mutants.json](../reports/mutants/mutants.json); `python tools/publish_mutants.py` writes both."
)


def document(measured: str) -> str:
    """The whole text. measured: the published score, reports/mutants/mutants.md."""
    parts = [HEAD, *_measured(measured), *_mutants(), *_kernels(), *_checker(), *_bugs()]
    return "\n".join(parts).rstrip() + "\n"


def _measured(text: str) -> list[str]:
    """The published score one level lower, without its title."""
    if not text:
        return []
    title, _, rest = text.partition("\n")
    lines = [f"#{line}" if line.startswith("#") else line for line in rest.strip().splitlines()]
    return [f"## Measured: {title.rpartition(': ')[2]}", "", *lines, "", FOOT, ""]


def _mutants() -> list[str]:
    lines = []
    for kind in CLASSES:
        own = sorted((one for one in all_mutants() if one.kind == kind), key=lambda one: one.id)
        lines += [f"## {kind[0].upper()}{kind[1:]}: {len(own)}", ""]
        rows = [
            (
                f"`{one.id}`",
                one.words + (f" (equivalent: {one.equivalent})" if one.equivalent else ""),
                ", ".join(sorted(one.ops)),
                ", ".join(one.expected),
                _links(sources_of(one.id, one.sources)),
            )
            for one in own
        ]
        lines += _table(("mutant", "the change", "ops", "expected to be seen by", "happened in"), rows)
    return lines


def _kernels() -> list[str]:
    lines = [f"## Real kernels: {len(REAL_KERNELS)}", ""]
    rows = [
        (
            f"`{one.name}`",
            one.words + (f" (not seen: {one.unseen})" if one.unseen else ""),
            one.kernel,
            ", ".join(f"`{rewrite.find}` -> `{rewrite.put or 'nothing'}`" for rewrite in one.rewrites),
            _links(sources_of(one.name, one.sources)),
        )
        for one in REAL_KERNELS
    ]
    return lines + _table(("mutant", "what is wrong", "kernel", "the change", "happened in"), rows)


def _checker() -> list[str]:
    lines = [f"## The checker: {len(checker_mutants())}", ""]
    rows = [
        (f"`{one.name}`", one.words, f"{one.module.removeprefix('moecheck.')}.{one.function}",
         f"`{one.find}` -> `{one.put}`")
        for one in checker_mutants()
    ]  # fmt: skip
    return lines + _table(("mutant", "what is wrong", "function", "the change"), rows)


def _bugs() -> list[str]:
    bugs = list(known_bugs())
    lines = ["## Published bugs, and which mutant each is", ""]
    lines += ["Bugs that were fixed or described in public; where there is no mutant, the reason stands there.", ""]
    rows = [
        (_links(bug.sources), bug.wrong, ", ".join(f"`{name}`" for name in bug.mutants) or f"none: {bug.why}")
        for bug in bugs
    ]
    return lines + _table(("where", "what was wrong", "mutants"), rows)


def _links(sources: tuple[str, ...]) -> str:
    """Markdown links; GitHub leads from issues to pull requests where the number is one of these."""
    return " ".join(
        f"[{source}](https://github.com/{source.replace('#', '/issues/')})" for source in dict.fromkeys(sources)
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines] + [""]
