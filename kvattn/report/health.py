"""The sections about the run itself: its facts, its health, its cost, and the words used."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from kvattn.report.facts import LEAST_COVERAGE, LOCKED, Facts
from kvattn.report.page import Html, Page, join, method, number, paragraph, percent, table, tag, text

DEFINITIONS = {
    "dense": "The whole judge prompt is computed anew: the reference of every comparison.",
    "JCR": "Judge consistency rate: the share of judgements (question and order) in which a method picks the candidate "
    "that dense picks; candidates of equal text are the same candidate.",
    "95%": "Interval from resampling whole questions, because judgements of one question are not independent.",
    "by chance": "What two judges would agree on that pick slots as often as these two do and read nothing.",
    "floor": "How often dense agrees with itself after an edit of the prompt that changes no meaning (null-edit).",
    "corrected": "(JCR - chance) / (floor - chance): 0 is chance, 1 is as good as dense agrees with itself.",
    "kappa": "Cohen's kappa of the two methods' slots: (JCR - chance) / (1 - chance).",
    "same answer": "The share of judgements whose chosen texts state the same final answer, whichever candidate it is.",
    "content test": "Over balanced orders of held-out questions: does dense pick the same candidate, and a right one, "
    "more often than if the contents were dealt out at random?",
    "calibrated": "Choices after subtracting one prior by slot, made from dense on held-out questions and used for "
    "every method.",
    "slot": "A place in the display order, counted from 1.",
    "slot mass": "The share of the deciding token's attention that falls on the candidate in a slot.",
    "sinks": "Tokens that draw much attention whatever they say; found on dense and the same for all methods.",
    "dilution": "Less attention to later slots than dense pays them.",
    "gained, lost": "Judgements that a method has right and dense wrong, and the other way round.",
    "harmful, helpful": "Flips from a right candidate to a wrong one, and the other way round.",
    "benign, joint error": "Flips from one right candidate to another, and from one wrong one to another.",
    "p (Holm)": "The chance of a difference from dense at least this large if there were none, with the question for a "
    "unit, corrected for the number of methods.",
    "fairness": "-1: the earlier of two candidates is always preferred; 1: the later; 0: neither.",
    "distance": "The number of pairs of candidates that are shown in the other order than their own (Kendall's tau).",
    "label coverage": "The probability that the judge's next token is one of the labels (or yes and no).",
    "token-layer": "One token computed through one layer.",
    "candidates kept": "The share of the candidates' tokens whose KV was reused: the reuse rate, by token.",
}


def run_facts(facts: Facts, page: Page) -> None:
    """Model, template, readout, sizes, versions."""
    m = facts.manifest
    model = m.get("model") or {}
    name = model.get("id") or model.get("name") or "unknown"
    template, data = m.get("template"), m.get("data") or {}
    rows = {
        "model": f"{name} {model.get('revision') or ''}".strip(),
        "template, readout": f"{template}, {m.get('readout')}",
        "questions": f"{len(facts.run)} with {_list(m.get('n_candidates'))} candidates",
        "orders": f"up to {facts.orders} a question: {_flat(m.get('orders'))}",
        "judgements": str(len(facts.judgements)),
        "layers, heads": f"{m.get('layers')}, {m.get('heads')}",
        "numbers": f"{m.get('dtype')} on {m.get('device')}, kernel {m.get('kernel')}, {m.get('threads')} threads",
        "data": _flat({**data, **({"sha256": str(data["sha256"])[:16]} if "sha256" in data else {})}),
        "seeds": _flat(m.get("seeds")),
        "begun": f"{m.get('created')}, kvattn {m.get('kvattn')}, {len(m.get('sessions', []))} sessions",
        "versions": _flat(m.get("versions")),
    }
    listing = tag("dl", *(part for k, v in rows.items() for part in (tag("dt", k), tag("dd", text(v, 400)))))
    methods = [
        [
            method(str(x.get("name"))),
            text(x.get("class", "")),
            text(_flat(x.get("parameters")) or "–", 200),
        ]
        for x in m.get("methods", [])
    ]
    page.section("run", "The run", listing, table(["method", "class", "parameters"], methods, words=range(3)))


def health(facts: Facts, page: Page) -> None:
    """Position lock, label coverage, sinks and notes: reasons to distrust the rest."""
    picks: Any = facts.judgements
    sink = _sink_shares(facts)
    rows, warnings = [], []
    scarce: dict[str, float] = {}
    for name in facts.methods:
        part = picks[picks["method"] == name]
        counts = part["slot"].value_counts(normalize=True)
        lock, low = float(counts.max()) if len(counts) else 0.0, float((part["coverage"] < LEAST_COVERAGE).mean())
        if unread := int(part["slot"].isna().sum()):
            said = f" names no candidate, or several, in {unread} of {len(part)} written verdicts."
            warnings.append(join([method(name), Html(said)]))
        if lock > LOCKED and len(part) > 4:
            warnings.append(
                join(
                    [method(name), Html(f" is locked to slot {int(counts.index[0]) + 1}: {percent(lock, 0)} of picks.")]
                )
            )
        scarce[name] = low
        rows.append(
            [
                method(name),
                f"{int(counts.index[0]) + 1}" if len(counts) else "",
                _flag(percent(lock, 0), lock > LOCKED),
                number(float(part["coverage"].mean())),
                _flag(number(float(part["coverage"].min())), low > 0),
                percent(sink.get(name), 0),
            ]
        )
    most = max(scarce, key=lambda m: scarce[m])
    if scarce[most] > 0:
        said = (
            f"Less than half of the probability falls on the labels in up to {percent(scarce[most], 0)} of judgements"
        )
        warnings.append(join([Html(said + " ("), method(most), Html(").")]))
    heads = ["method", "modal slot", "share of picks", "mean label coverage", "least", "row on sinks"]
    said = [paragraph(w) for w in warnings] or [paragraph("Nothing to warn of.")]
    notes = Counter(str(n) for row in picks["notes"] for n in (row if row is not None else ()))
    if notes:
        listed = [[text(note, 200), str(count)] for note, count in notes.most_common(20)]
        said.append(table(["note", "judgements"], listed))
    if facts.query is not None and len(facts.run.queries()) > 1:
        others = ", ".join(q for q in facts.run.queries() if q != facts.query)
        said.append(paragraph("Rows of further queries are in the run folder: ", text(others, 200), kind="soft"))
    page.section("health", "Health", *said[: len(warnings) or 1], table(heads, rows), *said[len(warnings) or 1 :])


def _sink_shares(facts: Facts) -> dict[str, float]:
    if facts.query is None:
        return {}
    means = facts.mass(("method", "name"))
    sums = means.groupby("method")[["mass", "free"]].sum()
    return {str(m): float(1 - r["free"] / r["mass"]) for m, r in sums.iterrows() if r["mass"] > 0}


def _flag(shown: str, bad: bool) -> Html | str:
    return tag("span", shown, class_="flag") if bad else shown


def cost(facts: Facts, page: Page) -> None:
    """What every method computes, in units of dense."""
    rows = []
    for name in facts.methods:
        part: Any = facts.judgements[facts.judgements["method"] == name]
        share = (part["token_layers"] + part["probe_token_layers"]) / (part["tokens"] * part["layers"])
        rows.append(
            [
                method(name),
                percent(float(share.mean())),
                number(float(part["tokens"].mean()), 0),
                number(float(part["tokens_computed"].mean()), 0),
                percent(_ratio(part["candidate_tokens_kept"].sum(), part["candidate_tokens"].sum()), 0),
                number(float(part["seconds"].mean()), 3),
                _range(int(part["batch"].min()), int(part["batch"].max())),
                number(float(part["kv_bytes"].mean()) / 2**20, 1),
            ]
        )
    heads = [
        "method",
        "token-layers of dense's",
        "prompt tokens",
        "computed",
        "candidates kept",
        "seconds a batch",
        "batch",
        "KV, MiB",
    ]
    said = (
        "Token-layers do not depend on the machine. Seconds are those of the whole batch that a judgement was "
        "computed in, capture included: divide by the batch for throughput, and take them for no latency. The agents' "
        "own passes are not counted: reuse starts from caches that exist."
    )
    page.section("cost", "Cost", table(heads, rows), paragraph(said, kind="soft"))


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def definitions(page: Page) -> None:
    """The words used, a sentence each."""
    listing = tag("dl", *(part for k, v in DEFINITIONS.items() for part in (tag("dt", k), tag("dd", v))))
    page.section("words", "Words", listing)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, list):
        return _list(value)
    return "" if value is None else str(value) if not isinstance(value, bool) else json.dumps(value)


def _list(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)
