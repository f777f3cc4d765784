"""Weight layouts by hand, there and back, and that they leave the mathematics alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.errors import MoecheckError, Unsupported, UsageError
from moecheck.formats import AnyArray, store
from moecheck.gate_up import gate_up_rows, rows_of_units
from moecheck.quantization import SCHEMES, Quantization
from moecheck.quantized_inputs import dequantised
from moecheck.references.fused_experts import fused_experts
from moecheck.spec import SWIGLUOAI, ExpertSpec, MoESpec
from moecheck.weight_layout import Sizes, WeightLayout, from_layout, to_layout

ORDERS = ("halves", "up_first", "interleaved", "interleaved_8", "interleaved_16")
PLAIN = MoESpec()
BLOCKS, ZEROS, SWIZZLED = (
    MoESpec(experts=ExpertSpec(quantization=SCHEMES[name]))
    for name in ("fp8-block", "int4-group64-zeros", "nvfp4-swizzled")
)
SIZES = Sizes(hidden=24, intermediate=20, shared=12)
LAYOUTS = (
    [
        WeightLayout(gate_up=order, transposed=transposed, hidden_multiple=hidden, intermediate_multiple=intermediate)  # type: ignore[arg-type]  # of ORDERS
        for order, transposed, (hidden, intermediate) in product(
            (None, *ORDERS), (False, True), ((1, 1), (32, 1), (1, 16), (32, 16))
        )
    ]
    + [
        WeightLayout(gate_up=order, stacked=True, transposed=transposed, intermediate_multiple=multiple)
        for order, transposed, multiple in product(ORDERS[:2], (False, True), (1, 16))
    ]
)


def arrays(spec: ExpertSpec, dtype: str = "fp32") -> dict[str, AnyArray]:
    """An op's weights and hidden states, all numbers different where the format can tell them apart."""
    rng = np.random.default_rng(5)
    rows, shared = (2 if spec.gated else 1) * SIZES.intermediate, (2 if spec.gated else 1) * SIZES.shared
    shapes = {
        "hidden_states": (7, SIZES.hidden),
        "w13": (3, rows, SIZES.hidden),
        "w2": (3, SIZES.hidden, SIZES.intermediate),
        "w13_bias": (3, rows),
        "w2_bias": (3, SIZES.hidden),
        "shared_w13": (shared, SIZES.hidden),
        "shared_w2": (SIZES.hidden, SIZES.shared),
    }
    return {name: store(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("order", "wanted"),
    [
        ("halves", "g0 g1 g2 u0 u1 u2"),
        ("up_first", "u0 u1 u2 g0 g1 g2"),
        ("interleaved", "g0 u0 g1 u1 g2 u2"),
        ("interleaved_8", "g0 g1 g2 u0 u1 u2"),
        ("interleaved_16", "g0 g1 g2 u0 u1 u2"),
    ],
)
def test_three_units(order: str, wanted: str) -> None:
    assert " ".join(_order(order, 3)) == wanted


def test_blocks_of_eight_end_with_a_short_one() -> None:
    blocks = ["".join(_order("interleaved_8", 20)[start : start + 8]) for start in (0, 8, 16, 24, 32)]
    assert blocks[:4] == [
        "".join(f"{kind}{i}" for i in units)
        for kind, units in (("g", range(8)), ("u", range(8)), ("g", range(8, 16)), ("u", range(8, 16)))
    ]
    assert blocks[4] == "g16g17g18g19u16u17u18u19"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("width", [0, 1, 8, 13])
def test_every_row_has_one_unit(order: str, width: int) -> None:
    assert sorted(np.concatenate(gate_up_rows(order, width)).tolist()) == list(range(2 * width))


@pytest.mark.parametrize("order", ORDERS)
def test_the_rows_of_some_units_keep_the_order(order: str) -> None:
    spec = ExpertSpec(gate_up_layout=order)  # type: ignore[arg-type]  # of ORDERS
    names = np.array(_order(order, 32))
    assert [name[0] for name in names[rows_of_units(np.arange(16, 32), 32, spec)]] == [
        name[0] for name in _order(order, 16)
    ]
    assert {int(name[1:]) for name in names[rows_of_units(np.arange(16, 32), 32, spec)]} == set(range(16, 32))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_there_and_back(layout: WeightLayout, order: str, dtype: str) -> None:
    spec = MoESpec(experts=ExpertSpec(gate_up_layout=order))  # type: ignore[arg-type]  # of ORDERS
    given = arrays(spec.experts, dtype)
    there = to_layout(given, layout, spec=spec, sizes=SIZES)
    back = from_layout(there, layout, spec=spec, sizes=SIZES)
    assert back.keys() == given.keys()
    for name, array in given.items():
        assert back[name].dtype == array.dtype
        assert np.array_equal(back[name], array), name


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu])
def test_codes_keep_their_bits(dtype: Any) -> None:
    codes = np.arange(3 * 40 * 24, dtype=np.uint32).astype(np.uint8).view(dtype).reshape(3, 40, 24)
    layout = WeightLayout(gate_up="interleaved_8", transposed=True, hidden_multiple=32, intermediate_multiple=16)
    there = to_layout({"w13": codes}, layout, spec=PLAIN, sizes=SIZES)["w13"]
    back = from_layout({"w13": there}, layout, spec=PLAIN, sizes=SIZES)["w13"]
    assert there.shape == (3, 32, 64)
    assert back.dtype == codes.dtype
    assert np.array_equal(back.view(np.uint8), codes.view(np.uint8))


