"""A judge's conversation in its user's own words: messages with marks where question and candidates stand.

`{{question}}` stands once, `{{candidate.1}}`, `{{candidate.2}}`, ... once each and in this order; k is the slot, so
that what is displayed there depends on the order. Everything else is the user's text, whatever braces are in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from pydantic import ConfigDict

from kvattn.errors import KvattnError
from kvattn.questions.templates import MAX_CANDIDATES, Message, Template

QUESTION = "question"
_MARK = re.compile(r"\{\{\s*(question|candidate\.[1-9][0-9]?)\s*\}\}")
_MEANT = re.compile(r"\{\{\s*(?:question|candidate)\b[^{}]*\}\}", re.IGNORECASE)


def candidate(slot: int) -> str:
    """The mark of a slot, which counts from 0."""
    return f"candidate.{slot + 1}"


def pieces(content: str) -> list[tuple[str, str | None]]:
    """A message's content as (text, mark) pairs in order: own text with mark None, or the mark's text and its name."""
    out: list[tuple[str, str | None]] = []
    at = 0
    for found in _MARK.finditer(content):
        out += [(content[at : found.start()], None), (found[0], found[1])]
        at = found.end()
    return [(text, mark) for text, mark in [*out, (content[at:], None)] if text]


def filled(messages: Sequence[Message], values: Mapping[str, str]) -> list[dict[str, str]]:
    """The conversation with its marks replaced; marks within the values are text."""
    return [
        {"role": m.role, "content": "".join(values[mark] if mark else text for text, mark in pieces(m.content))}
        for m in messages
    ]


@dataclass(frozen=True)
class Place:
    """Where a text stands in a conversation that is written out: characters start to stop of a message, from 0; mark:
    "question" or "candidate.K"."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    message: int
    start: int
    stop: int
    mark: str


def with_marks(messages: Sequence[Message], places: Sequence[Place]) -> tuple[Message, ...]:
    """The conversation with marks in the place of those texts. Raises KvattnError for places that are none, that
    overlap, or where marks stand already."""
    if have := next((x[0] for m in messages for x in _MEANT.finditer(m.content)), None):
        raise KvattnError(f"'spans' and the mark {have} both say where texts stand; leave one out")
    out = list(messages)
    end = (len(out), 0)
    for p in sorted(places, key=lambda p: (p.message, p.start), reverse=True):
        if not (0 <= p.message < len(out) and 0 <= p.start < p.stop <= len(out[p.message].content)):
            raise KvattnError(
                f"'spans': {p.mark} has no place at message {p.message}, characters {p.start} to {p.stop}"
            )
        if (p.message, p.stop) > end:
            raise KvattnError(f"'spans': {p.mark} and the text behind it overlap in message {p.message}")
        said = out[p.message].content
        marked = f"{said[: p.start]}{{{{{p.mark}}}}}{said[p.stop :]}"
        out[p.message] = replace(out[p.message], content=marked)
        end = (p.message, p.start)
    return tuple(out)


def marks(messages: Sequence[Message]) -> list[str]:
    """The marks of a conversation, in order."""
    return [mark for m in messages for _, mark in pieces(m.content) if mark]


def marked(template: Template) -> int:
    """How many candidates a conversation has marks for."""
    return sum(mark != QUESTION for mark in marks(template.messages))


def check(template: Template) -> None:
    """Raises KvattnError for a conversation that cannot be judged: marks that are missing, misspelt, used twice, out of
    order, or with nothing between; an opening that holds one; too many candidates."""
    said, found = template.messages, marks(template.messages)
    name = f"the template {template.name!r}"
    for m in said:
        if wrong := next((x[0] for x in _MEANT.finditer(m.content) if not _MARK.fullmatch(x[0])), None):
            raise KvattnError(f"{name}: {wrong} is no mark; write {{{{question}}}}, {{{{candidate.1}}}}, ...")
    if twice := next((x for x in found if found.count(x) > 1), None):
        raise KvattnError(f"{name}: the mark {{{{{twice}}}}} is used twice; leave one, since a text has one place")
    slots = [x for x in found if x != QUESTION]
    wanted = [candidate(i) for i in range(max(1, len(slots)))]
    if missing := [x for x in (QUESTION, *wanted) if x not in found]:
        raise KvattnError(f"{name}: the mark {{{{{missing[0]}}}}} is missing; write it where that text stands")
    if slots != wanted:
        raise KvattnError(f"{name}: {{{{{slots[0]}}}}} stands first; number the candidates in the order they stand in")
    if len(slots) > MAX_CANDIDATES:
        raise KvattnError(f"{name}: {len(slots)} candidates; a judge prompt takes 1 to {MAX_CANDIDATES}")
    for m in said:
        parts = pieces(m.content)
        for (_, a), (_, b) in pairwise(parts):
            if a and b:
                raise KvattnError(
                    f"{name}: nothing stands between {{{{{a}}}}} and {{{{{b}}}}}; put a word or a line end there"
                )
    if said[-1].role == "system":
        raise KvattnError(f"{name}: the last message is the system's; a judge answers a user")
    if said[-1].role == "assistant" and marks(said[-1:]):
        raise KvattnError(f"{name}: the last message opens the judge's own turn and holds a mark; move it before")
    if not any(m.role == "user" for m in said):
        raise KvattnError(f"{name}: no message is the user's; give one with the role user")


def divide(text: str) -> int:
    """Where what closes one candidate ends and what opens the next begins, in the text between them: before the last
    line that says something."""
    last = len(text.rstrip())
    return text.rfind("\n", 0, last) + 1


def with_newline(template: Template) -> Template:
    """The template with one more line end before its candidates. Raises KvattnError for a conversation with no text of
    its own between two marks of one message, where it would be no more than the chat template's blanks."""
    if not template.messages:
        return replace(template, candidates_heading=template.candidates_heading + "\n")
    for i, m in enumerate(template.messages):
        parts = pieces(m.content)
        inner = [k for k in range(1, len(parts) - 1) if parts[k][1] is None]
        if inner:
            text = parts[inner[0]][0]
            at = divide(text)
            changed = [*parts[: inner[0]], (f"{text[:at]}\n{text[at:]}", None), *parts[inner[0] + 1 :]]
            message = Message(m.role, "".join(x for x, _ in changed))
            return replace(template, messages=(*template.messages[:i], message, *template.messages[i + 1 :]))
    raise KvattnError(
        f"null-edit: the template {template.name!r} has no two marks in one message, between which a line end could go"
    )


def words(template: Template) -> Iterator[str]:
    """The user's own text of a conversation."""
    return (text for m in template.messages for text, mark in pieces(m.content) if mark is None)
