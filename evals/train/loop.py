"""The training loop: so many minutes, however fast the machine is, with the best weights kept on disk all the time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional

from moecheck.evals.tiny.config import TinyConfig

from .checkpoint import write
from .evaluate import accuracy, shipped, validation_problems
from .facts import Facts, machine, write_facts
from .muon import Optimiser
from .network import TrainedNetwork
from .rows import IGNORED, Shape, batches

Precision = Literal["bf16", "tf32", "fp32"]
Say = Callable[[str], None]
WARM_UP_STEPS = 50
CONSTANT = 0.45  # share of the time after which the learning rate falls, linearly to 0
LARGEST_NORM = 1.0
BIAS_STEP = 1e-3
BALANCE_LOSS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """minutes: of training, without export. steps: a limit on top of that, None for none. precision: of the GEMMs.

    evaluate_every, report_every: seconds. each: validation problems for each number of operations in `operations`.
    """

    minutes: float
    steps: int | None = None
    seed: int = 0
    precision: Precision = "bf16"
    shape: Shape = field(default_factory=Shape)
    workers: int = 0
    compiled: bool = False
    evaluate_every: float = 120.0
    report_every: float = 10.0
    each: int = 40
    operations: tuple[int, ...] = (1, 2, 3, 4, 5, 6)


@dataclass(slots=True, kw_only=True)
class Result:
    """What came out. losses: of the answers' tokens, means between reports. best: accuracy of the kept weights."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: dict[int, float] = field(default_factory=dict)

    @property
    def mean_accuracy(self) -> float:
        return sum(self.best.values()) / len(self.best) if self.best else 0.0


def train(config: TinyConfig, settings: Settings, folder: Path, *, device: str, say: Say) -> Result:
    """Train a network and keep its best weights in `folder`, also where the process is asked to end (SIGTERM)."""
    torch.manual_seed(settings.seed)
    data = batches(settings.shape, seed=settings.seed + 1, workers=settings.workers)
    first = next(data)  # starts the workers, which must not find a GPU in use
    validation = validation_problems(settings.each, settings.operations) if settings.each else ()
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    network = TrainedNetwork(config, torch.device(device))
    optimiser = Optimiser(network)
    step = _Step(network, settings, device)
    result, begin = Result(), time.monotonic()
    deadline, limit = begin + 60 * settings.minutes, settings.steps
    reported, evaluated = begin, begin
    sums = torch.zeros(2, device=device)

    def keep() -> None:
        write(network, folder)
        write_facts(folder, _facts(result, settings, time.monotonic() - begin, device))

    def keep_if_better() -> None:
        found = accuracy(shipped(network), validation)
        mean = sum(found.values()) / len(found)
        better = mean >= result.mean_accuracy
        words = ", ".join(f"{operations}: {share:.2f}" for operations, share in found.items())
        say(f"held-out accuracy {mean:.3f} (by operations {words}){', kept' if better else ''}")
        if better:
            result.best = found
            keep()

    say(f"{sum(p.numel() for p in network.parameters()):,} parameters on {device}, {settings.workers} data workers")
    with _asked_to_end() as ended:
        batch = first
        while not ended() and (limit is None or result.steps < limit):
            now = time.monotonic()
            share = (now - begin) / (deadline - begin) if limit is None else result.steps / limit
            if share >= 1.0 or now >= deadline:
                break
            sums += step(batch)
            optimiser.step(rate(share, result.steps))
            for experts in network.experts:
                experts.move_bias(BIAS_STEP)
            result.steps += 1
            result.tokens += batch[0].numel()
            asked = time.monotonic()
            batch = next(data)
            result.waited += time.monotonic() - asked
            if now - reported >= settings.report_every:
                say(_report(result, sums, now - begin, deadline - now, network))
                reported = now
            if validation and now - evaluated >= settings.evaluate_every:
                keep_if_better()
                evaluated = time.monotonic()
        result.seconds = time.monotonic() - begin
        say(_report(result, sums, result.seconds, 0.0, network))
        if validation:
            keep_if_better()
        else:
            keep()
    return result


def rate(share: float, steps: int) -> float:
    """The learning rate after a share of the time and so many steps, relative to its largest."""
    return min(1.0, (steps + 1) / WARM_UP_STEPS, max(0.0, (1.0 - share) / (1.0 - CONSTANT)))


class _Step:
    """Forward and backward of a batch; returns the loss and 1 as a tensor, so that nothing waits for the device."""

    def __init__(self, network: TrainedNetwork, settings: Settings, device: str) -> None:
        self.network, self.device, self.precision = network, device, settings.precision
        self.forward: Callable[[torch.Tensor], torch.Tensor] = network
        if settings.compiled:
            self.forward = torch.compile(network, dynamic=False)

    def __call__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        tokens, labels = (part.to(self.device, non_blocking=True).long() for part in batch)
        with self._cast():
            logits = self.forward(tokens)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        balance = sum((experts.balance for experts in self.network.experts), start=torch.zeros_like(loss))
        torch.autograd.backward(loss + BALANCE_LOSS * balance)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_NORM)
        return torch.stack([loss.detach(), torch.ones_like(loss)])

    def _cast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16)
        return nullcontext()


def _report(result: Result, sums: torch.Tensor, seconds: float, left: float, network: TrainedNetwork) -> str:
    """One line, and a fresh sum of losses."""
    total, count = sums.tolist()
    sums.zero_()
    if count:
        result.losses.append(total / count)
    loads = [float(experts.load.max() / experts.load.mean()) for experts in network.experts]
    biases = [float(experts.bias.std()) for experts in network.experts]
    return (
        f"{seconds:6.1f} s, {left:5.1f} s left: step {result.steps}, {result.tokens / 1e6:.1f} M tokens, "
        f"{result.tokens / max(seconds, 1e-9) / 1e3:.0f} k tokens/s ({result.waited / max(seconds, 1e-9):.0%} waiting "
        f"for data), loss {result.losses[-1] if result.losses else float('nan'):.4f}, "
        f"busiest expert x{max(loads):.2f}, bias sd {min(biases):.3f}"
    )


def _facts(result: Result, settings: Settings, seconds: float, device: str) -> Facts:
    return Facts(
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(seconds, 1),
        seed=settings.seed,
        precision=settings.precision,
        machine=machine(device),
        validation={operations: round(share, 4) for operations, share in result.best.items()},
    )


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came, which the process survives until it has written what it has."""
    asked = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
