"""A verdict that the judge writes: greedy decoding, the slot it names and by which rule that was read, its scores and
rows where the slot is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float

from kvattn.engine.capture import Captured
from kvattn.engine.engine import Engine, Step
from kvattn.engine.execution import Execution
from kvattn.errors import KvattnError
from kvattn.questions.answers import check
from kvattn.questions.answers import parse as parse_answer
from kvattn.questions.prompt import JudgePrompt

RULES = ("format", "own", "copy", "pattern", "phrase", "letter")
_CHOSE = r"(?:select|choose|chose|pick|prefer|best|correct|right|winner)\w*"


@dataclass(frozen=True)
class Verdict:
    """slot: the selected display slot, from 0, or None; rule: the one of `RULES` that found it, or None."""

    slot: int | None = None
    rule: str | None = None


def read_verdict(
    output: str, labels: Sequence[str], texts: Sequence[str], task: str = "math", own: str = ""
) -> Verdict:
    """The verdict in a judge's output. A template's `own` rule, a regular expression with one group, stands alone: what
    it finds must name exactly one slot ("own"). Else the first rule that names exactly one slot counts:

    format   a line "Selected agent id: <label>" opens the output: what the judge was asked for
    copy     the output is one candidate's text, word for word
    pattern  "selected agent (id) ... <label>" anywhere
    phrase   "agent <label>" beside a word of choice ("the best answer is that of Agent 2", "Agent 2 is correct")
    letter   task "choice" alone: candidates that state the judge's letter. With several of them the published rule
             takes the first displayed one, which depends on the order; so does this one

    labels: [slots]; texts: [slots], the candidates' texts as displayed. An output that names none, or several, has no
    verdict. The order of the rules differs from the published one in that the asked-for format comes first.
    """
    if own:
        known = {x.strip().lower(): i for i, x in enumerate(labels)}
        named = {known.get(x.strip().lower()) for x in re.findall(own, output)}
        slot = named.pop() if len(named) == 1 else None
        return Verdict() if slot is None else Verdict(slot, "own")
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


@dataclass(frozen=True)
class Written:
    """What a judge wrote under one plan.

    output:   the text; tokens: how many it is of
    verdict:  the slot it names, if it names one, and the rule that read it
    scores:   [slots], log-probabilities of the labels where the label was written; NaN where the verdict was read by
              another rule than "format", or a label is not one token there
    coverage: probability of the labels there, or NaN
    correct:  whether the answer in the output is right; None where nobody can say, and for programs, which nobody runs
              here
    rows:     by query kind, the captured row: "first_generated" (the first written token), "at_choice" (the token that
              emitted the label)
    """

    output: str
    tokens: int
    verdict: Verdict
    scores: Float[np.ndarray, " slots"]
    coverage: float
    correct: bool | None
    rows: dict[str, Captured]


def write(engine: Engine, run: Execution, prompt: JudgePrompt, max_new: int) -> Written:
    """Let the judge of a finished prefill write up to `max_new` tokens, greedily, and read its verdict."""
    t = prompt.template
    labels, texts, task = t.slot_labels(prompt.n), [prompt.shown(s).text for s in range(prompt.n)], t.kind
    capture, stops = run.captured is not None, stop_tokens(engine)
    ids: list[int] = []
    rows: dict[str, Captured] = {}
    named: Step | None = None  # where the label was written
    for step in islice(engine.stream(run, rows=capture), max_new):
        if len(ids) == 1 and step.captured is not None:
            rows["first_generated"] = step.captured
        if step.token in stops:
            break
        ids.append(step.token)
        said = engine.tokenizer.decode(ids) if named is None and not t.verdict else ""
        if said and read_verdict(said, labels, texts, task).rule == "format":
            named = step
            if step.captured is not None:
                rows["at_choice"] = step.captured
    output = engine.tokenizer.decode(ids, skip_special_tokens=True)
    verdict = read_verdict(output, labels, texts, task, t.verdict)
    scores, coverage = np.full(prompt.n, np.nan), float("nan")
    if verdict.rule == "format" and named is not None:
        scores, coverage = _label_scores(engine, named, labels, scores)
    correct = None if task == "code" else check(task, prompt.answer, after_verdict(output, labels))
    return Written(output, len(ids), verdict, scores, coverage, correct, rows)


def stop_tokens(engine: Engine) -> frozenset[int]:
    """The tokens that end a model's turn: its generation configuration's and its tokenizer's."""
    said = getattr(engine.model.generation_config, "eos_token_id", None)
    ends = {*(said if isinstance(said, list) else [said]), getattr(engine.tokenizer, "eos_token_id", None)}
    return frozenset(int(x) for x in ends if x is not None)


def _label_scores(
    engine: Engine, named: Step, labels: tuple[str, ...], nothing: np.ndarray
) -> tuple[np.ndarray, float]:
    """Log-probabilities of the labels, and their summed probability, where one of them was emitted."""
    for opening in ("Selected agent id: ", "Selected agent id:"):
        try:
            _, at = engine.compiler.forced(opening, labels)
        except KvattnError:
            continue
        if named.token in at:
            logp = torch.log_softmax(named.logits.double(), -1)[list(at)]
            return logp.numpy(), float(logp.exp().sum())
    return nothing, float("nan")