def test_shapes_of_jax_and_of_a_padded_kernel() -> None:
    given = arrays(ExpertSpec())
    jax = to_layout(given, WeightLayout(gate_up="halves", stacked=True, transposed=True), spec=PLAIN, sizes=SIZES)
    assert {name: jax[name].shape for name in ("w13", "w2", "w13_bias", "shared_w13")} == {
        "w13": (3, 2, 24, 20),
        "w2": (3, 20, 24),
        "w13_bias": (3, 2, 20),
        "shared_w13": (2, 24, 12),
    }
    assert np.array_equal(jax["w13"][1, 1], given["w13"][1, 20:].T)
    padded = to_layout(given, WeightLayout(hidden_multiple=32, intermediate_multiple=16), spec=PLAIN, sizes=SIZES)
    assert {name: array.shape for name, array in padded.items()} == {
        "hidden_states": (7, 32),
        "w13": (3, 64, 32),
        "w2": (3, 32, 32),
        "w13_bias": (3, 64),
        "w2_bias": (3, 32),
        "shared_w13": (32, 32),
        "shared_w2": (32, 16),
    }
    assert np.array_equal(padded["w13"][:, 32:52, :24], given["w13"][:, 20:])
    assert not padded["w13"][:, 20:32].any()
    assert not padded["w13"][:, :, 24:].any()


def test_gpt_oss_and_nemotron_are_padded_as_engines_do() -> None:
    """GPT-OSS: 2880 to 3072; Nemotron-3: 2688 to 2816."""
    assert WeightLayout(hidden_multiple=256).hidden_size(2880) == 3072
    assert WeightLayout(hidden_multiple=256).hidden_size(2688) == 2816
    assert WeightLayout().hidden_size(2880) == 2880


@pytest.mark.parametrize("spec", [ExpertSpec(), SWIGLUOAI, ExpertSpec(activation="relu2", gated=False)], ids=str)
@pytest.mark.parametrize("layout", [one for one in LAYOUTS if not one.transposed and not one.stacked], ids=str)
def test_the_mathematics_is_the_same(layout: WeightLayout, spec: ExpertSpec) -> None:
    """The reference on rearranged and padded weights, with the spec that a kernel gets; in exact sums of integers."""
    rng = np.random.default_rng(6)
    given: dict[str, Any] = {
        name: rng.integers(-2, 3, array.shape).astype(np.float64)
        for name, array in arrays(spec).items()
        if not name.startswith("shared_")
    }
    more: dict[str, Any] = {
        "topk_ids": rng.integers(0, 3, (7, 2)).astype(np.int32),
        "topk_weights": rng.integers(1, 3, (7, 2)).astype(np.float32),
    }
    layer = MoESpec(experts=spec)
    there = to_layout({**given, **more}, layout, spec=layer, sizes=SIZES)
    plain = fused_experts(**given, **more, spec=spec, dtype="fp32")
    out = fused_experts(**there, spec=layout.spec(layer).experts, dtype="fp32")
    assert out.shape == (7, layout.hidden_size(SIZES.hidden))
    assert not out[:, SIZES.hidden :].any()
    error = np.abs(out[:, : SIZES.hidden] - plain)
    terms = np.abs(plain).max() * 2.0**-52 * 4 * SIZES.intermediate  # sums in another order
    assert (error <= terms).all()


