"""The embedded data set: arithmetic word problems with worked candidate solutions, seeded and without end.

Every problem is of one `ladder` kind, which says what is wrong with its wrong candidates, from easy to hard to see. All
kinds are *pointwise*: whoever sees the question and one candidate can tell whether that one is right.

==========  ==========================================================================================================
off-topic   they solve another problem, and solve it well
garbled     their words and numbers are in disorder
dissent     all candidates but one give one answer; the odd one out is right in half of the problems and wrong in half
slip        one step is miscalculated, and the error is carried on
wrong-path  the answer is right, but the way to it is not: two errors cancel, or a made-up correction mends a wrong one
==========  ==========================================================================================================

`Candidate.correct` means that every step holds and the answer is right. So candidates of kind "wrong-path" are *not*
correct, although their last number is; leave that kind out (`ladder=`) where only the last number should count.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kvattn.errors import KvattnError, unknown
from kvattn.questions.families import FAMILIES, Line, Of, Step, WordProblem, evaluate
from kvattn.questions.orders import latin_square
from kvattn.questions.prompt import Candidate, JudgePrompt

LADDER = ("off-topic", "garbled", "dissent", "slip", "wrong-path")
"""The ladder kinds, from easy to hard."""

_PATTERNS = (
    "{label}: {sum}",
    "{label} must be {sum}",
    "{label} will be {sum}",
    "{label} should be {sum}",
    "{sum} for {label}",
    "for {label}, {sum}",
    "find {label}: {sum}",
    "{sum} ({label})",
    "I get {sum} for {label}",
    "with {sum} we have {label}",
)
_FIRST_LEADS = ("", "", "", "first,", "to start,")
_LATER_LEADS = ("", "", "", "then", "next,", "now")
# By number of words; each can open any line of a solution.
_PADDING = (
    "",
    "now,",
    "going on,",
    "as another step,",
    "for the next part,",
    "and for the next part,",
    "now on to the next part,",
    "and now on to the next part,",
    "and so now on to the next part,",
)
_CORRECTIONS = ("a small correction", "what was left out", "the usual extra", "rounding things off")


@dataclass(frozen=True)
class SyntheticPrompt(JudgePrompt):
    """A `JudgePrompt` that knows how it was made.

    family: the problem family, e.g. "shopping"
    ladder: the kind of the problem, one of `LADDER`
    rungs:  for each candidate "right" or what is wrong with it: "off-topic", "garbled", "slip" or "wrong-path"
    steps:  number of steps of the right solution
    """

    family: str = ""
    ladder: str = ""
    rungs: tuple[str, ...] = ()
    steps: int = 0


def synthetic(
    n: int,
    seed: int = 0,
    candidates: int = 4,
    length_matched: bool = False,
    ladder: Sequence[str] = LADDER,
) -> list[JudgePrompt]:
    """The first n problems of the endless series that the other arguments define, as `SyntheticPrompt`s; the same on
    every machine.

    Each problem has at least one right candidate and one wrong one. Kinds come in shuffled rounds. Candidate ids and
    agents are "agent-a", "agent-b", ...; agent, place and quality are independent of each other (Latin squares for
    agents, contents put into places at random).

    seed: any integer; part of the ids, "syn-<seed>-000012"
    candidates: solutions to a problem, 2 to 8
    length_matched: the candidates of a problem have the same number of words (tokens but for a few, since numbers
        differ): shorter ones get neutral openings ("for the next part,"), none is cut; off-topic candidates solve a
        problem with the same number of steps, wrong paths need no extra step
    ladder: the kinds to use, a subset of `LADDER`
    """
    if n < 0:
        raise KvattnError(f"{n} synthetic problems asked for; give a number of 0 or more")
    if not 2 <= candidates <= 8:
        raise KvattnError(f"synthetic problems have 2 to 8 candidates, not {candidates}")
    kinds = list(dict.fromkeys(ladder))
    for kind in kinds:
        if kind not in LADDER:
            raise unknown("ladder kind", kind, LADDER)
    if not kinds:
        raise KvattnError(f"no ladder kind given; choose from {', '.join(LADDER)}")
    return [_problem(i, seed, candidates, length_matched, kinds) for i in range(n)]


def _problem(index: int, seed: int, n: int, matched: bool, kinds: list[str]) -> SyntheticPrompt:
    """WordProblem `index` of the series."""
    round_, place = divmod(index, len(kinds))
    kind = Random(f"kinds-{seed}-{round_}").sample(kinds, len(kinds))[place]
    r = Random(f"problem-{seed}-{index}-{n}-{matched}-{kind}")
    problem = r.choice(FAMILIES)(r)
    right = evaluate(problem.steps)
    assert right is not None, problem
    rights = r.choice([1, n - 1]) if kind == "dissent" else r.randint(1, n - 1)
    rungs = ["right"] * rights + ["slip" if kind == "dissent" else kind] * (n - rights)
    r.shuffle(rungs)
    texts = _solutions(problem, right, kind, rungs, matched, r)
    square = Random(f"latin-{n}-{seed}-{index // n}")
    agents = latin_square(n, lambda k: square.sample(range(k), k))[index % n]
    names = [f"agent-{'abcdefgh'[a]}" for a in agents]
    return SyntheticPrompt(
        question=problem.question,
        candidates=tuple(
            Candidate(id=name, text=text, agent=name, correct=rung == "right")
            for name, text, rung in zip(names, texts, rungs, strict=True)
        ),
        id=f"syn-{seed}-{index:06d}",
        answer=str(right[-1].value),
        family=problem.family,
        ladder=kind,
        rungs=tuple(rungs),
        steps=len(right),
    )


def _solutions(
    problem: WordProblem, right: tuple[Line, ...], kind: str, rungs: list[str], matched: bool, r: Random
) -> list[str]:
    """The candidates' texts, one for each rung; no two are equal, since no two write their first step alike."""
    wrong = iter(_wrong_lines(problem, right, kind, rungs.count("right"), len(rungs), matched, r))
    chosen = [right if rung == "right" else next(wrong) for rung in rungs]
    first_patterns = r.sample(_PATTERNS, len(rungs))
    sentences = [_write(lines, first, r) for lines, first in zip(chosen, first_patterns, strict=True)]
    answers = [str(lines[-1].value) for lines in chosen]
    for i, rung in enumerate(rungs):
        if rung == "garbled":
            sentences[i], answers[i] = _garble(sentences[i], right[-1].value, r)
    leads = _matching_leads(sentences) if matched else [_natural_leads(s, r) for s in sentences]
    return [
        " ".join(_sentence(f"{a} {b}") for a, b in zip(lead, body, strict=True)) + f" The answer is {answer}"
        for lead, body, answer in zip(leads, sentences, answers, strict=True)
    ]


