"""A comparison of runs as text: tables of cells, and notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvattn.report.text_table import TextTable, markdown_cell
from kvattn.stats.graded import KINDS
from kvattn.study.run_folder.side_by_side import Comparison
from kvattn.text import interval, missing, number


def tables(c: Comparison, short: bool = False) -> list[TextTable]:
    """Runs, content tests, consistency, every measure, accuracy, and the change of slot mass where a run holds some."""
    parts = (
        []
        if c.measures.empty
        else [(run, measured(part, short)) for run, part in c.measures.groupby("run", sort=False)]
    )
    beside = [
        TextTable(t.title, ["run", *t.heads], [[str(run), *row] for run, ts in parts for row in ts[i].rows], 2)
        for i, t in enumerate(parts[0][1] if parts else [])
    ]
    return [_runs(c), _content(c), _consistency(c), *beside, _accuracy(c), *([_mass(c)] if len(c.mass) else [])]


def measured(table: Any, short: bool = False) -> list[TextTable]:
    """The table of `kvattn.stats.measures` as three: shift and content, agreement beside chance, scores and ranks.

    short: with the columns alone that fit a terminal
    """
    of_kinds = {name for names in KINDS.values() for name in names}
    unknown = {name for name in of_kinds if table[name].isna().all()}  # another kind's
    chosen = {
        t: {h: c for h, c in heads.items() if c not in unknown and (not short or h in _SHORT or c in of_kinds)}
        for t, heads in _MEASURED.items()
    }
    return [
        TextTable(
            title,
            ["method", *heads],
            [
                [_named(r), *(cell(r) if callable(cell) else _estimate(r, cell) for cell in heads.values())]
                for r in table.to_dict("records")
            ],
        )
        for title, heads in chosen.items()
    ]


def measured_notes(table: Any) -> list[str]:
    """What stands under those tables: the null edit, the primary family, and why numbers are missing."""
    floors = table["floor_method"].dropna().unique()
    lines = [f"Lost and excess: against {f}, the null edit with the lowest JCR." for f in floors]
    lines.append(
        "Confirmatory: excess flips, p corrected for the number of rows (Holm). Every other number is exploratory."
    )
    reasons: dict[str, list[str]] = {}
    for r in table.to_dict("records"):
        if r["note"]:
            reasons.setdefault(r["note"], []).append(_named(r))
    return [*lines, *(f"{', '.join(names)}: {reason}." for reason, names in reasons.items())]


def _named(r: dict[str, Any]) -> str:
    return f"{r['method']} ({r['calls'].partition(': ')[2]})" if r["calls"] else str(r["method"])


def _estimate(r: dict[str, Any], name: str) -> str:
    return interval(r[name], r[f"{name}_low"], r[f"{name}_high"])


def _unless_locked(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: "locked" if r["locked"] else _estimate(r, name)


_MEASURED: dict[str, dict[str, str | Callable[[dict[str, Any]], str]]] = {
    "shift and content": {
        "JCR": "jcr",
        "most in a slot": lambda r: number(r["lock"]),
        "kappa at most": lambda r: f"{number(r['kappa_max'])}{', locked' if r['locked'] else ''}",
        "less own offsets": "jcr_c",
        "by chance": lambda r: number(r["chance_c"]),
        "p": lambda r: number(r["p_c"], 4),
        "content lost": "content_loss",
        "shift lost": "shift_loss",
        "shift, nats": "shift",
        "gain": "gain",
        "correlation": "corr",
    },
    "agreement beside chance": {
        "same candidate": "jcr_id",
        "same text": "jcr",
        "by chance": lambda r: number(r["chance"]),
        "p": lambda r: number(r["p"], 4),
        "kappa": _unless_locked("kappa"),
        "score": _unless_locked("score"),
        "excess flips": "excess",
        "p (Holm)": lambda r: number(r["p_excess_holm"], 4),
        "same answer": "answer",
        "its chance": lambda r: number(r["answer_chance"]),
        "any of dense's answer": lambda r: number(r["equivalence"]),
        "dense again": lambda r: number(r["again"]),
    },
    "scores and ranks": {
        "TV": "tv",
        "JS, bits": "jsd",
        "tau": "tau",
        "tau, centred": "tau_c",
        "rank of dense's pick": "rank",
        "points": "points",
        "flips A-B": "flips_side",
        "flips of ties": "flips_tie",
        "regret": "regret",
        "flips by margin": "flips_margin",
        "tied flips": "flips_tied",
        "flips over noise": "flips_excess",
        "net harm": "net_harm",
        "right": "accuracy",
        "right, centred": "accuracy_c",
        "own answer right": "own_answer",
    },
}

_SHORT = (
    *("less own offsets", "by chance", "content lost", "shift lost", "same text", "excess flips", "p (Holm)"),
    *("tau, centred", "regret", "net harm", "right"),
)


def notes(c: Comparison) -> list[str]:
    """What the tables do not say: judges whose JCR means little, missing floors, runs without slot mass."""
    lines = []
    for r in c.runs.to_dict("records"):
        if r["left_out"]:
            lines.append(f"{r['run']}: {r['left_out']} questions could not be read or judged and are in no number.")
        if r["content"] != "reads":
            how = "had no content test" if r["content"] == "not made" else f"content test: {r['content']}"
            lines.append(f"{r['run']}: {how}, so nothing shows that it has a consistency to lose.")
    for run, part in c.consistency.groupby("run", sort=False):
        lines += [f"{run}: {reason}." for reason in sorted({n for n in part["note"] if n and "floor itself" not in n})]
        floor = part["floor_method"].dropna()
        if len(floor):
            lines.append(f"{run}: floor and scores are those of {floor.iloc[0]}, the lowest null edit.")
    lines += [f"{run}: {reason}." for run, reason in c.unmeasured.items()]
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
                else [interval(r[k], r[f"{k}_low"], r[f"{k}_high"]) for k in ("kappa", "score")]
            ),
            _count(r["pairs"]),
            _count(r["questions"]),
        ]
        for r in c.consistency.to_dict("records")
        if not missing(r["jcr"])
    ]
    heads = ["run", "method", "JCR", "chance", "kappa", "score", "pairs", "questions"]
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
