"""Every parser of moecheck with documents to try it on; each may refuse one in a sentence, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

from hypothesis import strategies as st

from moecheck.cases import Case, read_case
from moecheck.checks.finding import Finding, Verdict
from moecheck.cli import cli, run
from moecheck.cli.check import read_spec
from moecheck.cli.kernels import Options, _read_options
from moecheck.cli.options import parse_require, parse_tokens
from moecheck.errors import UsageError
from moecheck.evals.backends.openai_client import Client
from moecheck.evals.gsm8k.data import read_questions
from moecheck.evals.paired.journal import Journal
from moecheck.evals.report.folder import RunFolder
from moecheck.evals.tiny.config import read_config as read_model
from moecheck.history.ingest import read_run
from moecheck.models import shard_of
from moecheck.nightly.config import PARTS, read_config
from moecheck.nightly.xfail import read_xfail
from moecheck.registry import Discovery, Found
from moecheck.report.findings_file import read_findings, repair_findings
from moecheck.report.folder import ReportFolder
from moecheck.report.junit import junit_xml
from moecheck.report.markdown import markdown_summary
from moecheck.report.names import slug
from moecheck.report.results import KernelSummary, Measured, RelationTally, RunSummary, Skipped
from moecheck.runner.run import KernelRun
from moecheck.runner.target import Target
from moecheck.runner.worker import inspect_target
from moecheck.testing.dump import Dump, write_dump
from moecheck.testing.given import given
from moecheck.tuning.table import load as load_tiles
from tests.fuzz.documents import TEXTS, Document, broken, changed, encoded, json_near, toml, toml_near
from tests.testing.calls import right_outputs, small_case


@dataclass(frozen=True, slots=True, kw_only=True)
class Parser:
    """documents: what to try. read: given the path of a file that holds one; raises MoecheckError for a bad one."""

    documents: Document
    read: Callable[[Path], object]


def act(x, spec):  # type: ignore[no-untyped-def]  # a kernel that the case files name
    """Not called."""


CASE = Case(op="act_and_mul", num_tokens=3, hidden_size=4, intermediate_size=2, dtype="fp32")
CASE_FILE = {
    "kernel": "act", "id": "0123abcd", "spec_string": "tests.fuzz.parsers:act", "op": "act_and_mul", "backend": "numpy",
    "tol": 0.01, "max_mismatch": 0.5, "require": ["act=fp32"], "found_as": "x", "case": CASE.to_json(),
}  # fmt: skip
FINDING = Finding(
    kernel="k", case="c", check="case", verdict=Verdict.FAIL, message="m", numbers={"max_z": 3.0, "limit_max_z": 2.0},
    where={"token": 3}, facts={"contract": "x"}, diagnosis="d",
)  # fmt: skip
SUMMARY = RunSummary(
    command="moecheck kernels", started="2026-11-22T00:00:00+00:00", seconds=1.0, git=None, totals={"pass": 1},
    checks_per_second=1.0, skipped=(Skipped(name="s", reason="r"),),
    kernels=(
        KernelSummary(
            name="k", op="act_and_mul", backend="numpy", device="cpu", verdict=Verdict.FAIL, max_diff=1.0,
            statistics=(Measured(name="max_z", value=3.0, limit=2.0, case="c"),),
            relations=(RelationTally(name="r", held=1, broken=0),), where={"token": 1}, skip_reasons={"x": 1},
        ),
    ),
)  # fmt: skip


def command(*words: str) -> None:
    """Run a command line; a traceback, exit code 3 here, is an AssertionError with all that was printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    assert code != 3, err.getvalue()
    assert code != 2 or err.getvalue().count("\n") == 1, err.getvalue()


def read_case_again(path: Path) -> None:
    """A case that was read is written as it was, and has an id."""
    case, _ = read_case(path)
    assert case.id
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def replay(path: Path) -> None:
    """The whole command but for the processes of kernels."""
    module = sys.modules["moecheck.cli.replay"]

    def found(specs: list[str], *, op: str, backend: str | None, memory: int, jobs: int) -> Discovery:
        loaded = inspect_target(Target(spec_string=specs[0], op=op, backend=backend))
        if loaded.usage or loaded.error or loaded.skip:
            raise UsageError(str(loaded.usage or loaded.error or loaded.skip))
        target = Target(spec_string=specs[0])
        return Discovery(
            found=[Found(target=target, declaration=loaded.declarations[0], device="cpu", import_seconds=0)]
        )

    def ran(plan: Any, settings: Any, sink: Any, **rest: Any) -> KernelRun:
        limits = settings.limits
        assert all(type(number) is float for number in (limits.tol, limits.max_mismatch) if number is not None)
        sink(plan, [Finding(kernel=plan.declaration.name, case=plan.cases[0].id, check="case", verdict=Verdict.PASS)])
        return KernelRun(plan=plan)

    with patch.object(module, "discover", found), patch.object(module, "run_kernel", ran):
        command("replay", str(path))


