"""`moecheck kernels --ray` on a cluster of two machines, both of them this one; one is killed in the middle."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moecheck.checks.finding import Finding
from moecheck.report.findings_file import read_findings
from moecheck.report.strict_json import dumps
from moecheck.runner.ray_cluster import resources
from tests.cli.command import QUICK, moecheck, start
from tests.cli.processes import MARK, marked, wait_until

try:
    import ray.cluster_utils
except ModuleNotFoundError:
    Cluster: Any = None
else:
    Cluster = ray.cluster_utils.Cluster

needs_ray = pytest.mark.skipif(Cluster is None, reason="needs ray: pip install 'moecheck[ray]'")

# Says of each call in which process and with which GPUs it runs; slow enough that a kernel is met in its middle.
KERNEL = """\
import os
import time

def shuffle(x, row_map):
    with open({log!r} + __name__, "a") as file:
        file.write(f"{{os.getpid()}} {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
    time.sleep(0.1)
    return x[row_map - {offset}]
"""


@pytest.mark.parametrize(
    ("address", "words"),
    [
        pytest.param("127.0.0.1:1", "nothing answers there", id="nobody there"),
        pytest.param("ray://127.0.0.1:1", "nothing answers there", id="no client server"),
        pytest.param("127.0.0.1:port", "must be auto, local, HOST:PORT or ray://HOST:PORT", id="no port"),
        pytest.param(":1", "must be auto, local, HOST:PORT or ray://HOST:PORT", id="no host"),
        pytest.param("no such host.invalid:6379", "nothing answers there", id="no such host"),
        pytest.param("nonsense", "Invalid address format", id="no address"),
        pytest.param("auto", "Could not find any running Ray instance", id="no cluster here"),
    ],
)
@needs_ray
def test_a_cluster_that_is_not_there(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = moecheck("kernels", "--ray", address, "--kernel", "torch/index_add")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert words in result.err


def test_options_that_contradict_a_cluster() -> None:
    assert "give --ray ADDRESS" in moecheck("kernels", "--ray-cpus", "2").err
    assert "leave out --ray" in moecheck("kernels", "--ray", "auto", "--sanitizer", "memcheck").err


def test_a_process_that_had_a_gpu_takes_no_second_task() -> None:
    assert resources(2, gpu=True)["max_calls"] == resources(2, gpu=True)["num_gpus"] == 1
    assert not {"num_gpus", "max_calls"} & resources(2, gpu=False).keys()


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


@pytest.fixture
def cluster(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that takes no task."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    own = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
    yield own
    own.shutdown()
    for process in marked(mark):  # those that a killed machine left
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


MEMORY = {"object_store_memory": 80 << 20}


def comparable(findings: list[Finding]) -> Counter[str]:
    return Counter(dumps({**finding.to_json(), "seconds": 0}) for finding in findings)


@needs_ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, of processes and sockets that the killed machine had
@pytest.mark.xdist_group("alone")
def test_a_machine_that_is_killed_in_the_middle_loses_and_doubles_nothing(cluster: Any, tmp_path: Path) -> None:
    _, second = (cluster.add_node(num_cpus=1, num_gpus=1, **MEMORY) for _ in range(2))
    kernels = []
    for name, offset in (("right", 0), ("wrong", 1)):
        path = tmp_path / f"{name}.py"
        path.write_text(KERNEL.format(log=f"{tmp_path}/calls-", offset=offset), encoding="utf-8")
        kernels += ["--kernel", f"{name}.py:shuffle"]  # found there by the folder that the run is started in
    words = ("kernels", *QUICK, "--op", "shuffle_rows", "--backend", "numpy", *kernels)

    def calls() -> list[list[str]]:
        return [path.read_text(encoding="utf-8").splitlines() for path in tmp_path.glob("calls-*")]

    process = start(*words, "--ray", cluster.address, "--out", "spread", cwd=tmp_path)
    assert wait_until(lambda: min(map(len, calls()), default=0) >= 3 and len(calls()) == 2, seconds=240), (
        process.poll(),
        calls(),
    )
    cluster.remove_node(second, allow_graceful=False)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, err + out
    spread = calls()
    for path in tmp_path.glob("calls-*"):
        path.unlink()

    assert start(*words, "--out", "local", cwd=tmp_path).wait(timeout=300) == 1
    local = calls()
    assert sum(map(len, spread)) > sum(map(len, local)), "the lost kernel did not begin again"
    there, here = (read_findings(tmp_path / out / "latest" / "findings.jsonl") for out in ("spread", "local"))
    assert comparable(there) == comparable(here)
    lines = (tmp_path / "spread" / "latest" / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(there)  # nothing was written twice