def quantised(**fields: Any) -> MoESpec:
    return MoESpec(experts=ExpertSpec(quantization=Quantization(**fields)))


def there_and_back(name: str, array: AnyArray, layout: WeightLayout, spec: MoESpec, sizes: Sizes) -> AnyArray:
    """The array so arranged, after a check that it comes back bit for bit."""
    there = to_layout({name: array}, layout, spec=spec, sizes=sizes)[name]
    back = from_layout({name: there}, layout, spec=spec, sizes=sizes)[name]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    return np.asarray(there)


def test_scales_of_rows_move_with_their_rows() -> None:
    scale = np.arange(3 * 40 * 2, dtype=np.float32).reshape(3, 40, 2)
    layout = WeightLayout(gate_up="interleaved", transposed=True, intermediate_multiple=16, hidden_multiple=32)
    there = there_and_back("w13_scale", scale, layout, quantised(rows=1, columns=16), SIZES)
    assert there.shape == (3, 2, 64)
    assert np.array_equal(there[:, :, 0:40:2], scale[:, :20].swapaxes(1, 2))
    assert (there[:, :, 40:] == 1.0).all()


@pytest.mark.parametrize("order", ["interleaved", "interleaved_8", "interleaved_16"])
def test_scales_of_blocks_alternate_one_by_one(order: str) -> None:
    """Weights alternate by one or by eight rows, and the scales of 128 rows each by one."""
    scale = np.arange(6 * 2, dtype=np.float32).reshape(1, 6, 2)
    layout = WeightLayout(gate_up=order)  # type: ignore[arg-type]  # of ORDERS
    there = there_and_back("w13_scale", scale, layout, quantised(rows=128, columns=128), Sizes(256, 384))
    assert there[0, :, 0].tolist() == [0, 6, 2, 8, 4, 10]


@pytest.mark.parametrize(("padding", "code"), [(1.0, 127), (0.0, 0)])
def test_padded_scales_of_blocks(padding: float, code: int) -> None:
    """2880 to 3072 columns in groups of 32 are 90 to 96 scales; the new ones are 1 or 0, as codes too."""
    layout = WeightLayout(hidden_multiple=256, scale_padding=padding)
    for spec, dtype, wanted in (
        (quantised(rows=1, columns=32), np.float32, padding),
        (quantised(rows=1, columns=32, scale="e8m0"), np.uint8, code),
    ):
        there = there_and_back("w13_scale", np.full((2, 64, 90), 9, dtype), layout, spec, Sizes(2880, 32))
        assert there.shape == (2, 64, 96)
        assert (there[:, :, 90:] == wanted).all()
        assert (there[:, :, :90] == 9).all()


