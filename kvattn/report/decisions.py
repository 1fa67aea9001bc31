"""The sections about what was decided: consistency, accuracy, slots, ladder, orders, flips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kvattn import plots, stats
from kvattn.report import headline, tables
from kvattn.report.facts import Facts, in_order, kind
from kvattn.report.page import (
    METHOD,
    Column,
    Page,
    Row,
    amount,
    anchor,
    count,
    details,
    element,
    ends,
    interval,
    macros,
    method,
    number,
    paragraph,
    percent,
    records,
    share,
    table,
    text,
)
from kvattn.stats.accuracy import OUTCOMES
from kvattn.stats.picks import RAW, Scope
from kvattn.stats.slots import flow
from kvattn.study.run_folder import picks as run_picks
from kvattn.text import missing

FLIPS_SHOWN = 200


def consistency(facts: Facts, page: Page) -> Sequence[str]:
    """JCR, its interval, and what it has to be read against."""
    if not facts.others:
        return [paragraph("Only dense was run: there is nothing to compare.")]
    parts: list[str] = []
    for scope in facts.scopes:
        frame = in_order(stats.jcr(facts.run, scope=scope), facts.others)
        reason = facts.meaningless(scope)
        if len(facts.scopes) > 1:
            parts.append(element("h3", f"{kind(scope).capitalize()} choices"))
        if reason and not scope.calibrated:
            parts.append(paragraph(f"Not meaningful: {reason}.", kind="flag"))
        elif not scope.calibrated and (told := headline.telling(facts.methods, frame)):
            parts.append(paragraph(text(headline.consistency(frame, told), 600)))
        label = f"JCR by method, {kind(scope)} choices"
        parts.append(page.figure(plots.jcr_bars(frame, run_picks.floor(frame), reason), label))
        parts.append(_jcr_table(frame, faded=reason is not None))
    return parts


def _jcr_table(frame: Any, faded: bool) -> str:
    def unlocked(column: Column, instead: str = "locked") -> Column:
        return column[0], lambda r: instead if r["locked"] else column[1](r)

    columns = [METHOD, share("JCR", "jcr"), ends(), share("by chance", "chance", 0), share("floor", "floor", 0)]
    columns += [unlocked(amount("score", "score")), unlocked(ends("score_", as_percent=False), "")]
    columns += [unlocked(amount("kappa", "kappa")), share("same answer", "answer_agreement", 0)]
    columns += [count("judgements", "pairs")]
    if (frame["parsed"] < 1).any():
        columns += [share("both named one", "parsed", 0), share("JCR of those", "jcr_parsed", 0)]
    shown = records(frame.to_dict("records"), *columns, kind="faded" if faded else "")
    notes = sorted({f"{n}" for n in frame["note"] if n and "floor itself" not in n})
    below = [paragraph(f"{n[0].upper()}{n[1:]}.", kind="soft") for n in notes]
    return macros().all([shown, *below])


def measures(facts: Facts, page: Page) -> Sequence[str]:
    """What was lost, taken apart: slot offsets and content, agreement beside chance, and how far scores moved."""
    if not facts.others:
        return [paragraph("Only dense was run: nothing was lost.")]
    said = (
        "Reuse can shift the scores of whole slots, or lose what they say of the candidates. Each method's own mean by "
        "slot, made of the other questions, is taken away: what JCR is left is of the content. In brackets 95% "
        "intervals over questions. A method whose kappa could at most be 0.2 is locked: its raw JCR says nothing about "
        "content."
    )
    parts = [paragraph(said)]
    for part in tables.measured(facts.measures):
        parts.append(element("h3", part.title[0].upper() + part.title[1:]))
        parts.append(table(part.heads, [[method(row[0]), *row[1:]] for row in part.rows]))
    return [*parts, *(paragraph(text(line, 400), kind="soft") for line in tables.measured_notes(facts.measures))]


def accuracy(facts: Facts, page: Page) -> Sequence[str]:
    """Accuracy beside the baselines, and what flips do to it."""
    if not any(q.labelled for q in facts.run.asked.values()):
        partly = any(not pd.isna(q.corrects).all() for q in facts.run.asked.values())
        which = "of no question is it known of every candidate whether it is" if partly else "it is not known which"
        sentence = f"{which.capitalize()} {'right' if partly else 'candidates are right'}, so there is no accuracy."
        return [paragraph(sentence)]
    lead = paragraph(
        "JCR can fall while accuracy stays: a flip from one right candidate to another, or from one wrong one to "
        "another, costs nothing here."
    )
    mixed = details("Only questions with both right and wrong candidates", _accuracy_table(facts, mixed=True))
    parts = [lead, _accuracy_table(facts, mixed=False), mixed]
    if facts.others:
        parts += [element("h3", "What flips do"), _flip_outcomes(facts)]
    return parts


def _accuracy_table(facts: Facts, mixed: bool) -> str:
    frames = {s.calibrated: stats.accuracy(facts.run, scope=Scope(s.calibrated, mixed)) for s in facts.scopes}
    raw: Any = frames[False]
    ordered = [*facts.methods, *raw[raw["kind"] == "baseline"]["method"]]
    rows = []
    calibrated: Any = frames[True].set_index("method") if facts.calibrated else None
    for r in in_order(raw, ordered).to_dict("records"):
        is_method = r["kind"] == "method"
        note = f", {r['note']}" if r["note"] else ""
        note = f", slot {int(r['note'].split()[1]) + 1}" if r["note"].startswith("slot ") else note
        row = [
            method(r["method"]) if is_method else element("span", "baseline: ", text(r["method"] + note), kind="soft"),
            percent(r["accuracy"]),
            interval(r["low"], r["high"]),
        ]
        if calibrated is not None:
            c = calibrated.loc[r["method"]] if is_method else None
            row += [percent(c["accuracy"]), interval(c["low"], c["high"])] if c is not None else ["", ""]
        compared = is_method and r["method"] != "dense"
        row += [number(r["gained"], 0), number(r["lost"], 0), number(r["p_flip_holm"], 3)] if compared else ["", "", ""]
        rows.append(row)
    heads = ["", "accuracy", "95%"]
    heads += ["calibrated", "95%"] if facts.calibrated else []
    first = raw.iloc[0]
    count = f"{first['rows']} judgements of {first['questions']} questions a method."
    return macros().all([table([*heads, "gained", "lost", "p (Holm)"], rows), paragraph(count, kind="soft")])


def _flip_outcomes(facts: Facts) -> str:
    frame: Any = stats.flip_table(facts.run)
    shares = frame.pivot(index="method", columns="outcome", values="share")
    rows = [
        [method(m), *(percent(float(shares.loc[m, o])) for o in OUTCOMES)] for m in facts.others if m in shares.index
    ]
    return table(["method", *OUTCOMES], rows)


def slots(facts: Facts, page: Page) -> Sequence[str]:
    """Which slots are picked, and where picks move."""
    frame: Any = stats.slot_histogram(facts.run)
    picks = in_order(frame.assign(slot=frame["slot"] + 1), facts.methods)
    fig = plots.slot_histogram(picks, facts.methods)
    parts = [page.figure(fig, "Share of picks by slot and method", "Dotted: picking slots at random.")]
    if facts.others:
        tests: Any = in_order(stats.slot_marginal_test(facts.run), facts.others)
        columns = [METHOD, amount("distance from dense's slots", "js_distance"), amount("p (Holm)", "p_swap_holm", 3)]
        parts += [records(tests.to_dict("records"), *columns), *_flow(facts, page)]
    return parts


def _flow(facts: Facts, page: Page) -> Sequence[str]:
    name = str(headline.telling(facts.methods, stats.jcr(facts.run)))
    counts: Any = flow(facts.run, name)
    if not (counts["slot"] != counts["base_slot"]).any():
        return []
    lead = paragraph("From dense's slot (left) to the slot of ", method(name), " (right):")
    return [lead, page.figure(plots.flow(counts, name), f"Where picks move from dense to {name}", half=True)]


def ladder(facts: Facts, page: Page) -> Sequence[str]:
    """What each single change costs on the way from dense's noise floor to naive reuse."""
    rungs = facts.rungs()
    if len(rungs) < 2:
        return [paragraph("Of the rungs from null-edit down to naive reuse fewer than two were run.")]
    frame: Any = stats.jcr(facts.run)
    fig = plots.ladder(frame, list(rungs), steps=rungs, meaningless=facts.meaningless())
    lead = paragraph(
        "Each rung changes one thing. Null-edit: dense itself, after an edit that changes no meaning. True mask: "
        "candidates no longer see each other, everything else is recomputed in place. Isolated: their blocks are made "
        "apart behind the judge's own prefix and moved. Unlabelled: made without their label. Naive-linked: made in "
        "the agents' own context, with headers that see their own candidate alone, or all before them. Naive: template "
        "and question are kept, too."
    )
    return [lead, page.figure(fig, "JCR by rung")]


