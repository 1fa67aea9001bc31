"""Answers out of agents' texts, and whether they are right.

Nothing is executed here; `kvattn.questions.sandbox.program` runs programs, in a sandbox, and only where that is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from kvattn.errors import unknown
from kvattn.questions import choice_answers as _choice
from kvattn.questions import math_answers as _math

TASKS = ("math", "choice", "code", "free")
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_OPEN = re.compile(r"^[ \t]*```[^\n`]*\n", re.MULTILINE)


class Parsed(NamedTuple):
    """An answer in one way of writing it, and the name of the rule that found it; both None where no rule did.

    Equal answers to a choice are equal values; for numbers ask `same`."""

    value: str | None
    rule: str | None


def parse(task: str, text: str) -> Parsed:
    """The answer in a text of that task. The rules, in order: `_math.parse`, `_choice.parse`, and for "code"

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
    return _math.same(right, other) if task == "math" else right == other


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
    right = _math.number(answer.rpartition("####")[2]) if task == "math" else parse(task, answer).value
    if right is None:
        return None
    return found.value is not None and same(task, right, found.value)


def _code(text: str) -> tuple[str, str] | None:
    if (block := _BLOCK.search(text)) is not None:
        return block[1], "code-block"
    if (opened := _OPEN.search(text)) is not None:
        return text[opened.end() :], "open-block"
    return (text, "bare") if text.strip() else None


_PARSERS: dict[str, Callable[[str], tuple[str, str] | None]] = {
    "math": _math.parse,
    "choice": _choice.parse,
    "code": _code,
    "free": lambda text: None,
}
