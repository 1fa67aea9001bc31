"""Answers found in texts and compared with the right ones; programs that would like to pass without being right."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvattn.errors import KvattnError
from kvattn.questions import check, load_problems, parse, same
from kvattn.questions.sandbox.program import passes
from kvattn.questions.sandbox.sandbox import Limits


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("3*7=21. The answer is 21", "21", "answer-is"),
        ("The answer is 4. No: the answer is 3 x 4 = 12 dollars.", "12", "answer-is"),
        ("The answer is\n\n**$1,250.50**.", "1250.5", "answer-is"),
        ("The answer is -$5 #### 7", "-5", "answer-is"),
        ("So it is 8.\n#### 1,234", "1234", "hashes"),
        (r"Hence \boxed{\frac{5}{2}} of 9", r"\frac{5}{2}", "boxed"),
        ("x\nA: 26\n", "26", "answer-line"),
        ("**Final Answer:** 7 apples of 9", "7", "answer-line"),
        ("first 16 - 3, then 10-5", "5", "last-number"),
        ("it is 2 1/2", "5/2", "last-number"),
        ("nothing here", None, None),
        ("", None, None),
    ],
)
def test_numbers_are_found_by_the_first_rule_that_holds(text: str, value: str | None, rule: str | None) -> None:
    assert parse("math", text) == (value, rule)


@pytest.mark.parametrize(
    ("right", "text", "verdict"),
    [
        ("18", "The answer is 18.00", True),
        ("worked out\n#### 1,000", "The answer is $1000", True),
        ("0.5", r"The answer is $\dfrac{1}{2}$.", True),
        ("3.5", r"The answer is 3\frac{1}{2}", True),
        ("3.5", "The answer is 3 1/2 hours", True),
        ("4", r"The answer is \sqrt{16}", True),
        ("50", "The answer is 50%", True),
        ("0.5", r"The answer is 50\%", True),
        ("50", "The answer is 0.5", False),
        ("5", "The answer is -5", False),
        ("18", "The answer is 18.5", False),
        ("1/3", r"The answer is \frac{1}{4}", False),
        ("1/3", "The answer is 0.33", False),
        ("7", "no idea", False),
        ("7", "The answer is 7/0", True),
        ("Lima", "The answer is 7", None),
        (None, "The answer is 7", None),
    ],
)
def test_numbers_are_compared_as_numbers(right: str | None, text: str, verdict: bool | None) -> None:
    assert check("math", right, text) is verdict


def test_math_verify_works_off_the_main_thread_as_well() -> None:
    found: list[bool | None] = []
    thread = threading.Thread(target=lambda: found.append(check("math", "0.75", r"The answer is \frac{3}{4}")))
    thread.start()
    thread.join()
    assert found == [True]


@settings(max_examples=150, deadline=None)
@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=999))
def test_a_fraction_equals_itself_however_it_is_written(value) -> None:
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    for text in (f"The answer is {sign}{top}/{bottom}", rf"The answer is ${sign}\frac{{{top}}}{{{bottom}}}$."):
        assert check("math", str(value), text)
        assert not check("math", str(value + 1), text)


def test_hostile_texts_hold_nothing_up_and_run_nothing() -> None:
    """A pattern that is not linear in the text would take minutes here, or hours."""
    began = time.process_time()
    for part in (
        "1,111",
        "answer is ",
        "(",
        "1 ",
        "1/",
        "\\frac",
        "\\boxed{",
        "A:",
        "```\n",
        "-",
        "9",
        " ",
        "*",
        "(A)",
    ):
        for head in ("", "The answer is ", "\\boxed{"):
            for task in ("math", "choice", "code"):
                parse(task, head + part * (150_000 // len(part)))
    assert time.process_time() - began < 60
    evil = "__import__('os').system('touch pwned')"
    for text in (f"The answer is {evil}", rf"\boxed{{{evil}}}", rf"The answer is \frac{{{evil}}}{{1}}", "9**9**9**9"):
        check("math", "7", text)
    tall = "The answer is " + r"\frac{1}{" * 20 + "1" + "}" * 20
    assert not check("math", "7", tall)
    assert not check("math", "7", r"The answer is \frac{1}{2}^{9^{9^{9^9}}}")


def test_gsm8k_solutions_are_judged_as_their_authors_judged_them(shared: Path) -> None:
    """2,800 real model solutions with the verdicts that came with them."""
    rows = [json.loads(line) for line in (shared / "data" / "gsm8k_candidates.jsonl").read_text().splitlines()]
    differing = [
        (r["id"], c["agent"])
        for r in rows
        for c in r["candidates"]
        if check("math", r["answer"], c["text"]) is not c["correct"]
    ]
    assert sum(len(r["candidates"]) for r in rows) == 2800
    assert differing == []


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ("B", "B", "letter-line"),
        ("\n **(c)**\nBecause A is wrong.", "C", "letter-line"),
        ("B) Lima\nAnswer: C", "B", "letter-first"),
        ("**D**: the fourth", "D", "letter-first"),
        ("A - first", "A", "letter-first"),
        ("I think the answer is (B), not A.", "B", "stated"),
        ("Answer: C", "C", "stated"),
        ("The answer is A. Wait, the correct answer is: D", "D", "stated"),
        ("A good guess is option B", "B", "stated"),
        ("C is the correct one", "C", "stated"),
        (r"So \boxed{\text{D}}", "D", "boxed"),
        ("it must be (B), as (B) says", "B", "bracketed"),
        ("(A) or (B)", None, None),
        ("A good question. I do not know", None, None),
        ("The answer is a bird", None, None),
        ("", None, None),
    ],
)
def test_letters_are_found_by_the_first_rule_that_holds(text: str, value: str | None, rule: str | None) -> None:
    assert parse("choice", text) == (value, rule)
    assert check("choice", "B", text) is (value == "B")


def test_what_nobody_can_say_is_none() -> None:
    assert check("free", "x", "x") is None
    assert check("choice", None, "B") is None
    assert check("choice", "Lima", "B") is None
    assert parse("free", "B") == (None, None)
    assert same("math", "1/2", "0.5")
    assert not same("choice", "A", "B")
    with pytest.raises(KvattnError, match="unknown task 'maths'; did you mean 'math'"):
        check("maths", "1", "1")


# -- programs ----------------------------------------------------------------------------------------------------------

QUESTION = '''import math


def helper(x):
    return x + 1


def area(r):
    """ Area of a circle, by way of a list.
    >>> area(1)[0] > 3
    True
    """
'''
TESTS = """
def check(candidate):
    assert candidate(1) == [math.pi], "one"
    assert candidate(2) == [math.pi * 4]
    assert helper(1) == 2

