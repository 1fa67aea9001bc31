"""Paired change of the decision row's slot mass, head by head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvattn.decision import MASS_FLOOR
from kvattn.errors import KvattnError
from kvattn.stats.resampling import USUAL, Resampling, cluster_resamples, permutation_p, signs, tails


@dataclass(frozen=True)
class MassChange:
    """How a method changes attention mass, against the reference on the same pairs.

    change            [layers, heads], mean over questions of the mean over their pairs of log(mass / reference mass),
                      in nats: -0.69 is half
    t                 [layers, heads], change over its standard error (questions for units)
    p                 [layers, heads], two-sided, corrected for the number of heads (sign-flip max-T)
    mean, low, high   the change of the mass of all layers and heads together, mean over questions of the log of mean
                      mass over the reference's: a head that looks at nothing weighs nothing; interval by resampling
                      questions
    by_layer, by_layer_low, by_layer_high   [layers], of each layer's heads together, likewise
    pairs, questions  counts; with fewer than two questions t, p and intervals are NaN
    """

    change: np.ndarray
    t: np.ndarray
    p: np.ndarray
    mean: float
    low: float
    high: float
    by_layer: np.ndarray
    by_layer_low: np.ndarray
    by_layer_high: np.ndarray
    pairs: int
    questions: int


def mass_change(
    differences: np.ndarray,
    own: np.ndarray,
    base: np.ndarray,
    pairs: int,
    how: Resampling = USUAL,
) -> MassChange:
    """The change of log mass from its means over each question's pairs, as a run's table `sums` gives them.

    differences: [questions, layers, heads], change_sum / pairs of one method and segment
    own, base:   the same shape, mean mass under the method and under the reference
    pairs:       how many pairs they are means of, in all

    p: signs of whole questions' mean changes are flipped at random, the same sign in all heads, and each |t| is
    compared with the largest |t| over heads (Westfall and Young 1993; Nichols and Holmes 2002). That controls the
    chance of any false head, and holds when method and reference are exchangeable under the null.

    Raises KvattnError for another shape, and for values that are no numbers.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 3 or not len(d) or not np.isfinite(d).all():
        raise KvattnError(f"differences of shape {d.shape}: they must be finite, and [questions, layers, heads]")
    count = len(d)
    t, p = _max_t(d.reshape(count, -1), how.resamples, how.seed)
    logs = [
        np.log(np.maximum(np.column_stack([x.mean(2), x.mean((1, 2))]), MASS_FLOOR))
        for x in (np.asarray(own), np.asarray(base))
    ]
    layers = logs[0] - logs[1]  # [questions, layers and all of them together]
    low, high = np.full(layers.shape[1], np.nan), np.full(layers.shape[1], np.nan)
    if count > 1:
        # Each resample holds as many questions as there are, so that dividing by their number gives means.
        means = cluster_resamples(layers / count, lambda sums: sums, how)
        low, high = np.quantile(means, tails(count, how.confidence), axis=0)
    return MassChange(
        change=d.mean(0),
        t=t.reshape(d.shape[1:]),
        p=p.reshape(d.shape[1:]),
        mean=float(layers[:, -1].mean()),
        low=float(low[-1]),
        high=float(high[-1]),
        by_layer=layers[:, :-1].mean(0),
        by_layer_low=low[:-1],
        by_layer_high=high[:-1],
        pairs=pairs,
        questions=count,
    )


def _max_t(d: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """t [cells] and max-T corrected p [cells] of mean(d) = 0; d: [questions, cells]."""
    count = len(d)
    if count < 2:
        return np.full(d.shape[1], np.nan), np.full(d.shape[1], np.nan)
    squares = (d**2).sum(0)

    def statistic(means: np.ndarray) -> np.ndarray:
        # Flipping signs leaves the sum of squares as it is, so the variance follows from the mean.
        variance = np.maximum(squares - count * means**2, 0) / (count - 1)
        variance[variance < 1e-15 * np.maximum(squares, 1e-300)] = 0
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(means == 0, 0.0, means / np.sqrt(variance / count))

    observed = statistic(d.mean(0))
    flips, complete = signs(count, draws, seed)
    null = np.abs(statistic(flips @ d / count)).max(1)
    return observed, permutation_p(null, np.abs(observed), complete)
