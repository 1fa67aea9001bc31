"""Verdict drift for machines and pull requests: JUnit XML, and Markdown."""

from __future__ import annotations

from xml.etree import ElementTree

from kvattn.report.text_table import inert
from kvattn.study.drift import Drift
from kvattn.text import between, one_line, percent


def junit(found: Drift) -> bytes:
    """One test case as JUnit XML, which forges and CI servers read; a failure holds the two lines."""
    suite = ElementTree.Element("testsuite", name="kvattn check", tests="1", failures=str(int(not found.passed)))
    name = one_line(f"{found.method} flips no more than {percent(found.max_flips)} beyond the floor")
    case = ElementTree.SubElement(suite, "testcase", classname="kvattn.check", name=name)
    text = one_line(found.sentence) + "\n" + one_line(found.why)
    if found.passed:
        ElementTree.SubElement(case, "system-out").text = text
    else:
        ElementTree.SubElement(case, "failure", message=one_line(found.sentence)).text = text
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def markdown(found: Drift) -> str:
    """A heading, a table of one row and the reason, for a pull request."""
    heads = ("method", "verdicts", "flips", "under the null edit", "beyond it", "allowed", "exact p")
    x = found.excess
    row = (
        found.method, f"{found.pairs} on {found.questions} questions", percent(found.flips),
        percent(found.floor_flips) if found.floor else "not run",
        f"{percent(x.value)} ({between(x.low, x.high, 1, True, 'unknown')})", percent(found.max_flips),
        found.p_text.removeprefix("= "),
    )  # fmt: skip
    table = "\n".join("| " + " | ".join(map(inert, cells)) + " |" for cells in (heads, ("---",) * len(heads), row))
    said = "Verdicts hold" if found.passed else "Verdicts drift"
    return f"### {said}\n\n{table}\n\n{inert(found.why)}\n"
