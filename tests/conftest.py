"""Which tests share a process where several run at a time (`pytest -n 2 --dist loadgroup`, as `make test` does)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file run in one process, since they share its fixtures; a mark `xdist_group` joins files.

    The groups: `user kernels` share one long run; `alone` start whole runs, measure time or need much memory, and do so
    one after another.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