def options_of(path: Path) -> None:
    """Options that were read are of the types that the run needs."""
    options = _read_options(path.parent)
    for name, kinds in OPTION_TYPES.items():
        value = getattr(options, name)
        assert isinstance(value, kinds), (name, value)
        assert type(value) is not bool or bool in kinds, (name, value)
    assert all(isinstance(text, str) for text in (*options.kernel, *options.require))


TEXT = (str, type(None))
OPTION_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("op", "backend", "model", "dtype", "tokens", "sanitizer"), TEXT),
    **dict.fromkeys(("sweep", "device_trials"), (bool,)),
    "tol": (float, int), "max_mismatch": (float, int, type(None)), "kernel": (tuple,), "require": (tuple,),
    "profile": (str,), "seed": (int,), "examples": (int, type(None)),
}  # fmt: skip
OPTIONS = Options(
    tol=0.01, max_mismatch=None, kernel=("a",), op=None, backend="torch", model=None, dtype="bf16", profile="quick",
    seed=3, examples=None,
)  # fmt: skip


def findings_of(path: Path) -> None:
    """Findings that were read are written again, and reported."""
    findings = read_findings(path)
    assert repair_findings(path) == findings or any("nan" in str(finding).lower() for finding in findings)
    junit_xml(SUMMARY, findings)


def summary_of(path: Path) -> None:
    """A summary that was read can be shown."""
    path.with_name("findings.jsonl").touch()
    summary = ReportFolder(path.parent).summary()
    markdown_summary(summary)
    junit_xml(summary, [])


def journal_of(path: Path) -> None:
    """What a journal holds can be used."""
    from moecheck.evals.paired.journal import _generation, _scored

    for answers in Journal(path)._known.values():
        for answer in answers:
            _scored(answer) if "logprobs" in answer else _generation(answer)


def kernel_of(path: Path) -> None:
    """A kernel's location, whatever it is, is found or refused; and any name makes a file's name."""
    spec = path.read_bytes().decode("utf-8", "surrogateescape")
    loaded = inspect_target(Target(spec_string=spec))
    assert loaded.declarations or loaded.usage or loaded.error or loaded.skip
    name = slug(spec)
    assert name not in ("", ".", "..")
    assert name.isascii()
    assert "/" not in name


def words_of(path: Path) -> None:
    """Values of options that are small languages of their own."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    with contextlib.suppress(UsageError):
        parse_require([text])
    with contextlib.suppress(UsageError):
        assert all(count > 0 for count in parse_tokens(text))
    with contextlib.suppress(UsageError):
        shard_of(text)


@cache
def _dump(op: str) -> bytes:
    case = small_case(op, dtype="fp32", num_tokens=4, num_experts=2, hidden_size=8, intermediate_size=4)
    made = given(case.inputs(), op=op, spec=case.spec)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "call.safetensors"
        write_dump(path, Dump(given=made, outputs=right_outputs(case), kernel="k", note="n"))
        return path.read_bytes()


@st.composite
def dumps_near(draw: st.DrawFn) -> bytes:
    """Captured calls with a damaged header, or any bytes damaged."""
    whole = _dump(draw(st.sampled_from(["act_and_mul", "fused_experts", "permute"])))
    if draw(st.integers(0, 3)) == 0:
        return draw(broken(whole))
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    if draw(st.booleans()):
        record = draw(changed(json.loads(header["__metadata__"]["moecheck"])))
        header["__metadata__"]["moecheck"] = json.dumps(record)
    else:
        header = draw(changed(header))
    text = encoded(header)
    return len(text).to_bytes(8, "little") + text + data


QUESTION = {"question": "2 and 2?", "answer": "4\n#### 4", "cluster": "a"}
ANSWERS = {"key": "k", "arm": "a", "answers": [
    {"text": "4", "finish": "stop", "token_ids": [1, 2], "timing": [0.1, 0.2, [0.1]]}]}  # fmt: skip
SCORES = {"key": "s", "arm": "a", "answers": [{"token_ids": [1, 2], "logprobs": [-1.0, "-Infinity"], "top1": [1, 1]}]}
PIECES = st.sampled_from(
    [
        "os",
        "json",
        "numpy",
        "moecheck.kernel",
        "no_such",
        "a.py",
        "/",
        "..",
        ":",
        ".",
        "path",
        "loads",
        "zeros",
        " ",
        "Ω",
        "\0",
    ]
)
WORDS = st.sampled_from(
    ["topk_weights", "act", "fp32", "bf16", "=", ",", "1", "16", "４", "²", "-1", "glm-4.5", "tp8", "@", "/"]
)


def spoken(pieces: st.SearchStrategy[str]) -> Document:
    """Texts of some words and of anything."""
    texts = st.lists(pieces | TEXTS, max_size=5).map("".join)
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def served(path: Path) -> None:
    """What a server may answer, streamed or not."""
    for kind in ("application/json", "text/event-stream"):
        _ask(path.read_bytes(), kind)


def _ask(body: bytes, kind: str) -> None:
    response = MagicMock(status=200, headers={"Content-Type": kind}, read=lambda: body)
    response.__enter__.return_value = response
    response.__iter__.side_effect = lambda: iter(body.splitlines(keepends=True))
    with (
        patch("urllib.request.urlopen", lambda *_, **__: response),
        patch("moecheck.evals.backends.openai_client.time.sleep", lambda _: None),
    ):
        client = Client("http://127.0.0.1:1")
        with contextlib.suppress(UsageError):
            client.models()
        with contextlib.suppress(UsageError):
            answer = client.complete({"prompt": "x"})
            assert isinstance(answer.text, str)
            assert isinstance(answer.finish, str)


MODELS = {"object": "list", "data": [{"id": "m"}]}
CHOICE = {"choices": [{"text": "4", "finish_reason": "stop", "logprobs": None}]}
EVENTS = broken(b'data: {"choices": [{"text": "4", "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
TINY = json.loads(
    (Path(__file__).parents[2] / "evals/tiny/checkpoints/tiny-qwen3-moe/config.json").read_text(encoding="utf-8")
)
E2E = {"command": "e2e", "options": {"task": "gsm8k", "limit": 3}}

NIGHT = {
    "name": "n", "seed": 3, "out": "reports", "drift": True, "xfail": "xfail.toml",
    "kernels": {"profile": "quick", "kernel": ["torch/index_add"], "examples": 2, "needs": ["torch"], "time_limit": 5},
    "bench": [{"label": "a", "model": ["glm-4.5"]}, {"label": "b"}],
    "e2e": {"limit": 5, "early_stop": True},
}  # fmt: skip
XFAIL = {
    "xfail": [
        {"kernel": "torch/*", "issue": "https://example.org/1", "expires": "2026-12-01", "check": "values"},
        {"subject": "e2e", "issue": "#7", "expires": "2026-12-01", "sometimes": True, "reason": "r"},
    ]
}


def dates(data: Any) -> str:
    """TOML has dates without quotes."""
    return re.sub(r'"(\d{4}-\d\d-\d\d)"', r"\1", toml(data))


def night_of(path: Path) -> None:
    """A night's configuration, with the options that the commands themselves check."""
    commands = {name: command for name, command in cli.commands.items() if name in PARTS}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        read_config(path, commands)


