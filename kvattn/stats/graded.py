"""How far a method's scores, ranks and picks are from dense's: what a rate of equal picks leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy.special import expit, rel_entr, softmax
from scipy.stats import norm as normal

from kvattn.errors import KvattnError
from kvattn.stats.intervals import Estimate, bounded, difference, drawn_variance, mean, rate, resampled
from kvattn.stats.pairs import Pairs
from kvattn.stats.resampling import USUAL, Resampling, per_question
from kvattn.stats.split import centred, own_offsets, unfit

# A flip under so many standard deviations of the null edit's noise is one that noise explains (one-sided 5 %).
TIE = 1.64


def graded(pairs: Pairs, how: Resampling = USUAL) -> dict[str, Estimate]:
    """Graded measures of a method's loss, by name, each with an interval over questions and the null edit's value.

    Equal texts are one choice: its probability is the sum over its slots, its score the best of them, and to rank
    choices their mean: the best of three random numbers lies above one, for both judges.

    tv, jsd          total variation, and Jensen-Shannon divergence in bits, of softmax(scores) over choices. For yes/no
                     scores the temperature of that softmax, 1, is arbitrary: read `branch`
    branch           mean over slots of |sigmoid(dense) - sigmoid(method)|, of yes/no scores alone
    tau, tau_c       Kendall's tau-b of the two score vectors, raw and less each one's own offsets (`own_offsets`; NaN
                     where `unfit`). Pairs of which one ranks nothing are left out
    rank             the method's rank of dense's pick, 1 the best; equal scores rank alike
    points           mean over slots of |dense - method|, of expected scores alone: by how many points of the scale
    flips_side, flips_tie  share of pairs that flip from one candidate to the other, and into or out of a tie, whose
                     place is the last: of pairwise verdicts alone
    regret           (dense's score of its own pick - of the method's) / (dense's best - worst), 0 to 1
    regret_oracle    share of pairs with a right candidate in which the method picks a wrong one
    flips            share of pairs with another pick than dense's
    flips_margin     the same, each pair weighed by dense's margin
    flips_tied       share of pairs that flip under a margin below 1.64 sigma0, which the null edit's noise explains
    flips_excess     flips less those that this noise leads to expect
    sigma0           the null edit's noise on dense's margin, root mean square, nats
    net_harm         (flips from right to wrong - from wrong to right) / pairs: the accuracy lost, regret in correctness
    benign           share of flips from right to right, among flips of known correctness

    NaN where it cannot be told: without a null edit, without known correctness, without flips.
    """
    if len(pairs.dense) == 0:
        raise KvattnError("no pairs of dense and the method to compare")
    view, codes, count = _View(pairs), pairs.codes, pairs.count
    beside = None if pairs.of_floor is None else _View(pairs.of_floor)

    def floor(value: Callable[[_View], float]) -> float:
        return np.nan if beside is None else value(beside)

    out = {}
    for name, scale in _SCALES.items():
        values, weights = view.means[name]
        sums, totals = (per_question(v, codes, count) for v in (values * weights, weights))
        ends = (1.0, float(pairs.dense.shape[1])) if name == "rank" else scale
        beyond = floor(lambda v, name=name: _mean(*v.means[name]))
        out[name] = mean(sums, totals, ends, beyond, how)
    for name in ("flips", "flips_side", "flips_tie", "regret_oracle", "benign"):
        hits, among = view.rates[name]
        beyond = floor(lambda v, name=name: _mean(*(x.astype(float) for x in v.rates[name])))
        out[name] = rate(hits[among], codes[among], beyond, how)
    lost, gained, known = view.harm
    beyond = floor(lambda v: _mean(v.harm[0].astype(float) - v.harm[1], v.harm[2].astype(float)))
    out["net_harm"] = difference(lost[known], gained[known], codes[known], beyond, how)
    out |= _noise(view, beside, how)
    beyond = floor(lambda v: float(v.tau_own(np.ones((1, count)))[0]))
    if unfit(pairs):
        out["tau_c"] = Estimate(np.nan, np.nan, np.nan)
    else:
        drawn = resampled(view.tau_own, count, pairs.dense.size, how)
        value = float(view.tau_own(np.ones((1, count)))[0])
        out["tau_c"] = bounded(value, drawn, count, (-1.0, 1.0), beyond, how)
    return {name: out[name] for name in NAMES}


NAMES = (
    *("tv", "jsd", "branch", "points", "tau", "tau_c", "rank", "regret", "regret_oracle"),
    *("flips", "flips_side", "flips_tie", "flips_margin", "flips_tied", "flips_excess", "sigma0", "net_harm", "benign"),
)

# Measures that are weighted means over pairs, and the scale that each lies on.
_SCALES = dict.fromkeys(("tv", "jsd", "branch", "rank", "regret", "flips_margin"), (0.0, 1.0))
_SCALES |= {"tau": (-1.0, 1.0), "points": (0.0, np.nan)}

# Measures that a kind of judgement alone has, by readout.
KINDS = {"yesno": ("branch",), "score": ("points",), "pairwise": ("flips_side", "flips_tie")}


class _View:
    """A method beside dense, pair by pair.

    means: name to values and weights, both [pairs]; rates: name to hits and the pairs that count, both [pairs] of bool
    harm:  flips from right to wrong, from wrong to right, and the pairs whose correctness is known
    margin: [pairs], dense's best choice less its second best; infinite where all texts are equal
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.rows = pairs, np.arange(len(pairs.dense))
        # One slot stands for the class: the first that shows its text.
        self.first = np.logical_not(np.tril(pairs.same, -1).any(-1))
        dense, method = best(pairs.dense, pairs.same), best(pairs.method, pairs.same)
        top, own = pairs.dense.argmax(1), pairs.method.argmax(1)
        flip = ~pairs.same[self.rows, top, own]
        self.top, self.flip = top, flip
        others = np.where(pairs.same[self.rows, top], -np.inf, dense)
        self.second = others.argmax(1)
        self.margin = dense[self.rows, top] - others.max(1)
        ones = np.ones(len(top))
        p, q = (
            np.where(self.first, np.einsum("pst,pt->ps", pairs.same, softmax(x, axis=-1)), 0.0)
            for x in (pairs.dense, pairs.method)
        )
        half = (p + q) / 2
        spread = pairs.dense.max(1) - pairs.dense.min(1)
        regret = (dense[self.rows, top] - dense[self.rows, own]) / np.where(spread > 0, spread, 1)
        rank = 1 + ((method > method[self.rows, top][:, None]) & self.first).sum(1)
        tau = tau_b(averaged(pairs.dense, pairs.same), averaged(pairs.method, pairs.same), self.first)
        self.means = {
            "tv": (np.abs(p - q).sum(1) / 2, ones),
            "jsd": ((rel_entr(p, half) + rel_entr(q, half)).sum(1) / 2 / np.log(2), ones),
            "branch": (np.abs(expit(pairs.dense) - expit(pairs.method)).mean(1), ones),
            "points": (np.abs(pairs.dense - pairs.method).mean(1), ones),
            "rank": (rank.astype(float), ones),
            "regret": (regret, ones),
            "flips_margin": (flip.astype(float), np.where(np.isfinite(self.margin), self.margin, 0.0)),
            "tau": (np.nan_to_num(tau), np.isfinite(tau).astype(float)),
        }
        known = ~np.isnan(pairs.correct).any(1)
        right = np.nan_to_num(pairs.correct).astype(bool)
        now, before = right[self.rows, own], right[self.rows, top]
        self.harm = (before & ~now, now & ~before, known)
        every, tied = np.ones(len(flip), dtype=bool), np.maximum(top, own) == pairs.dense.shape[1] - 1
        self.rates = {
            "flips": (flip, every),
            "flips_side": (flip & ~tied, every),
            "flips_tie": (flip & tied, every),
            "regret_oracle": (~now, known & right.any(1)),
            "benign": (now & before, known & flip),
        }

    def tau_own(self, weights: np.ndarray) -> np.ndarray:
        """[draws], mean tau-b after both sides' own offsets, fitted with weights [draws, questions]."""
        pairs = self.pairs
        dense, method = (
            averaged(c - own_offsets(c, pairs.codes, weights)[:, pairs.codes], pairs.same)
            for c in (centred(pairs.dense), centred(pairs.method))
        )
        tau = tau_b(dense, method, self.first)
        weight = weights[:, pairs.codes] * np.isfinite(tau)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weight * np.nan_to_num(tau)).sum(1) / weight.sum(1)


