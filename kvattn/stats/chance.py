"""Agreement beside what chance, equal answers and another null edit give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvattn.errors import KvattnError
from kvattn.stats.frames import one_hot
from kvattn.stats.intervals import UNKNOWN, Estimate, bounded, difference, mean, rate
from kvattn.stats.pairs import Picks, together
from kvattn.stats.picks import RAW, Scope, Source
from kvattn.stats.resampling import CONFIDENCE, RESAMPLES, Resampling, cluster_resamples, per_question, permutation_p

# Under this kappa_max a method picks its slot so firmly that agreement is arithmetic of slots.
LEAST_KAPPA = 0.2
LOCKED = "locked: JCR says nothing about content"
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
    lock: Estimate
    kappa_max: Estimate
    locked: bool
    note: str


def against(
    picks: Picks, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, draws: int = DRAWS, seed: int = 0
) -> Against:
    """Agreement of a method with dense, chance beside it; intervals resample questions."""
    codes, n = picks.codes, picks.classes.shape[1]
    if len(codes) == 0:
        raise KvattnError("no pairs of dense and the method to compare")
    size = {"confidence": confidence, "resamples": resamples, "seed": seed}
    texts, answers = (_Agreement(picks, c) for c in (picks.classes, picks.answers))
    lock, kappa_max = habits(picks, **size)
    locked = not kappa_max.value >= LEAST_KAPPA
    ids = np.tile(np.arange(n), (len(codes), 1))
    excess = UNKNOWN
    if texts.floor is not None:
        excess = difference(texts.floor & ~texts.agree, texts.agree & ~texts.floor, codes, 0.0, confidence)
    score = texts.score(**size)
    return Against(
        jcr=rate(texts.agree, codes, texts.floor_rate, confidence),
        jcr_id=_Agreement(picks, ids).rate(confidence),
        chance=texts.chance(**size),
        kappa=UNKNOWN if locked else texts.kappa(**size),
        score=UNKNOWN if locked else score,
        excess=excess,
        p=permutation(picks.dense, picks.method, picks.classes, codes, draws, seed)[0],
        answer=answers.rate(confidence),
        answer_chance=answers.chance(**size),
        answer_kappa=UNKNOWN if locked else answers.kappa(**size),
        equivalence=equivalence(picks, **size),
        lock=lock,
        kappa_max=kappa_max,
        locked=locked,
        note=LOCKED if locked else "" if picks.floor is not None else "no null edit was run: no score",
    )


class _Agreement:
    """Agreement in the sense of `classes`, and the sums [questions, k] that chance and kappa are made of."""

    def __init__(self, picks: Picks, classes: np.ndarray) -> None:
        self.codes, self.slots = picks.codes, classes.shape[1]
        self.agree, self.sums = self._sums(picks.dense, picks.method, classes)
        self.floor, self.floor_sums, self.floor_rate = None, None, np.nan
        if picks.floor is not None:
            self.floor, self.floor_sums = self._sums(picks.dense, picks.floor, classes)
            self.floor_rate = float(self.floor.mean())

    def _sums(self, dense: np.ndarray, method: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        agree, same = agreement(dense, method, classes), together(classes).reshape(len(classes), -1)
        rows = [agree[:, None], np.ones_like(agree[:, None]), one_hot(dense, self.slots), one_hot(method, self.slots)]
        return agree, per_question(np.hstack([*rows, same]), self.codes, int(self.codes.max()) + 1)

    def rate(self, confidence: float) -> Estimate:
        return rate(self.agree, self.codes, self.floor_rate, confidence)

    def chance(self, confidence: float, resamples: int, seed: int) -> Estimate:
        value, floor = float(self._chance(self.sums.sum(0))), self._of_floor(self._chance)
        drawn = cluster_resamples(self.sums, self._chance, Resampling(resamples=resamples, seed=seed))
        return bounded(value, drawn, len(self.sums), (0.0, 1.0), floor, confidence)

    def kappa(self, confidence: float, resamples: int, seed: int) -> Estimate:
        drawn = cluster_resamples(self.sums, self._kappa, Resampling(resamples=resamples, seed=seed))
        value, floor = float(self._kappa(self.sums.sum(0))), self._of_floor(self._kappa)
        return self._with_rate(bounded(value, drawn, len(self.sums), (-1.0, 1.0), floor, confidence), 1.0, confidence)

    def score(self, confidence: float, resamples: int, seed: int) -> Estimate:
        if self.floor_sums is None:
            return UNKNOWN
        k = self.sums.shape[1]

        def ratio(sums: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore", invalid="ignore"):
                return self._kappa(sums[..., :k]) / self._kappa(sums[..., k:])

        both = np.hstack([self.sums, self.floor_sums])
        top, value = self._of_floor(self._kappa), float(ratio(both.sum(0)))
        if not top > 0:  # a null edit that agrees no more than by chance leaves nothing to measure against
            return UNKNOWN
        drawn = cluster_resamples(both, ratio, Resampling(resamples=resamples, seed=seed))
        return self._with_rate(bounded(value, drawn, len(both), (-1.0, 1.0), 1.0, confidence), top, confidence)

    def _with_rate(self, estimate: Estimate, top: float, confidence: float) -> Estimate:
        """The interval, no narrower than that of the rate on the scale from chance to `top`: resampling alone falls
        short where the rate is near 1."""
        chance = float(self._chance(self.sums.sum(0)))
        if not np.isfinite(estimate.value):
            return estimate
        ends = [(end - chance) / (1 - chance) / top for end in self.rate(confidence)[1:3]]
        low, high = np.nanmin([estimate.low, ends[0]]), np.nanmax([estimate.high, ends[1]])
        return estimate._replace(low=float(low), high=float(high))

    def _of_floor(self, statistic: Callable[[np.ndarray], np.ndarray]) -> float:
        return np.nan if self.floor_sums is None else float(statistic(self.floor_sums.sum(0)))

    def _chance(self, sums: np.ndarray) -> np.ndarray:
        n = self.slots
        dense, method, same = sums[..., 2 : 2 + n], sums[..., 2 + n : 2 + 2 * n], sums[..., 2 + 2 * n :]
        same = same.reshape(*same.shape[:-1], n, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.einsum("...s,...st,...t->...", dense, same, method) / sums[..., 1] ** 3

    def _kappa(self, sums: np.ndarray) -> np.ndarray:
        chance = self._chance(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance < 1 - 1e-12, (sums[..., 0] / sums[..., 1] - chance) / (1 - chance), np.nan)


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
    what the method saw of the question goes. dense, method: picks [pairs]; classes: [pairs, slots]; codes: [pairs].
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(codes)
    by_question = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    rows = np.arange(len(codes))
    # A last column for picks that name no slot: they agree with nothing.
    hit = np.pad((classes == classes[rows, dense][:, None]) & (dense >= 0)[:, None], ((0, 0), (0, 1)))
    null, observed = np.zeros(draws), 0
    for k in np.unique(sizes):
        row = by_question[starts[sizes == k][:, None] + np.arange(k)]  # [questions, k]
        agree = hit[row[:, None, :], method[row][None, :, :]].sum(-1)  # [dense's question, method's question]
        observed += np.trace(agree)
        order = rng.permuted(np.tile(np.arange(len(row)), (draws, 1)), axis=1)
        null += agree[np.arange(len(row)), order].sum(1)
    return float(permutation_p(null, float(observed))), float(null.mean() / len(codes))


def habits(
    picks: Picks, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """lock, the largest share of the method's picks in one slot, and kappa_max, the largest kappa of slots that the
    shares of the two allow: (sum over slots of the smaller share - chance) / (1 - chance)."""
    n, codes = picks.classes.shape[1], picks.codes
    dense, own = one_hot(picks.dense, n), one_hot(picks.method, n)
    floor = None if picks.floor is None else one_hot(picks.floor, n)
    top = own[:, own.mean(0).argmax()]
    lock = rate(top, codes, np.nan if floor is None else float(floor.mean(0).max()), confidence)
    value = float(_kappa_max(dense.mean(0), own.mean(0)))
    beside = np.nan if floor is None else float(_kappa_max(dense.mean(0), floor.mean(0)))
    sums = per_question(np.hstack([dense, own]), codes, int(codes.max()) + 1)
    drawn = cluster_resamples(
        sums, lambda s: _kappa_max(s[..., :n], s[..., n:]), Resampling(resamples=resamples, seed=seed)
    )
    estimate = bounded(value, drawn, len(sums), (0.0, 1.0), beside, confidence)
    if lock.value == 1 and len(sums) > 1:
        # No resample leaves the slot. The picks outside it that are not ruled out may fall as dense's do.
        mixed = lock.low * own.mean(0) + (1 - lock.low) * dense.mean(0)
        high = float(_kappa_max(dense.mean(0), mixed))
        estimate = Estimate(value, 0.0 if np.isfinite(value) else np.nan, high, beside)
    return lock, estimate


def _kappa_max(dense: np.ndarray, method: np.ndarray) -> np.ndarray:
    """From picks by slot [..., slots]; NaN where both keep to one slot."""
    with np.errstate(divide="ignore", invalid="ignore"):
        dense, method = dense / dense.sum(-1, keepdims=True), method / method.sum(-1, keepdims=True)
        chance = (dense * method).sum(-1)
        return np.where(chance < 1 - 1e-12, (np.minimum(dense, method).sum(-1) - chance) / (1 - chance), np.nan)


def equivalence(picks: Picks, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """JCR of a method that always picks a candidate with dense's final answer and breaks ties at random: mean over
    pairs of (candidates with dense's text) / (candidates with dense's answer)."""
    chosen = picks.dense >= 0
    rows = np.flatnonzero(chosen)
    text, answer = (c[rows] == c[rows, picks.dense[rows]][:, None] for c in (picks.classes, picks.answers))
    values = np.zeros(len(chosen))
    values[rows] = text.sum(1) / (text | answer).sum(1)
    count = int(picks.codes.max()) + 1
    sums, totals = (per_question(v, picks.codes, count) for v in (values, chosen.astype(float)))
    return mean(sums, totals, confidence=confidence, resamples=resamples, seed=seed)


def locked(source: Source, scope: Scope = RAW) -> frozenset[str]:
    """Methods so given to one slot that no chance-corrected number of theirs says anything about content: kappa could
    at most be `LEAST_KAPPA`, given how often dense and they pick each slot on `LEAST_QUESTIONS` questions or more."""
    table: Any = source.sql(
        f"SELECT method, slot, slot_ref, count(*) AS pairs FROM picks WHERE {scope.pairs} AND method IN "
        f"(SELECT method FROM picks WHERE {scope.pairs} GROUP BY method "
        f"HAVING count(DISTINCT question_id) >= {LEAST_QUESTIONS}) GROUP BY ALL"
    )
    out = set()
    for method, part in table.dropna().groupby("method"):
        weights, slots = part["pairs"].to_numpy(dtype=float), int(part[["slot", "slot_ref"]].max().max()) + 1
        own, dense = (np.bincount(part[c].astype(int), weights, slots) / weights.sum() for c in ("slot", "slot_ref"))
        if not float(_kappa_max(dense, own)) >= LEAST_KAPPA:
            out.add(str(method))
    return frozenset(out)
