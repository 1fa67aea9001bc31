"""The final answer that a candidate's text states."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![\d.])(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+")
_LETTER_LINE = re.compile(r"[^\w]*([A-Za-z])(?:[^\w].*)?$")
_LETTER = re.compile(r"\b([A-J])\b")


def final_answer(text: str, template: str) -> str | None:
    """The final answer in a text, in a form in which equal answers are equal strings; None where none is found.

    By template: "choice", the letter that opens the first line, else the last capital A to J that stands alone;
    "code", the whole text without outer space; any other, the last number, without thousands separators and trailing
    zeros ("$1,200.50." gives "1200.5"), and for "free" without a number the whole text in lower case. This is simple on
    purpose: units, fractions and words for numbers are not understood.
    """
    if template == "code":
        return text.strip() or None
    if template == "choice":
        first = text.strip().split("\n", 1)[0]
        opening = _LETTER_LINE.match(first)
        letters = _LETTER.findall(text)
        return opening[1].upper() if opening else letters[-1] if letters else None
    numbers = _NUMBER.findall(text)
    if numbers:
        return _plain(numbers[-1])
    return (" ".join(text.lower().split()) or None) if template == "free" else None


def _plain(number: str) -> str:
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    whole, _, rest = digits.replace(",", "").partition(".")
    whole, rest = whole.lstrip("0") or "0", rest.rstrip("0")
    value = f"{whole}.{rest}" if rest else whole
    return value if value == "0" else sign + value
