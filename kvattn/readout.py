"""How a judge's logits become a score for every slot, and how a small judge's love of one slot is calibrated away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.errors import KvattnError, unknown
from kvattn.layout import Ask, PromptLayout
from kvattn.prompt import JudgePrompt, Template

if TYPE_CHECKING:
    from kvattn.judge import Judge


def slot_scores(
    logits: Float[Tensor, "decisions vocabulary"], layout: PromptLayout
) -> tuple[Float[np.ndarray, " slots"], float]:
    """Scores by slot and coverage, by the kind of layout: labels, or a yes/no branch a slot."""
    return READOUTS["yesno" if layout.segments[-1].role == "branch" else "label"].read(logits, layout)


@dataclass(frozen=True)
class Label:
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
class YesNo:
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


Readout = Label | YesNo
READOUTS: dict[str, Readout] = {"label": Label(), "yesno": YesNo()}


def get(name: str | Readout) -> Readout:
    """The readout of that name."""
    if not isinstance(name, str):
        return name
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


def rotations(order: Sequence[int]) -> list[tuple[int, ...]]:
    """All cyclic rotations of an order: every candidate stands in every slot once."""
    return [tuple(order[i:]) + tuple(order[:i]) for i in range(len(order))]


def calibrate(judge: Judge, prompts: Sequence[JudgePrompt]) -> Prior:
    """The judge's prior from held-out prompts, all of one template and number of candidates, judged densely in all
    cyclic orders."""
    kinds = {(p.template.name, p.n) for p in prompts}
    if len(kinds) != 1:
        raise KvattnError("calibration takes prompts of one template and one number of candidates")
    scores = [d.scores for p in prompts for d in judge.judge(p, ["dense"], rotations(p.order), capture=False)]
    return prior_from(scores, kinds.pop()[0], judge.readout.name, len(prompts))