def _wrong_lines(
    problem: WordProblem, right: tuple[Line, ...], kind: str, rights: int, n: int, matched: bool, r: Random
) -> list[tuple[Line, ...]]:
    """The worked lines behind the n - rights wrong candidates."""
    count = n - rights
    if kind == "garbled":
        return [right] * count
    if kind == "off-topic":
        return _others(problem, right[-1].value, count, matched, r)
    if kind == "wrong-path":
        return _wrong_paths(problem, right, count, matched, r)
    # One slip for all is what makes three agree; in half of the plain slip problems it makes a false majority too.
    shared = kind == "dissent" or r.random() < 0.5
    slips = _slips(problem, right, 1 if shared else count, r)
    return slips * count if shared else slips


def _slips(problem: WordProblem, right: tuple[Line, ...], count: int, r: Random) -> list[tuple[Line, ...]]:
    """Solutions with one miscalculated step, each with another final answer."""
    found: dict[int, tuple[Line, ...]] = {}
    options = [(i, d * sign) for i in range(len(right)) for d in (1, 2, 3, 4, 5, 6, 8, 9, 10, 20) for sign in (1, -1)]
    for i, delta in r.sample(options, len(options)):
        lines = evaluate(problem.steps, {i: delta})
        if lines is not None and lines[-1].value != right[-1].value:
            found.setdefault(lines[-1].value, lines)
        if len(found) == count:
            break
    return list(found.values())


