"""Kernel files as users write them: one correct fused_experts, and what people and compilers do to it."""

from __future__ import annotations

from pathlib import Path

CORRECT = """\
import ctypes
import os
import sys
import time

import torch
import torch.nn.functional as F


def moe(hidden_states, w13, w2, topk_weights, topk_ids):
    out = torch.zeros(hidden_states.shape, dtype=torch.float32)
    for expert in range(w13.shape[0]):
        token, slot = torch.where(topk_ids == expert)
        gate, up = (hidden_states[token] @ w13[expert].T).float().chunk(2, dim=-1)
        down = ((F.silu(gate) * up).to(w2.dtype) @ w2[expert].T).float()
        out.index_add_(0, token, down * topk_weights[token, slot, None])
    out = out.to(hidden_states.dtype)
    return out
"""
FIRST = "    out = torch.zeros(hidden_states.shape, dtype=torch.float32)\n"
LAST = "    return out\n"

# What the function does instead of returning `out`.
ENDINGS = {
    "zeros": "return torch.zeros_like(out)",
    "row-not-written": "result = torch.empty_like(out); result[:-1] = out[:-1]; return result",
    "nan": "out[len(out) // 2 :, 5:6][:1] = float('nan'); return out",
    "none": "return None",
    "shape": "return out[:, :-1]",
    "transposed": "return out.T.contiguous()",
    "dtype": "return out.to(torch.int32)",
    "float64": "return out.double()",
    "list": "return out.tolist()",
    "string": "return 'done'",
    "dictionary": "return {'out': out}",
    "sparse": "return out.to_sparse()",
    "meta": "return out.to('meta')",
    "three-outputs": "return out, out, out",
    "in-a-list": "return [out]",
}
# What it does before it starts.
BEGINNINGS = {
    "weights-too-large": "topk_weights = topk_weights * 1.05",
    "last-slot-dropped": "topk_ids = torch.cat([topk_ids[:, :-1], topk_ids[:, -1:] * 0 - 1], 1)",
    "mutates": "hidden_states += 1",
    "raises": "raise ValueError('tile size 7 is odd')",
    "raises-for-fp32": "assert hidden_states.dtype != torch.float32, 'no fp32 here'",
    "raises-a-long-text": "raise RuntimeError('first line\\n' + 'x' * 100000)",
    "raises-what-cannot-be-printed": (
        "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0, '__reduce__': lambda self: 1 / 0})()"
    ),
    "exits": "os._exit(7)",
    "exits-politely": "sys.exit('enough')",
    "exits-well": "os._exit(0)",
    "loses-its-device": (  # as an illegal memory access on a GPU does
        "import moecheck.runner.worker as worker; worker.device_is_lost = lambda backend: True; "
        "raise RuntimeError('illegal access')"
    ),
    "interrupts": "raise KeyboardInterrupt",
    "segfaults": "ctypes.string_at(0)",
    "hangs": "time.sleep(100000)",
    "hangs-holding-the-lock": "ctypes.PyDLL(None).sleep(100000)",
    "hangs-ignoring-signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100000)",
    "allocates": "kept = []\n    while True: kept.append(torch.ones(1 << 26))",
    "leaves-a-bomb": "import threading; threading.Timer(0.3, os._exit, (9,)).start(); time.sleep(0.2)",
    "prints": "print('noise ' * 200_000); sys.stderr.write('more ' * 200_000)",
    "closes-its-output": "sys.stdout.close(); sys.stderr.close()",
    "changes-defaults": "torch.set_default_dtype(torch.float64); torch.set_num_threads(1)",
    "changes-directory": "os.chdir('/')",
    "forks": "pid = os.fork()\n    if pid: os.waitpid(pid, 0)",
    "recurses": "moe(hidden_states, w13, w2, topk_weights, topk_ids)",
    "needs-a-gpu": "hidden_states.cuda()",
    "declines": "import moecheck; raise moecheck.Unsupported('needs sm90')",
}
REPLACED = {
    "correct": ("", ""),
    "swapped": ("gate, up = ", "up, gate = "),
    "cached": (
        LAST,
        "    return CACHE.setdefault(hidden_states.data_ptr(), out)\n\n\nCACHE = {}\n",
    ),
}


def write_kernel(folder: Path, name: str) -> str:
    """Write the kernel of that name into the folder; returns its `--kernel` value, the file's name being `name`.py."""
    text = CORRECT
    if name in ENDINGS:
        text = text.replace(LAST, f"    {ENDINGS[name]}\n")
    elif name in BEGINNINGS:
        text = text.replace(FIRST, f"    {BEGINNINGS[name]}\n{FIRST}")
    else:
        text = text.replace(*REPLACED[name])
    path = folder / f"kernel_{name.replace('-', '_')}.py"
    path.write_text(text, encoding="utf-8")
    return f"{path}:moe"
