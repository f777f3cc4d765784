"""One command of a night, in a process that ends with it: python -m moecheck.nightly.child DESCRIPTOR WORD..."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from moecheck.runner.leash import bind


def main(words: list[str]) -> int:
    """Bind to the night by the reading end of its pipe, and run the command."""
    bind(Connection(int(words[0]), writable=False))
    from moecheck.cli import run  # takes seconds, in which the night may be killed

    return run(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
