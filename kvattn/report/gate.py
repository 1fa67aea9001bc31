"""A gate's evaluation as one HTML page that needs no network, and as JSON beside the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kvattn.errors import KvattnError
from kvattn.files import write_output
from kvattn.plots.gates import gate_cost, risk_coverage
from kvattn.report.page import (
    DASH,
    Column,
    Page,
    Row,
    amount,
    count,
    ends,
    interval,
    macros,
    paragraph,
    percent,
    records,
    share,
    table,
    text,
)

JSON_NAME, HTML_NAME = "gate-report.json", "gate-report.html"

GATE: Column = ("gate", lambda r: text(r["gate"]))
PUBLISHED = (
    ("classifier of the judge study (arXiv 2601.08343)", "AUC 0.82, AP 0.77; features not published"),
    (
        "DG-JKR, naive and KVCOMM must agree (HumanEval, Llama-3.2-3B)",
        "JCR 74.38% against 66.25% for naive and 68.75% for a random gate at the same rate",
    ),
)


def write(report: dict[str, Any], folder: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Writes the page (default: in the run's folder) and the JSON beside it, and returns both paths."""
    page = out if out is not None else folder / HTML_NAME
    data = page.with_suffix(".json") if out is not None else folder / JSON_NAME
    write_output(data, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    return write_output(page, render(report).encode("utf-8")), data


def read(path: Path) -> dict[str, Any]:
    """A report that `write` wrote. Raises KvattnError for a file that cannot be read or is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KvattnError(f"{path} cannot be read ({error}); make it again: kvattn gate report RUN") from None
    if not isinstance(report, dict) or report.get("format") != "kvattn-gate-report-1":
        raise KvattnError(f"{path} is no gate report of this kvattn; make it again: kvattn gate report RUN")
    try:
        _collect(report)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise KvattnError(f"{path} is damaged ({error!r}); make it again: kvattn gate report RUN") from None
    return report


def gate_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a gate: its AUC and AP with intervals, and what it was granted on."""
    rows = []
    for kind, g in report["gates"].items():
        c = g["certificate"] or {}
        row = {"gate": kind, **{k: g["discrimination"][k] for k in ("auc", "auc_low", "auc_high", "ap", "ap_chance")}}
        rows.append(row | {k: c.get(k) for k in ("accepted", "flips", "bound", "questions")})
    return rows


def render(report: dict[str, Any]) -> str:
    """The page."""
    page, lead = _collect(report)
    return page.render(lead)


def _collect(report: dict[str, Any]) -> tuple[Page, Markup]:
    """Sections and figures, and what stands over them; every key of a report is read."""
    recipe, model = report["recipe"], (report["judged"].get("model") or {})
    name = str(model.get("name") or model.get("id") or "a judge")
    page = Page(f"{name}: when is reuse safe?")
    _guarantee(report, page)
    _discrimination(report, page)
    _curves(report, page)
    _ablation(report, page)
    _transfer(report, page)
    _features(report, page)
    level, head, sentence = verdict(report)
    title = [text(name, 120), ": when may the decision of ", text(recipe["reuse"], 60), " be taken?"]
    counts = f"{report['questions']} questions, {report['rows']} judgements; run "
    under, boxes = [counts, text(report["run"], 80)], [macros().box(level, head, [text(sentence)])]
    return page, macros().lead(title, under, boxes)


def verdict(report: dict[str, Any]) -> tuple[str, str, str]:
    """Whether the first gate is granted ("good", "bad" or "warn"), a headline and a sentence."""
    entry = next(iter(report["gates"].values()))
    promise = report["promise"]
    asked = f"at most {percent(promise['risk'], 0)} flips among the accepted, {percent(promise['confidence'], 0)} sure"
    if report["does_not_read"]:
        return (
            "warn",
            "The judge does not read its candidates.",
            "So says its content test. What a gate accepts here is the agreement of two slot habits.",
        )
    if entry["certificate"] is None:
        return "bad", f"No gate is granted: {asked}.", f"{entry['refused'].capitalize()}."
    c = entry["certificate"]
    return (
        "good",
        f"A gate is granted: {asked}.",
        f"Of {c['questions']} calibration questions, one order each, it accepts {c['accepted']}, and {c['flips']} of "
        f"those flip: with {percent(c['confidence'], 0)} confidence at most {percent(c['bound'])} do.",
    )


def _guarantee(report: dict[str, Any], page: Page) -> None:
    rows = [{"gate": k, "refused": g["refused"], **(g["certificate"] or {})} for k, g in report["gates"].items()]
    columns: list[Column] = [GATE, _of("accepted", "accepted", "questions"), count("flips among them", "flips")]
    columns += [share("bound of the risk", "bound"), amount("threshold", "threshold", 3)]
    columns = [(head, _if("threshold", cell) if head != "gate" else cell) for head, cell in columns]
    columns.append(("verdict", lambda r: "granted" if r.get("refused") is None else text(r["refused"], 300)))
    page.section(
        "guarantee",
        "The guarantee",
        paragraph(
            "Scores are fitted on one half of the questions and thresholds tested on the other, one order a question: "
            "the exact binomial bound (Clopper and Pearson) with fixed-sequence testing (Learn then Test, arXiv "
            "2110.01052; selection with guaranteed risk, arXiv 1705.08500). It speaks of new questions from the same "
            "source, judged in the same way, and says nothing about accuracy. The promise is kept for all "
            "gates together: each of k is tested with a k-th of the probability of breaking it; take the best of them."
        ),
        records(rows, *columns, words=(0, 5)),
    )


def _of(head: str, part: str, whole: str) -> Column:
    return head, lambda r: f"{r[part]} of {r[whole]}"


def _if(name: str, cell: Callable[[Row], str], instead: str = DASH) -> Callable[[Row], str]:
    """The cell where the record has the field, else `instead`."""
    return lambda r: cell(r) if r.get(name) is not None else instead


def _discrimination(report: dict[str, Any], page: Page) -> None:
    rows = [{"gate": kind, **g["discrimination"]} for kind, g in report["gates"].items()]
    columns = [GATE, amount("AUC", "auc"), ends("auc_", as_percent=False), amount("AP", "ap")]
    columns += [ends("ap_", as_percent=False), amount("AP by chance", "ap_chance")]
    published = [[text(a), text(b)] for a, b in PUBLISHED]
    page.section(
        "discrimination",
        "Telling safe from unsafe",
        paragraph(
            f"Out of fold by question, {report['questions']} questions, {report['rows']} judgements; intervals "
            "resample questions. Chance is 0.5 for the AUC, and the share of safe ones for the average precision (AP)."
        ),
        records(rows, *columns),
        paragraph("Published, on other models and data:", kind="soft"),
        table(["what", "numbers"], published, words=(0, 1)),
    )


def _curves(report: dict[str, Any], page: Page) -> None:
    curves = {kind: g["curve"] for kind, g in report["gates"].items() if kind != "dg-jkr"}
    always = report["always_reuse"]
    said = paragraph(
        f"Accepting everything is always-reuse: JCR {percent(always['jcr'])} "
        f"({interval(always['jcr_low'], always['jcr_high'])}) at {percent(always['cost'])} of dense's token-layers, "
        "the passes that are looked at included. A gate saves something only left of 100%."
    )
    parts = [
        said,
        page.figure(risk_coverage(curves, report["promise"]["risk"]), "Risk against coverage"),
        page.figure(gate_cost(curves), "JCR against cost"),
    ]
    rule = next((g["rule"] for g in report["gates"].values() if "rule" in g), None)
    if rule is not None:
        parts.append(
            paragraph(
                f"DG-JKR accepts where both passes agree: {rule['accepted']} of {rule['rows']}, with {rule['flips']} "
                f"flips. JCR {percent(rule['jcr'])} ({interval(rule['jcr_low'], rule['jcr_high'])}), random gate at "
                f"the same rate {percent(rule['random_jcr'])}, cost {percent(rule['cost'])} of always-dense."
            )
        )
    page.section("curves", "Risk, coverage, cost", *parts)


def _ablation(report: dict[str, Any], page: Page) -> None:
    kind, first = next(iter(report["gates"].items()))
    columns: list[Column] = [("family", lambda a: text(a["family"])), amount("AUC alone", "alone")]
    columns += [amount("AUC without", "without"), ("change", lambda a: f"{a['change']:+.3f}")]
    columns += [("95%", lambda a: f"{a['change_low']:+.3f} to {a['change_high']:+.3f}")]
    columns += [share("its passes, of dense", "cost")]
    if first.get("ablation"):
        page.section("ablation", f"Which features matter ({kind})", records(first["ablation"], *columns))


def _transfer(report: dict[str, Any], page: Page) -> None:
    rows = [{**t, **(t["gate"] or {})} for t in report["transfer"]]
    accepted = _of("accepted", "accepted", "rows")
    columns: list[Column] = [("run", lambda t: text(t["run"], 80)), amount("AUC", "auc")]
    columns += [ends("auc_", as_percent=False), ("accepted", _if("gate", accepted[1], "none granted"))]
    granted = (count("flips", "flips"), share("95% bound of the risk", "risk_bound"), share("cost, of dense", "cost"))
    columns += [(head, _if("gate", cell)) for head, cell in granted]
    if rows:
        page.section(
            "transfer",
            "On other runs",
            paragraph(
                "Fitted here, used there, one order a question. The guarantee covers runs of the same source alone."
            ),
            records(rows, *columns),
        )


def _features(report: dict[str, Any], page: Page) -> None:
    rows = [[text(k), percent(v)] for k, v in report["costs"].items()]
    page.section(
        "features",
        "What is looked at",
        paragraph("Token-layers over dense's that each family needs beyond the reuse pass, which is the last row."),
        table(["family", "cost"], rows),
        paragraph(text(", ".join(report["features"]))),
    )
