"""The sections about what was decided: verdict, consistency, accuracy, slots, ladder, orders, flips."""

from __future__ import annotations

from typing import Any

import pandas as pd

from kvattn import plots, stats
from kvattn.report.facts import Facts, in_order, verdict_words
from kvattn.report.page import (
    Html,
    Page,
    anchor,
    details,
    interval,
    join,
    method,
    missing,
    number,
    paragraph,
    percent,
    table,
    tag,
    text,
)

FLIPS_SHOWN = 200
CONTROLS = ("foreign-kv", "null-edit", "mismatched-order")
_KIND = {"choice": "raw", "choice_calibrated": "calibrated"}


def verdict(facts: Facts) -> Html:
    """What the content test allows to say, in plain language."""
    boxes = []
    for column in facts.columns:
        test, kind = facts.test(column), _KIND[column]
        if test is None:
            continue
        looks, head, advice = verdict_words(test, kind)
        boxes.append(
            tag(
                "div",
                tag("strong", head),
                paragraph(text(test["sentence"])),
                paragraph(advice),
                class_=f"verdict {looks}",
            )
        )
    if not boxes:
        head = tag("strong", "No content test was made: the run had no held-out questions.")
        advice = "Nothing here says that this judge reads its candidates at all; a judge that does not has no "
        boxes.append(tag("div", head, paragraph(advice + "consistency to lose."), class_="verdict unsure"))
    return join(boxes)


def consistency(facts: Facts, page: Page) -> None:
    """JCR, its interval, and what it has to be read against."""
    if not facts.others:
        page.section("jcr", "Consistency with dense", paragraph("Only dense was run: there is nothing to compare."))
        return
    parts: list[Html] = []
    for column in facts.columns:
        frame = in_order(stats.jcr(facts.judgements, facts.questions, column=column), facts.others)
        reason, kind = facts.meaningless(column), _KIND[column]
        if len(facts.columns) > 1:
            parts.append(tag("h3", f"{kind.capitalize()} choices"))
        if column == "choice":
            parts.append(_headline(frame, reason))
        label = f"JCR by method, {kind} choices"
        parts.append(page.figure(plots.jcr_bars(frame, _floor(frame), reason), label))
        parts.append(_jcr_table(frame, faded=reason is not None))
    page.section("jcr", "Consistency with dense", *parts)


def _headline(frame: Any, reason: str | None) -> Html:
    """One sentence on naive reuse, or on the least consistent method that is no control."""
    if reason:
        return paragraph(f"Not meaningful: {reason}.", kind="flag")
    by_name = frame.set_index("method")
    told = [m for m in by_name.index if plots.family(m) not in CONTROLS] or list(by_name.index)
    name = "naive" if "naive" in told else str(by_name.loc[told, "jcr"].idxmin())
    row = by_name.loc[name]
    said = [
        method(name),
        f" picks the same candidate as dense in {percent(row['jcr'], 0)} of {row['pairs']} judgements "
        f"({interval(row['low'], row['high'])}); a judge that picks slots as often, but reads nothing, would "
        f"in {percent(row['chance'], 0)}.",
    ]
    if "foreign-kv" in by_name.index and name != "foreign-kv":
        null = by_name.loc["foreign-kv"]
        said.append(
            f" With another question's candidates in the cache (foreign-kv) it is {percent(null['jcr'], 0)} "
            f"({interval(null['low'], null['high'])}): only what lies above that measures reading."
        )
    return paragraph(*said)


def _floor(frame: Any) -> tuple[float, float] | None:
    floors = frame[frame["method"].str.startswith("null-edit")]
    if floors.empty or missing(float(floors["low"].min())):
        return None
    return float(floors["low"].min()), float(floors["high"].max())