def shuffling(facts: Facts, page: Page) -> Sequence[str]:
    """What the order of display does."""
    if not facts.others:
        return []
    frame: Any = stats.by_permutation_distance(facts.run)
    parts: list[str] = []
    if frame["distance"].nunique() > 1 and frame["n"].nunique() == 1:
        fig = plots.shuffle(frame, facts.others, facts.meaningless())
        parts.append(page.figure(fig, "JCR by distance of the display order from the candidates' own"))
    else:
        parts.append(paragraph("All judgements show orders equally far from the candidates' own: no curve to draw."))
    if facts.size["orders"] > 1:
        bias: Any = in_order(stats.position_bias(facts.run), facts.methods)
        columns = [METHOD, share("same pick in two orders", "order_consistency"), ends("order_consistency_")]
        columns += [share("same pick in all", "position_consistency"), amount("fairness", "preference_fairness")]
        columns += [ends("preference_fairness_", as_percent=False)]
        parts.append(element("h3", "Each method against itself, over orders"))
        parts.append(records(bias.to_dict("records"), *columns))
    return [*parts, _margins(facts), _by_candidates(facts)]


def _margins(facts: Facts) -> str:
    frame: Any = stats.by_margin(facts.run)
    if frame.empty:
        return ""
    bins = frame.drop_duplicates("bin").sort_values("bin")
    heads = ["method", *(f"{r.margin_low:.2f} to {r.margin_high:.2f}" for r in bins.itertuples())]
    cells: Any = frame.pivot(index="method", columns="bin", values="jcr")
    rows = [[method(m), *(percent(float(v), 0) for v in cells.loc[m])] for m in facts.others if m in cells.index]
    title = element("h3", "JCR by dense's margin")
    lead = paragraph("Flips where dense was undecided anyway weigh less than flips where it was sure.")
    return macros().all([title, lead, table(heads, rows)])


