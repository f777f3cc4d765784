"""Draws activations and expert weights of a stratum, one expert at a time."""

from __future__ import annotations

import numpy as np

from . import draw
from .cases import Case
from .errors import CaseError
from .formats import AnyArray, Float64, store, to_float64
from .gate_up import gate_up_rows
from .probes import gates_of_expert
from .quantiser_rows import quantiser_rows
from .routing_inputs import weight_norm
from .spec import ExpertSpec

OUTLIER_FACTOR = 50.0
LARGE_TOKEN = 64.0
GATE = 64.0  # silu(64) = gelu(64) = 64 in every format up to fp32
MOST_ONES = 4  # ones in a token of an integer case: gates are 64 of them, exact up to fp32
UP_SHARE = 0.5  # size of up against gate where all values are positive; exact in every format
BIAS = 0.5  # standard deviation of biases
CANCELLING = 8.0  # the terms of an output are this much larger than the output


def hidden_states(case: Case) -> AnyArray:
    """[T, H] in the case's dtype."""
    T, H = case.num_tokens, case.hidden_size
    if case.stratum == "integer":  # a few ones per token; together the tokens visit all of H, far apart
        x = np.zeros((T, H))
        ones = _ones_per_token(T, H)
        visits = np.arange(T * ones).reshape(T, ones)
        np.put_along_axis(x, visits * 2654435761 % H, 1.0, axis=1)
        return store(x, case.dtype)
    if case.stratum == "one_hot":  # each round over the experts reads another column of their gates
        x = np.zeros((T, H))
        x[np.arange(T), (np.arange(T) // case.num_experts) % H] = 1.0
        return store(x, case.dtype)
    if case.stratum == "quantiser":
        return store(quantiser_rows(case), case.dtype)
    if case.stratum == "random":
        return draw.normals((case.key, "hidden_states"), (T, H), scale=1.0, dtype=case.dtype)
    table = draw.normal_table_float64(1.0, case.dtype)
    x = draw.look_up(draw.philox(case.key, "hidden_states"), table, (T, H))
    if case.stratum == "positive":
        x = np.abs(x)
    if case.stratum == "outlier":
        x[:, outlier_channels(case)] *= OUTLIER_FACTOR
        if case.dtype != "fp16":  # gates beyond 88, where exp overflows in fp32, and products beyond what fp16 holds
            x[::16] *= LARGE_TOKEN
    if case.stratum == "zero_rows":
        x[::3] = 0.0
    return store(x, case.dtype)


def _ones_per_token(num_tokens: int, hidden_size: int) -> int:
    """1, 2 or 4: as many as visit every column, if 4 are enough; outputs of more would not fit into 8 bits."""
    wanted = -(-hidden_size // max(num_tokens, 1))
    return next((ones for ones in (1, 2, 4) if ones >= min(wanted, hidden_size)), MOST_ONES)


def outlier_channels(case: Case) -> list[int]:
    """One hidden channel in 128, at least one, spread over the width."""
    count = max(1, case.hidden_size // 128)
    return [(i * case.hidden_size) // count + case.hidden_size // (2 * count) for i in range(count)]


def pre_activation(spec: ExpertSpec) -> float:
    """Root mean square of gate and up: 2, or so much that a clamp is exceeded in more than 5 % of the cells."""
    return 0.55 * spec.swiglu_limit if spec.swiglu_limit is not None else 2.0


class ExpertWeights:
    """The weights of a case's experts, each drawn when asked for.

    `w13(e)`: [2I, X] (or [I, X] ungated), `w2(e)`: [X, I], in the case's storage dtype; X is H, or the latent size.
    """

    def __init__(self, case: Case) -> None:
        if case.stratum == "integer" and not _integer_premises(case):
            raise CaseError("stratum='integer' needs a gated silu or gelu without clamp and beta.")
        if case.latent_size and case.stratum == "one_hot":
            raise CaseError("stratum='one_hot' says nothing of latent experts, which see mixed channels.")
        self._case = case
        self._spec = case.spec.experts
        self.width = case.latent_size or case.hidden_size
        routing = case.spec.routing
        fused = routing.num_fused_shared_experts - routing.num_zero_experts if case.op == "moe_layer" else 0
        self.count = (case.num_local_experts or case.num_experts) + fused
        scale = _first_scale(case, self.width, wanted=pre_activation(self._spec), mixed=case.latent_size > 0)
        self._scale13 = _power_of_two_near(scale)
        if self._spec.swiglu_limit is not None:  # rounded down, the clamp would hardly ever act
            self._scale13 = float(np.exp2(np.ceil(np.log2(scale))))
        self._scale2 = _power_of_two_near(_second_scale(case, case.intermediate_size) / weight_norm(case))

    @property
    def standard_deviations(self) -> tuple[float, float]:
        """Those of w13 and of w2, both powers of two."""
        return self._scale13, self._scale2

    def w13(self, e: int) -> AnyArray:
        if self._case.stratum == "one_hot":
            return self._probe(e)
        return self._first(f"w13/{e}", self._case.intermediate_size, self._spec, self.width)

    def w2(self, e: int) -> AnyArray:
        return self._second(f"w2/{e}", self._case.intermediate_size, self._scale2)

    def w13_bias(self) -> AnyArray:
        """[experts, 2I] (or I ungated)."""
        width = self._case.intermediate_size
        if self._case.stratum == "integer":  # of ups only: a gate stays a power of two
            up = draw.integers((self._case.key, "w13_bias"), (self.count, width), below=3) - 1.0
            both = store(np.concatenate([np.zeros(up.shape), up], axis=1), self._case.dtype)
            return np.ascontiguousarray(_rows_in_layout(both.T, self._spec).T)
        return self._bias("w13_bias", width * (2 if self._spec.gated else 1))

    def w2_bias(self) -> AnyArray:
        """[experts, X]."""
        if self._case.stratum == "integer":  # in the unit of the outputs that it is added to
            shape = (self.count, self.width)
            steps = draw.integers((self._case.key, "w2_bias"), shape, below=3) - 1
            return store((steps * MOST_ONES).astype(np.float64), self._case.dtype)
        return self._bias("w2_bias", self.width)

    def _bias(self, name: str, width: int) -> AnyArray:
        return draw.normals((self._case.key, name), (self.count, width), scale=BIAS, dtype=self._case.dtype)

    def shared_w13(self) -> AnyArray:
        """[2S, H] (or [S, H] ungated)."""
        case = self._case
        return self._first("shared_w13", case.shared_intermediate_size, case.spec.shared, case.hidden_size)

    def shared_w2(self) -> AnyArray:
        """[H, S]."""
        size = self._case.shared_intermediate_size
        return self._second("shared_w2", size, _power_of_two_near(_second_scale(self._case, size)))

    def latent_down(self) -> AnyArray:
        """[X, H]: makes of the hidden states a latent of about their size."""
        shape = (self.width, self._case.hidden_size)
        return self._draw("latent_down", shape, _power_of_two_near(_first_scale(self._case, shape[1], wanted=1.0)))

    def latent_up(self) -> AnyArray:
        """[H, X]: makes of the experts' sum an output of its size."""
        scale = 1.0 / (self.width if self._case.stratum == "positive" else np.sqrt(self.width))
        return self._draw("latent_up", (self._case.hidden_size, self.width), _power_of_two_near(scale))

    def w13_float64(self, e: int) -> Float64:
        """The float64 values of `w13(e)`, drawn directly (stratum `random`)."""
        rows = self._case.intermediate_size * (2 if self._spec.gated else 1)
        return self._draw_float64(f"w13/{e}", (rows, self.width), self._scale13)

    def w2_float64(self, e: int) -> Float64:
        """The float64 values of `w2(e)`, drawn directly (stratum `random`)."""
        return self._draw_float64(f"w2/{e}", (self.width, self._case.intermediate_size), self._scale2)

    def _draw_float64(self, name: str, shape: tuple[int, int], scale: float) -> Float64:
        if self._case.stratum != "random":
            raise CaseError(f"Weights of stratum {self._case.stratum!r} are not drawn directly as float64.")
        table = draw.normal_table_float64(scale, self._case.dtype)
        return draw.look_up(draw.philox(self._case.key, name), table, shape)

    def _draw(self, name: str, shape: tuple[int, int], scale: float) -> AnyArray:
        values = draw.normals((self._case.key, name), shape, scale=scale, dtype=self._case.dtype)
        return np.abs(values) if self._case.stratum == "positive" else values

    def _first(self, name: str, width: int, spec: ExpertSpec, columns: int) -> AnyArray:
        H, halves = columns, 2 if spec.gated else 1
        if self._case.stratum == "integer":
            up = draw.integers((self._case.key, name), (width, H), below=3) - 1.0
            return _rows_in_layout(store(np.concatenate([np.full((width, H), GATE), up]), self._case.dtype), spec)
        if self._case.stratum == "cancelling" and width >= 2:  # unit i and unit i + width/2 compute the same
            drawn = self._draw(name, (width * halves, H), self._scale13).reshape(halves, width, H)
            drawn[:, width // 2 : width // 2 * 2] = drawn[:, : width // 2]
            return _rows_in_layout(drawn.reshape(width * halves, H), spec)
        drawn = self._draw(name, (width * halves, H), self._scale13)
        if self._case.stratum == "positive" and halves == 2:
            # Every gate and every up is near its mean; equal means would hide an exchange of the two.
            drawn[width:] *= drawn.dtype.type(UP_SHARE)
            return _rows_in_layout(drawn, spec)
        return drawn

    def _probe(self, e: int) -> AnyArray:
        """Gates that a one-hot token reads as they are, and ups of 1."""
        case = self._case
        gate = gates_of_expert(e, case.num_experts, case.hidden_size, case.intermediate_size, case.dtype)
        rows = [gate, np.ones(gate.shape)] if self._spec.gated else [gate]
        return _rows_in_layout(store(np.concatenate(rows), case.dtype), self._spec)

    def _second(self, name: str, width: int, scale: float) -> AnyArray:
        shape = (self.width if name.startswith("w2") else self._case.hidden_size, width)
        if self._case.stratum == "integer":  # at most about 8 terms of +-1 (64 / 64) per output
            kept = draw.integers((self._case.key, name, "kept"), shape, below=max(1, width // 8)) == 0
            sign = draw.integers((self._case.key, name), shape, below=2) * 2.0 - 1.0
            return store(np.where(kept, sign / GATE, 0.0), self._case.dtype)
        if self._case.stratum == "one_hot":
            return store(np.eye(*shape, dtype=np.float64), self._case.dtype)
        drawn = self._draw(name, shape, scale * (CANCELLING if self._case.stratum == "cancelling" else 1.0))
        if self._case.stratum == "cancelling" and width >= 2:
            half = width // 2
            rest = self._draw(f"{name}/rest", (shape[0], half), scale)
            drawn[:, half : 2 * half] = store(to_float64(rest) - to_float64(drawn[:, :half]), self._case.dtype)
        return drawn


def _rows_in_layout(halves: AnyArray, spec: ExpertSpec) -> AnyArray:
    """Gate rows and up rows where the spec wants them."""
    if spec.gate_up_layout == "halves" or not spec.gated:
        return halves
    rows = np.empty_like(halves)
    rows[np.concatenate(gate_up_rows(spec.gate_up_layout, len(halves) // 2))] = halves
    return rows


def _integer_premises(case: Case) -> bool:
    spec = case.spec.experts
    if case.latent_size or case.spec.shared_spec is not None:
        return False
    smooth = spec.activation in ("silu", "gelu", "gelu_tanh") and spec.gated and spec.swiglu_limit is None
    return smooth and spec.swiglu_beta == 0 and spec.swiglu_alpha >= 1


def _first_scale(case: Case, columns: int, *, wanted: float, mixed: bool = False) -> float:
    """Standard deviation of a matrix that makes rows of root mean square `wanted`, from the size of what it multiplies.

    mixed: that is a latent, of size 1 whatever the hidden states are.
    """
    if case.stratum == "positive":  # a sum of as many positive products of means sqrt(2/pi)
        return float(wanted * np.pi / (2 * columns))
    if case.stratum == "outlier" and not mixed:
        count = len(outlier_channels(case))
        return float(wanted / np.sqrt(columns - count + count * OUTLIER_FACTOR**2))
    return float(wanted / np.sqrt(columns))


def _second_scale(case: Case, width: int) -> float:
    """Standard deviation of w2 for an expert output of rms 1; the activation is taken as max(g, 0) roughly."""
    spec, wanted = case.spec.experts, pre_activation(case.spec.experts)
    act = 1.22 * wanted**2 if spec.activation == "relu2" else 0.7 * wanted
    size = act * (np.hypot(wanted, spec.swiglu_beta) if spec.gated else 1.0)
    if case.stratum == "positive":
        return float(np.sqrt(np.pi / 2) / (width * 1.4 * size * (UP_SHARE if spec.gated else 1.0)))
    return float(1 / (np.sqrt(width) * size))


def _power_of_two_near(value: float) -> float:
    """The power of two nearest to `value` on the log scale: exact in every format, equal on every machine."""
    return float(np.exp2(np.rint(np.log2(value))))
