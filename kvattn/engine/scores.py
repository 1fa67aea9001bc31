"""Scores of the slots from the logits at the places where a judge decides; a layout carries the one that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def branch_scores(logits: Float[Tensor, "decisions vocabulary"], answer_ids: Sequence[int]) -> Scores:
    """Scores by slot, logit yes - logit no in its branch, and coverage (probability of yes or no, mean over slots)."""
    logp = torch.log_softmax(logits.double(), -1)[:, list(answer_ids)]
    return (logp[:, 0] - logp[:, 1]).numpy(), float(logp.exp().sum(1).mean())
