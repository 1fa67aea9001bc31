"""What reuse does to scores, taken apart: a shift of whole slots, and what is left of the content.

A score is taken for m_is = mu_i + beta_s + r_is: pair i, slot s; beta the method's own offsets, the same on every
question, r what it says of the content. Offsets cost N numbers and no labels: what they explain is not lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvattn.errors import KvattnError
from kvattn.stats.chance import DRAWS, LEAST_QUESTIONS, agreement, class_chance, permutation, right
from kvattn.stats.intervals import (
    UNKNOWN,
    Estimate,
    bounded,
    difference,
    drawn_variance,
    rate,
    resampled,
)
from kvattn.stats.pairs import Pairs
from kvattn.stats.resampling import USUAL, Resampling, cluster_resamples, per_question, tails

# How far from evenly slots may show a candidate: half of random orders of 16 questions stay under 0.2.
MOST_UNEVEN = 0.4


@dataclass(frozen=True)
class Split:
    """A method's loss, taken apart. Every `Estimate` has an interval over questions and the null edit's value beside.

    jcr:          share of pairs with dense's pick; its `floor` is the null edit's
    jcr_c:        the same after the method's own offsets are taken away (`own_offsets`), dense's picks as they are
    chance_c, p:  chance of jcr_c (`class_chance`), and p of it when the method's questions are permuted, one-sided
    content_loss: floor - jcr_c, what no offset gives back
    shift_loss:   jcr_c - jcr, what the offsets give back; under 0 for a lock that agrees by luck
    shift:        root mean square over slots of (the method's offset - dense's), nats
    gain, corr:   slope and correlation of r of the method on r of dense
    offsets:      [slots], the method's offsets less dense's, nats
    accuracy_c:   share of right picks after the offsets (see `kvattn.stats.chance.right`)
    """

    jcr: Estimate
    jcr_c: Estimate
    chance_c: float
    p: float
    content_loss: Estimate
    shift_loss: Estimate
    shift: Estimate
    gain: Estimate
    corr: Estimate
    offsets: np.ndarray
    accuracy_c: Estimate


def unfit(pairs: Pairs, calls: np.ndarray | None = None) -> str:
    """Why offsets cannot be told on these pairs, or "".

    calls: [pairs], what kind of call each judgement was, for a method that now reuses and now falls back (kvcomm): one
           offset cannot fit both, so the pairs of one kind are split at a time

    Each slot must show every candidate about equally often: where the best agent always stands in one slot, its quality
    would pass for that slot's offset.
    """
    if calls is not None and len(set(calls)) > 1:
        kinds = ", ".join(sorted(map(str, set(calls))))
        return f"the method mixes calls ({kinds}): split the pairs of one kind at a time"
    if pairs.count < LEAST_QUESTIONS:
        return f"{pairs.count} questions are too few to tell slot offsets; {LEAST_QUESTIONS} are needed"
    n = pairs.orders.shape[1]
    fixed = (pairs.orders == pairs.orders[0]).all(0)
    if fixed.any() and not fixed.all():  # such as that of a tie
        return "what stands in one place in every order has no offset that could be told from its worth"
    shares = np.stack([(pairs.orders == c).mean(0) for c in range(n)])  # [candidates, slots]
    uneven = float(np.abs(shares - 1 / n).sum(0).max() / 2)
    if uneven > MOST_UNEVEN:
        return (
            f"the orders are not balanced: of one slot, {uneven:.0%} of the candidates would have to change for it to "
            "show all equally often; judge in shuffled or cyclic orders"
        )
    return ""


def own_offsets(scores: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws, questions, slots], mean score by slot over the pairs of the *other* questions.

    scores: [pairs, slots], each pair's mean taken away; codes: [pairs]; weights: [draws, questions], how often each
    question counts. All copies of a question are left out of its own offsets.
    """
    count = weights.shape[1]
    sums, rows = per_question(scores, codes, count), per_question(np.ones(len(codes)), codes, count)
    others = (weights @ sums)[:, None, :] - weights[:, :, None] * sums
    number = (weights @ rows)[:, None] - weights * rows
    return others / np.maximum(number, 1)[:, :, None]


def centred(scores: np.ndarray) -> np.ndarray:
    """Scores [..., slots] less each row's mean."""
    return scores - scores.mean(-1, keepdims=True)


