"""What a device can do at most, measured in the same run as the kernels: copies and large matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moecheck.bench.work import Work
from moecheck.cases import Case

COPIED = 1 << 30  # bytes of one array on an accelerator
SIDE = 8192  # of the matrices there
COPIED_ON_CPU, SIDE_ON_CPU = 1 << 26, 1024
REPEATS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """device: its name. bandwidth: bytes read and written in a second. flops: format of the operands -> in a second."""

    device: str
    bandwidth: float
    flops: dict[str, float] = field(default_factory=dict)

    def seconds(self, work: Work, operands: str) -> float:
        """The least that the work can take: the roofline."""
        rate = self.flops.get(operands) or max(self.flops.values())
        return max(work.flops / rate, work.bytes / self.bandwidth)


def operands_of(case: Case) -> str:
    """In which format a kernel of the case may multiply: that of 8-bit codes, else that of the activations."""
    quantization = case.spec.experts.quantization
    if quantization is not None and quantization.weights.startswith("fp8"):
        return "fp8"
    if quantization is not None and quantization.weights == "int8":
        return "int8"
    return case.dtype


def measure_limits(device: str) -> Limits:
    """The limits of `cuda` or `cpu`."""
    return _of_cuda() if device == "cuda" else _of_cpu()


def _of_cuda() -> Limits:
    import torch

    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * COPIED / _cuda_seconds(lambda: target.copy_(source))
    a, b = (torch.randn(SIDE, SIDE, device="cuda") for _ in range(2))
    products: dict[str, Callable[[], Any]] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        x, y = a.to(dtype), b.to(dtype)
        products[name] = lambda x=x, y=y: x @ y  # type: ignore[misc]  # bound now
    one = torch.ones((), device="cuda")
    if torch.cuda.get_device_capability() >= (8, 9):
        x8, y8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        products["fp8"] = lambda: torch._scaled_mm(x8, y8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    xi, yi = a.mul(30).to(torch.int8), b.mul(30).to(torch.int8).t()
    products["int8"] = lambda: torch._int_mm(xi, yi)
    products["fp32"] = lambda: a @ b
    flops = {name: 2.0 * SIDE**3 / _cuda_seconds(product) for name, product in products.items()}
    return Limits(device=torch.cuda.get_device_name(), bandwidth=bandwidth, flops=flops)


def _cuda_seconds(call: Callable[[], Any]) -> float:
    """The median of some calls, by events."""
    import torch

    for _ in range(3):
        call()
    event: Any = torch.cuda.Event
    events = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(REPEATS)]
    for before, after in events:
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return float(np.median([before.elapsed_time(after) for before, after in events])) / 1e3


def _of_cpu() -> Limits:
    source = np.ones(COPIED_ON_CPU, np.uint8)
    target = np.ones_like(source)
    a = np.ones((SIDE_ON_CPU, SIDE_ON_CPU), np.float32)
    product = np.empty_like(a)
    bandwidth = 2 * COPIED_ON_CPU / _cpu_seconds(lambda: np.copyto(target, source))
    rate = 2.0 * SIDE_ON_CPU**3 / _cpu_seconds(lambda: np.matmul(a, a, out=product))
    return Limits(device=platform.processor() or platform.machine(), bandwidth=bandwidth, flops={"fp32": rate})


def _cpu_seconds(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
