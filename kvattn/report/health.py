"""The sections about the run itself: its facts, its health, its cost, and the words used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from kvattn.report import findings
from kvattn.report.facts import Facts, in_order
from kvattn.report.page import (
    METHOD,
    Column,
    Page,
    Row,
    amount,
    count,
    element,
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
from kvattn.study.run_folder import picks

DEFINITIONS = {
    "dense": "The whole judge prompt is computed anew: the reference of every comparison.",
    "JCR": "Judge consistency rate: the share of judgements (question and order) in which a method picks the candidate "
    "that dense picks; candidates of equal text are the same candidate.",
    "95%": "Interval from resampling whole questions, because judgements of one question are not independent.",
    "by chance": "What two judges would agree on that pick slots as often as these two do and read nothing.",
    "floor": "How often dense agrees with itself after an edit of the prompt that changes no meaning (null-edit; the "
    "lowest where several were run).",
    "score": "Kappa over the floor's own kappa: 0 is chance, 1 is as good as dense agrees with itself.",
    "kappa": "Cohen's kappa of the two methods' slots: (JCR - chance) / (1 - chance).",
    "same answer": "The share of judgements whose chosen texts state the same final answer, whichever candidate it is.",
    "content test": "Over balanced orders of held-out questions: does dense pick the same text more often than if the "
    "contents were dealt out at random (it reads), and a right one more often than following the majority and length "
    "explains (it reads for quality)?",
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


def run_facts(facts: Facts, _page: Page) -> Sequence[str]:
    """Model, template, readout, sizes, versions."""
    m = facts.manifest
    model = m.get("model") or {}
    name = model.get("id") or model.get("name") or "unknown"
    template, data = m.get("template"), m.get("data") or {}
    rows = {
        "model": f"{name} {model.get('revision') or ''}".strip(),
        "template, readout": f"{template}, {m.get('readout')}",
        "questions": f"{len(facts.run)} with {_list(m.get('n_candidates'))} candidates",
        "orders": f"up to {facts.size['orders']} a question: {_flat(m.get('orders'))}",
        "judgements": str(facts.size["judgements"]),
        "layers, heads": f"{m.get('layers')}, {m.get('heads')}",
        "numbers": f"{m.get('dtype')} on {m.get('device')}, kernel {m.get('kernel')}, {m.get('threads')} threads",
        "data": _flat({**data, **({"sha256": str(data["sha256"])[:16]} if "sha256" in data else {})}),
        "seeds": _flat(m.get("seeds")),
        "begun": f"{m.get('created')}, kvattn {m.get('kvattn')}, {len(m.get('sessions', []))} sessions",
        "versions": _flat(m.get("versions")),
    }
    listing = macros().facts({k: text(v, 400) for k, v in rows.items()})
    methods = [
        [
            method(str(x.get("name"))),
            text(x.get("class", "")),
            text(_flat(x.get("parameters")) or "–", 200),
        ]
        for x in m.get("methods", [])
    ]
    return [listing, table(["method", "class", "parameters"], methods, words=range(3))]


def boxes(told: Sequence[findings.Finding]) -> list[Markup]:
    """Findings as boxes, a colour a level."""
    return [
        macros().box(f.level, f.topic.capitalize(), [text(f.sentence), text(f.advice) if f.advice else ""])
        for f in told
    ]


def health(facts: Facts, _page: Page) -> Sequence[str]:
    """Findings but those of the content test, which stand on top; numbers by method; notes."""
    numbers: Any = findings.health(facts.run)
    columns: list[Column] = [METHOD, count("modal slot", "slot")]
    columns += [("share of picks", lambda r: _flag(percent(r["share"], 0), r["share"] > findings.LOCKED))]
    columns += [amount("mean label coverage", "coverage")]
    columns += [("least", lambda r: _flag(number(r["least"]), r["scarce"] > 0)), share("row on sinks", "sinks", 0)]
    others = [f for f in findings.findings(facts.run) if f.topic != "content test"]
    parts: list[str] = [*boxes(others), records(numbers.to_dict("records"), *columns)]
    notes: Any = facts.run.sql(
        "SELECT note, count(*) AS count FROM (SELECT unnest(notes) AS note FROM judgements) GROUP BY note "
        "ORDER BY count DESC, note LIMIT 20"
    )
    if len(notes):
        parts.append(table(["note", "judgements"], [[text(note, 200), str(count)] for note, count in notes.to_numpy()]))
    further = ", ".join(q for q in facts.run.queries() if q != facts.query)
    if further:
        parts.append(paragraph("Rows of further queries are in the run folder: ", text(further, 200), kind="soft"))
    return parts


def _flag(shown: str, bad: bool) -> str:
    return element("span", shown, kind="flag") if bad else shown


def cost(facts: Facts, _page: Page) -> Sequence[str]:
    """What every method computes, in units of dense."""

    def batch(r: Row) -> str:
        least, most = r["batch_least"], r["batch_most"]
        return str(least) if least == most else f"{least} to {most}"

    columns: list[Column] = [METHOD, share("token-layers of dense's", "share"), amount("prompt tokens", "tokens", 0)]
    columns += [amount("computed", "tokens_computed", 0), share("candidates kept", "kept", 0)]
    columns += [amount("seconds a batch", "seconds", 3), ("batch", batch)]
    columns += [("KV, MiB", lambda r: number(r["kv_bytes"] / 2**20, 1))]
    shown = records(in_order(picks.cost(facts.run), facts.methods).to_dict("records"), *columns)
    said = (
        "Token-layers do not depend on the machine. Seconds are those of the whole batch that a judgement was "
        "computed in, capture included: divide by the batch for throughput, and take them for no latency. The agents' "
        "own passes are not counted: reuse starts from caches that exist."
    )
    return [shown, paragraph(said, kind="soft")]


def definitions(_facts: Facts, _page: Page) -> Sequence[str]:
    """The words used, a sentence each."""
    return [macros().facts(DEFINITIONS)]


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    if isinstance(value, list):
        return _list(value)
    return "" if value is None else str(value) if not isinstance(value, bool) else json.dumps(value)


def _list(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)
