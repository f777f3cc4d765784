"""Cases with quantised weights: named ones and drawn ones, for the schemes that a kernel takes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from .cases import Case
from .quantization import SCHEMES, Quantization, scheme_name
from .spec import SWIGLUOAI, ExpertSpec, MoESpec, RoutingSpec
from .strategies import DTYPES, EXPERT_SPECS, draw_cases

OP = "fused_experts"
DRAWN = {"quick": 0, "default": 1, "nightly": 30}
FIRST_SCHEME_ONLY = ("quick", "default")  # profiles in which the other schemes of a kernel have but two cases
# Widths of whole blocks of 128, of blocks and groups that end early, and of less than one.
WIDTHS = ((160, 144), (128, 128), (200, 136), (256, 96), (90, 44))
SMALL_WIDTHS = ((64, 32), (160, 48), (90, 44))
TOKENS, SMALL_TOKENS = (16, 33, 5), (4, 7)
# Rows that a quick or default run leaves out for an interpreter.
LARGE = ("many-tokens", "one-token", "outliers", "whole-blocks")
# Rows whose units are whole blocks of 128 for an interpreter, too: a layout that interleaves gates and ups needs that.
WHOLE = ("plain", "no-tokens")
_TOP2 = RoutingSpec(top_k=2, renormalize=True)
Row = tuple[str, str, dict[str, object]]
ROWS: tuple[Row, ...] = (
    ("plain", "the ordinary call", {}),
    (
        "ragged",
        "no size is a multiple of a block, a group or a tile: the last scales are of fewer elements",
        {"num_tokens": 15, "hidden_size": 200, "intermediate_size": 140, "dtype": "fp32"},
    ),
    (
        "many-tokens",
        "rows enough for a small factor to show in bf16",
        {"num_tokens": 96, "hidden_size": 136, "intermediate_size": 72},
    ),
    ("one-token", "one token, most experts have none", {"num_tokens": 1, "dtype": "fp16"}),
    (
        "whole-blocks",
        "widths of whole blocks, which some kernels demand, and more tokens than a decoding step has",
        {"num_tokens": 72, "hidden_size": 256, "intermediate_size": 256},
    ),
    ("no-tokens", "a rank may get no token at all", {"num_tokens": 0}),
    (
        "expert-map",
        "a rank's experts and padding ids: scales are found by local ids",
        {"num_local_experts": 3, "map_style": "shuffled", "load": "padding", "dtype": "fp16"},
    ),
    ("outliers", "a few channels are 50 times larger, so groups differ", {"stratum": "outlier", "num_tokens": 8}),
    (
        "biases",
        "GPT-OSS: biases are added after the scales",
        {"num_tokens": 8, "spec": MoESpec(routing=_TOP2, experts=SWIGLUOAI)},
    ),
)


def quantised_cases(
    quantizations: tuple[Quantization, ...],
    *,
    profile: str,
    seed: int,
    dtypes: tuple[str, ...],
    small: bool = False,
    examples: int | None = None,
) -> list[Case]:
    """The cases of each scheme; in a quick or default run only two of the second scheme on.

    dtypes: the only formats wanted, a named case of another is run in the first of these. small: for kernels under an
    interpreter. examples: drawn ones of each scheme, the profile's number when None.
    """
    cases: list[Case] = []
    for quantization in quantizations:
        all_rows = quantization == quantizations[0] or profile not in FIRST_SCHEME_ONLY
        rows = ROWS if all_rows else ROWS[:2]
        if small and profile in FIRST_SCHEME_ONLY:  # an interpreter takes half a second for a case
            rows = tuple(row for row in rows if row[0] not in LARGE)
        named = [_named(row, quantization, seed=seed, small=small) for row in rows]
        usual = 0 if small and profile in FIRST_SCHEME_ONLY else DRAWN[profile]
        count = (usual if examples is None else examples) if all_rows else 0
        cases += [*named, *draw_cases(cases_of_scheme(quantization, small=small), count, seed)]
    return [case if case.dtype in dtypes else replace(case, dtype=dtypes[0]) for case in cases]


@st.composite
def cases_of_scheme(draw: st.DrawFn, quantization: Quantization, *, small: bool = False) -> Case:
    """Cases of fused_experts with weights of a scheme, simplest first. small: sizes for an interpreter."""
    hidden_size, intermediate_size = draw(st.sampled_from(SMALL_WIDTHS if small else WIDTHS))
    num_experts = draw(st.sampled_from((4, 6) if small else (6, 8, 12)))
    return Case(
        op=OP,
        spec=MoESpec(
            routing=RoutingSpec(top_k=draw(st.integers(1, 4)), renormalize=True),
            experts=replace(draw(st.sampled_from(EXPERT_SPECS)), quantization=quantization),
        ),
        num_tokens=draw(st.sampled_from(SMALL_TOKENS if small else TOKENS)),
        num_experts=num_experts,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_local_experts=draw(st.sampled_from((None, num_experts // 2))),
        map_style=draw(st.sampled_from(("linear", "shuffled"))),
        dtype=draw(st.sampled_from(DTYPES)),
        stratum=draw(st.sampled_from(("random", "positive", "outlier"))),
        load=draw(st.sampled_from(("random", "skewed", "padding"))),
        layout=draw(st.sampled_from(("contiguous", "strided"))),
        seed=draw(st.integers(0, 99)),
    )


def schemes() -> st.SearchStrategy[Quantization]:
    """The schemes of public checkpoints."""
    return st.sampled_from(list(SCHEMES.values()))


def _named(row: Row, quantization: Quantization, *, seed: int, small: bool) -> Case:
    name, reason, changes = row
    spec = changes.get("spec", MoESpec(routing=_TOP2, experts=ExpertSpec()))
    assert isinstance(spec, MoESpec)
    sizes = {"num_tokens": 12, "num_experts": 5, "hidden_size": 160, "intermediate_size": 144}
    values: dict[str, object] = {**sizes, **changes}
    values["spec"] = replace(spec, experts=replace(spec.experts, quantization=quantization))
    if small:
        values |= {"num_tokens": min(int(str(values["num_tokens"])), 6), "num_experts": 4}
        widest = 128 if name in WHOLE else 72
        values |= {"hidden_size": 144, "intermediate_size": min(int(str(values["intermediate_size"])), widest)}
    named = f"{scheme_name(quantization)}-{name}"
    return Case(op=OP, name=named, reason=reason, seed=seed, **values)  # type: ignore[arg-type]  # the table above is tested
