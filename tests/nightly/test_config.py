"""nightly.toml: what it may say, and one sentence for whatever is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from moecheck.cli.nightly import COMMANDS
from moecheck.errors import UsageError
from moecheck.nightly.config import Config, read_config

ROOT = Path(__file__).parents[2]


def read(text: str, folder: Path) -> Config:
    path = folder / "nightly.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return read_config(path, COMMANDS)


def test_the_example_is_read() -> None:
    config = read_config(ROOT / "nightly.toml", COMMANDS)
    assert {part.command for part in config.parts} == {"kernels", "mutants", "e2e", "bench"}
    assert config.seed is None
    assert config.xfail == ROOT / "xfail.toml"


def test_options_become_words(tmp_path: Path) -> None:
    config = read(
        """
        seed = 7
        [kernels]
        kernel = ["a.py:f", "b"]
        tol = 0.01
        device_trials = true
        sweep = false
        profile = "quick"
        needs = "cuda"
        [[e2e]]
        label = "one"
        model = "tiny"
        seed = 3
        time_limit = 5
        required = true
        [mutants]
        """,
        tmp_path,
    )
    kernels, mutants, e2e = config.parts
    assert kernels.arguments == (
        *("--kernel", "a.py:f", "--kernel", "b", "--tol", "0.01", "--device-trials", "--profile", "quick"),
    )
    assert (kernels.label, kernels.seeded, kernels.needs) == ("kernels", True, ("cuda",))
    assert (mutants.seeded, e2e.seeded, e2e.model, e2e.required) == (False, False, "tiny", True)
    assert (config.name, config.seed, config.out) == ("nightly", 7, tmp_path / "reports")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to run"),
        ("[kernels", "no TOML"),
        ("[kernel]", "Did you mean 'kernels'"),
        ("kernels = 3", r"must be a table, \[kernels\]"),
        ("kernels = [3]", "must be a table"),
        ("[kernels]\nprofil = 'quick'", "Did you mean 'profile'"),
        ("[kernels]\nout = 'x'", "Unknown key of"),
        ("[kernels]\nprofile = ['quick']", "one value, not a list"),
        ("[kernels]\nkernel = [true]", "must be a text or a number"),
        ("[kernels]\ntol = 'wide'", "--tol"),
        ("[kernels]\ntimeout = -1", "above 0"),
        ("[kernels]\nsweep = 1", "true or false"),
        ("[kernels]\nlabel = '../up'", "names a folder"),
        ("[kernels]\nlabel = ''", "names a folder"),
        ("[kernels]\nneeds = 3", "needs of"),
        ("[kernels]\ntime_limit = 0", "time_limit"),
        ("[kernels]\nrequired = 'yes'", "true or false"),
        ("[[kernels]]\n[[kernels]]", "Two parts are called 'kernels'"),
        ("seed = 'today'\n[kernels]", "seed must be"),
        ("seed = true\n[kernels]", "seed must be"),
        ("seed = 99999999999999999999\n[kernels]", "seed must be"),
        ("seed = -1\n[kernels]", "seed must be"),
        ("[kernels]\ntime_limit = inf", "time_limit"),
        ('[kernels]\nkernel = ["a\\u0000b"]', "must be a text"),
        (f"name = {'[' * 100_000}", "nested too deeply"),
        ("name = 3\n[kernels]", "name must be a text"),
        ("drift = 3\n[kernels]", "drift must be true or false"),
        ('out = "a\\u0000b"\n[kernels]', "out must be a text"),
        ("\ud800", "no TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read(text, tmp_path)
    assert "nightly.toml" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        read_config(tmp_path / "none.toml", COMMANDS)
