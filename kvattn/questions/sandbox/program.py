"""Does a candidate's program pass its tests? (pass@1 of one sample, HumanEval, arXiv 2107.03374)."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from kvattn.errors import KvattnError
from kvattn.questions.sandbox.sandbox import REQUIRED, Isolation, Jailed, Limits, Outcome, watch

_LAST_CALL = re.compile(r"^check\(\s*([A-Za-z_]\w*)\s*\)\s*\Z", re.MULTILINE)


@dataclass(frozen=True)
class Tested:
    """Whether all tests passed, and how the two processes ended: the one with the tests, the one with the program."""

    passed: bool
    tests: Outcome
    program: Outcome


def passes(
    program: str,
    tests: str,
    question: str = "",
    *,
    allow_code_execution: bool = False,
    limits: Limits | None = None,
    require: Iterable[Isolation] = REQUIRED,
) -> Tested:
    """Runs a candidate's program against tests, each in a sandboxed process of its own.

    The tests call the program's function over a pipe; only numbers, texts and containers of them travel, so a function
    that takes or returns anything else fails, and a change of its arguments in place is not seen. The tests pass when
    their process has run to its end and has written a random token, which the program's process never gets.

    program:  Python that defines the function, or that continues the question
    tests:    Python that defines check(candidate) and ends in a line check(name)
    question: HumanEval's prompt, whose imports and helpers both sides have; text that is no Python is left out

    Raises KvattnError where execution is not allowed, an isolation in `require` cannot be had, or the tests do not end
    in such a line.
    """
    if not allow_code_execution:
        raise KvattnError(
            "checking a program runs it, in a sandbox, and that has to be allowed: pass --allow-code-execution "
            "(allow_code_execution=True)"
        )
    named = _LAST_CALL.search(tests.rstrip())
    if named is None:
        raise KvattnError(
            "tests of a program must be Python that defines check(candidate) and ends in a line check(name); see "
            "docs/candidates-file.md"
        )
    limits = limits or Limits()
    token = secrets.token_hex(16)
    common = {"question": question, "entry": named[1]}
    asked, ask = os.pipe()
    answers, answer = os.pipe()
    verdict, pronounce = os.pipe()
    theirs = [asked, ask, answers, answer, pronounce]
    try:
        task = {**common, "role": "candidate", "program": program, "asked": asked, "answers": answer}
        with Jailed(task, limits, require, channels=(asked, answer)) as candidate:
            task = {**common, "role": "tests", "tests": tests, "token": token}
            task |= {"asked": ask, "answers": answers, "verdict": pronounce}
            with Jailed(task, limits, require, channels=(ask, answers, pronounce), keep=(verdict,)) as judge:
                while theirs:
                    os.close(theirs.pop())
                watch([candidate, judge], limits.wall_s, lambda: judge.exited)
                ran = judge.outcome()
                passed = ran.ok and bytes(judge.kept[verdict]) == token.encode()
                return Tested(passed, ran, candidate.outcome())
    finally:
        for fd in (*theirs, verdict):
            os.close(fd)
