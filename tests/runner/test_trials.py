"""Calls by graphs and on other streams, on a device that is simulated: what honest kernels and wrong ones do there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moecheck.cases import Case
from moecheck.checks.finding import Judgement, Verdict
from moecheck.cli.kernels import kernels
from moecheck.kernel import Declaration, describe
from moecheck.ops import OPS
from moecheck.runner.cuda_graph import NotCapturable
from moecheck.runner.launches import distinct, launches
from moecheck.runner.on_device import BETWEEN, LAWS, TRIALS, CudaDevice, other_values
from moecheck.runner.plan import Plan
from moecheck.runner.run import Settings
from moecheck.runner.target import Target
from moecheck.runner.trials import HELD, Tried, judge_trials, triable

Thunk = Callable[[], None]


class FakeDevice:
    """Streams as queues: one that is busy does its work when it is read from, or when all are waited for."""

    def __init__(self) -> None:
        self.busy: dict[str, bool] = {"default": False, "aside": False}
        self.queues: dict[str, list[Thunk]] = {"default": [], "aside": []}
        self.current = "default"
        self.recording: list[Thunk] | None = None

    def launch(self, thunk: Thunk, stream: str | None = None) -> None:
        """What a kernel does: work on the current stream, or on the one it names."""
        where = stream or self.current
        if self.recording is not None:
            self.recording.append(thunk)
        elif self.busy[where]:
            self.queues[where].append(thunk)
        else:
            thunk()

    def synchronize(self) -> None:
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    def host(self, array: Any) -> Any:
        """An array's values on the host, which waits for the current stream; as in a call before the capture."""
        self._drain(self.current)
        return array.copy()

    def copy(self, array: Any) -> Any:
        return array.copy()

    def write(self, buffer: Any, array: Any) -> None:
        self.launch(lambda: np.copyto(buffer, array))

    def capture(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[[], Any]:
        self.recording = []
        try:
            output = function(**arguments)
        except RuntimeError as error:
            raise NotCapturable(str(error)) from error
        finally:
            recorded, self.recording = self.recording, None

        def replay() -> Any:
            for thunk in recorded:
                thunk()
            return output

        return replay

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.current = "aside"
        yield
        self.current = "default"

    def delay(self) -> None:
        self.busy[self.current] = True

    def read(self, result: Any) -> Any:
        self._drain(self.current)
        return result.copy()

    def finish(self) -> None:
        for stream in self.queues:
            self._drain(stream)

    def _drain(self, stream: str) -> None:
        self.busy[stream] = False
        queue, self.queues[stream] = self.queues[stream], []
        for thunk in queue:
            thunk()


def honest(device: FakeDevice) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        out = np.full_like(x, np.nan)
        device.launch(lambda: np.copyto(out, 2 * x))
        return out

    return call


def scale_of_the_first_call(device: FakeDevice) -> Callable[..., Any]:
    """It reads a value on the host, so that a graph holds that of the call that it was captured with."""

    def call(x: Any) -> Any:
        out, scale = np.full_like(x, np.nan), float(device.host(x)[0, 0])
        device.launch(lambda: np.copyto(out, 2 * x * (x[0, 0] / scale)))
        return out

    return call


def on_the_default_stream(device: FakeDevice) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        out = np.full_like(x, np.nan)
        device.launch(lambda: np.copyto(out, 2 * x), "default")
        return out

    return call


def last_step_on_the_default_stream(device: FakeDevice) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        middle, out = np.full_like(x, np.nan), np.full_like(x, np.nan)
        device.launch(lambda: np.copyto(middle, 2 * x))
        device.launch(lambda: np.copyto(out, middle), "default")
        return out

    return call


def synchronizing(device: FakeDevice) -> Callable[..., Any]:
    def call(x: Any) -> Any:
        device.synchronize()
        return honest(device)(x)

    return call


@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [
        (honest, set()),
        (scale_of_the_first_call, {"graph_replay"}),
        (on_the_default_stream, {"side_stream", "busy_default_stream"}),
        (last_step_on_the_default_stream, {"side_stream", "busy_default_stream"}),
    ],
)
def test_each_trial_sees_what_it_is_there_for(
    kernel: Callable[[FakeDevice], Callable[..., Any]], wrong: set[str]
) -> None:
    """And an honest kernel passes all of them."""
    x = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 5.0]])
    expected = 2 * x
    found = set()
    for name, trial in TRIALS.items():
        device = FakeDevice()
        out = trial(device, kernel(device), {"x": x.copy()}, {"x": np.roll(x, 1, axis=0)})
        if not np.array_equal(out, expected):
            found.add(name)
    assert found == wrong


def test_a_call_that_no_graph_holds_says_so() -> None:
    """The other trials go on."""
    x = np.ones((2, 2))
    device = FakeDevice()
    with pytest.raises(NotCapturable, match="not permitted"):
        TRIALS["graph_replay"](device, synchronizing(device), {"x": x}, {"x": 2 * x})
    out = TRIALS["side_stream"](device, synchronizing(device), {"x": x}, {"x": 2 * x})
    assert np.array_equal(out, 2 * x)


