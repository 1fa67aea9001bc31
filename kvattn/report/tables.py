"""A comparison of runs as text: tables of cells, and notes."""

from __future__ import annotations

from typing import Any

from kvattn.report.text_table import TextTable, markdown_cell
from kvattn.study.run_folder.side_by_side import Comparison
from kvattn.text import interval, missing, number


def tables(c: Comparison) -> list[TextTable]:
    """Runs, content tests, consistency, accuracy, and the change of slot mass where a run holds some."""
    return [_runs(c), _content(c), _consistency(c), _accuracy(c), *([_mass(c)] if len(c.mass) else [])]


def notes(c: Comparison) -> list[str]:
    """What the tables do not say: judges whose JCR means little, missing floors, runs without slot mass."""
    lines = []
    for r in c.runs.to_dict("records"):
        if r["content"] != "reads":
            how = "had no content test" if r["content"] == "not made" else f"content test: {r['content']}"
            lines.append(f"{r['run']}: {how}, so nothing shows that it has a consistency to lose.")
    for run, part in c.consistency.groupby("run", sort=False):
        reasons = sorted({n for n in part["note"] if n and "floor itself" not in n})
        lines += [f"{run}: no corrected score: {reason}." for reason in reasons]
    lines += [
        f"{run}: no slot mass: the run was judged without it, or it was left out in a merge." for run in c.without
    ]
    if len(c.mass):
        queries = c.mass.groupby("run", sort=False)["query"].first()
        same = queries.nunique() == 1
        rows = queries.iloc[0] if same else "; ".join(f"{run}: {query}" for run, query in queries.items())
        differ = "" if same else ". These are rows of different queries: compare shapes, not sizes"
        lines.append(f"Slot mass is that of the query token {rows}{differ}.")
    return lines


def markdown(c: Comparison) -> str:
    """The tables and notes as GitHub-flavoured Markdown."""
    return "\n\n".join([*(t.to_markdown() for t in tables(c)), *(f"- {markdown_cell(n)}" for n in notes(c))]) + "\n"


def _runs(c: Comparison) -> TextTable:
    rows = []
    for r in c.runs.to_dict("records"):
        counts = [
            _count(r["layers"]),
            ", ".join(map(str, r["candidates"])),
            _count(r["questions"]),
            _count(r["orders"]),
        ]
        rows.append([r["run"], r["model"], str(r["readout"] or ""), *counts])
    heads = ["run", "model", "readout", "layers", "candidates", "questions", "orders"]
    return TextTable("runs", heads, rows, 3)


def _content(c: Comparison) -> TextTable:
    rows = []
    for r in c.runs.to_dict("records"):
        tested = []
        for kind in ("agreement", "accuracy"):
            value, low, high, null, n = (r[f"content_{kind}{end}"] for end in ("", "_low", "_high", "_null", "_n"))
            tested += [interval(value, low, high), number(null), _count(n)]
        rows.append([r["run"], r["content"], *tested[:3], r["content_quality"], *tested[3:]])
    title = f"content test of held-out questions ({c.runs['choices'].iloc[0]} choices)"
    heads = ["run", "reads", "same pick", "chance", "n", "for quality", "right pick", "chance", "n"]
    return TextTable(title, heads, rows, 2)


def _consistency(c: Comparison) -> TextTable:
    rows = [
        [
            r["run"],
            r["method"],
            interval(r["jcr"], r["low"], r["high"]),
            number(r["chance"]),
            *(
                ["locked", "locked"]
                if r["locked"]
                else [interval(r[k], r[f"{k}_low"], r[f"{k}_high"]) for k in ("kappa", "corrected")]
            ),
            _count(r["pairs"]),
            _count(r["questions"]),
        ]
        for r in c.consistency.to_dict("records")
        if not missing(r["jcr"])
    ]
    heads = ["run", "method", "JCR", "chance", "kappa", "corrected", "pairs", "questions"]
    return TextTable("consistency with dense, (95 %)", heads, rows, 2)


def _accuracy(c: Comparison) -> TextTable:
    rows = [
        [
            r["run"],
            r["method"],
            interval(r["accuracy"], r["accuracy_low"], r["accuracy_high"]),
            number(r["random"]),
            _count(r["judgements"]),
            number(r["token_layers"]),
        ]
        for r in c.consistency.to_dict("records")
    ]
    heads = ["run", "method", "accuracy", "at random", "judgements", "token-layers"]
    return TextTable("accuracy, (95 %), and cost as a share of dense's", heads, rows, 2)


def _mass(c: Comparison) -> TextTable:
    depths = sorted(set(zip(c.mass["from_depth"], c.mass["to_depth"], strict=True)))
    rows = []
    for (run, method, slot), part in c.mass.groupby(["run", "method", "slot"], sort=False):
        cells = {
            (r["from_depth"], r["to_depth"]): interval(r["factor"], r["factor_low"], r["factor_high"])
            for r in part.to_dict("records")
        }
        n = f"{_count(part['pairs'].iloc[0])}/{_count(part['questions'].iloc[0])}"
        rows.append([str(run), str(method), str(slot), *(cells.get(d, "") for d in depths), n])
    bands = [f"{a:.0%}-{b:.0%}" for a, b in depths]
    title = "slot mass as a factor of dense's, (95 %), by relative depth of the layers; n: pairs/questions"
    return TextTable(title, ["run", "method", "slot", *bands, "n"], rows, 2)


def _count(value: Any) -> str:
    return "" if missing(value) else str(int(value))
