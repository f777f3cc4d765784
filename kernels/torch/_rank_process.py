"""The program of a rank other than 0: it joins the group, and does what rank 0 asks until it is killed."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

import torch
from moecheck.runner.leash import bind
from torch._C._distributed_c10d import TCPStore

from ._rank_group import TIMEOUT, join
from .expert_parallel import Request, receive_and_compute


def main(rank: int, size: int, device: str, port: int, pipe: int, leash: int) -> None:
    """Arguments as the helper's command line has them; pipe and leash: inherited file descriptors."""
    bind(Connection(leash, writable=False))
    requests = Connection(pipe)
    torch.set_num_threads(1)
    groups = join(rank, size, device, TCPStore("127.0.0.1", port, is_master=False, timeout=TIMEOUT))
    while True:
        try:
            request: Request = requests.recv()
        except EOFError:  # rank 0 has ended
            return
        receive_and_compute(request, device=device, group=groups[request.num_ranks])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