def kernel_of(**more: Any) -> Declaration:
    def plain(*, x: Any, row_map: Any) -> Any:
        """A signature."""

    return describe(plain, op="shuffle_rows", backend="torch", **more)


BASE = (np.ones((2, 3), np.float32),)
OTHER = (np.full((2, 3), 2.0, np.float32),)


def judged(tried: dict[str, Tried], *, passes: bool = True, **more: Any) -> list[Judgement]:
    verdict = Verdict.PASS if passes else Verdict.FAIL
    return judge_trials(
        tried, BASE, lambda out: (Judgement(check="values", verdict=verdict, message="token 3"),), kernel_of(**more)
    )


def test_equal_bits_hold_and_other_bits_are_judged() -> None:
    """As the case's own outputs were."""
    (same,) = judged(dict.fromkeys(TRIALS, BASE), passes=False)
    assert (same.verdict, set(same.facts.values())) == (Verdict.PASS, {HELD})
    assert same.numbers == {"capturable_observed": 1.0}
    (near,) = judged({"side_stream": OTHER})
    assert near.facts["side_stream"].startswith(HELD)
    broken, rest = judged({"side_stream": OTHER}, passes=False)
    assert (broken.check, broken.verdict) == ("side_stream", Verdict.FAIL)
    assert LAWS["side_stream"][1:] in broken.message
    assert "token 3" in broken.message
    assert rest.facts["side_stream"] == "broken"


@pytest.mark.parametrize("declared", [None, False, True])
def test_not_capturable_is_reported_and_fails_only_who_declares_it(declared: bool | None) -> None:
    """A property, unless it is promised."""
    judgements = judged({"graph_replay": "NotCapturable: it waits"}, capturable=declared)
    assert judgements[-1].numbers == {"capturable_observed": 0.0}
    assert "it waits" in judgements[-1].facts["graph_replay"]
    wrong = [j.check for j in judgements if j.verdict is not Verdict.PASS]
    assert wrong == (["graph_replay"] if declared else [])


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("expert_outputs", "batched_experts")])
def test_other_values_differ_and_have_the_same_shapes(op: str) -> None:
    """What stays from an earlier call must show."""
    case = Case(op=op, num_tokens=9)
    inputs = case.inputs()
    others = other_values(case, inputs)
    assert others
    for name, value in others.items():
        assert (value.shape, value.dtype) == (inputs[name].shape, inputs[name].dtype)
        assert not np.array_equal(value, inputs[name])


def test_trials_are_of_torch_kernels_on_a_device() -> None:
    """With tokens enough to exchange."""
    case = Case(op="shuffle_rows", num_tokens=9)
    plan = Plan(target=Target(spec_string="a:b"), declaration=kernel_of(), device="cuda", cases=(case,))
    assert triable(plan, case)
    assert not triable(plan, replace(case, num_tokens=1))
    assert not triable(replace(plan, device="cpu"), case)


def test_a_profiler_that_fails_is_not_the_kernels_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on, and the finding says that the names are unknown."""

    def broken(**_: Any) -> Any:
        raise RuntimeError("no counters")

    monkeypatch.setattr("moecheck.runner.launches.device_of", lambda backend: "cuda")
    monkeypatch.setattr("torch.profiler.profile", broken)
    with launches("torch", wanted=True) as names:
        pass
    assert names == ["unknown, RuntimeError"]
    with launches("torch", wanted=False) as names:
        pass
    assert names == []


def test_launched_names_are_short_and_distinct() -> None:
    """Without copies and arguments."""
    names = ["void gemm<float, 3>(float*, int)", "Memcpy DtoD (Device -> Device)", "gate_up_kernel", "gate_up_kernel"]
    assert distinct(iter(names)) == ["gemm<float, 3>", "gate_up_kernel"]


def test_copies_have_places_of_their_own() -> None:
    """Of equal shapes, strides and values; where no tensor of PyTorch's begins; none takes another's place."""
    torch = pytest.importorskip("torch")
    device = CudaDevice()
    wide = torch.arange(80, dtype=torch.float32).view(5, 16)
    arrays = [wide, wide[:, :7], wide.t(), wide[:, :0], wide.sum(), wide.to(torch.float8_e4m3fn), wide.to(torch.int32)]
    copies = [device.copy(array) for array in arrays]
    for array, copy in zip(arrays, copies, strict=True):
        assert (copy.shape, copy.stride(), copy.dtype) == (array.shape, array.stride(), array.dtype)
        assert torch.equal(copy.float(), array.float())
        assert copy.storage_offset() * copy.element_size() == BETWEEN
    addresses = [copy.untyped_storage().data_ptr() for copy in copies]
    del copies
    assert device.copy(wide).untyped_storage().data_ptr() not in addresses


@pytest.mark.parametrize(
    ("given", "tried"), [([], True), (["--no-device-trials"], False)], ids=["default", "told not to"]
)
def test_a_run_tries_kernels_on_a_device_unless_told_not_to(given: list[str], tried: bool) -> None:
    assert Settings().device_trials
    assert kernels.make_context("kernels", given).params["device_trials"] is tried