def _jcr_table(frame: Any, faded: bool) -> Html:
    heads = ["method", "JCR", "95%", "by chance", "floor", "corrected", "95%", "kappa", "same answer", "judgements"]
    unread = bool((frame["parsed"] < 1).any())
    heads += ["both named one", "JCR of those"] if unread else []
    rows = [
        [
            method(r["method"]),
            percent(r["jcr"]),
            interval(r["low"], r["high"]),
            percent(r["chance"], 0),
            percent(r["floor"], 0),
            number(r["corrected"]),
            interval(r["corrected_low"], r["corrected_high"], as_percent=False),
            number(r["kappa"]),
            percent(r["answer_agreement"], 0),
            str(r["pairs"]),
            *([percent(r["parsed"], 0), percent(r["jcr_parsed"], 0)] if unread else []),
        ]
        for r in frame.to_dict("records")
    ]
    notes = sorted({f"{n}" for n in frame["note"] if n and "floor itself" not in n})
    said = join(paragraph(f"No corrected score: {n}.", kind="soft") for n in notes)
    return table(heads, rows, kind="faded" if faded else "") + said


def accuracy(facts: Facts, page: Page) -> None:
    """Accuracy beside the baselines, and what flips do to it."""
    if not facts.questions["corrects"].map(lambda c: c is not None and not any(missing(x) for x in c)).any():
        said = "It is not known which candidates are right, so there is no accuracy."
        page.section("accuracy", "Accuracy", paragraph(said))
        return
    parts = [_accuracy_table(facts, mixed=False)]
    lead = paragraph(
        "JCR can fall while accuracy stays: a flip from one right candidate to another, or from one wrong one to "
        "another, costs nothing here."
    )
    mixed = _accuracy_table(facts, mixed=True)
    parts.append(details("Only questions with both right and wrong candidates", mixed))
    if facts.others:
        parts += [tag("h3", "What flips do"), _flip_outcomes(facts)]
    page.section("accuracy", "Accuracy", lead, *parts)


