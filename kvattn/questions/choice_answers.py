"""The letter that a text chooses."""

from __future__ import annotations

import re

_ALONE = re.compile(r"[^\w]*([A-Ja-j])[^\w]*")
_FIRST = re.compile(r"[^\w]*([A-J])(?:[^\w\s]+(?:\s+(?!(?:or|and)\b)|$)|\s+[-–—:]\s)")
_STATED = re.compile(
    r"(?i:\banswer\s+is|\banswer\s*:|\boption|\bchoice)(?i:[\s:]+(?:option|choice))?[^\w\n]*([A-J])(?![\w'’])(?!(?<=I)\s+\w)"
    r"|(?<![\w'’])([A-J])[^\w\n]+(?i:is\s+(?:the\s+)?(?:correct|right|best)\b)"
)
_BOXED = re.compile(r"\\boxed\{(?:\\\w+\{)?\s*\(?([A-J])\)?\s*\}")
_BRACKETED = re.compile(r"\(([A-J])\)")


def parse(text: str) -> tuple[str, str] | None:
    """The letter, A to J, and the rule that found it, tried in this order:

    letter-line:  the first line with text holds the letter, capital or small, and no other word
    letter-first: the first line begins with the letter and a bracket, full stop, colon, asterisk or dash
    stated:       the last "answer is X", "answer: X", "option X", "choice X" or "X is correct"
    boxed:        the last \\boxed{X}
    bracketed:    all letters in round brackets are X
    """
    first = next((line for line in text.splitlines() if line.strip()), "").strip()
    if (alone := _ALONE.fullmatch(first)) is not None:
        return alone[1].upper(), "letter-line"
    if (begins := _FIRST.match(first)) is not None:
        return begins[1], "letter-first"
    if stated := _STATED.findall(text):
        return "".join(stated[-1]), "stated"
    if boxed := _BOXED.findall(text):
        return boxed[-1], "boxed"
    bracketed = set(_BRACKETED.findall(text))
    return (bracketed.pop(), "bracketed") if len(bracketed) == 1 else None
