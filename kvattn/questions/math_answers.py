"""The number that a text ends at, and whether two numbers are one.

Numbers are compared exactly. Where LaTeX is involved math-verify compares, and is given short expressions without
powers, names or functions alone: such input needs no time limit (math-verify's own rests on signals, which work in the
main thread only) and never reaches sympy's text parser, which evaluates Python.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_MIXED = r"\d+\s\d+\s?/\s?\d+"
_NUMBER = re.compile(rf"(?:(?<![\w)\]}}])[-−])?\$?(?:{_MIXED}|(?:{_DIGITS})(?:\s?/\s?\d+)?)(?:\s?\\?%)?")
_LATEX_START = re.compile(r"(?:(?<![\w)\]}])[-−])?\$?(?:(?<!\d)\d+\s?)?\\(?:[dt]?frac|sqrt)")
_LATEX = re.compile(r"(?:\\[dt]?frac|\\sqrt|\\left|\\right|\\times|\\cdot|\\div|\\[,!$%]|[-−+*/(){}\[\]\d.,%$ ])+")
_LONGEST = 80  # characters of an expression that math-verify is given
_ANSWER_IS = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"^[^\w\n]*(?:final answer|answer|a)\W{0,3}:", re.IGNORECASE | re.MULTILINE)


def parse(text: str) -> tuple[str, str] | None:
    """The answer as a canonical text, and the rule that found it, tried in this order:

    answer-is:   behind the last "answer is", on that line (behind its last "=", if it has one)
    hashes:      behind the last "####"
    boxed:       in the last \\boxed{...}
    answer-line: behind "Answer:" or "A:" at the start of a line, the last such
    last-number: the last number in the text
    """
    ways = (
        ("answer-is", _behind(_ANSWER_IS, text)),
        ("hashes", _behind(re.compile("####"), text)),
        ("boxed", _boxed(text)),
        ("answer-line", _behind(_ANSWER_LINE, text)),
    )
    for rule, where in ways:
        value = None if where is None else number(where.rpartition("=")[2]) or number(where)
        if value is not None:
            return value, rule
    numbers = _NUMBER.findall(text)
    return (_canonical(numbers[-1]), "last-number") if numbers else None


def number(text: str) -> str | None:
    """The first number in a piece of text, or the first LaTeX fraction or root; None where there is neither."""
    plain, latex = _NUMBER.search(text), _LATEX_START.search(text)
    if latex is not None and (plain is None or latex.start() <= plain.start()):
        whole = _LATEX.match(text, latex.start())
        assert whole is not None
        return " ".join(whole[0].replace("$", "").replace("−", "-").rstrip(" .,").split())
    return None if plain is None else _canonical(plain[0])


def same(right: str, other: str) -> bool:
    """Whether two parsed answers are one number. A percent sign may mean hundredths or nothing: GSM8K's answer to
    "what percentage" is 50 where others write 50 % or 0.5."""
    a, b = _exact(right), _exact(other)
    if a is not None and b is not None:
        if right.endswith("%") == other.endswith("%"):
            return a == b
        percent, bare = (a, b) if right.endswith("%") else (b, a)
        return bare in (percent, percent / 100)
    expressions = (right, other)
    if any(len(x) > _LONGEST or x.count("sqrt") > 2 for x in expressions):
        return right == other
    return right == other or _verify(right, other)


def _behind(pattern: re.Pattern[str], text: str) -> str | None:
    """What stands behind the last match, on its line or, where nothing follows there, on the next line with text."""
    ends = [m.end() for m in pattern.finditer(text)]
    return text[ends[-1] :].lstrip(" \t\r\n*:").partition("\n")[0] if ends else None


def _boxed(text: str) -> str | None:
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    depth, start = 0, at + len("\\boxed")
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 1 : i]
    return None


def _canonical(said: str) -> str:
    """One way of writing a number: no commas or currency, no trailing zeros, fractions in lowest terms."""
    percent = "%" if said.endswith("%") else ""
    text = re.sub(r"[,$\\%]", "", said).replace("−", "-").strip()
    sign, text = ("-", text[1:]) if text.startswith("-") else ("", text)
    top, bar, bottom = (x.strip() for x in text.partition("/"))
    if bar and len(text) <= _LONGEST and int(bottom):
        whole, _, top = top.rpartition(" ")
        value = int(whole or 0) + Fraction(top) / int(bottom)
        return _signed(sign, str(value), percent)
    before, _, after = top.partition(".")
    after = after.rstrip("0")
    return _signed(sign, (before.lstrip("0") or "0") + (f".{after}" if after else ""), percent)


def _signed(sign: str, digits: str, percent: str) -> str:
    return ("" if digits == "0" else sign) + digits + percent


def _exact(text: str) -> Fraction | None:
    bare = text.removesuffix("%")
    return Fraction(bare) if len(bare) < 1000 and re.fullmatch(r"-?\d+(?:\.\d+|/\d+)?", bare, re.ASCII) else None


def _verify(right: str, other: str) -> bool:
    """math-verify's judgement of two short expressions."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no time limit
    latex = [math_verify.LatexExtractionConfig()]
    a, b = (math_verify.parse(f"${x}$", latex, parsing_timeout=None) for x in (right, other))  # type: ignore[arg-type]
    return bool(a) and bool(b) and math_verify.verify(a, b, timeout_seconds=None)
