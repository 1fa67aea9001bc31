"""Agreement beside what chance, equal answers and another null edit give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvattn.errors import KvattnError
from kvattn.stats.frames import one_hot
from kvattn.stats.intervals import UNKNOWN, Estimate, bounded, difference, mean, rate, rate_of_sums
from kvattn.stats.pairs import Picks, together
from kvattn.stats.resampling import USUAL, Resampling, cluster_resamples, per_question, permutation_p

# Under this kappa_max a method picks its slot so firmly that agreement is arithmetic of slots.
LEAST_KAPPA = 0.2
LOCKED = "locked: JCR says nothing about content"
NO_FLOOR = "no null edit was run: no score"
DRAWS = 9999
# Fewer questions tell neither a lock nor slot offsets.
LEAST_QUESTIONS = 8


@dataclass(frozen=True)
class Against:
    """How often a method picks what dense picks, and what that has to be read against.

    jcr, jcr_id:   share of pairs with the same choice: of texts, and of candidate ids, as the paper counts
    chance:        what two judges who read nothing agree on, each with its own habits of slots (`class_chance`)
    kappa, score:  (jcr - chance) / (1 - chance), and that over the null edit's own; NaN where `locked`
    excess:        flips beyond the null edit's, its JCR less the method's, paired
    p:             of a JCR this high when the method's questions are permuted (`permutation`), one-sided
    answer, answer_chance, answer_kappa: the three for chosen texts that state the same final answer
    equivalence:   JCR of a method that picks dense's final answer always and breaks ties at random
    again:         how often dense itself picks the same text in another order; NaN with one order a question
    accuracy, accuracy_dense: share of right picks, the method's and dense's (`right`)
    lock:          the largest share of the method's picks in one slot
    kappa_max:     the largest kappa that the two shares of picks by slot allow
    locked:        whether kappa_max is under 0.2 or undefined
    note:          why kappa and score are NaN, else ""
    """

    jcr: Estimate
    jcr_id: Estimate
    chance: Estimate
    kappa: Estimate
    score: Estimate
    excess: Estimate
    p: float
    answer: Estimate
    answer_chance: Estimate
    answer_kappa: Estimate
    equivalence: Estimate
    again: Estimate
    accuracy: Estimate
    accuracy_dense: Estimate
    lock: Estimate
    kappa_max: Estimate
    locked: bool
    note: str


def against(picks: Picks, how: Resampling = USUAL, draws: int = DRAWS) -> Against:
    """Agreement of a method with dense, chance beside it; intervals resample questions."""
    codes = picks.codes
    if len(codes) == 0:
        raise KvattnError("no pairs of dense and the method to compare")
    floor = picks.floor
    texts, answers = (Agreement.of(picks, c, how) for c in (picks.classes, picks.answers))
    ids = np.broadcast_to(np.arange(picks.classes.shape[1]), picks.classes.shape)
    excess, most = UNKNOWN, texts.kappa_max()
    locked = not most.value >= LEAST_KAPPA
    if floor is not None:
        own, other = (agreement(picks.dense, x, picks.classes) for x in (picks.method, floor))
        excess = difference(other & ~own, own & ~other, codes, 0.0, how)
    return Against(
        jcr=texts.rate(),
        jcr_id=Agreement.of(picks, ids, how).rate(),
        chance=texts.chance(),
        kappa=UNKNOWN if locked else texts.kappa(),
        score=UNKNOWN if locked else texts.score(),
        excess=excess,
        p=permutation(picks.dense, picks.method, picks.classes, codes, draws, how.seed)[0],
        answer=answers.rate(),
        answer_chance=answers.chance(),
        answer_kappa=UNKNOWN if locked else answers.kappa(),
        equivalence=equivalence(picks, how),
        again=again(picks, how),
        accuracy=right(picks, picks.method, floor, how),
        accuracy_dense=right(picks, picks.dense, None, how),
        lock=texts.lock(),
        kappa_max=most,
        locked=locked,
        note=LOCKED if locked else "" if floor is not None else NO_FLOOR,
    )


class Agreement:
    """Agreement of a method with dense in one sense of the same choice, from sums over each question's pairs.

    sums:  [questions, 2 + 2 slots + slots^2]: pairs that agree, pairs, dense's picks of each slot, the method's, and in
           how many pairs slots s and t show the same choice
    floor: the same of the null edit, or None
    """

    def __init__(self, sums: np.ndarray, floor: np.ndarray | None = None, how: Resampling = USUAL) -> None:
        self.sums, self.beside, self.how = sums, floor, how
        self.slots = math.isqrt(sums.shape[1] - 1) - 1

    @classmethod
    def of(cls, picks: Picks, classes: np.ndarray, how: Resampling = USUAL) -> Agreement:
        """Of picks; equal numbers in `classes` [pairs, slots] are the same choice."""
        n, count = classes.shape[1], int(picks.codes.max()) + 1
        same, ones = together(classes).reshape(len(classes), -1), np.ones((len(classes), 1))

        def sums(method: np.ndarray) -> np.ndarray:
            agree = agreement(picks.dense, method, classes)[:, None]
            rows = np.hstack([agree, ones, one_hot(picks.dense, n), one_hot(method, n), same])
            return per_question(rows, picks.codes, count)

        return cls(sums(picks.method), None if picks.floor is None else sums(picks.floor), how)

    def rate(self) -> Estimate:
        """Share of pairs that agree."""
        return rate_of_sums(self.sums[:, 0], self.sums[:, 1], self._of_floor(lambda s: s[..., 0] / s[..., 1]), self.how)

    def chance(self) -> Estimate:
        """What the two agree on who pick slots in these proportions and read nothing (`class_chance`)."""
        return self._resampled(self.chance_of, (0.0, 1.0))

    def kappa(self) -> Estimate:
        """(rate - chance) / (1 - chance)."""
        return self._with_rate(self._resampled(self._kappa, (-1.0, 1.0)), 1.0)

    def score(self) -> Estimate:
        """Kappa over the null edit's own; unknown where that agrees no more than by chance."""
        k, top = self.sums.shape[1], self._of_floor(self._kappa)
        if self.beside is None or not top > 0:
            return UNKNOWN

        def ratio(sums: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):
                return self._kappa(sums[..., :k]) / self._kappa(sums[..., k:])

        both = np.hstack([self.sums, self.beside])
        drawn = cluster_resamples(both, ratio, self.how)
        estimate = bounded(float(ratio(both.sum(0))), drawn, len(both), (-1.0, 1.0), 1.0, self.how)
        return self._with_rate(estimate, top)

    def lock(self) -> Estimate:
        """The largest share of the method's picks in one slot."""
        own = slice(2 + self.slots, 2 + 2 * self.slots)
        top = 2 + self.slots + int(self.sums[:, own].sum(0).argmax())
        beside = self._of_floor(lambda s: s[own].max() / s[1])
        return rate_of_sums(self.sums[:, top], self.sums[:, 1], beside, self.how)

    def kappa_max(self) -> Estimate:
        """The largest kappa of slots that the two judges' shares of picks allow: (sum over slots of the smaller share -
        chance) / (1 - chance)."""
        estimate, lock = self._resampled(self.kappa_max_of, (0.0, 1.0)), self.lock()
        if lock.value == 1 and len(self.sums) > 1:
            # No resample leaves the slot. The picks outside it that are not ruled out may fall as dense's do.
            n = self.slots
            dense, own = (self.sums[:, at : at + n].sum(0) / self.sums[:, 1].sum() for at in (2, 2 + n))
            high = float(kappa_max(dense, lock.low * own + (1 - lock.low) * dense))
            estimate = estimate._replace(low=0.0 if np.isfinite(estimate.value) else np.nan, high=high)
        return estimate

    def _resampled(self, statistic: Callable[[np.ndarray], np.ndarray], scale: tuple[float, float]) -> Estimate:
        drawn = cluster_resamples(self.sums, statistic, self.how)
        value = float(statistic(self.sums.sum(0)))
        return bounded(value, drawn, len(self.sums), scale, self._of_floor(statistic), self.how)

    def _with_rate(self, estimate: Estimate, top: float) -> Estimate:
        """The interval, no narrower than that of the rate on the scale from chance to `top`: resampling alone falls
        short where the rate is near 1."""
        chance = float(self.chance_of(self.sums.sum(0)))
        if not np.isfinite(estimate.value):
            return estimate
        ends = [(end - chance) / (1 - chance) / top for end in self.rate()[1:3]]
        low, high = np.fmin(estimate.low, ends[0]), np.fmax(estimate.high, ends[1])
        return estimate._replace(low=float(low), high=float(high))

    def _of_floor(self, statistic: Callable[[np.ndarray], np.ndarray]) -> float:
        return np.nan if self.beside is None else float(statistic(self.beside.sum(0)))

    def chance_of(self, sums: np.ndarray) -> np.ndarray:
        n = self.slots
        dense, method, same = sums[..., 2 : 2 + n], sums[..., 2 + n : 2 + 2 * n], sums[..., 2 + 2 * n :]
        same = same.reshape(*same.shape[:-1], n, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.einsum("...s,...st,...t->...", dense, same, method) / sums[..., 1] ** 3

    def _kappa(self, sums: np.ndarray) -> np.ndarray:
        chance = self.chance_of(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance < 1 - 1e-12, (sums[..., 0] / sums[..., 1] - chance) / (1 - chance), np.nan)

    def kappa_max_of(self, sums: np.ndarray) -> np.ndarray:
        n = self.slots
        return kappa_max(sums[..., 2 : 2 + n], sums[..., 2 + n : 2 + 2 * n])


def agreement(dense: np.ndarray, method: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[pairs], whether the two picks [pairs] are of one class; no choice (-1) agrees with nothing."""
    rows = np.arange(len(classes))
    return (classes[rows, dense] == classes[rows, method]) & (dense >= 0) & (method >= 0)


def class_chance(dense: np.ndarray, method: np.ndarray, classes: np.ndarray) -> float:
    """What two judges agree on who pick slots in the proportions of these picks [pairs] and read nothing.

    Mean over pairs of the sum over classes of (share of dense's picks in the class's slots) times (the method's share):
    Cohen's (1960) chance where all texts differ. Equal texts make it larger, so that two random judges score 0.
    """
    n = classes.shape[1]
    shares = one_hot(dense, n).mean(0), one_hot(method, n).mean(0)
    return float(shares[0] @ together(classes).mean(0) @ shares[1])


def permutation(
    dense: np.ndarray, method: np.ndarray, classes: np.ndarray, codes: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """p (one-sided) of an agreement this high when the method's questions are permuted, and the mean of the null.

    Every question takes the slots that the method picked on another with as many orders; slots and their habits stay,
    what the method saw of the question goes. Compared is each question's agreement less its mean under the null, summed
    over questions and divided by the root of the summed squares (a studentized permutation test, Janssen 1997): a
    method that follows a candidate through a question's orders agrees in all of them or in none, among those of
    another it does not, and plain sums would spread too little. dense, method: picks [pairs]; classes: [pairs, slots];
    codes: [pairs].
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(codes)
    by_question = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    rows = np.arange(len(codes))
    # A last column for picks that name no slot: they agree with nothing.
    hit = np.pad((classes == classes[rows, dense][:, None]) & (dense >= 0)[:, None], ((0, 0), (0, 1)))
    total, squares, expected = np.zeros(draws + 1), np.zeros(draws + 1), 0.0  # the first is what was seen
    for k in np.unique(sizes):
        row = by_question[starts[sizes == k][:, None] + np.arange(k)]  # [questions, k]
        agree = hit[row[:, None, :], method[row][None, :, :]].sum(-1)  # [dense's question, method's question]
        beyond, at = agree - agree.mean(1, keepdims=True), np.arange(len(row))
        order = np.concatenate([at[None], rng.permuted(np.tile(at, (draws, 1)), axis=1)])
        found = beyond[at, order]
        total += found.sum(1)
        squares += (found**2).sum(1)
        expected += float(agree.mean(1).sum())
    told = np.divide(total, np.sqrt(squares), out=np.zeros_like(total), where=squares > 0)
    return float(permutation_p(told[1:], float(told[0]))), expected / len(codes)


def kappa_max(dense: np.ndarray, method: np.ndarray) -> np.ndarray:
    """From picks by slot [..., slots]; NaN where both keep to one slot."""
    with np.errstate(divide="ignore", invalid="ignore"):
        dense, method = dense / dense.sum(-1, keepdims=True), method / method.sum(-1, keepdims=True)
        chance = (dense * method).sum(-1)
        return np.where(chance < 1 - 1e-12, (np.minimum(dense, method).sum(-1) - chance) / (1 - chance), np.nan)


def equivalence(picks: Picks, how: Resampling = USUAL) -> Estimate:
    """JCR of a method that always picks a candidate with dense's final answer and breaks ties at random: mean over
    pairs of (candidates with dense's text) / (candidates with dense's answer)."""
    chosen = picks.dense >= 0
    rows = np.flatnonzero(chosen)
    text, answer = (c[rows] == c[rows, picks.dense[rows]][:, None] for c in (picks.classes, picks.answers))
    values = np.zeros(len(chosen))
    values[rows] = text.sum(1) / (text | answer).sum(1)
    count = int(picks.codes.max()) + 1
    sums, totals = (per_question(v, picks.codes, count) for v in (values, chosen.astype(float)))
    return mean(sums, totals, how=how)


def again(picks: Picks, how: Resampling = USUAL) -> Estimate:
    """Dense against itself in another order: share of pairs of a question's orders in which it picks the same text,
    mean over questions. What no method can be asked to keep, if the order is nobody's merit."""
    at = np.flatnonzero(picks.dense >= 0)
    codes, most = picks.codes[at], int(picks.classes.max()) + 1
    count = int(picks.codes.max()) + 1
    picked = per_question(one_hot(picks.classes[at, picks.dense[at]], most), codes, count)
    orders = picked.sum(1)
    sums, pairs = ((x**2).sum(1) - orders for x in (picked, orders[:, None]))
    there = pairs > 0
    if not there.any():
        return UNKNOWN
    return mean(sums[there] / pairs[there], np.ones(int(there.sum())), how=how)


def right(
    picks: Picks,
    slots: np.ndarray,
    floor: np.ndarray | None = None,
    how: Resampling = USUAL,
    variance: float | None = None,
) -> Estimate:
    """Share of right picks among pairs whose candidates are all known to be right or wrong; a written verdict that
    names none is wrong. slots, floor: [pairs], the picks, and the null edit's; variance: as in `intervals.rate`."""
    known = np.flatnonzero(~np.isnan(picks.correct).any(1))

    def hits(at: np.ndarray) -> np.ndarray:
        return picks.correct[known, at[known]] * (at[known] >= 0)

    beside = np.nan if floor is None or not len(known) else float(hits(floor).mean())
    return rate(hits(slots), picks.codes[known], beside, how, variance)
