"""Intervals that hold near 0 and 1, with a question, not a row, for the unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm as normal
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from kvattn.stats.resampling import CONFIDENCE, USUAL, Resampling, cluster_resamples, per_question, tails

# Numbers that a statistic works on at a time.
_CELLS = 2_000_000


class Estimate(NamedTuple):
    """A number, the ends of its interval over questions, and the null edit's value of the same (NaN: none was run)."""

    value: float
    low: float
    high: float
    floor: float = np.nan


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def rate(
    hits: np.ndarray,
    codes: np.ndarray,
    floor: float = np.nan,
    how: Resampling = USUAL,
    variance: float | None = None,
) -> Estimate:
    """Share of rows that are hits, [rows] of 0 and 1, `codes` [rows] their questions; see `rate_bounds`.

    variance: of the share, with the question for the unit, where the hits depend on a fit (default: of fixed hits)
    """
    hits, codes = np.asarray(hits, dtype=float), np.unique(codes, return_inverse=True)[1]
    questions = int(codes.max()) + 1 if len(codes) else 0
    sums, rows = per_question(hits, codes, questions), per_question(np.ones(len(hits)), codes, questions)
    return rate_of_sums(sums, rows, floor, how, variance)


def rate_of_sums(
    sums: np.ndarray,
    rows: np.ndarray,
    floor: float = np.nan,
    how: Resampling = USUAL,
    variance: float | None = None,
) -> Estimate:
    """`rate` from each question's hits and rows, both [questions]; hits may be shares of rows."""
    sums, rows = (np.asarray(x, dtype=float)[np.asarray(rows) > 0] for x in (sums, rows))
    if len(rows) == 0:
        return UNKNOWN
    value = float(sums.sum() / rows.sum())
    if variance is None:
        variance = _variance(sums - value * rows, rows)
    informative = int(min((sums > 0).sum(), (sums < rows).sum()))
    low, high = rate_bounds(value, variance, informative, len(rows), int(rows.sum()), how.confidence)
    return Estimate(value, float(low), float(high), floor)


def rate_bounds(
    value: ArrayLike,
    variance: ArrayLike,
    informative: ArrayLike,
    questions: int,
    rows: int,
    confidence: float = CONFIDENCE,
) -> tuple[np.ndarray, np.ndarray]:
    """Korn and Graubard's (1998) interval of a rate: Clopper and Pearson's, on the effective number of rows.

    value:       the rate over all rows; like the next two a number or an array of any shape
    variance:    of that rate, with the question for the unit
    informative: how many questions the variance rests on: the smaller of those with a hit and those with a miss

    The effective number is the rows over the design effect, variance / (value (1 - value) / rows), at least 1, times
    Korn and Graubard's correction by Student's t. Near 0 and 1 a few questions say how far a question's rows go
    together, and say it badly: so the design effect counts one question more, in which they all do. Where no hit or
    no miss is seen the questions are the trials, with no correction, and the bound is exact. Coverage:
    `analyses/coverage.py`.
    """
    value = np.asarray(value, dtype=float)
    if questions < 2:
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    effective = effective_rows(value * (1 - value), variance, informative, questions, rows, confidence)
    low, high = proportion_confint(value * effective, effective, alpha=1 - confidence, method="beta")
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


def difference(
    gained: np.ndarray,
    lost: np.ndarray,
    codes: np.ndarray,
    floor: float = np.nan,
    how: Resampling = USUAL,
    variance: float | None = None,
) -> Estimate:
    """Difference of two rates on the same rows: share of rows that only the first hits less share that only the second
    hits, by Bonett and Price's (2012) interval on the effective number of rows (see `rate_bounds`).

    gained, lost: [rows] of 0 and 1; codes: [rows], their questions; variance: of the difference, as in `rate`

    Where no row differs, the bound is the exact one of how many may: 1 - (1 - confidence)^(1 / questions), the rule of
    three.
    """
    gained, lost, confidence = np.asarray(gained, dtype=float), np.asarray(lost, dtype=float), how.confidence
    codes, rows = np.unique(codes, return_inverse=True)[1], len(gained)
    questions = int(codes.max()) + 1 if rows else 0
    if questions < 2:
        return Estimate(float((gained - lost).mean()) if rows else np.nan, np.nan, np.nan, floor)
    up, down = float(gained.mean()), float(lost.mean())
    value = up - down
    informative = int((per_question(gained + lost, codes, questions) > 0).sum())
    if informative == 0:
        bound = 1 - (1 - confidence) ** (1 / questions)
        return Estimate(0.0, -bound, bound, floor)
    if variance is None:
        totals = per_question(np.ones(rows), codes, questions)
        variance = _variance(per_question(gained - lost, codes, questions) - value * totals, totals)
    effective = effective_rows(up + down - value**2, variance, informative, questions, rows, confidence)
    up, down = (up * effective + 1) / (effective + 2), (down * effective + 1) / (effective + 2)
    half = normal.ppf((1 + confidence) / 2) * np.sqrt((up + down - (up - down) ** 2) / (effective + 2))
    middle = up - down
    return Estimate(value, float(max(-1.0, middle - half)), float(min(1.0, middle + half)), floor)


