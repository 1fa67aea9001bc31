"""Intervals and tests that take a question, not a row, for the unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import norm as normal
from scipy.stats import t as student

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: their confidence, how many resamples of the questions are drawn, and the seed."""

    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0


USUAL = Resampling()

# Signs are enumerated where there are no more of them than this, and drawn otherwise.
_MOST_EXACT = 4096
# Of weights [resamples, questions], so many numbers at a time, and so many kept for the next statistic.
_CHUNK = 4_000_000
_MOST_KEPT = 20_000_000


def tails(questions: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two quantiles of the bootstrap distribution that bound an expanded percentile interval (Hesterberg 2015).

    The plain quantiles make intervals too narrow by sqrt((n - 1) / n) and by the normal instead of Student's t: of
    95 % intervals of a rate over 16 questions some 89 % hold the truth. Those of Phi(-sqrt(n / (n - 1)) t(n - 1)) make
    up for both. With rates near 0 or 1 and few questions coverage stays under the nominal one.
    """
    far = np.sqrt(questions / (questions - 1)) * student.ppf((1 + confidence) / 2, questions - 1)
    return float(normal.cdf(-far)), float(normal.cdf(far))


def cluster_resamples(
    sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], how: Resampling = USUAL
) -> np.ndarray:
    """[resamples], the statistic of questions drawn with replacement; empty with fewer than two questions."""
    sums = np.asarray(sums, dtype=float)
    if len(sums) < 2:
        return np.empty(0)
    weights = _kept if len(sums) * how.resamples <= _MOST_KEPT else _drawn
    return np.concatenate([statistic(part @ sums) for part in weights(len(sums), how.resamples, how.seed)])


def _drawn(questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each question stands in each resample, [some resamples, questions] at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // questions)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(questions, np.full(questions, 1 / questions), size=size).astype(np.uint16)


@lru_cache(maxsize=2)
def _kept(questions: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    as_used = float if questions * resamples <= _CHUNK else np.uint16  # where there is room, made ready to multiply
    return tuple(part.astype(as_used) for part in _drawn(questions, resamples, seed))


def ratio(sums: np.ndarray) -> np.ndarray:
    """First over second of [..., 2]; NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def per_question(values: np.ndarray, codes: np.ndarray, questions: int) -> np.ndarray:
    """[questions] or [questions, k], sums of rows [rows] or [rows, k] over each question's rows."""
    values = np.asarray(values, dtype=float)
    out = np.zeros((questions, *values.shape[1:]))
    np.add.at(out, codes, values)
    return out


def signs(questions: int, draws: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, bool]:
    """[flips, questions] of +1 and -1 for a sign-flip test, and whether they are all there are.

    All 2^questions where that is at most 4096, else `draws` random ones.
    """
    if 2**questions <= _MOST_EXACT:
        grid = np.indices((2,) * questions).reshape(questions, -1).T if questions else np.zeros((1, 0))
        return 1.0 - 2.0 * grid, True
    draw = _kept_signs if questions * draws <= _CHUNK else _kept_signs.__wrapped__
    return draw(questions, draws, seed), False


@lru_cache(maxsize=1)
def _kept_signs(questions: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, questions))


def permutation_p(null: np.ndarray, observed: np.ndarray | float, complete: bool = False) -> np.ndarray:
    """Share of null values that are at least the observed one. null: [draws], observed: any shape.

    Of drawn values the observed one counts as a further draw, (1 + count) / (1 + draws), so that p is never 0 and the
    test is valid (Phipson and Smyth 2010); of a complete enumeration it is one of them already.
    """
    observed = np.asarray(observed, dtype=float)
    # Equal values may differ in the last digits, depending on the order of summation.
    slack = 1e-9 * np.maximum(1.0, np.where(np.isfinite(observed), np.abs(observed), 0.0))
    count = (null >= (observed - slack)[..., None]).sum(-1)
    return count / len(null) if complete else (1 + count) / (1 + len(null))


def sign_flip_p(differences: np.ndarray, draws: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of sum(differences) = 0, flipping the signs of whole questions; differences: [questions].

    Valid when method and reference are exchangeable within a question under the null.
    """
    flips, complete = signs(len(differences), draws, seed)
    return float(permutation_p(np.abs(flips @ differences), float(np.abs(differences.sum())), complete))


def exact_sum_p(differences: np.ndarray) -> float:
    """One-sided p of sum(differences) at least as large as it is, over all signs of whole questions, each as likely:
    exact, for any number of them. differences: [questions], whole numbers."""
    sizes = np.abs(np.asarray(differences)).astype(int)
    total = int(sizes.sum())
    chance = np.zeros(2 * total + 1)  # of each sum from -total to total
    chance[total] = 1.0
    for size in sizes[sizes > 0]:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return float(min(1.0, chance[total + int(np.asarray(differences).sum()) :].sum()))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p-values, [tests]; NaN stays NaN and is not counted as a test."""
    out = np.array(p_values, dtype=float)
    ranked = np.argsort(out)[: np.count_nonzero(~np.isnan(out))]  # NaN comes last
    # statsmodels' multipletests does this too, and collects all garbage of the process at every call.
    out[ranked] = np.minimum(np.maximum.accumulate(out[ranked] * np.arange(len(ranked), 0, -1)), 1.0)
    return out
