"""Selective risk with a guarantee: at most so many accepted decisions differ from dense, with a stated confidence.

A score and a sequence of thresholds come from the fitting half of the questions. On the calibration half each threshold
is tested for "more than `risk` of the accepted decisions are flips" by the exact binomial test, in their fixed order
until one cannot be rejected (Learn then Test, Angelopoulos et al. 2021, arXiv 2110.01052, Section 2); the last rejected
one is used. Given m accepted questions, drawn independently, the flips are binomial with the selective risk, so a wrong
threshold is returned only if the first wrong one of the sequence was rejected: with probability 1 - confidence at most,
however long the sequence is. What it does not say is in docs/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc
from scipy.stats import beta, binom

from kvattn.errors import KvattnError


class Refused(KvattnError):
    """No threshold can be given; the message says why and what would help."""


@dataclass(frozen=True)
class Promise:
    """With `confidence`, at most `risk` of the accepted decisions differ from dense's."""

    risk: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("risk", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise KvattnError(f"{name} is a share between 0 and 1, not {getattr(self, name)}")

    @property
    def delta(self) -> float:
        """The probability with which the promise may be broken."""
        return 1 - self.confidence

    @property
    def words(self) -> str:
        """The promise in words."""
        return f"at most {100 * self.risk:.3g}% flips among the accepted with {100 * self.confidence:.3g}% confidence"

    @property
    def least(self) -> int:
        """The fewest accepted decisions, all without a flip, from which the promise can be kept: 59 at 5 % and 95 %."""
        return math.ceil(math.log(self.delta) / math.log(1 - self.risk) - 1e-9)


@dataclass(frozen=True)
class Certificate:
    """What a threshold was granted on.

    threshold:   decisions with at least this score are accepted
    questions:   calibration questions, one order each
    accepted, flips: of those, accepted ones, and accepted ones that dense decides otherwise
    bound:       upper confidence bound of the selective risk (Clopper-Pearson, one-sided); at most the promised risk
    tested:      thresholds that were tested before the sequence ended
    """

    threshold: float
    risk: float
    confidence: float
    questions: int
    accepted: int
    flips: int
    bound: float
    tested: int


def refuse_if_small(questions: int, promise: Promise) -> None:
    """Raises Refused where so many calibration questions could not keep the promise even if none flipped."""
    if questions < promise.least:
        raise Refused(
            f"{questions} calibration questions cannot show {promise.words}: that takes {promise.least} accepted ones "
            "without a flip; judge more questions, or ask for less"
        )


def upper_bound(flips: int, accepted: int, confidence: float) -> float:
    """Clopper and Pearson's (1934) one-sided upper bound of a proportion; 1 without trials."""
    return 1.0 if flips >= accepted else float(beta.ppf(confidence, flips + 1, accepted - flips))


def p_value(flips: int, accepted: int, risk: float) -> float:
    """P(at most so many flips | accepted, risk): the exact test of "the selective risk is above `risk`"."""
    return float(binom.cdf(flips, accepted, risk)) if accepted else 1.0


def sequence(
    scores: np.ndarray, held_out: np.ndarray, flips: np.ndarray, calibration: int, promise: Promise, steps: int = 25
) -> list[float]:
    """Thresholds in the order of testing, from the fitting half alone.

    scores:      [rows] of the fitting half by the score that will be used: thresholds are quantiles of these
    held_out:    [rows], out-of-fold scores, which say how many flips to expect at each share of accepted rows
    flips:       [rows]
    calibration: number of calibration questions

    It begins where a rejection is likeliest and goes on to ever lower thresholds, accepting more.
    """
    grid = np.unique(np.quantile(scores, np.linspace(0, 1, steps, endpoint=False), method="lower"))[::-1]
    ranked, expected = np.argsort(-held_out, kind="stable"), []
    for threshold in grid:
        share = float((scores >= threshold).mean())
        taken = flips[ranked[: max(1, round(share * len(ranked)))]]
        accepted = round(share * calibration)
        # The binomial distribution function at a number of flips that need not be whole.
        flipped = (taken.sum() + 0.5) / (len(taken) + 1) * accepted
        expected.append(float(betainc(accepted - flipped, flipped + 1, 1 - promise.risk)) if accepted else 1.0)
    # Among equally good ones the first: it accepts least.
    return [float(t) for t in grid[int(np.argmin(expected)) :]]


def certify(scores: np.ndarray, flips: np.ndarray, thresholds: Sequence[float], promise: Promise) -> Certificate:
    """The last of the thresholds that the calibration half grants, tested in order.

    scores, flips: [calibration questions], one order each; thresholds must not depend on them

    Raises Refused where the calibration half is too small for any threshold, and where the first one fails.
    """
    scores, flips = np.asarray(scores, dtype=float), np.asarray(flips, dtype=bool)
    refuse_if_small(len(scores), promise)
    granted: Certificate | None = None
    accepted = flipped = 0
    for tested, threshold in enumerate(thresholds, start=1):
        taken = scores >= threshold
        accepted, flipped = int(taken.sum()), int(flips[taken].sum())
        if p_value(flipped, accepted, promise.risk) > promise.delta:
            break
        bound = upper_bound(flipped, accepted, promise.confidence)
        granted = Certificate(
            float(threshold), promise.risk, promise.confidence, len(scores), accepted, flipped, bound, tested
        )
    if granted is not None:
        return granted
    bound = upper_bound(flipped, accepted, promise.confidence)
    raise Refused(
        f"no threshold shows {promise.words}: the likeliest one accepts {accepted} of {len(scores)} calibration "
        f"questions with {flipped} flips, bounding the risk by {bound:.1%}; use better features or another reuse "
        "method, judge more questions, or ask for less"
    )
