"""Scores of the slots from the logits at the places where a judge decides; a layout carries the one that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def slot_logits(
    logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int], slots: int
) -> Float[Tensor, " slots"]:
    """What the softmax over slots is taken of, with its gradient: the labels' logits, or the branches' margins."""
    if len(logits) == 1:
        return logits[0, list(answer_ids)[:slots]]
    yes, no = answer_ids
    return logits[:, yes] - logits[:, no]


Scores = tuple[Float[np.ndarray, " slots"], float]  # scores by slot, and coverage
Reader = Callable[[Float[Tensor, "decisions vocabulary"], Sequence[int]], Scores]


def label_scores(logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int]) -> Scores:
    """Scores by slot (log-probabilities of the labels) and coverage (their summed probability)."""
    logp = torch.log_softmax(logits[0].double(), -1)[list(answer_ids)]
    return logp.numpy(), float(logp.exp().sum())


def pair_scores(logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int]) -> Scores:
    """`label_scores` of the slots, and behind them of a tie."""
    return label_scores(logits, answer_ids)


def branch_scores(logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int]) -> Scores:
    """Scores by slot, logit yes - logit no in its branch, and coverage (probability of yes or no, mean over slots)."""
    logp = torch.log_softmax(logits.double(), -1)[:, list(answer_ids)]
    return (logp[:, 0] - logp[:, 1]).numpy(), float(logp.exp().sum(1).mean())


@dataclass(frozen=True)
class Scale:
    """Reads whole numbers from `low` to `high`, one a branch: scores by slot are their expected value over the numbers
    that may be written, and coverage is the probability of those, mean over slots.

    Where a tokenizer writes the highest number in two tokens ("1", "0"), a branch has two decisions: the second, behind
    the first of these tokens, says how much of that token's probability is the highest number's."""

    low: int
    high: int

    @property
    def __name__(self) -> str:
        return f"scores from {self.low} to {self.high}"

    def __call__(self, logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int]) -> Scores:
        """answer_ids: a token for each number; of a highest number in two tokens the two, so one id more."""
        p = torch.softmax(logits.double(), -1)
        numbers = torch.arange(self.low, self.high + 1, dtype=torch.double)
        if len(answer_ids) == len(numbers):
            found = p[:, list(answer_ids)]
        else:
            *single, begins, ends = answer_ids
            at, then = p[0::2], p[1::2]
            highest = at[:, begins] * then[:, ends]
            found = torch.cat([at[:, single], highest[:, None]], 1)
            found[:, single.index(begins)] -= highest
        coverage = found.sum(1)
        return ((found @ numbers) / coverage).numpy(), float(coverage.mean())
