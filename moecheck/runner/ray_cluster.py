"""A Ray cluster as the place where tasks run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from moecheck.errors import UsageError
from moecheck.runner.cluster import TaskLost

ATTEMPTS = 4  # of a task whose process or machine is lost
CONNECT_SECONDS = 5.0


class RayCluster:
    """A connection to a running cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`; `local` starts one for the run.

    cpus: cores of one task, which must be on one machine. Raises UsageError where Ray is not installed, nothing
    answers, or no machine has so many cores.
    """

    def __init__(self, address: str, *, cpus: int) -> None:
        self.cpus = cpus
        self._ray = _connected(address)
        try:
            machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self.machines = [{name: most.get(name, 0.0) for name in ("CPU", "GPU")} for most in machines]
            largest = max((machine["CPU"] for machine in self.machines), default=0.0)
            if largest < cpus:
                raise UsageError(
                    f"--ray-cpus {cpus}: no machine of the cluster {address} has so many; the largest has {largest:g}."
                )
        except BaseException:
            self.close()
            raise

    @property
    def has_gpu(self) -> bool:
        return any(machine["GPU"] >= 1 and machine["CPU"] >= self.cpus for machine in self.machines)

    def submit(self, function: Callable[..., Any], /, *args: Any, gpu: bool = False) -> Future[Any]:
        """Call a function on a machine of the cluster; see `moecheck.runner.cluster.Cluster`."""
        remote = self._ray.remote(**resources(self.cpus, gpu=gpu))(function)
        answer: Future[Any] = Future()
        remote.remote(*args).future().add_done_callback(lambda done: _pass_on(done, answer))
        return answer

    def close(self) -> None:
        """Leave the cluster; tasks that still run there are ended, and the processes of their kernels with them."""
        self._ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resources(cpus: int, *, gpu: bool) -> dict[str, Any]:
    """Ray's options of one task.

    A process that had a GPU takes no second task: its workers would still see the first one's.
    """
    options = {"num_cpus": cpus, "max_retries": ATTEMPTS - 1, "retry_exceptions": False}
    return options | ({"num_gpus": 1, "max_calls": 1} if gpu else {})


def _connected(address: str) -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(f"--ray needs {error.name}: pip install 'moecheck[ray]'.") from error
    _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that this run starts: it tells nobody
    dashboard = False if address == "local" else None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--ray {address}: {' '.join(str(error).split())}") from error
    return ray


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes, and then end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    if not (port.isdecimal() and 0 < int(port) < 1 << 16 and host):
        raise UsageError(f"--ray {address} must be auto, local, HOST:PORT or ray://HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--ray {address}: nothing answers there ({error}).") from error


def _pass_on(done: Future[Any], answer: Future[Any]) -> None:
    """The result or exception of Ray's future, with exceptions as the function raised them."""
    from ray.exceptions import RayError, RayTaskError

    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    elif isinstance(error, RayTaskError):
        answer.set_exception(error.cause)
    elif isinstance(error, RayError):
        words = str(error).strip().partition("\n")[0]
        answer.set_exception(TaskLost(f"its process or machine was lost {ATTEMPTS} times, the last time so: {words}"))
    else:
        answer.set_exception(error)
