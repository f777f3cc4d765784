"""Window weights: distinct everywhere, the same bits in every way of asking, and what their codes stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.errors import CaseError
from moecheck.formats import to_float64
from moecheck.oracle import Oracle
from moecheck.quantization import SCHEMES
from moecheck.quantized_inputs import dequantised
from moecheck.sampled_inputs import lazy_inputs
from moecheck.spec import ExpertSpec, MoESpec
from moecheck.window_weights import LONGEST, WindowStack

DRAWN = [name for name, q in SCHEMES.items() if not (q.zero_points or q.swizzled or q.scale == "e4m3")]


def case_of(scheme: str | None, **changes: object) -> Case:
    experts = ExpertSpec(quantization=None if scheme is None else SCHEMES[scheme])
    values: dict[str, object] = {"num_tokens": 9, "num_experts": 6, "hidden_size": 160, "intermediate_size": 96}
    return Case(op="fused_experts", spec=MoESpec(experts=experts), sampled=4, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_matrices_are_the_same_bits_in_every_way_of_asking(dtype: str) -> None:
    """One by one, all together, and as numbers."""
    stack = WindowStack.plain(("key", "w13"), (5, 24, 40), scale=0.25, dtype=dtype)
    whole = stack.all()
    assert whole.shape == stack.shape
    assert whole.dtype == stack.dtype
    for expert in range(5):
        np.testing.assert_array_equal(to_float64(whole[expert]), stack.float64(expert))


@pytest.mark.parametrize("rows", [24, 700])
def test_each_row_begins_where_starts_says(rows: int) -> None:
    """By which a device makes the same matrices."""
    stack = WindowStack.plain(("key", "w13"), (3, rows, 40), scale=0.25, dtype="fp32")
    for expert in range(3):
        expected = [stack.bank[start : start + 40] for start in stack.starts(expert)]
        np.testing.assert_array_equal(stack.expert(expert), expected)


def test_no_two_rows_are_equal_and_neighbours_are_unrelated() -> None:
    """Along experts, rows and columns: what a kernel reads that is off by one, or by a block, is another number."""
    whole = to_float64(WindowStack.plain(("key", "w2"), (16, 256, 192), scale=1.0, dtype="fp32").all())
    rows = whole.reshape(-1, 192)
    assert len(np.unique(rows, axis=0)) == len(rows)
    for axis, step in [(0, 1), (0, 8), (1, 1), (1, 16), (1, 128), (2, 1), (2, 16), (2, 128)]:
        other = np.roll(whole, step, axis=axis)
        standard_error = 1.0 / np.sqrt(len(np.unique(whole)))  # windows overlap: the bank's entries are what is drawn
        assert abs(np.mean(whole * other)) <= 8.0 * standard_error, (axis, step)
        assert np.mean(whole == other) <= 2.0**-10, (axis, step)


def test_the_numbers_are_normal_with_the_wanted_deviation() -> None:
    """As those of other cases."""
    values = to_float64(WindowStack.plain(("key", "w13"), (8, 128, 128), scale=0.5, dtype="bf16").bank)
    assert abs(np.std(values) - 0.5) <= 0.5 * 8.0 / np.sqrt(2 * len(values))
    assert abs(np.mean(values)) <= 0.5 * 8.0 / np.sqrt(len(values))


def test_more_rows_than_places_are_refused() -> None:
    """Two rows would be equal."""
    with pytest.raises(CaseError, match="more rows than"):
        WindowStack.plain(("key",), (2, LONGEST, 8), scale=1.0, dtype="bf16")


@pytest.mark.parametrize("scheme", [None, *DRAWN])
def test_the_reference_reads_what_the_kernel_gets(scheme: str | None) -> None:
    """The lazy float64 matrices are the codes times their scales, dequantised by the other code, to the bit."""
    case = case_of(scheme)
    inputs = case.inputs()
    given, expected = Oracle().inputs(case), dequantised(case, inputs)
    for name in ("w13", "w2"):
        assert isinstance(inputs[name], np.ndarray)
        assert given[name].shape == expected[name].shape
        for expert in range(case.num_experts):
            np.testing.assert_array_equal(given[name][expert], to_float64(expected[name][expert]))


@pytest.mark.parametrize("scheme", DRAWN)
def test_scales_differ_from_block_to_block(scheme: str) -> None:
    """So that one read from the wrong place shows."""
    inputs = lazy_inputs(case_of(scheme, hidden_size=512, intermediate_size=384))
    for name in ("w13_scale", "w2_scale"):
        scales = inputs[name].float64(1)
        if scales.size > 1:
            assert len(np.unique(scales)) > 1
        assert not np.array_equal(scales, inputs[name].float64(2)) or scales.size == 1


@pytest.mark.parametrize("scheme", ["nvfp4", "int4-group64-zeros", "nvfp4-swizzled"])
def test_schemes_that_are_not_drawn_say_so(scheme: str) -> None:
    """In one sentence."""
    with pytest.raises(CaseError, match="not drawn directly"):
        case_of(scheme).inputs()


def test_cases_without_a_sample_keep_their_ids() -> None:
    """The field came later; a sampled case is another case, and so is another size of the sample."""
    case = case_of(None)
    assert "sampled" not in str(replace(case, sampled=0).id)
    assert len({replace(case, sampled=n).digest for n in (0, 4, 5)}) == 3
    assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize("changes", [{"op": "permute"}, {"stratum": "integer"}, {"sampled": -1}])
def test_what_cannot_be_sampled_is_refused(changes: dict[str, object]) -> None:
    """Structures are judged whole, and window weights are of plain values."""
    with pytest.raises(CaseError, match="sampled="):
        replace(case_of(None), **changes)  # type: ignore[arg-type]