def mean(
    sums: np.ndarray,
    totals: np.ndarray,
    scale: tuple[float, float] = (0.0, 1.0),
    floor: float = np.nan,
    how: Resampling = USUAL,
) -> Estimate:
    """Sum of `sums` over sum of `totals`, both [questions], of numbers that lie within `scale`; resampled questions.

    Where every question has the same mean, resampling finds no spread in it; then the bound is that of a rate of
    which every question is one trial.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(sums.sum() / totals.sum())
        drawn = cluster_resamples(np.stack([sums, totals], 1), lambda s: s[..., 0] / s[..., 1], how)
    return bounded(value, drawn, int((totals > 0).sum()), scale, floor, how)


def bounded(
    value: float,
    drawn: np.ndarray,
    questions: int,
    scale: tuple[float, float],
    floor: float = np.nan,
    how: Resampling = USUAL,
) -> Estimate:
    """The expanded percentile interval of drawn values [resamples] (`tails`), or the exact one on `scale` where all of
    them are the same."""
    drawn = drawn[np.isfinite(drawn)]
    if questions < 2 or len(drawn) == 0 or not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, floor)
    if np.ptp(drawn) > 1e-12:
        low, high = np.quantile(drawn, tails(questions, how.confidence))
        return Estimate(value, float(low), float(high), floor)
    start, width = scale[0], scale[1] - scale[0]
    if width == 0:
        return Estimate(value, value, value, floor)
    low, high = rate_bounds((value - start) / width, 0.0, 0, questions, questions, how.confidence)
    return Estimate(value, float(start + width * low), float(start + width * high), floor)


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], questions: int, cells: int, how: Resampling = USUAL
) -> np.ndarray:
    """[resamples, ...], a statistic that is fitted anew in every resample of questions; none with fewer than two.

    statistic: maps weights [draws, questions], how often each question was drawn, to values [draws, ...]
    cells:     numbers that it works on for one draw, to keep its memory bounded
    """
    rng, step = np.random.default_rng(how.seed), max(1, _CELLS // cells)
    sizes = [min(step, how.resamples - start) for start in range(0, how.resamples, step)] if questions > 1 else [0]
    even = np.full(questions, 1 / questions)
    return np.concatenate([statistic(rng.multinomial(questions, even, size=size)) for size in sizes])


def drawn_variance(drawn: np.ndarray, questions: int) -> float:
    """Variance of a statistic from its resamples [resamples], without the bootstrap's shortfall of (n - 1) / n."""
    known = drawn[~np.isnan(drawn)]
    return float(known.var()) * questions / (questions - 1) if len(known) else np.nan


def _variance(residuals: np.ndarray, rows: np.ndarray) -> float:
    """Variance of a mean over rows from each question's sum of residuals and number of rows, both [questions]."""
    questions = len(rows)
    if questions < 2:
        return np.nan
    return float((residuals**2).sum() / rows.sum() ** 2 * questions / (questions - 1))


def effective_rows(
    spread: ArrayLike,
    variance: ArrayLike,
    informative: ArrayLike,
    questions: int,
    rows: int,
    confidence: float = CONFIDENCE,
) -> np.ndarray:
    """The effective number of rows of `rate_bounds`; `spread` is the variance of one row."""
    spread, variance = np.asarray(spread, dtype=float), np.asarray(variance, dtype=float)
    most, tail = rows / questions, (1 + confidence) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        design = np.where((spread > 0) & (variance > 0), np.maximum(1.0, rows * variance / spread), most)
    informative = np.asarray(informative)
    design = (informative * design + most) / (informative + 1)
    correction = (student.ppf(tail, rows - 1) / student.ppf(tail, questions - 1)) ** 2
    return rows / design * np.where(informative > 0, correction, 1.0)
