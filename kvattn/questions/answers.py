"""Answers out of agents' texts, and whether they are right.

Nothing is executed here; `kvattn.questions.sandbox.program` runs programs, in a sandbox, and only where that is
allowed.

Numbers are compared exactly. Where LaTeX is involved math-verify compares, and is given short expressions without
powers, names or functions alone: such input needs no time limit (math-verify's own rests on signals, which work in the
main thread only) and never reaches sympy's text parser, which evaluates Python.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from kvattn.errors import unknown

TASKS = ("math", "choice", "code", "free")
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_OPEN = re.compile(r"^[ \t]*```[^\n`]*\n", re.MULTILINE)

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_MIXED = r"\d+\s\d+\s?/\s?\d+"
_NUMBER = re.compile(rf"(?:(?<![\w)\]}}])[-−])?\$?(?:{_MIXED}|(?:{_DIGITS})(?:\s?/\s?\d+)?)(?:\s?\\?%)?")
_LATEX_START = re.compile(r"(?:(?<![\w)\]}])[-−])?\$?(?:(?<!\d)\d+\s?)?\\(?:[dt]?frac|sqrt)")
_LATEX = re.compile(r"(?:\\[dt]?frac|\\sqrt|\\left|\\right|\\times|\\cdot|\\div|\\[,!$%]|[-−+*/(){}\[\]\d.,%$ ])+")
_LONGEST = 80  # characters of an expression that math-verify is given
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ANSWER_IS = re.compile(r"\banswer\s+is\b\s*:?", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"^[^\w\n]*(?:final answer|answer|a)\W{0,3}:", re.IGNORECASE | re.MULTILINE)

_ALONE = re.compile(r"[^\w]*([A-Ja-j])[^\w]*")
_FIRST = re.compile(r"[^\w]*([A-J])(?:[^\w\s]+(?:\s+(?!(?:or|and)\b)|$)|\s+[-–—:]\s)")
_STATED = re.compile(
    r"(?i:\banswer\s+is|\banswer\s*:|\boption|\bchoice)(?i:[\s:]+(?:option|choice))?[^\w\n]*([A-J])(?![\w'’])(?!(?<=I)\s+\w)"
    r"|(?<![\w'’])([A-J])[^\w\n]+(?i:is\s+(?:the\s+)?(?:correct|right|best)\b)"
)
_BOXED_LETTER = re.compile(r"\\boxed\{(?:\\\w+\{)?\s*\(?([A-J])\)?\s*\}")
_BRACKETED = re.compile(r"\(([A-J])\)")


class Parsed(NamedTuple):
    """An answer in one way of writing it, and the name of the rule that found it; both None where no rule did.

    Equal answers to a choice are equal values; for numbers ask `same`."""

    value: str | None
    rule: str | None


def parse(task: str, text: str) -> Parsed:
    """The answer in a text of that task. The rules, in order: `_number_stated`, `_letter_stated`, and for "code"

    code-block: the first block between ``` fences
    open-block: what follows a fence that is never closed
    bare:       a text without fences

    In texts of task "free" nothing is looked for.
    """
    if task not in _PARSERS:
        raise unknown("task", task, TASKS)
    return Parsed(*(_PARSERS[task](text) or (None, None)))


def same(task: str, right: str, other: str) -> bool:
    """Whether two parsed answers are one answer, as 1/2 and \\frac{1}{2} are."""
    return _same_number(right, other) if task == "math" else right == other


def final_answer(text: str, template: str) -> str | None:
    """The answer that a text states, in a form in which equal answers are equal strings; None where none is found.

    By template: what `parse` finds for "choice" and "code" (without outer space), and the number that it finds for any
    other, without a percent sign; for "free" without a number the whole text in lower case; for "relational" in the
    last sentence alone, where the statement stands. Numbers written in different ways, such as 1/2 and 0.5, stay
    different: ask `same`.
    """
    task = template if template in ("choice", "code") else "math"
    if template == "relational":
        text = _SENTENCE_END.split(text.strip())[-1]
    value = (parse(task, text).value or "").strip().removesuffix("%" if task == "math" else "")
    return value or (" ".join(text.lower().split()) or None if template == "free" else None)


def check(
    task: str, answer: str | None, text: str, *, question: str = "", allow_code_execution: bool = False
) -> bool | None:
    """Whether a text gives the right answer; False where no answer can be found in it.

    None where nobody can say: no right answer is known, the task is "free", or the right answer of a "math" question
    is no number, of a "choice" no letter.

    answer:   the number, alone or behind "#### " as in GSM8K; the letter; for "code" tests in HumanEval's form, Python
              source that defines check(candidate) and ends in a line check(name)
    question: for "code", the HumanEval prompt: Python source with imports, helpers and the signature

    Raises KvattnError for "code" where execution is not allowed or the sandbox cannot isolate it.
    """
    found = parse(task, text)
    if answer is None or task == "free":
        return None
    if task == "code":
        from kvattn.questions.sandbox.program import passes

        return passes(found.value or "", answer, question, allow_code_execution=allow_code_execution).passed
    right = _number(answer.rpartition("####")[2]) if task == "math" else parse(task, answer).value
    if right is None:
        return None
    return found.value is not None and same(task, right, found.value)


def _number_stated(text: str) -> tuple[str, str] | None:
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
        value = None if where is None else _number(where.rpartition("=")[2]) or _number(where)
        if value is not None:
            return value, rule
    numbers = _NUMBER.findall(text)
    return (_canonical(numbers[-1]), "last-number") if numbers else None


def _number(text: str) -> str | None:
    """The first number in a piece of text, or the first LaTeX fraction or root; None where there is neither."""
    plain, latex = _NUMBER.search(text), _LATEX_START.search(text)
    if latex is not None and (plain is None or latex.start() <= plain.start()):
        whole = _LATEX.match(text, latex.start())
        assert whole is not None
        return " ".join(whole[0].replace("$", "").replace("−", "-").rstrip(" .,").split())
    return None if plain is None else _canonical(plain[0])


def _same_number(right: str, other: str) -> bool:
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


def _canonical(number: str) -> str:
    """One way of writing a number: no commas or currency, no trailing zeros, fractions in lowest terms."""
    percent = "%" if number.endswith("%") else ""
    text = re.sub(r"[,$\\%]", "", number).replace("−", "-").strip()
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


def _letter_stated(text: str) -> tuple[str, str] | None:
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
    if boxed := _BOXED_LETTER.findall(text):
        return boxed[-1], "boxed"
    bracketed = set(_BRACKETED.findall(text))
    return (bracketed.pop(), "bracketed") if len(bracketed) == 1 else None


def _code(text: str) -> tuple[str, str] | None:
    if (block := _BLOCK.search(text)) is not None:
        return block[1], "code-block"
    if (opened := _OPEN.search(text)) is not None:
        return text[opened.end() :], "open-block"
    return (text, "bare") if text.strip() else None


_PARSERS: dict[str, Callable[[str], tuple[str, str] | None]] = {
    "math": _number_stated,
    "choice": _letter_stated,
    "code": _code,
    "free": lambda text: None,
}