check(area)
"""
RIGHT = "    return [math.pi * r * r]\n"
BLOCK = "Sure:\n```python\ndef area(r):\n    return [math.pi * r ** 2]\n```\nand\n```\nprint(area(3))\n```"
QUICK = Limits(wall_s=10, cpu_s=5)


def passed(text: str, tests: str = TESTS, question: str = QUESTION) -> bool | None:
    try:
        return check("code", tests, text, question=question, allow_code_execution=True)
    except KvattnError as e:
        if "cannot isolate" in str(e):
            pytest.skip(str(e))
        raise


@pytest.mark.parametrize(
    ("text", "rule"), [(RIGHT, "bare"), (BLOCK, "code-block"), (BLOCK[: BLOCK.index("```\nand")], "open-block")]
)
def test_a_right_program_passes(text: str, rule: str) -> None:
    assert parse("code", text)[1] == rule
    assert passed(text) is True


def test_a_body_whose_first_indentation_was_lost_passes() -> None:
    assert passed("```\nif r > 0:\n        return [math.pi * r * r]\n    return [0]\n```")
    assert passed("total = math.pi\nreturn [total * r * r]")


WAYS_TO_CHEAT = {
    "wrong": "    return [3]",
    "raises": "    raise ValueError",
    "empty": "",
    "no Python": "def area(r:",
    "exits with 0": "    import os; os._exit(0)",
    "exits at once": "import os\nos._exit(0)\ndef area(r): pass",
    "sys.exit": "import sys\nsys.exit(0)\ndef area(r): pass",
    "equals everything": """