@pytest.mark.parametrize(("scheme", "zero"), [("mxfp4", 0x00), ("int4-group32", 0x88), ("int8-group128", 128)])
def test_padded_codes_stand_for_zero(scheme: str, zero: int) -> None:
    """Two 4-bit codes to a byte; an int4 is stored plus 8, an int8 plus 128."""
    spec = MoESpec(experts=ExpertSpec(quantization=SCHEMES[scheme]))
    width = 24 if SCHEMES[scheme].packed else 48
    codes = np.arange(2 * 64 * width, dtype=np.uint32).astype(np.uint8).reshape(2, 64, width)
    layout = WeightLayout(hidden_multiple=64, intermediate_multiple=40)
    there = there_and_back("w13", codes, layout, spec, Sizes(48, 32))
    assert there.shape == (2, 80, width * 64 // 48)
    assert (there[:, :, width:] == zero).all()
    assert (there[:, 32:40] == zero).all()


def test_one_scale_for_all_rows_stays() -> None:
    scale = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    layout = WeightLayout(gate_up="up_first", stacked=True, intermediate_multiple=16)
    assert np.array_equal(there_and_back("w13_scale", scale, layout, quantised(), SIZES), scale)


@pytest.mark.parametrize("scheme", [name for name, one in SCHEMES.items() if not one.swizzled and not one.zero_points])
def test_a_quantised_layer_means_the_same(scheme: str) -> None:
    """The drawn codes and scales of a case, rearranged, dequantised by the reference, and rearranged back."""
    spec = MoESpec(experts=ExpertSpec(quantization=SCHEMES[scheme]))
    case = Case(op="fused_experts", spec=spec, num_tokens=2, num_experts=2, hidden_size=256, intermediate_size=128)
    sizes = Sizes(256, 128)
    given = case.inputs()
    layout = WeightLayout(gate_up="up_first", hidden_multiple=384, intermediate_multiple=256)
    there = to_layout(given, layout, spec=spec, sizes=sizes)
    changed = replace(case, spec=layout.spec(spec), hidden_size=384, intermediate_size=256)
    plain = dequantised(case, given)
    values = dequantised(changed, there)
    back = from_layout(
        {name: values[name] for name in ("w13", "w2")},
        layout,
        spec=MoESpec(),
        sizes=sizes,
    )
    assert not values["w13"][:, :, 256:].any()
    for name in ("w13", "w2"):
        assert np.array_equal(back[name], plain[name])


def test_other_inputs_are_left_alone() -> None:
    ids = np.zeros((7, 2), np.int32)
    given = {"topk_ids": ids, "num_experts": 3}
    assert to_layout(given, LAYOUTS[-1], spec=PLAIN, sizes=SIZES) == given


def test_the_spec_says_what_the_weights_are() -> None:
    spec = MoESpec(experts=SWIGLUOAI, shared_experts="ungated", shared_spec=ExpertSpec())
    changed = WeightLayout(gate_up="up_first").spec(spec)
    assert changed.experts == replace(SWIGLUOAI, gate_up_layout="up_first")
    assert changed.shared == ExpertSpec(gate_up_layout="up_first")
    assert WeightLayout(transposed=True).spec(spec) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"gate_up": "halfs"}, "gate_up", id="no such order"),
        pytest.param({"stacked": True}, "stacked=True needs gate_up='halves' or 'up_first', not None", id="no order"),
        pytest.param({"stacked": True, "gate_up": "interleaved"}, "not 'interleaved'", id="alternating stack"),
        pytest.param({"hidden_multiple": 0}, "hidden_multiple=0 must be a positive integer", id="multiple of nothing"),
        pytest.param({"intermediate_multiple": True}, "must be a positive integer", id="a truth for a number"),
        pytest.param({"scale_padding": 0.5}, "scale_padding=0.5 must be 0 or 1", id="half a scale"),
    ],
)
def test_a_bad_layout_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        WeightLayout(**fields)


@pytest.mark.parametrize(
    ("name", "shape", "spec", "message"),
    [
        pytest.param("w13_scale", (1, 1, 1), BLOCKS, "gate and up share scales of 128 rows", id="shared scales"),
        pytest.param("w13_scale", (1, 1, 1), PLAIN, "weights are not quantised", id="scales of nothing"),
        pytest.param("w13", (3, 42, 24), PLAIN, "w13 has 42 entries along axis 1, expected 40", id="other rows"),
        pytest.param("w2", (3, 7, 20), PLAIN, "w2 has 7 entries along axis 1, expected 24", id="other columns"),
        pytest.param("w2", (3, 24, 10), ZEROS, "zero points", id="padding of what 0 does not stand for"),
        pytest.param("w2", (3, 24, 10), SWIZZLED, "swizzled", id="scales in tiles"),
    ],
)
def test_what_cannot_be_arranged_is_refused(name: str, shape: tuple[int, ...], spec: MoESpec, message: str) -> None:
    layout = WeightLayout(gate_up="up_first", hidden_multiple=32)
    with pytest.raises(MoecheckError, match=message):
        to_layout({name: np.zeros(shape)}, layout, spec=spec, sizes=SIZES)


def test_latent_experts_are_not_padded() -> None:
    with pytest.raises(Unsupported, match="latent"):
        to_layout({}, WeightLayout(hidden_multiple=32), spec=MoESpec(latent_experts=True), sizes=SIZES)


def _order(order: str, width: int) -> list[str]:
    """Names of the rows: g0 for the gate of unit 0."""
    gates, ups = gate_up_rows(order, width)
    names = [""] * (2 * width)
    for unit in range(width):
        names[gates[unit]], names[ups[unit]] = f"g{unit}", f"u{unit}"
    return names