def run_of(path: Path) -> None:
    """A report folder as the history reads it."""
    path.with_name("environment.json").write_text('{"cpu": "x"}', encoding="utf-8")
    path.with_name("findings.jsonl").write_bytes(encoded(FINDING.to_json()) + b"\n")
    assert read_run(path.parent).results is not None


TILES = json.loads((Path(__file__).parents[2] / "kernels/triton/tuned_experts.json").read_text(encoding="utf-8"))
TILES["layers"] = [{**TILES["layers"][0], "tokens": dict(list(TILES["layers"][0]["tokens"].items())[:2])}]

PARSERS: dict[str, Parser] = {
    "nightly.toml": Parser(documents=toml_near(toml, NIGHT), read=night_of),
    "xfail.toml": Parser(documents=toml_near(dates, XFAIL), read=read_xfail),
    "runs, by the history": Parser(documents=json_near(SUMMARY.to_json()), read=run_of),
    "tiles of Triton kernels": Parser(documents=json_near(TILES), read=load_tiles),
    "case files": Parser(documents=json_near(CASE_FILE, CASE.to_json()), read=read_case_again),
    "case files, by moecheck replay": Parser(documents=json_near(CASE_FILE), read=replay),
    "specs as JSON": Parser(documents=json_near(CASE.spec.to_json()), read=lambda path: read_spec(str(path))),
    "options of a run": Parser(documents=json_near({"options": asdict(OPTIONS)}), read=options_of),
    "findings.jsonl": Parser(
        documents=json_near({**FINDING.to_json(), "check": "values"}, FINDING.to_json(), lines=True), read=findings_of
    ),
    "summary.json": Parser(documents=json_near(SUMMARY.to_json()), read=summary_of),
    "kernel specs": Parser(documents=spoken(PIECES), read=kernel_of),
    "values of options": Parser(documents=spoken(WORDS), read=words_of),
    "captured calls, by moecheck check": Parser(
        documents=dumps_near(), read=lambda path: command("check", str(path), "--format", "json")
    ),
    "e2e questions": Parser(documents=json_near(QUESTION, lines=True), read=read_questions),
    "e2e answers": Parser(documents=json_near(ANSWERS, SCORES, lines=True), read=journal_of),
    "e2e options": Parser(documents=json_near(E2E), read=lambda path: RunFolder.open(path.parent)),
    "e2e servers": Parser(documents=json_near(MODELS, CHOICE) | EVENTS, read=served),
    "embedded models' config.json": Parser(documents=json_near(TINY), read=lambda path: read_model(path.parent)),
}
FILES = {
    "runs, by the history": "summary.json",
    "findings.jsonl": "findings.jsonl",
    "summary.json": "summary.json",
    "options of a run": "environment.json",
    "e2e options": "environment.json",
    "embedded models' config.json": "config.json",
}