def split(
    pairs: Pairs,
    calls: np.ndarray | None = None,
    how: Resampling = USUAL,
    draws: int = DRAWS,
) -> Split:
    """Shift and content of a method's scores; offsets are fitted anew in every resample of questions.

    Raises KvattnError where `unfit` says why it cannot be done.
    """
    reason = unfit(pairs, calls)
    if reason:
        raise KvattnError(f"no split into shift and content: {reason}")
    fit = _Fit(pairs)
    beside = None if pairs.of_floor is None else _Fit(pairs.of_floor)
    picks, codes = pairs.picks, pairs.codes
    floor = None if picks.floor is None else agreement(picks.dense, picks.floor, pairs.classes)
    floor_rate = np.nan if floor is None else float(floor.mean())
    floors = np.full(3, np.nan) if beside is None else beside.scale(beside.sums.sum(0))
    own_floor = np.nan if beside is None else float(beside.own.mean())
    drawn = resampled(fit.refit, pairs.count, pairs.dense.size, how)
    variance = [drawn_variance(column, pairs.count) for column in drawn.T]
    scale = cluster_resamples(fit.sums, fit.scale, how)
    shift, gain, corr = fit.scale(fit.sums.sum(0))
    loss = UNKNOWN
    if floor is not None:
        loss = difference(floor & ~fit.own, fit.own & ~floor, codes, floor_rate - own_floor, how, variance[1])
    return Split(
        jcr=rate(fit.raw, codes, floor_rate, how),
        jcr_c=rate(fit.own, codes, own_floor, how, variance[0]),
        chance_c=class_chance(picks.dense, fit.pick, pairs.classes),
        p=permutation(picks.dense, fit.pick, pairs.classes, codes, draws, how.seed)[0],
        content_loss=loss,
        shift_loss=difference(fit.own & ~fit.raw, fit.raw & ~fit.own, codes, own_floor - floor_rate, how, variance[2]),
        shift=_norm(shift, scale[:, 0], pairs.count, floors[0], how),
        gain=bounded(gain, scale[:, 1], pairs.count, (-1.0, 1.0), floors[1], how),
        corr=bounded(corr, scale[:, 2], pairs.count, (-1.0, 1.0), floors[2], how),
        offsets=fit.offsets,
        accuracy_c=right(picks, fit.pick, None if beside is None else beside.pick, how, variance[3]),
    )


class _Fit:
    """The offsets of a method, and what follows from them.

    raw, own: [pairs], whether the method picks what dense picks, as it is and less its offsets
    pick:     [pairs], the slot picked less the offsets
    sums:     [questions, k], what shift, gain and correlation are made of (`scale`)
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.codes, self.count = pairs, pairs.codes, pairs.count
        self.slots, rows = pairs.dense.shape[1], np.arange(len(pairs.codes))
        dense_pick = pairs.dense.argmax(1)
        self.hit = pairs.same[rows, dense_pick]  # [pairs, slots], whether a slot shows dense's pick
        self.known = ~np.isnan(pairs.correct).any(1)
        method, dense = centred(pairs.method), centred(pairs.dense)
        self.scores = method
        self.pick = self._picks(np.ones((1, self.count)))[0]
        self.raw, self.own = self.hit[rows, pairs.method.argmax(1)], self.hit[rows, self.pick]
        self.floor = self.raw if pairs.floor is None else self.hit[rows, pairs.floor.argmax(1)]
        products = [(a * b).sum(1)[:, None] for a, b in ((method, dense), (method, method), (dense, dense))]
        ones = np.ones((len(rows), 1))
        self.sums = per_question(np.hstack([ones, *products, method, dense]), self.codes, self.count)
        self.offsets = method.mean(0) - dense.mean(0)

    def _picks(self, weights: np.ndarray) -> np.ndarray:
        """[draws, pairs], slots picked less the offsets fitted with weights [draws, questions]."""
        return (self.scores - own_offsets(self.scores, self.codes, weights)[:, self.codes]).argmax(-1)

    def refit(self, weights: np.ndarray) -> np.ndarray:
        """[draws, 4]: jcr_c, floor - jcr_c, jcr_c - jcr, accuracy_c."""
        picks, rows = self._picks(weights), np.arange(len(self.codes))
        weight = weights[:, self.codes]
        number, known = weight.sum(1), weight * self.known
        own = (weight * self.hit[rows, picks]).sum(1) / number
        right = np.nan_to_num(self.pairs.correct)[rows, picks]
        with np.errstate(divide="ignore", invalid="ignore"):
            accuracy = (known * right).sum(1) / known.sum(1)
        return np.stack([own, weight @ self.floor / number - own, own - weight @ self.raw / number, accuracy], 1)

    def scale(self, sums: np.ndarray) -> np.ndarray:
        """[..., 3]: shift, gain, correlation from sums [..., k]. Sums of r r over pairs are those of the scores less
        those of the offsets."""
        n = self.slots
        rows, cross, own, dense = (sums[..., i] for i in range(4))
        method_at, dense_at = sums[..., 4 : 4 + n] / rows[..., None], sums[..., 4 + n :] / rows[..., None]
        cross, own, dense = (
            total - rows * (a * b).sum(-1)
            for total, a, b in ((cross, method_at, dense_at), (own, method_at, method_at), (dense, dense_at, dense_at))
        )
        shift = np.sqrt(((method_at - dense_at) ** 2).mean(-1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([shift, cross / dense, cross / np.sqrt(own * dense)], -1)


def _norm(value: float, drawn: np.ndarray, questions: int, floor: float, how: Resampling) -> Estimate:
    """Interval of a length from its resamples: noise lengthens it in the sample, and in a resample once again."""
    squares = drawn**2
    true = np.sqrt(np.maximum(0.0, squares - 2 * (squares.mean() - value**2)))
    low, high = np.quantile(true, tails(questions, how.confidence))
    return Estimate(value, float(min(low, value)), float(max(high, value)), floor)