def _noise(view: _View, beside: _View | None, how: Resampling) -> dict[str, Estimate]:
    """flips_tied, flips_excess, sigma0: sigma0 and what follows from it are fitted anew in every resample."""
    pairs, codes, count = view.pairs, view.pairs.codes, view.pairs.count
    if pairs.floor is None or beside is None:
        return dict.fromkeys(("flips_tied", "flips_excess", "sigma0"), Estimate(np.nan, np.nan, np.nan))
    finite = np.isfinite(view.margin)
    edit = best(pairs.floor, pairs.same)
    moved = edit[view.rows, view.top] - edit[view.rows, view.second] - np.where(finite, view.margin, 0)
    square = np.where(finite, moved**2, 0.0)

    def statistic(flips: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def fitted(weights: np.ndarray) -> np.ndarray:
            weight = weights[:, codes]
            rows = weight.sum(1)
            with np.errstate(divide="ignore", invalid="ignore"):
                sigma = np.sqrt(weight @ square / (weight @ finite))[:, None]
                expected = np.where(sigma > 0, normal.cdf(-view.margin / sigma), 0.0)
                tied = (weight * (flips & (view.margin < TIE * sigma))).sum(1) / rows
                return np.stack([tied, (weight * (flips - expected)).sum(1) / rows, sigma[:, 0]], 1)

        return fitted

    ones = np.ones((1, count))
    excess, sigma = statistic(view.flip)(ones)[0, 1:]
    floor = statistic(beside.flip)(ones)[0]
    drawn = resampled(statistic(view.flip), count, pairs.dense.size, how)
    hits = view.flip & (view.margin < TIE * sigma)
    over = bounded(float(excess), drawn[:, 1], count, (-1.0, 1.0), float(floor[1]), how)
    # Where next to nothing flips resampling knows the expected flips alone; those that may be stand in the rate's ends.
    flips = rate(view.flip, codes, how=how)
    ends = [end - flips.value + excess for end in (flips.low, flips.high)]
    noise = Estimate(0.0, 0.0, np.nan, 0.0)
    if sigma > 0:
        noise = bounded(float(sigma), drawn[:, 2], count, (0.0, np.nan), float(sigma), how)
    return {
        "flips_tied": rate(hits, codes, float(floor[0]), how, drawn_variance(drawn[:, 0], count)),
        "flips_excess": over._replace(low=float(np.fmin(over.low, ends[0])), high=float(np.fmax(over.high, ends[1]))),
        "sigma0": noise,
    }


def best(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """[..., pairs, slots], every slot with the best score of its class; scores alike, same: [pairs, slots, slots]."""
    if same.sum() == same.shape[0] * same.shape[1]:  # all texts differ
        return scores
    return np.where(same, scores[..., None, :], -np.inf).max(-1)


def averaged(scores: np.ndarray, same: np.ndarray) -> np.ndarray:
    """[..., pairs, slots], every slot with the mean score of its class, arrays as in `best`."""
    if same.sum() == same.shape[0] * same.shape[1]:
        return scores
    return np.einsum("pst,...pt->...ps", same, scores) / same.sum(-1)


def tau_b(first: np.ndarray, second: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[..., pairs], Kendall's (1945) tau-b of two score vectors [..., pairs, slots] over the slots that are `there`
    [pairs, slots]; NaN where one of them ranks nothing."""
    both, ones, others = (np.zeros(first.shape[:-1]) for _ in range(3))
    # Slot by slot: all at once would take slots squared times the memory.
    for s, t in itertools.combinations(range(first.shape[-1]), 2):
        a, b = (np.sign(x[..., s] - x[..., t]) * (there[:, s] & there[:, t]) for x in (first, second))
        both += a * b
        ones += np.abs(a)
        others += np.abs(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        return both / np.sqrt(ones * others)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum()) if weights.sum() > 0 else np.nan
