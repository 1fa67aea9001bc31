"""The sections about the decision row: heatmaps, dilution, and the paired change against dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kvattn import plots, stats
from kvattn.report.facts import Facts, in_order
from kvattn.report.page import (
    METHOD,
    Page,
    amount,
    count,
    details,
    element,
    interval,
    method,
    number,
    paragraph,
    records,
    table,
    text,
)
from kvattn.stats.regression import flip_regression, flip_rows
from kvattn.stats.resampling import CONFIDENCE
from kvattn.study.run_folder import mass as run_mass

_CAPTION = (
    "Mean over judgements. Each panel: layers across, heads down. All panels share one colour scale; hover for numbers."
)


def heatmaps(facts: Facts, page: Page) -> Sequence[str]:
    """Slot mass by layer and head, for every slot and method, and its paired change against dense."""
    if facts.query is None:
        return [paragraph("No decision rows were captured.")]
    lead = paragraph(
        f"What the deciding token ({_query_name(facts.query)}) attends to: the share of its attention that falls on "
        "each candidate's own tokens."
    )
    mass = facts.slots(("method", "layer", "head"))
    parts: list[str] = [
        lead,
        page.figure(plots.slot_mass_grid(mass, facts.methods), "Slot mass by layer and head", _CAPTION),
    ]
    changes = facts.changes(("method", "layer", "head"))
    changed = [m for m in facts.others if m in set(changes["method"])]
    if changed:
        said = (
            "Change against dense on the same questions and orders: mean mass over dense's mean mass, shown as a "
            "factor. Blue: less than dense; orange: more."
        )
        fig = plots.slot_mass_grid(changes, changed, change=True)
        parts += [
            element("h3", "Change against dense"),
            page.figure(fig, "Change of slot mass by layer and head", said),
        ]
        parts.append(_heads(facts, changed))
    return parts


def _heads(facts: Facts, methods: Sequence[str]) -> str:
    """How many heads changed, slot by slot, corrected for the number of heads."""
    rows = []
    for name in methods:
        for slot in range(1, max(facts.size["n"]) + 1):
            found = run_mass.head_change(facts.run, str(facts.query), name, slot)
            if found is None:
                continue
            sure = found.p < 1 - CONFIDENCE
            counts = [str(int((sure & side).sum())) for side in (found.change < 0, found.change > 0)]
            mean, low, high = (number(math.exp(x)) for x in (found.mean, found.low, found.high))
            cells = [*counts, str(sure.size), mean, f"{low} to {high}", str(found.pairs), str(found.questions)]
            rows.append([method(name), str(slot), *cells])
    if not rows:
        return ""
    said = (
        "Heads whose change is not chance at 5%, corrected for the number of heads: signs of whole questions flipped, "
        "against the largest |t| over heads (sign-flip max-T). The factor is of all layers and heads together."
    )
    heads = ["method", "slot", "heads down", "heads up", "of", "factor", "95%", "pairs", "questions"]
    return details("Heads that changed", paragraph(said), table(heads, rows))


def dilution(facts: Facts, page: Page) -> Sequence[str]:
    """How slot mass falls with the slot, and over layers."""
    if facts.query is None:
        return []
    by = ("question_id", "method")
    changes = facts.changes(by)
    parts = []
    if not changes.empty:
        changed = [m for m in facts.others if m in set(changes["method"])]
        fig = plots.dilution_by_slot(stats.over_questions(changes), methods=changed, change=True)
        said = "Change against dense, with 95% intervals over questions. At ×1 nothing has changed."
        parts.append(page.figure(fig, "Change of slot mass by slot", said))
    views = []
    for view, sinks in (("raw", "kept"), ("among", "kept"), ("per_token", "kept"), ("raw", "out")):
        values = run_mass.by_slot(facts.run, facts.query, view, sinks)  # type: ignore[arg-type]
        fig = plots.dilution_by_slot(values, view, sinks, facts.methods)  # type: ignore[arg-type]
        fig.update_layout(showlegend=False, height=330)
        views.append(page.figure(fig, f"Slot mass by slot, {stats.view_name(view, sinks)}", half=True))  # type: ignore[arg-type]
    legend = paragraph(*(part for m in facts.methods for part in (method(m), " ")), kind="legend")
    parts += [element("h3", "By slot, in four views"), legend, element("div", *views, kind="pair")]
    parts.append(paragraph("Mean over layers and heads, 95% intervals over questions.", kind="soft"))
    own = run_mass.own_less_others(facts.run)
    if not own.empty:
        said = "Share of the row of a slot's branch that falls on its own candidate, less the mean of the others."
        columns = [METHOD, count("slot", "slot"), amount("own less others", "value", 4)]
        columns += [("95%", lambda r: f"{r['low']:.4f} to {r['high']:.4f}")]
        shown = records(in_order(own, facts.methods).to_dict("records"), *columns)
        parts += [element("h3", "Own slot less other slots"), paragraph(said), shown]
    fig = plots.dilution_panels(facts.slots(("method", "layer")), "slot", methods=facts.methods, over="layer")
    parts += [element("h3", "By layer"), page.figure(fig, "Slot mass by layer")]
    free = facts.slots(("method", "layer"), "raw", "out")
    without = plots.dilution_panels(free, "slot", "raw", "out", facts.methods, over="layer")
    free_of_sinks = details("By layer, sinks taken out", page.figure(without, "Slot mass by layer, sinks taken out"))
    return [*parts, free_of_sinks]


def flips_by_mass(facts: Facts, page: Page) -> Sequence[str]:
    """Do flips go with attention that dense's pick lost, its length and position held fixed?"""
    if facts.query is None or not facts.others:
        return []
    rows: Any = flip_rows(facts.run, run_mass.mass_lost(facts.run, facts.query))
    varies = [c for c in ("length", "position") if rows[c].nunique() > 1]
    fitted: Any = flip_regression(rows, varies)
    if fitted.empty:
        return []
    lines = []
    for name in (m for m in facts.others if m in set(fitted["method"])):
        part = fitted[fitted["method"] == name].set_index("term")
        first = part.iloc[0]
        cells = [method(name), str(first["flips"]), str(first["pairs"]), str(first["questions"])]
        for term in ("lost", *varies):
            r = part.loc[term]
            cells += [number(r["odds_ratio"]), interval(r["low"], r["high"], as_percent=False), number(r["p_holm"], 3)]
        lines.append([*cells, text(first["note"])])
    heads = ["method", "flips", "pairs", "questions"]
    for term in ("mass lost", *varies):
        heads += [f"{term}: odds ratio", "95%", "p (Holm)"]
    fixed = [c for c in ("length", "position") if c not in varies]
    said = (
        "Odds of a flip when the candidate that dense picks loses one standard deviation more of its attention (log of "
        f"mean mass over layers and heads), {' and '.join(varies) or 'nothing else'} held fixed: length per standard "
        "deviation of log tokens, position from the first slot to the last. Logistic regression with errors clustered "
        "by question. It says what goes with flips, not what causes them."
    )
    if fixed:
        said += f" Left out, being the same in all pairs: {' and '.join(fixed)}."
    return [paragraph(said), table([*heads, ""], lines, words=(0,))]


def _query_name(query: str) -> str:
    said = {
        "last_prompt": "the last prompt token, which emits the first token of the answer",
        "at_choice": "the end of the branch that asks about a slot, mean over branches",
    }
    return said.get(query, query)
