"""Rows that others write, as problems of a candidates file: RewardBench 2, JudgeBench, and logs of requests in OpenAI's
form, whose messages a template with marks takes apart. Which it is, is seen from a row's fields."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvattn.decision import TIE
from kvattn.errors import KvattnError
from kvattn.questions.conversation import QUESTION, candidate, marked, pieces
from kvattn.questions.templates import Message, Template
from kvattn.questions.validation import short

PAIR = {"A>B": "A", "B>A": "B"}


def as_problem(row: Any, where: str, template: Template | None) -> Any:
    """The row as a problem's fields; a row that is none of these as it is. Raises KvattnError, naming `where`, for one
    that only looks like them."""
    if not isinstance(row, Mapping) or "candidates" in row:
        return row
    if "response_A" in row and "response_B" in row:
        return _judge_bench(row, where)
    if "chosen" in row and "rejected" in row:
        return _reward_bench(row, where)
    if (messages := _messages(row)) is not None:
        return _request(row, messages, where, template)
    return row


def _judge_bench(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A pair of JudgeBench (arXiv 2410.12784): pair_id, question, response_A, response_B, label A>B or B>A."""
    label = row.get("label")
    if label not in PAIR:
        raise KvattnError(f"{where}, field 'label': must be 'A>B' or 'B>A', not {short(label)}")
    pair = [{"id": k, "text": row[f"response_{k}"], "correct": k == PAIR[label]} for k in "AB"]
    named = {"id": row.get("pair_id"), "question": row.get("question"), "candidates": pair}
    return {"template": "free", **{k: v for k, v in named.items() if v is not None}}


