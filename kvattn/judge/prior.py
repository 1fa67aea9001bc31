"""How a small judge's love of one slot is calibrated away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from kvattn.decision import ties
from kvattn.errors import KvattnError


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
        """Scores less the prior; a tie's as it is, for it has no slot. Raises KvattnError for another number of
        slots."""
        more = ties(self.readout)
        if len(scores) != len(self.scores) + more:
            raise KvattnError(
                f"the prior was made for {len(self.scores)} candidates, this prompt has {len(scores) - more}"
            )
        return scores - np.pad(self.scores, (0, more))

    def to_json(self) -> dict:
        """JSON-able form, for the manifest."""
        return asdict(self)


def prior_from(scores: Sequence[np.ndarray], template: str, readout: str, questions: int) -> Prior:
    """A prior from raw scores of complete sets of cyclic orders, each [slots]."""
    mean = np.mean(np.stack(scores), axis=0)
    return Prior(tuple((mean - mean.mean()).tolist()), template, readout, questions)
