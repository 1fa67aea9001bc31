"""What a judge's written verdict says: which candidate it selected, and by which rule that was read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kvattn.data.answers import parse as parse_answer

RULES = ("format", "copy", "pattern", "phrase", "letter")
_CHOSE = r"(?:select|choose|chose|pick|prefer|best|correct|right|winner)\w*"


@dataclass(frozen=True)
class Verdict:
    """slot: the selected display slot, from 0, or None; rule: the one of `RULES` that found it, or None."""

    slot: int | None = None
    rule: str | None = None


def read_verdict(output: str, labels: Sequence[str], texts: Sequence[str], task: str = "math") -> Verdict:
    """The verdict in a judge's output. The first rule that names exactly one slot counts:

    format   a line "Selected agent id: <label>" opens the output: what the judge was asked for
    copy     the output is one candidate's text, word for word
    pattern  "selected agent (id) ... <label>" anywhere
    phrase   "agent <label>" beside a word of choice ("the best answer is that of Agent 2", "Agent 2 is correct")
    letter   task "choice" alone: candidates that state the judge's letter. With several of them the published rule
             takes the first displayed one, which depends on the order; so does this one

    labels: [slots]; texts: [slots], the candidates' texts as displayed. An output that names none, or several, has no
    verdict. The order of the rules differs from the published one in that the asked-for format comes first.
    """
    one, label = _patterns(labels)
    text = output.strip()
    found = _format(labels, text)
    if found:
        return Verdict(_slot(labels, found[1]), "format")
    same = [i for i, t in enumerate(texts) if t.strip() and t.strip() == text]
    if len(same) == 1:
        return Verdict(same[0], "copy")
    for rule, patterns in (
        ("pattern", [rf"selected\s+agent(?:\s+id)?\W+(?:is\W+)?{label}"]),
        ("phrase", [rf"{_CHOSE}[^.\n]{{0,40}}?\bagent\s+({one})\b", rf"\bagent\s+({one})\b[^.\n]{{0,40}}?\b{_CHOSE}"]),
    ):
        named = {_slot(labels, x) for p in patterns for x in re.findall(p, text, re.IGNORECASE)}
        if len(named) == 1:
            return Verdict(named.pop(), rule)
        if named:
            return Verdict()
    if task == "choice":
        letter = parse_answer(task, text).value
        same = [i for i, t in enumerate(texts) if letter is not None and parse_answer(task, t).value == letter]
        if same:
            return Verdict(same[0], "letter")
    return Verdict()


def after_verdict(output: str, labels: Sequence[str]) -> str:
    """What follows the line that was asked for; all of an output that does not open with it."""
    found = _format(labels, output.strip())
    return output.strip()[found.end() :] if found else output


def _patterns(labels: Sequence[str]) -> tuple[str, str]:
    """Regular expressions of one label, and of how it is written after "id:"."""
    one = "|".join(re.escape(x) for x in sorted(labels, key=len, reverse=True))
    return one, rf"(?:agent\s*)?[<(\[\"'*]*({one})\b"


def _format(labels: Sequence[str], text: str) -> re.Match[str] | None:
    return re.match(rf"[*_\s]*selected agent id\s*[:=]\s*[*_\s]*{_patterns(labels)[1]}", text, re.IGNORECASE)


def _slot(labels: Sequence[str], found: str) -> int:
    return [x.lower() for x in labels].index(found.lower())