def _by_candidates(facts: Facts) -> str:
    frame: Any = stats.by_candidate_agreement(facts.run)
    if frame["agreeing"].nunique() < 2:
        return ""
    columns = [METHOD, ("candidates of the commonest answer", lambda r: f"{r['agreeing']} of {r['n']}")]
    columns += [share("JCR", "jcr", 0), ends(), share("same answer", "answer_agreement", 0)]
    columns += [count("judgements", "pairs"), count("questions", "questions")]
    shown = records(in_order(frame, facts.others).to_dict("records"), *columns)
    said = "Where candidates state the same answer, a flip between them changes nothing but the id."
    title = element("h3", "JCR by agreement of the candidates")
    return macros().all([title, paragraph(said), shown])


def flips(facts: Facts, page: Page) -> Sequence[str]:
    """Every judgement in which a method picked another candidate than dense."""
    if not facts.others:
        return []
    counts: Any = facts.run.sql(
        f"SELECT count(*) FILTER (NOT agree) AS flips, count(*) AS pairs FROM picks WHERE {RAW.pairs}"
    ).iloc[0]
    shown: Any = facts.run.sql(
        'SELECT method, question_id, "order", slot, slot_ref, correct, correct_ref FROM picks '
        f'WHERE NOT agree AND {RAW.pairs} ORDER BY list_position($others, method), question_id, "order" '
        f"LIMIT {FLIPS_SHOWN}",
        {"others": facts.others},
    )
    listed = records(
        shown.to_dict("records"),
        METHOD,
        ("question", lambda r: macros().link(text(r["question_id"], 40), anchor(r["question_id"]))),
        ("order", lambda r: " ".join(str(int(i) + 1) for i in r["order"])),
        ("dense picked", lambda r: _pick(facts, r, r["slot_ref"], r["correct_ref"])),
        ("method picked", lambda r: _pick(facts, r, r["slot"], r["correct"])),
        words=range(5),
    )
    said = f"{counts['flips']} of {counts['pairs']} judgements."
    if counts["flips"] > len(shown):
        said += f" The first {len(shown)} are listed; all are in the run folder."
    lead = paragraph(said + " Order: the candidate (from 1) shown in each slot.")
    asked = [_question(facts, q) for q in dict.fromkeys(shown["question_id"])]
    return [lead, details("List them", listed, *asked) if asked else ""]


def _pick(facts: Facts, flip: Row, slot: Any, correct: Any) -> str:
    """A picked slot, whose answer it shows, and whether that is right."""
    if missing(slot):
        return "no candidate named"
    q, at = facts.questions[flip["question_id"]], int(flip["order"][int(slot)])
    parts = [f"slot {int(slot) + 1}: ", text(q["candidate_ids"][at], 24)]
    agent = q["agents"][at] if q["agents"] is not None else None
    parts += [] if agent is None else [" of ", text(agent, 24)]
    if not missing(correct):
        parts.append(element("span", " right" if correct else " wrong", kind="right" if correct else "wrong"))
    return macros().all(parts)


def _question(facts: Facts, key: str) -> str:
    q = facts.questions[key]
    parts = [element("h3", text(key, 80), id=anchor(key)), element("pre", text(q["question"], 2000))]
    for i, (name, answer) in enumerate(zip(q["candidate_ids"], q["texts"], strict=True)):
        parts.append(paragraph(f"Candidate {i + 1}, ", text(name, 40), ":", kind="soft"))
        parts.append(element("pre", text(answer, 2000)))
    return macros().all(parts)
