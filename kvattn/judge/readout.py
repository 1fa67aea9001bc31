"""How a judge's logits or its written verdict become a choice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import Ask
from kvattn.engine.scores import Scale, branch_scores, label_scores, pair_scores
from kvattn.errors import KvattnError, unknown, whole
from kvattn.judge.verdict import Written, write
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.templates import Template


@dataclass(frozen=True)
class Reading:
    """What a readout read off one execution.

    scores: [slots], NaN where the judge gave none; slot: the choice, or None where a written verdict names no one slot
    """

    scores: Float[np.ndarray, " slots"]
    coverage: float
    slot: int | None
    written: Written | None = None


def best(scores: Float[np.ndarray, " slots"]) -> int:
    """The slot of the best score. Raises KvattnError for scores that are not finite: they choose nothing."""
    if not np.isfinite(scores).all():
        raise KvattnError(f"the scores of the slots are not finite ({scores.tolist()}), so that nothing is chosen")
    return int(np.argmax(scores))


class Scored:
    """A readout whose choice is the best score at a place that the prompt ends in."""

    room = 0  # tokens to decode

    def reading(self, engine: Engine, run: Execution, prompt: JudgePrompt) -> Reading:
        """The choice by the best score."""
        assert run.logits is not None
        scores, coverage = run.plan.layout.scores(run.logits)
        return Reading(scores, coverage, best(scores))


@dataclass(frozen=True)
class Label(Scored):
    """The judge names a slot: log-probabilities of the slot labels where the label comes next."""

    name = "label"

    def ask(self, template: Template) -> Ask:
        """The request for one label, the judge's turn opened up to it."""
        return Ask(template.label_question, template.label_opening, reader=label_scores)


@dataclass(frozen=True)
class Pairwise(Scored):
    """The judge names the better of two, or a tie: log-probabilities of the two labels and the tie's."""

    name = "pairwise"

    def ask(self, template: Template) -> Ask:
        """The request for one of three labels, the judge's turn opened up to it. Raises KvattnError for a template that
        names no tie."""
        rule = template.tie_rule.replace("{tie}", template.tie_label)
        asked = " ".join(x for x in (template.label_question, rule) if x)
        return Ask(asked, template.label_opening, None, (*template.slot_labels(2), template.tie_label), pair_scores)


@dataclass(frozen=True)
class YesNo(Scored):
    """On one judged cache, a short branch per slot asks whether that agent's answer is correct."""

    name = "yesno"

    def ask(self, template: Template) -> Ask:
        """A branch per slot, answered by yes or no."""
        return Ask(branch="\n\n" + template.yesno_branch, answers=("Yes", "No"), reader=branch_scores)


@dataclass(frozen=True)
class Score(Scored):
    """On one judged cache, a short branch per slot asks for a number on the template's scale; the slot's score is its
    expected value."""

    name = "score"

    def ask(self, template: Template) -> Ask:
        """A branch per slot, answered by a number."""
        low, high = template.scale
        branch = template.score_branch.replace("{low}", str(low)).replace("{high}", str(high))
        numbers = tuple(map(str, range(low, high + 1)))
        return Ask(branch="\n\n" + branch, answers=numbers, reader=Scale(low, high), longer=True)


@dataclass(frozen=True)
class Generate:
    """The judge writes its verdict, greedily: a line "Selected agent id: <id>", then that agent's answer.

    Parameters
    ----------
    max_new : tokens it may write.
    """

    max_new: int = 64

    name = "generate"

    @property
    def room(self) -> int:
        """Tokens to decode."""
        return self.max_new

    def ask(self, template: Template) -> Ask:
        """The request for a line with the label and then the answer; the judge's turn is open and empty."""
        if template.verdict:
            return Ask(template.label_question, answers=())
        return Ask(f"{template.label_question}\nOn the next line write the final answer of that agent.", answers=())

    def reading(self, engine: Engine, run: Execution, prompt: JudgePrompt) -> Reading:
        """What the judge wrote, and the slot that it names."""
        written = write(engine, run, prompt, self.max_new)
        return Reading(written.scores, written.coverage, written.verdict.slot, written)


Readout = Label | Pairwise | YesNo | Score | Generate
READOUTS: dict[str, Readout] = {x.name: x for x in (Label(), Pairwise(), YesNo(), Score(), Generate())}


def get(name: str | Readout) -> Readout:
    """The readout of that name: a key of `READOUTS`, or "generate:N", which writes up to N tokens.

    Raises KvattnError for another one."""
    if isinstance(name, Readout):
        return name
    kind, colon, length = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "generate" and colon:
        return Generate(whole(length, f"readout {name!r:.60}: the number of tokens after the colon", 1))
    if not isinstance(name, str) or name not in READOUTS:
        raise unknown("readout", name, READOUTS)
    return READOUTS[name]
