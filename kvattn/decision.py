"""What a judge decided under one method and one order, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

# Log mass is floored here, far under what fp32 softmax rows distinguish, so that a masked-out segment has a logarithm.
MASS_FLOOR = 1e-8


@dataclass(frozen=True)
class Cost:
    """What one judgement cost, in units that do not depend on the machine, and in two that do.

    A token-layer is one token computed through one decoder layer. `token_layers` counts the judge's own pass,
    `probe_token_layers` any pass made to choose what to recompute; dense costs `tokens * layers`. The execution side's
    passes are not counted: reuse starts from caches that exist. Orders that begin alike compute their beginning once
    (`kvattn.engine.sharing`); all but `seconds` counts as if each had been judged alone. `seconds` belongs to the whole
    batch of `batch` judgements and is no latency. Reuse is counted in three ways that must not be mixed: candidate
    tokens kept (through at least one layer), candidate blocks kept whole, and calls that kept anything.
    """

    tokens: int
    tokens_computed: int
    layers: int
    token_layers: int
    probe_token_layers: int = 0
    seconds: float = 0.0
    kv_bytes: int = 0
    batch: int = 1
    candidate_tokens: int = 0
    candidate_tokens_kept: int = 0
    blocks_kept: int = 0

    @property
    def share(self) -> float:
        """Token-layers computed (probes included) over dense's."""
        return (self.token_layers + self.probe_token_layers) / (self.tokens * self.layers)

    @property
    def kept(self) -> float:
        """Share of the candidates' tokens that were kept, 0 where there are none."""
        return self.candidate_tokens_kept / max(1, self.candidate_tokens)


def together(costs: Sequence[Cost], tokens: int) -> Cost:
    """What several passes cost that judge what one prompt of so many tokens would."""
    summed = [f.name for f in fields(Cost) if f.name not in ("tokens", "layers", "seconds", "batch")]
    return replace(costs[0], tokens=tokens, **{name: sum(getattr(c, name) for c in costs) for name in summed})


def deciding_query(readout: str | None) -> str:
    """The query of the decision row under a readout: the token at which the judge decides. Under "yesno" and "score"
    the prompt ends in branches, and its last common token, in the middle of the instruction, decides nothing."""
    return "at_choice" if readout in ("yesno", "score") else "last_prompt"


TIE = "tie"  # the id of the verdict that no candidate is better, under the readout "pairwise"


def ties(readout: str | None) -> int:
    """How many verdicts of a readout are no candidate's: under "pairwise" one, which stands behind the last slot."""
    return int(readout == "pairwise")


@dataclass(frozen=True)
class SlotMass:
    """Attention of one query token (the decision row), summed over segments.

    mass:  [layers, heads, segments], each row sums to one
    sink:  [layers, heads, segments], the part of `mass` that falls on sink tokens, or None where nobody looked for any
    norm:  [layers, heads, segments], length of (attention x V x W_O) restricted to the segment, or None
    names: segment names, "prefix", "question", "header:1", "candidate:1", "separator:1", ..., "suffix", slots from 1
    lengths: tokens in each segment
    query: which token asked: "last_prompt", "at_choice" (the token that names the slot; in "yesno" the mean over the
           branches' ends), "at_choice:K" (branch of slot K), "first_generated" or "token:I"; kinds are never pooled
    """

    mass: np.ndarray
    sink: np.ndarray | None
    names: tuple[str, ...]
    lengths: tuple[int, ...]
    query: str = "last_prompt"
    norm: np.ndarray | None = None

    @property
    def slots(self) -> int:
        """Number of candidates shown."""
        return sum(name.startswith("candidate:") for name in self.names)


@dataclass(frozen=True)
class Decision:
    """One judgement. Slots count from 0 and are display positions; candidates are named by id.

    order:       of display; under "pairwise" the tie, as one more candidate, always comes last
    choice, slot: None where a written verdict (readout "generate") names no one candidate
    scores:      [slots], log-probability of each label (readouts "label" and "pairwise"; for "generate" where the label
                 was written, NaN if it was not), logit yes - logit no ("yesno"), or expected score ("score")
    calibrated:  [slots], scores less the prior of (model, template, N), or None where no prior was given
    mass, more:  slot mass of the decision row, and of further queries (each branch of "yesno")
    coverage:    probability that falls on the labels (on yes and no for "yesno", on the numbers of the scale for
                 "score": the mean over slots)
    rule, output, answer_correct, new_tokens: of a written verdict: the rule that read it
                 (`kvattn.judge.verdict.RULES`), the text, whether the answer in it is right, and its length
    """

    question_id: str
    order: tuple[int, ...]
    method: str
    readout: str
    choice: str | None
    slot: int | None
    scores: np.ndarray
    coverage: float
    cost: Cost
    correct: bool | None = None
    calibrated: np.ndarray | None = None
    choice_calibrated: str | None = None
    slot_calibrated: int | None = None
    correct_calibrated: bool | None = None
    mass: SlotMass | None = None
    more: tuple[SlotMass, ...] = ()
    notes: tuple[str, ...] = field(default=())
    rule: str | None = None
    output: str | None = None
    answer_correct: bool | None = None
    new_tokens: int = 0

    @property
    def distribution(self) -> np.ndarray:
        """Softmax of the scores over slots, [slots]."""
        from scipy.special import softmax

        return softmax(self.scores)

    @property
    def margin(self) -> float:
        """Best score less the second best; infinite with one candidate."""
        return margin(self.scores)


def summary(d: Decision) -> dict[str, object]:
    """A decision in one flat row for people to read: slot from 1, cost as a share of dense's token-layers, reuse as a
    share of the candidates' tokens."""
    return {
        "method": d.method,
        "choice": d.choice,
        "slot": None if d.slot is None else d.slot + 1,
        "correct": d.correct,
        "margin": d.margin if np.isfinite(d.margin) else None,
        "coverage": d.coverage,
        "token-layers": d.cost.share,
        "candidates kept": d.cost.kept,
    }


def margin(scores: np.ndarray) -> float:
    """Best score less the second best; infinite with fewer than two."""
    top = np.sort(scores)[::-1]
    return float(top[0] - top[1]) if len(top) > 1 else float("inf")
