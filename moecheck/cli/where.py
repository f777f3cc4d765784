"""Where the kernels of a command run: in processes of this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from moecheck.cli.options import cores
from moecheck.errors import UsageError
from moecheck.registry import Discovery, discover
from moecheck.runner.cluster import Cluster, discover_there, run_there
from moecheck.runner.plan import Plan
from moecheck.runner.run import KernelRun, Settings, Sink, run_all

F = TypeVar("F", bound=Callable[..., Any])


def ray_options(command: F) -> F:
    """Add --ray and --ray-cpus to a command."""
    cpus = click.option(
        "--ray-cpus", type=click.IntRange(1), metavar="N", help="Cores of one task on the cluster.  [1]"
    )
    ray = click.option(
        "--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, local, HOST:PORT, ray://HOST:PORT."
    )
    return ray(cpus(command))


@contextmanager
def cluster_of(ray: str | None, cpus: int | None) -> Iterator[Cluster | None]:
    """The cluster that was asked for, or None for this machine."""
    if ray is None:
        if cpus is not None:
            raise UsageError("--ray-cpus is of tasks on a cluster; give --ray ADDRESS.")
        yield None
        return
    from moecheck.runner.ray_cluster import RayCluster

    with RayCluster(ray, cpus=cpus or 1) as cluster:
        yield cluster


def find_kernels(
    cluster: Cluster | None, specs: Sequence[str], *, op: str | None, backend: str | None, memory: int
) -> Discovery:
    """The kernels that can run there."""
    if cluster is None:
        return discover(specs, op=op, backend=backend, memory=memory, jobs=min(cores(), 8))
    return discover_there(specs, op=op, backend=backend, cluster=cluster)


def run_plans(
    cluster: Cluster | None, plans: list[Plan], settings: Settings, sink: Sink, *, done: set[tuple[str, str]]
) -> list[KernelRun]:
    """Run every plan there."""
    if cluster is None:
        return run_all(plans, settings, sink, done=done)
    return run_there(plans, settings, sink, done=done, cluster=cluster)
