"""junit.xml: one test suite a kernel, one test case a kernel x case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

from moecheck.checks.finding import FAILURES, Finding, Verdict
from moecheck.report.contracts import contract_words
from moecheck.report.limits import sees_words
from moecheck.report.results import KernelSummary, RunSummary
from moecheck.report.summarise import case_verdict, decisive, group
from moecheck.report.text import one_line, printable

# Those of FAILURES that are not about values: JUnit calls them errors. What neither passed nor failed is `skipped`.
_ERRORS = frozenset({Verdict.CRASH, Verdict.TIMEOUT, Verdict.ERROR})


def junit_xml(summary: RunSummary, findings: Iterable[Finding]) -> str:
    """The run as JUnit XML; characters that XML forbids are replaced."""
    groups = group(findings)
    root = ET.Element("testsuites", name="moecheck")
    for kernel in summary.kernels:
        suite = ET.SubElement(root, "testsuite", name=printable(kernel.name), timestamp=summary.started)
        _properties(suite, summary, kernel)
        for case, lines in groups.get(kernel.name, {}).items():
            _testcase(suite, kernel, case, lines)
        if not groups.get(kernel.name):
            _unrun(suite, kernel.name, kernel.message)
        _count(suite)
    for entry in summary.skipped:
        suite = ET.SubElement(root, "testsuite", name=printable(entry.name), timestamp=summary.started)
        _unrun(suite, entry.name, entry.reason)
        _count(suite)
    for attribute in ("tests", "failures", "errors", "skipped"):
        root.set(attribute, str(sum(int(suite.get(attribute, "0")) for suite in root)))
    root.set("time", f"{summary.seconds:.3f}")
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _properties(suite: ET.Element, summary: RunSummary, kernel: KernelSummary) -> None:
    properties = ET.SubElement(suite, "properties")
    values = {
        "command": summary.command,
        "seed": summary.seed,
        "op": kernel.op,
        "backend": kernel.backend,
        "device": kernel.device,
        "contract": contract_words(kernel),
        "sees": sees_words(kernel),
    }
    for name, value in values.items():
        if value is None:
            continue
        ET.SubElement(properties, "property", name=name, value=printable(str(value)))


def _testcase(suite: ET.Element, kernel: KernelSummary, case: str, lines: Sequence[Finding]) -> None:
    closing, shown = case_verdict(lines), decisive(lines)
    node = ET.SubElement(
        suite, "testcase", classname=printable(kernel.name), name=printable(case), time=f"{closing.seconds:.6f}"
    )
    if closing.verdict == Verdict.PASS:
        return
    failed = closing.verdict in FAILURES
    tag = "error" if closing.verdict in _ERRORS else "failure" if failed else "skipped"
    again = kernel.reproduce if case == kernel.worst_case else f"Plainest failure of this kernel: {kernel.reproduce}"
    looks = kernel.diagnosis if case == kernel.worst_case else next((f.diagnosis for f in lines if f.diagnosis), None)
    message = shown.message or closing.verdict.value
    outcome = ET.SubElement(node, tag, message=one_line(message))
    if failed:
        outcome.set("type", f"{closing.verdict.value}: {shown.check}")
        outcome.text = printable("\n".join(filter(None, (message, looks, again))))


def _unrun(suite: ET.Element, name: str, reason: str) -> None:
    node = ET.SubElement(suite, "testcase", classname=printable(name), name="all cases", time="0")
    ET.SubElement(node, "skipped", message=one_line(reason))


def _count(suite: ET.Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("time", f"{sum(float(node.get('time', '0')) for node in suite.findall('testcase')):.3f}")
