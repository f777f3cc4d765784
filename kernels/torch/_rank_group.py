"""Ranks of torch.distributed for one kernel: this process is rank 0, it starts the others once and they end with it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from multiprocessing import Pipe
from typing import Any

import moecheck
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

MOST = 4
TIMEOUT = timedelta(seconds=120)  # of a collective; the harness has a shorter one for a whole call
_MODULE = "moecheck.kernels.torch._rank_process"


class RankGroup:
    """Rank 0 and its helpers. device: `cpu` (gloo) or `cuda` (NCCL, one GPU for each rank).

    groups: the process group of the first n ranks, by n.
    """

    def __init__(self, size: int, device: str) -> None:
        self.size = size
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        self._helpers = [_Helper(rank, size, device, store.port) for rank in range(1, size)]
        self.groups = join(0, size, device, store)

    def tell(self, rank: int, message: Any) -> None:
        """Hand a message to a rank other than 0."""
        self._helpers[rank - 1].pipe.send(message)

    def close(self) -> None:
        """End the helpers, also those that wait for a message of another rank."""
        for helper in self._helpers:
            helper.end()
        if dist.is_initialized():
            dist.destroy_process_group()


class _Helper:
    """Another rank's process. It ends when the leash's other end, which this process holds, is closed."""

    def __init__(self, rank: int, size: int, device: str, port: int) -> None:
        self.pipe, theirs = Pipe()
        leash, self._hand = Pipe(duplex=False)
        numbers = (rank, size, device, port, theirs.fileno(), leash.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, *map(str, numbers)],
            pass_fds=(theirs.fileno(), leash.fileno()),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        leash.close()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()
        self._hand.close()


def join(rank: int, size: int, device: str, store: TCPStore) -> dict[int, dist.ProcessGroup]:
    """Become a rank: the process group of the first n ranks for each n; called by all ranks."""
    if device == "cuda":
        torch.cuda.set_device(rank)
        # NVLink multicast can put a host's GPUs out of service, and needs no test here.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return {count: dist.new_group(list(range(count))) for count in range(1, size + 1)}


_group: RankGroup | None = None


def rank_group(num_ranks: int, device: str) -> RankGroup:
    """The ranks of this process, started by its first call. Raises Unsupported where there are too few GPUs."""
    global _group  # one for the life of the process
    size = min(MOST, torch.cuda.device_count()) if device == "cuda" else MOST
    if num_ranks > size:
        raise moecheck.Unsupported(
            f"needs {num_ranks} GPUs, has {size}" if device == "cuda" else f"starts {MOST} ranks at most"
        )
    if _group is None:
        _group = RankGroup(size, device)
    return _group


def give_up() -> None:
    """End all helpers, as after a call that failed half-way; the next call starts others."""
    global _group
    if _group is not None:
        _group.close()
        _group = None


__all__ = ["MOST", "TIMEOUT", "RankGroup", "give_up", "join", "rank_group"]