def _others(problem: WordProblem, answer: int, count: int, matched: bool, r: Random) -> list[tuple[Line, ...]]:
    """Right solutions to problems of other families, none with this problem's answer."""
    found: list[tuple[Line, ...]] = []
    while len(found) < count:
        other = r.choice(FAMILIES)(r)
        same_length = len(other.steps) == len(problem.steps)
        lines = evaluate(other.steps)
        if lines and other.family != problem.family and lines[-1].value != answer and (same_length or not matched):
            found.append(lines)
    return found


def _wrong_paths(
    problem: WordProblem, right: tuple[Line, ...], count: int, matched: bool, r: Random
) -> list[tuple[Line, ...]]:
    """Solutions that end in the right answer by steps of which at least one is wrong."""
    answer = right[-1].value
    found: list[tuple[Line, ...]] = []
    while len(found) < count:
        if matched or r.random() < 0.5:
            lines = _cancelling(problem.steps, answer, r)
        else:
            lines = _misread(problem.steps, r)
            gap = 0 if lines is None else answer - lines[-1].value
            if lines and gap:
                sign = "+" if gap > 0 else "-"
                lines = (*lines, Line(r.choice(_CORRECTIONS), lines[-1].value, sign, abs(gap), answer))
        if lines and lines[-1].value == answer and lines not in found:
            found.append(lines)
    return found


def _cancelling(steps: tuple[Step, ...], answer: int, r: Random) -> tuple[Line, ...] | None:
    """The steps with one miscalculated, and the last one stated to give the right answer nevertheless."""
    lines = evaluate(steps[:-1], {r.randrange(len(steps) - 1): r.choice([-6, -5, -4, -3, -2, 2, 3, 4, 5, 6])})
    if lines is None:
        return None
    left, right = (lines[x.step].value if isinstance(x, Of) else x for x in (steps[-1].left, steps[-1].right))
    return (*lines, Line(steps[-1].label, left, steps[-1].op, right, answer))


def _misread(steps: tuple[Step, ...], r: Random) -> tuple[Line, ...] | None:
    """The steps with the operation of one of them mistaken; None when that gives no positive whole numbers, or the
    right answer."""
    i = r.randrange(len(steps))
    swap = {"*": "+", "+": "-", "-": "+", "/": "-"}
    bent = [Step(s.label, s.left, swap[s.op] if j == i else s.op, s.right) for j, s in enumerate(steps)]
    lines, true = evaluate(bent), evaluate(steps)
    return None if lines is None or true is None or lines[-1].value == true[-1].value else lines


def _write(lines: Sequence[Line], first: str, r: Random) -> list[str]:
    """One sentence a line, without capital or full stop; lines follow the pattern `first` and another in turn."""
    times, patterns = r.choice("*x"), (first, r.choice(_PATTERNS))
    return [
        patterns[i % 2].format(label=x.label, sum=f"{x.left}{times if x.op == '*' else x.op}{x.right}={x.value}")
        for i, x in enumerate(lines)
    ]


def _garble(sentences: list[str], answer: int, r: Random) -> tuple[list[str], str]:
    """The sentences with their words shuffled across them and their numbers redrawn, and a wrong final answer."""
    words = " ".join(sentences).split()
    r.shuffle(words)
    top = max(20, 2 * answer)
    words = [re.sub(r"\d+", lambda _: str(r.randint(2, top)), w) for w in words]
    cuts = [round(len(words) * i / len(sentences)) for i in range(len(sentences) + 1)]
    wrong = r.choice([v for v in range(1, top + 1) if v != answer])
    return [" ".join(words[a:b]) for a, b in itertools.pairwise(cuts)], str(wrong)


def _natural_leads(sentences: list[str], r: Random) -> list[str]:
    return [r.choice(_LATER_LEADS if i else _FIRST_LEADS) for i in range(len(sentences))]


def _matching_leads(solutions: list[list[str]]) -> list[list[str]]:
    """Neutral openings that bring all solutions to the number of words of the longest."""
    counts = [sum(len(s.split()) for s in sentences) for sentences in solutions]
    leads: list[list[str]] = []
    for count, sentences in zip(counts, solutions, strict=True):
        share, rest = divmod(max(counts) - count, len(sentences))
        leads.append([_PADDING[share + (i < rest)] for i in range(len(sentences))])
    return leads


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + "."