class Any(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def area(r): return Any()""",
    "equals everything, no list": "class Any:\n    def __eq__(s, o): return True\ndef area(r): return Any()",
    "a helper of its own": "def helper(x): return 2\ndef isinstance(*a): return True\ndef area(r): return [0]",
    "another pi": "import math\nmath.pi = 0\ndef area(r): return [0]",
    "no assertions": "import sys, builtins\nbuiltins.AssertionError = None\nsys.flags = None\ndef area(r): return [0]",
    "another check": "def check(c): pass\ndef area(r): return [0]",
    "frames": """
import sys, gc
def area(r):
    frame = sys._getframe()
    while frame:
        for x in (*frame.f_locals.values(), *frame.f_globals.values()):
            if isinstance(x, dict) and x.get("token"): return x
        frame = frame.f_back
    for x in gc.get_objects():
        if isinstance(x, dict) and ("token" in x or "tests" in x): print(x)
    return [0]""",
    "writes a pass to every file descriptor": """
import os
def area(r):
    for fd in range(3, 64):
        for text in (b"pass", b"{\\"value\\": true}\\n"):
            try: os.write(fd, text)
            except OSError: pass
    return [0]""",
    "answers ahead": """
import os, json
def area(r):
    for fd in range(3, 64):
        try: os.write(fd, b"{\\"error\\": \\"StopIteration\\"}\\n" * 50)
        except OSError: pass
    os._exit(0)""",
    "reads every file descriptor for the token": """
import os
def area(r):
    for fd in range(64):
        try:
            os.set_blocking(fd, False)
            said = os.read(fd, 9999)
            for to in range(1, 64):
                try: os.write(to, said)
                except OSError: pass
        except OSError: pass
    return [0]""",
    "deep answer": """
import os
def area(r):
    for fd in range(3, 64):
        try: os.write(fd, b'{"value": ' + b'{"list": [' * 100000 + b']}' * 100000 + b'}\\n')
        except OSError: pass
    os._exit(0)""",
}


@pytest.mark.parametrize("name", WAYS_TO_CHEAT)
def test_a_program_cannot_pass_without_being_right(name: str) -> None:
    """Also where the tests swallow every error: `lenient` would pass if an error counted as none."""
    lenient = TESTS.replace("check(area)", "try:\n    check(area)\nexcept KeyError:\n    pass\ncheck(area)")
    for tests in (TESTS, lenient):
        assert passed(f"```\n{WAYS_TO_CHEAT[name]}\n```", tests) is False


def test_tests_that_swallow_errors_do_not_pass_a_program_that_ended() -> None:
    swallowing = "def check(c):\n    try:\n        c(1)\n    except Exception:\n        pass\n\ncheck(area)\n"
    assert passed("    return [0]", swallowing) is True
    assert passed("    import os; os._exit(0)", swallowing) is False
    assert passed("    raise ValueError", swallowing) is True  # what it raises is for the tests to judge


def test_tests_that_end_early_do_not_pass() -> None:
    assert passed(RIGHT, "import os\nos._exit(0)\ndef check(c): pass\ncheck(area)") is False
    assert passed(RIGHT, "raise SystemExit(0)\ncheck(area)") is False


def test_values_travel_as_they_are() -> None:
    values = (
        "[None, True, 1, -2.5, float('inf'), 'a\\ud800\\n', b'\\x00', (1, [2, (3,)]), {1, 2}, frozenset('a'), "
        "{(1,): {'k': None}}, 2j]"
    )
    question = 'def same(x):\n    """ x """\n'
    tests = f"""
def check(c):
    for v in {values}:
        r = c(v)
        assert r == v and type(r) is type(v), v

check(same)"""
    assert passed("    return x", tests, question)
    assert not passed("    return [x]", tests, question)
    ordered = "    import collections\n    return collections.OrderedDict(x)"
    assert passed(ordered, "def check(c):\n    assert c({'a': [1]}) == {'a': [1]}\n\ncheck(same)", question)


def test_errors_travel_by_name() -> None:
    tests = """
def check(c):
    try:
        c(0)
    except ZeroDivisionError:
        return
    assert 0

check(f)"""
    question = 'def f(x):\n    """ 1/x """\n'
    assert passed("    return 1 / x", tests, question)
    assert not passed("    raise KeyError", tests, question)
    assert not passed("    return 0", tests, question)


def test_a_program_that_never_ends_is_a_program_that_fails() -> None:
    done = passes(
        "    while True: pass", TESTS, QUESTION, allow_code_execution=True, limits=Limits(wall_s=2), require=()
    )
    assert not done.passed
    assert done.tests.ended == "timeout"


def test_a_question_in_words_is_left_out() -> None:
    tests = "def check(c):\n    assert c(2) == 4\n\ncheck(double)"
    assert passed("```\ndef double(x):\n    return 2 * x\n```", tests, "Write double(x), please!")


def test_programs_need_leave_and_tests_in_their_form() -> None:
    with pytest.raises(KvattnError, match="--allow-code-execution"):
        check("code", TESTS, RIGHT, question=QUESTION)
    assert check("code", None, RIGHT) is None
    with pytest.raises(KvattnError, match=re.escape("ends in a line check(name)")):
        passes(RIGHT, "assert True", allow_code_execution=True)


@pytest.mark.parametrize("limit", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_humaneval_solutions_pass_and_others_do_not(shared: Path, limit: int | None) -> None:
    for p in load_problems(shared / "data" / "humaneval.jsonl", limit):
        solution = p.meta["canonical_solution"]
        assert passed(solution, p.answer or "", p.question), p.id
        assert passed(f"```python\n{p.question}{solution}\n```", p.answer or "", p.question), p.id
        assert passed(f"```\n{solution.strip()}\n```", p.answer or "", p.question), p.id
        assert not passed("    return None", p.answer or "", p.question), p.id
