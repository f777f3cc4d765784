"""What a preset of `moecheck audit` is: a published test's criterion and its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moecheck.cases import Case
from moecheck.numerics import Numerics
from moecheck.spec import MoESpec

from .criterion import Criterion
from .recipe import Recipe
from .subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One parametrisation of a test: sizes, and what is special about it.

    spec: instead of the preset's, but for top_k. criterion: instead of the preset's. narrow: hidden and intermediate
    size are divided by these here, and what w13 and w2 are drawn with is multiplied by their square roots, so that
    gates, ups and outputs are distributed as in the full size.
    """

    tokens: int
    experts: int
    top_k: int
    hidden: int = 0
    intermediate: int = 0
    shared: int = 0
    spec: MoESpec | None = None
    criterion: Criterion | None = None
    narrow: tuple[int, int] = (1, 1)

    def words(self) -> str:
        """`33 tokens, top 2 of 8, H 128, I 2048/4` for one that is 512 here."""
        parts = [f"{self.tokens} token{'s' if self.tokens > 1 else ''}", f"top {self.top_k} of {self.experts}"]
        for letter, size, by in (("H", self.hidden, self.narrow[0]), ("I", self.intermediate, self.narrow[1])):
            if size:
                parts.append(f"{letter} {size}" + (f"/{by}" if by > 1 else ""))
        parts += [f"shared {self.shared}"] if self.shared else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published test: what it demands, of which op, on which inputs.

    source: OWNER/REPO, file and test. recipe: its inputs' distributions. contract: where a right kernel under test
    rounds. expected: where the test's own reference rounds (None: nowhere but at its store). expected_recipe: what that
    reference is given, where it is not what the kernel is given. settings: of its parametrisations, those tried here.
    scaled: what is smaller here than there, so that a CPU can run it, in words.
    """

    name: str
    source: str
    criterion: Criterion
    op: str
    dtype: str
    spec: MoESpec
    recipe: Recipe
    contract: Numerics
    expected: Numerics | None
    settings: tuple[Setting, ...]
    expected_recipe: Recipe | None = None
    scaled: str = ""

    def case(self, setting: Setting, seed: int) -> Case:
        """The case that a setting stands for."""
        spec = setting.spec or self.spec
        spec = replace(spec, routing=replace(spec.routing, top_k=setting.top_k))
        spec = replace(spec, shared_experts="ungated" if setting.shared else "none")
        return Case(
            op=self.op,
            spec=spec,
            dtype=self.dtype,
            num_tokens=setting.tokens,
            num_experts=setting.experts,
            hidden_size=max(setting.hidden // setting.narrow[0], 1),
            intermediate_size=max(setting.intermediate // setting.narrow[1], 1),
            shared_intermediate_size=setting.shared // setting.narrow[1],
            seed=seed,
            name=self.name,
        )

    def subject(self, setting: Setting, seed: int) -> Subject:
        """One call of the test."""
        wider = self.recipe.widened(*setting.narrow)
        subject = Subject(
            case=self.case(setting, seed),
            load=wider.inputs,
            contract=self.contract,
            expected=self.expected,
            note=setting.words(),
        )
        if self.expected_recipe is None:
            return subject
        return replace(subject, expected_inputs=self.expected_recipe.widened(*setting.narrow).inputs)

    def criterion_of(self, setting: Setting) -> Criterion:
        """The criterion of a setting."""
        return setting.criterion or self.criterion

    def own_subjects(self, seed: int) -> Iterator[Subject]:
        """The same semantics, format and contract on moecheck's own inputs, once for each spec among the settings."""
        specs = {self.case(setting, seed).spec: setting for setting in self.settings}
        for spec, setting in specs.items():
            shared = setting.shared and OWN_SHARED
            experts = min(setting.experts, OWN_EXPERTS) if self.op != "topk_routing" else setting.experts
            experts = max(experts, spec.routing.top_k)
            case = Case(
                op=self.op,
                spec=spec,
                dtype=self.dtype,
                num_experts=experts,
                shared_intermediate_size=shared,
                seed=seed,
                name=self.name,
            )
            yield Subject(case=case, load=Case.inputs, contract=self.contract, note="moecheck's own inputs")


OWN_EXPERTS = 16
OWN_SHARED = 96
