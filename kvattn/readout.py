"""How a judge's logits or its written verdict become a choice, and how a small judge's love of one slot is calibrated
away."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.errors import KvattnError, unknown
from kvattn.layout import Ask, PromptLayout
from kvattn.orders import rotations
from kvattn.prompt import JudgePrompt, Template

if TYPE_CHECKING:
    from kvattn.engine import Engine
    from kvattn.execution import Execution
    from kvattn.judge import Judge
    from kvattn.written import Written


def slot_scores(
    logits: Float[Tensor, "decisions vocabulary"], layout: PromptLayout
) -> tuple[Float[np.ndarray, " slots"], float]:
    """Scores by slot and coverage, by the kind of layout: labels, or a yes/no branch a slot. Raises KvattnError for a
    layout whose judge writes its verdict."""
    if not layout.answer_ids:
        raise KvattnError("this method needs a score for every slot; use the readout label or yesno, not generate")
    return (YesNo() if layout.segments[-1].role == "branch" else Label()).read(logits, layout)


@dataclass(frozen=True)
class Reading:
    """What a readout read off one execution.

    scores: [slots], NaN where the judge gave none; slot: the choice, or None where a written verdict names no one slot
    """

    scores: Float[np.ndarray, " slots"]
    coverage: float
    slot: int | None
    written: Written | None = None


class Scored(ABC):
    """A readout whose choice is the best score at a place that the prompt ends in."""

    room = 0  # tokens to decode

    @abstractmethod
    def read(
        self, logits: Float[Tensor, "decisions vocabulary"], layout: PromptLayout
    ) -> tuple[Float[np.ndarray, " slots"], float]:
        """Scores by slot and coverage."""

    def reading(self, engine: Engine, run: Execution, prompt: JudgePrompt) -> Reading:
        """The choice by the best score."""
        assert run.logits is not None
        scores, coverage = self.read(run.logits, run.plan.layout)
        return Reading(scores, coverage, int(np.argmax(scores)))


@dataclass(frozen=True)
class Label(Scored):
    """The judge names a slot: log-probabilities of the slot labels where the label comes next."""

    name = "label"

    def ask(self, template: Template) -> Ask:
        """The request for one label, the judge's turn opened up to it."""
        return Ask(template.label_question, template.label_opening)

    def read(
        self, logits: Float[Tensor, "decisions vocabulary"], layout: PromptLayout
    ) -> tuple[Float[np.ndarray, " slots"], float]:
        """Scores by slot (log-probabilities of the labels) and coverage (their summed probability)."""
        logp = torch.log_softmax(logits[0].double(), -1)[list(layout.answer_ids)]
        return logp.numpy(), float(logp.exp().sum())


@dataclass(frozen=True)
class YesNo(Scored):
    """On one judged cache, a short branch per slot asks whether that agent's answer is correct."""

    name = "yesno"

    def ask(self, template: Template) -> Ask:
        """A branch per slot, answered by yes or no."""
        return Ask(branch="\n\n" + template.yesno_branch, answers=("Yes", "No"))

    def read(
        self, logits: Float[Tensor, "decisions vocabulary"], layout: PromptLayout
    ) -> tuple[Float[np.ndarray, " slots"], float]:
        """Scores by slot, logit yes - logit no, and coverage (probability of yes or no, mean over slots)."""
        logp = torch.log_softmax(logits.double(), -1)[:, list(layout.answer_ids)]
        return (logp[:, 0] - logp[:, 1]).numpy(), float(logp.exp().sum(1).mean())


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
        return Ask(f"{template.label_question}\nOn the next line write the final answer of that agent.", answers=())

    def reading(self, engine: Engine, run: Execution, prompt: JudgePrompt) -> Reading:
        """What the judge wrote, and the slot that it names."""
        from kvattn.written import write

        written = write(engine, run, prompt, self.max_new)
        return Reading(written.scores, written.coverage, written.verdict.slot, written)


Readout = Label | YesNo | Generate
READOUTS: dict[str, Readout] = {"label": Label(), "yesno": YesNo(), "generate": Generate()}


def get(name: str | Readout) -> Readout:
    """The readout of that name: "label", "yesno", "generate", or "generate:N", which writes up to N tokens.

    Raises KvattnError for another one."""
    if not isinstance(name, str):
        return name
    kind, colon, length = name.partition(":")
    if kind == "generate" and colon:
        if not length.isdigit() or int(length) < 1:
            raise KvattnError(f"readout {name!r}: the number of tokens after the colon is 1 or more")
        return Generate(int(length))
    if name not in READOUTS:
        raise unknown("readout", name, READOUTS)
    return READOUTS[name]


@dataclass(frozen=True)
class Prior:
    """What dense says of each slot whatever stands in it: the mean score by slot over all cyclic orders of held-out
    questions, less its own mean. One for every (model, template, N), subtracted for every method alike: a prior for
    each method would erase the very shift that reuse causes.

    scores: [slots]; questions: how many held-out questions it was made from
    """

    scores: tuple[float, ...]
    template: str
    readout: str
    questions: int

    def apply(self, scores: Float[np.ndarray, " slots"]) -> Float[np.ndarray, " slots"]:
        """Scores less the prior. Raises KvattnError for another number of slots."""
        if len(scores) != len(self.scores):
            raise KvattnError(f"the prior was made for {len(self.scores)} candidates, this prompt has {len(scores)}")
        return scores - np.asarray(self.scores)

    def to_json(self) -> dict:
        """JSON-able form, for the manifest."""
        return asdict(self)


def prior_from(scores: Sequence[np.ndarray], template: str, readout: str, questions: int) -> Prior:
    """A prior from raw scores of complete sets of cyclic orders, each [slots]."""
    mean = np.mean(np.stack(scores), axis=0)
    return Prior(tuple((mean - mean.mean()).tolist()), template, readout, questions)


def calibrate(judge: Judge, prompts: Sequence[JudgePrompt]) -> Prior:
    """The judge's prior from held-out prompts, all of one template and number of candidates, judged densely in all
    cyclic orders."""
    kinds = {(p.template.name, p.n) for p in prompts}
    if len(kinds) != 1:
        raise KvattnError("calibration takes prompts of one template and one number of candidates")
    scores = [d.scores for p in prompts for d in judge.judge(p, ["dense"], rotations(p.order), capture=False)]
    return prior_from(scores, kinds.pop()[0], judge.readout.name, len(prompts))