def _reward_bench(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of RewardBench 2 (arXiv 2506.01937): id, prompt, chosen and rejected, lists of completions. They are
    displayed in an order drawn from the id: in the file's own the right ones would come first."""
    made = []
    for kind in ("chosen", "rejected"):
        texts = row[kind]
        if not isinstance(texts, list | tuple):
            raise KvattnError(f"{where}, field {kind!r}: must be a list of completions, not {short(texts)}")
        made += [{"id": f"{kind}-{i + 1}", "text": t, "correct": kind == "chosen"} for i, t in enumerate(texts)]
    drawn = [hashlib.sha256(f"{row.get('id')}/{i}".encode("utf-8", "replace")).digest() for i in range(len(made))]
    order = sorted(range(len(made)), key=drawn.__getitem__)
    named = {"id": row.get("id"), "question": row.get("prompt"), "candidates": made, "order": order}
    return {"template": "free", **{k: v for k, v in named.items() if v is not None}}


def _messages(row: Mapping[str, Any]) -> Any:
    """The messages of a request: the row's own, or those of its `request` or `body`."""
    inner = (row.get(k) for k in ("request", "body"))
    held = [row, *(x for x in inner if isinstance(x, Mapping))]
    return next((x["messages"] for x in held if "messages" in x), None)


def _request(row: Mapping[str, Any], messages: Any, where: str, template: Template | None) -> dict[str, Any]:
    if template is None or not template.messages:
        raise KvattnError(
            f"{where}: a log of messages is taken apart by a template that has them with marks, {{{{question}}}} and "
            "{{candidate.1}}; name it with --template (docs/templates.md)"
        )
    said = [_turn(m, f"{where}, field 'messages[{i}]'") for i, m in enumerate(_listed(messages, where))]
    wanted = list(template.messages)
    wanted = wanted[:-1] if wanted[-1].role == "assistant" else wanted
    reply, rest = _reply(row), said[len(wanted) :]
    if reply is None and len(rest) == 1 and rest[0][0] == "assistant":
        reply, rest = rest[0][1], []
    if len(said) < len(wanted) or rest:
        raise KvattnError(f"{where}: {len(said)} messages, and the template {template.name!r} has {len(wanted)}")
    found: dict[str, str] = {}
    for i, (own, (role, text)) in enumerate(zip(wanted, said, strict=False)):
        place = f"{where}, field 'messages[{i}]'"
        if role not in (own.role, "developer" if own.role == "system" else own.role):
            raise KvattnError(
                f"{place}: is the {role}'s, and the template {template.name!r} has the {own.role}'s there"
            )
        found |= taken_apart(own, text, f"{place}: does not say what the template {template.name!r} says")
    n, key = marked(template), row.get("id", row.get("custom_id"))
    labels, right = _labels(template, n), row.get("target")
    known, tied = right in labels, right in labels[n:]
    made: list[dict[str, Any]] = [
        {"id": f"c{s + 1}", "text": found[candidate(s)], **({"correct": tied or x == right} if known else {})}
        for s, x in enumerate(labels[:n])
    ]
    problem = {"id": key, "question": found[QUESTION], "candidates": made}
    slot = _verdict(row, reply, template, n, where)
    return {
        **{k: v for k, v in problem.items() if v is not None},
        **({} if slot is None else {"verdict": f"c{slot + 1}" if slot < n else TIE}),
        **{k: row[k] for k in ("answer", "regime") if k in row},
    }


def taken_apart(message: Message, text: str, says: str) -> dict[str, str]:
    """By mark, the texts of which a template's message, filled, is `text`. Raises KvattnError where there are none, and
    where it could be filled so in more ways than one."""
    parts = pieces(message.content)
    literals, marks = [""], []
    for piece, mark in parts:
        if mark:
            marks.append(mark)
            literals.append("")
        else:
            literals[-1] += piece
    if not marks:
        if text != literals[0]:
            raise KvattnError(f"{says}: {short(text)}")
        return {}
    first, last = literals[0], literals[-1]
    if not (text.startswith(first) and text.endswith(last) and len(text) >= len(first) + len(last)):
        raise KvattnError(f"{says}: {short(text)}")
    early, late, at, end = [], [], len(first), len(text) - len(last)
    for x in literals[1:-1]:
        early.append(text.find(x, at, end))
        at = early[-1] + len(x)
        if early[-1] < 0:
            raise KvattnError(f"{says}: {short(x)} is missing")
    at = end
    for x in reversed(literals[1:-1]):
        late.insert(0, text.rfind(x, len(first), at))
        at = late[0]
    if early != late:
        i = next(i for i, (a, b) in enumerate(zip(early, late, strict=True)) if a != b)
        raise KvattnError(
            f"{says.partition(':')[0]}: {short(literals[i + 1])} stands there more than once, so that where "
            f"{{{{{marks[i]}}}}} ends cannot be told; write this line as a candidates file has it"
        )
    starts = [len(first), *(a + len(x) for a, x in zip(early, literals[1:-1], strict=True))]
    return {m: text[a:b] for m, a, b in zip(marks, starts, [*early, end], strict=True)}


def _listed(messages: Any, where: str) -> Sequence[Any]:
    if not isinstance(messages, list | tuple) or not messages:
        raise KvattnError(f"{where}, field 'messages': must be a list of messages, not {short(messages)}")
    return messages


def _turn(message: Any, where: str) -> tuple[str, str]:
    """Role and text of a message; content may be text, or a list of parts that are all text."""
    role, content = (message.get(k) if isinstance(message, Mapping) else None for k in ("role", "content"))
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(p["text"] for p in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise KvattnError(f"{where}: must have a role and a text for its content, not {short(message)}")
    return role, content


def _reply(row: Mapping[str, Any]) -> str | None:
    """What the production judge wrote: `response` as text, or the first choice of a completion in it or in the row."""
    held: Any = row.get("response", row)
    if isinstance(held, Mapping) and isinstance(held.get("body"), Mapping) and "choices" in held["body"]:
        held = held["body"]
    if isinstance(held, Mapping) and isinstance(held.get("choices"), list) and held["choices"]:
        first = held["choices"][0]
        held = first.get("message", {}).get("content") if isinstance(first, Mapping) else None
    return held if isinstance(held, str) else None


def _labels(template: Template, n: int) -> tuple[str, ...]:
    """The slots' labels, and behind those of two the tie's, where the template names one."""
    return template.slot_labels(n) + (template.labels[2:3] if n == 2 and not isinstance(template.labels, str) else ())


def _verdict(row: Mapping[str, Any], reply: str | None, template: Template, n: int, where: str) -> int | None:
    """The slot that was chosen, n for a tie: by the label, or the candidate's id, of `verdict`; else by the reply."""
    labels, said = _labels(template, n), row.get("verdict")
    if said is None:
        return None if reply is None else chosen(reply, template, n)
    known = {**{f"c{s + 1}": s for s in range(n)}, **{x.strip().lower(): s for s, x in enumerate(labels)}}
    if not isinstance(said, str) or said.strip().lower() not in known:
        raise KvattnError(f"{where}, field 'verdict': {short(said)} is none of the labels {', '.join(labels)}")
    return known[said.strip().lower()]


def chosen(reply: str, template: Template, n: int) -> int | None:
    """The slot that a reply names, n for a tie: by the template's own rule, else by the label that it begins with; None
    where it names none, or several."""
    labels = [x.strip().lower() for x in _labels(template, n)]
    if template.verdict:
        named = {x.strip().lower() for x in re.findall(template.verdict, reply)}
        return labels.index(named.pop()) if len(named) == 1 and named <= set(labels) else None
    words = re.match(r"\W*(\w+)", reply)
    return labels.index(words[1].lower()) if words and words[1].lower() in labels else None