def _accuracy_table(facts: Facts, mixed: bool) -> Html:
    frames = {c: stats.accuracy(facts.judgements, facts.questions, column=c, mixed=mixed) for c in facts.columns}
    raw: Any = frames["choice"]
    ordered = [*facts.methods, *raw[raw["kind"] == "baseline"]["method"]]
    rows = []
    calibrated: Any = frames["choice_calibrated"].set_index("method") if facts.calibrated else None
    for r in in_order(raw, ordered).to_dict("records"):
        is_method = r["kind"] == "method"
        note = f", {r['note']}" if r["note"] else ""
        note = f", slot {int(r['note'].split()[1]) + 1}" if r["note"].startswith("slot ") else note
        row = [
            method(r["method"]) if is_method else tag("span", "baseline: ", text(r["method"] + note), class_="soft"),
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
    return table([*heads, "gained", "lost", "p (Holm)"], rows) + paragraph(count, kind="soft")


def _flip_outcomes(facts: Facts) -> Html:
    outcomes = ["same right", "same wrong", "benign", "joint error", "helpful", "harmful"]
    frame: Any = stats.flip_table(facts.judgements, facts.questions)
    shares = frame.pivot(index="method", columns="outcome", values="share")
    rows = [
        [method(m), *(percent(float(shares.loc[m, o])) for o in outcomes)] for m in facts.others if m in shares.index
    ]
    return table(["method", *outcomes], rows)


def slots(facts: Facts, page: Page) -> None:
    """Which slots are picked, and where picks move."""
    frame: Any = stats.slot_histogram(facts.judgements, facts.questions)
    picks = in_order(frame.assign(slot=frame["slot"] + 1), facts.methods)
    fig = plots.slot_histogram(picks, facts.methods)
    parts = [page.figure(fig, "Share of picks by slot and method", "Dotted: picking slots at random.")]
    if facts.others:
        tests: Any = in_order(stats.slot_marginal_test(facts.judgements, facts.questions), facts.others)
        rows = [
            [method(r["method"]), number(r["js_distance"]), number(r["p_swap_holm"], 3)]
            for r in tests.to_dict("records")
        ]
        moved = _flow(facts, page)
        parts += [table(["method", "distance from dense's slots", "p (Holm)"], rows), *moved]
    page.section("slots", "Slots picked", *parts)


def _flow(facts: Facts, page: Page) -> list[Html]:
    pairs: Any = stats.paired(facts.judgements, facts.questions)
    pairs = pairs[(pairs["slot"] >= 0) & (pairs["slot_ref"] >= 0)]
    if pairs.empty:
        return []
    moves = pairs.assign(base_slot=pairs["slot_ref"] + 1, slot=pairs["slot"] + 1)
    moves = moves.assign(moved=moves["slot"] != moves["base_slot"])
    share = moves.groupby("method")["moved"].mean()
    name = "naive" if "naive" in share.index else str(share.idxmax())
    if share[name] == 0:
        return []
    counts = moves[moves["method"] == name].groupby(["base_slot", "slot"]).size().rename("count").reset_index()
    lead = paragraph("From dense's slot (left) to the slot of ", method(name), " (right):")
    return [lead, page.figure(plots.flow(counts, name), f"Where picks move from dense to {name}", half=True)]


def ladder(facts: Facts, page: Page) -> None:
    """What each single change costs on the way from dense to naive reuse."""
    rungs = facts.rungs()
    if len(rungs) < 2:
        page.section("ladder", "The ladder", paragraph("None of the rungs between dense and naive reuse was run."))
        return
    frame: Any = stats.jcr(facts.judgements, facts.questions)
    top = pd.DataFrame([{"method": "dense", "jcr": 1.0}])
    with_dense: Any = pd.concat([top, frame[["method", "jcr", "low", "high"]]], ignore_index=True)
    fig = plots.ladder(with_dense, list(rungs), steps=rungs, meaningless=facts.meaningless("choice"))
    lead = paragraph(
        "Each rung changes one thing. True mask: candidates no longer see each other, everything else is recomputed "
        "in place. Isolated: their blocks are made apart behind the judge's own prefix and moved. Unlabelled: made "
        "without their label. Naive: made in the agents' own context."
    )
    page.section("ladder", "The ladder", lead, page.figure(fig, "JCR by rung"))


def shuffling(facts: Facts, page: Page) -> None:
    """What the order of display does."""
    if not facts.others:
        return
    frame: Any = stats.by_permutation_distance(facts.judgements, facts.questions)
    parts: list[Html] = []
    if frame["distance"].nunique() > 1 and frame["n"].nunique() == 1:
        fig = plots.shuffle(frame, facts.others, facts.meaningless("choice"))
        parts.append(page.figure(fig, "JCR by distance of the display order from the candidates' own"))
    else:
        parts.append(paragraph("All judgements show orders equally far from the candidates' own: no curve to draw."))
    if facts.orders > 1:
        bias: Any = in_order(stats.position_bias(facts.judgements, facts.questions), facts.methods)
        heads = ["method", "same pick in two orders", "95%", "same pick in all", "fairness", "95%"]
        rows = [
            [
                method(r["method"]),
                percent(r["order_consistency"]),
                interval(r["order_consistency_low"], r["order_consistency_high"]),
                percent(r["position_consistency"]),
                number(r["preference_fairness"]),
                interval(r["preference_fairness_low"], r["preference_fairness_high"], as_percent=False),
            ]
            for r in bias.to_dict("records")
        ]
        parts += [tag("h3", "Each method against itself, over orders"), table(heads, rows)]
    parts += [_margins(facts), _by_candidates(facts)]
    page.section("shuffling", "What shuffling does", *parts)


def _margins(facts: Facts) -> Html:
    frame: Any = stats.by_margin(facts.judgements, facts.questions)
    if frame.empty:
        return Html("")
    bins = frame.drop_duplicates("bin").sort_values("bin")
    heads = ["method", *(f"{r.margin_low:.2f} to {r.margin_high:.2f}" for r in bins.itertuples())]
    cells: Any = frame.pivot(index="method", columns="bin", values="jcr")
    rows = [[method(m), *(percent(float(v), 0) for v in cells.loc[m])] for m in facts.others if m in cells.index]
    title = tag("h3", "JCR by dense's margin")
    return (
        title
        + paragraph("Flips where dense was undecided anyway weigh less than flips where it was sure.")
        + table(heads, rows)
    )


def _by_candidates(facts: Facts) -> Html:
    frame: Any = stats.by_candidate_agreement(facts.judgements, facts.questions)
    if frame["agreeing"].nunique() < 2:
        return Html("")
    rows = [
        [
            method(r["method"]),
            f"{r['agreeing']} of {r['n']}",
            percent(r["jcr"], 0),
            interval(r["low"], r["high"]),
            percent(r["answer_agreement"], 0),
            str(r["pairs"]),
            str(r["questions"]),
        ]
        for r in in_order(frame, facts.others).to_dict("records")
    ]
    heads = ["method", "candidates of the commonest answer", "JCR", "95%", "same answer", "judgements", "questions"]
    said = "Where candidates state the same answer, a flip between them changes nothing but the id."
    return tag("h3", "JCR by agreement of the candidates") + paragraph(said) + table(heads, rows)


def flips(facts: Facts, page: Page) -> None:
    """Every judgement in which a method picked another candidate than dense."""
    if not facts.others:
        return
    pairs: Any = stats.paired(facts.judgements, facts.questions)
    flipped = in_order(pairs[~pairs["agree"].astype(bool)], facts.others)
    shown = flipped.head(FLIPS_SHOWN)
    heads = ["method", "question", "order", "dense picked", "method picked"]
    rows = []
    for r in shown.to_dict("records"):
        q = facts.candidate(r["question_id"])
        link = tag("a", text(r["question_id"], 40), href=f"#{anchor(r['question_id'])}")
        order = " ".join(str(int(i) + 1) for i in r["order"])
        rows.append(
            [
                method(r["method"]),
                link,
                order,
                _pick(q, r["choice_ref"], r["slot_ref"], r["correct_ref"]),
                _pick(q, r["choice"], r["slot"], r["correct"]),
            ]
        )
    said = f"{len(flipped)} of {len(pairs)} judgements."
    if len(flipped) > len(shown):
        said += f" The first {len(shown)} are listed; all are in the run folder."
    lead = paragraph(said + " Order: the candidate (from 1) shown in each slot.")
    asked = [_question(facts, q) for q in dict.fromkeys(shown["question_id"])]
    listing = details("List them", table(heads, rows, words=range(5)), *asked) if rows else Html("")
    page.section("flips", "Flips", lead, listing)


def _pick(q: dict[str, Any], choice: str, slot: int, correct: float) -> Html:
    if slot < 0:
        return Html("no candidate named")
    index = list(q["candidate_ids"]).index(choice)
    agent = q["agents"][index] if q["agents"] is not None else None
    mark = (
        Html("")
        if missing(correct)
        else tag("span", " right" if correct else " wrong", class_="right" if correct else "wrong")
    )
    who = text(choice, 24) if agent is None else join([text(choice, 24), Html(" of "), text(agent, 24)])
    return join([Html(f"slot {int(slot) + 1}: "), who, mark])


def _question(facts: Facts, key: str) -> Html:
    q = facts.candidate(key)
    parts = [tag("pre", text(q["question"], 2000))]
    for i, (name, answer) in enumerate(zip(q["candidate_ids"], q["texts"], strict=True)):
        parts.append(paragraph(f"Candidate {i + 1}, ", text(name, 40), ":", kind="soft"))
        parts.append(tag("pre", text(answer, 2000)))
    head = tag("h3", text(key, 80), id=anchor(key))
    return head + join(parts)
