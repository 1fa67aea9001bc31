"""Does a judge read its candidates, and does it read them for quality? Two verdicts, each of three.

A test that finds nothing on ten questions has not shown that there is nothing. So "does not read" needs an upper bound,
and where neither side is shown the verdict says how many held-out questions would show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm as normal

from kvattn.errors import KvattnError
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import rate, rate_bounds
from kvattn.stats.resampling import per_question, permutation_p

# Agreement or accuracy that lies less than this above chance does not count as reading.
MARGIN = 0.10
# Fewer held-out questions than this are not asked for: at 24 a weak reader is told in one case of two.
ASK = 48
_POWER = 0.8
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Held:
    """A judge's picks on held-out questions, all with the same number of candidates.

    questions: [rows], what tells the questions apart
    orders:    [rows, slots], the candidate that each slot shows
    slots:     [rows], the slot picked, from 0
    classes, answers: [rows, slots], equal numbers are equal texts, equal final answers (as in `Pairs`)
    correct:   [rows, slots], 1 right, 0 wrong, NaN unknown
    lengths:   [rows, slots], of the texts, over 0
    """

    questions: np.ndarray
    orders: np.ndarray
    slots: np.ndarray
    classes: np.ndarray
    answers: np.ndarray
    correct: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What one test says.

    verdict:          "reads", "does not read" or "cannot tell"
    value, low, high: agreement or accuracy, and its interval over questions
    chance, p:        its mean under the null, and the one-sided p
    questions, rows:  counts
    needed:           held-out questions with which the test would tell in four cases of five if the judge is as it
                      seems, at least 48; None where it has told
    sentence:         the result in words
    """

    verdict: Literal["reads", "does not read", "cannot tell"]
    value: float
    low: float
    high: float
    chance: float
    p: float
    questions: int
    rows: int
    needed: int | None
    sentence: str


def reading(held: Held, draws: int = 4000, alpha: float = 0.05, seed: int = 0) -> Verdict:
    """Does the judge pick the same text over a question's orders, more often than if its slots knew of no contents?

    Null: every row keeps its slot, its contents are dealt out anew. The judge reads if the agreement of picks over
    pairs of orders has p < alpha. It does not read if the upper end of the agreement's interval is under chance + 0.10.

    Raises KvattnError for orders that are not balanced: a slot that shows one candidate in more of a question's orders
    than its share would make a judge that is locked to it look consistent.
    """
    held = _chosen(held, _repeated(held.questions))
    codes, count = clusters(held.questions)
    if count < 2:
        return _too_few(count, len(codes), "judged in two orders or more")
    _check_balance(held)
    rng, rows, n = np.random.default_rng(seed), np.arange(len(codes)), held.orders.shape[1]
    sizes = np.bincount(codes)
    pairs = sizes * (sizes - 1)
    # One cell for each text of each question: how often it was picked.
    cells = np.unique(codes[:, None] * (held.classes.max() + 1) + held.classes, return_inverse=True)[1]
    cells = cells.reshape(held.classes.shape)
    owner = np.zeros(cells.max() + 1, dtype=int)
    owner[cells] = codes[:, None]

    def agreeing(picked: np.ndarray) -> np.ndarray:
        """[draws, questions], ordered pairs of orders with the same text; picked: [draws, rows], slots."""
        at = cells[rows, picked] + len(owner) * np.arange(len(picked))[:, None]
        counts = np.bincount(at.ravel(), minlength=len(owner) * len(picked)).reshape(len(picked), -1)
        return np.add.reduceat(counts**2, np.unique(owner, return_index=True)[1], axis=1) - sizes

    observed = agreeing(held.slots[None])[0] / pairs
    null = np.concatenate([agreeing(rng.integers(0, n, (d, len(codes)))) / pairs for d in _batches(draws, len(codes))])
    value, spread = float(observed.mean()), float(observed.std(ddof=1))
    informative = int(min((observed > 0).sum(), (observed < 1).sum()))
    low, high = map(float, rate_bounds(value, spread**2 / count, informative, count, int(pairs.sum() // 2)))
    return _verdict(
        "picks the same text in {value:.0%} of pairs of orders",
        *(value, low, high, null.mean(1), count, len(codes), alpha, max(spread, float(null.std(0).mean()))),
    )


def reading_for_quality(held: Held, draws: int = 4000, alpha: float = 0.05, seed: int = 0) -> Verdict:
    """Does the judge pick right candidates more often than its love of common answers and of lengths explains?

    From questions with right and wrong candidates. Two nulls keep the picks, and the one that explains more counts:
    right and wrong are dealt out anew to the candidates of a question; and they are dealt out to final answers of all
    questions that as many candidates state and whose texts are about as long for their question (thirds). A judge that
    follows the majority, or the longest text, is right no more often than under the second.
    """
    known = ~np.isnan(held.correct).any(1)
    held = _chosen(held, known & (held.correct.max(1) > held.correct.min(1)))
    codes, count = clusters(held.questions)
    if count < 2:
        return _too_few(count, len(codes), "with right and wrong candidates")
    rng, rows = np.random.default_rng(seed), np.arange(len(codes))
    right = held.correct[rows, held.slots]
    nulls = (_dealt_in_questions(held, codes, count, draws, rng), _dealt_in_strata(held, codes, draws, rng))
    value = float(right.mean())
    null = max(nulls, key=lambda x: (float(permutation_p(x, value)), float(x.mean())))
    estimate = rate(right, codes)
    by_question = per_question(right, codes, count) / np.bincount(codes)
    return _verdict(
        "picks a right candidate in {value:.0%} of judgements",
        *(value, estimate.low, estimate.high, null, count, len(codes), alpha),
        max(float(by_question.std(ddof=1)), float(null.std()) * math.sqrt(count)),
    )


def _dealt_in_questions(held: Held, codes: np.ndarray, count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws], accuracy when right and wrong are permuted among a question's candidates."""
    n = held.orders.shape[1]
    picked, correct = np.zeros((count, n)), np.zeros((count, n))
    np.add.at(picked, (codes, held.orders[np.arange(len(codes)), held.slots]), 1)
    correct[codes[:, None], held.orders] = held.correct
    null = []
    for d in _batches(draws, correct.size):
        null.append((rng.permuted(np.tile(correct, (d, 1, 1)), axis=2) * picked).sum((1, 2)) / len(codes))
    return np.concatenate(null)


def _dealt_in_strata(held: Held, codes: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws], accuracy when right and wrong are permuted among final answers of one plurality and one third of
    lengths, over all questions."""
    first = np.unique(codes, return_index=True)[1]
    key = codes[:, None] * (held.answers.max() + 1) + held.answers
    names, group = np.unique(key[first], return_inverse=True)  # an answer of a question is a group
    group = group.reshape(-1)
    size = np.bincount(group)
    lengths = np.log(held.lengths[first])
    lengths = (lengths - lengths.mean(1, keepdims=True)).ravel()
    correct, length = (np.bincount(group, v) / size for v in (held.correct[first].ravel(), lengths))
    chosen = key[np.arange(len(codes)), held.slots]
    picked = np.bincount(np.searchsorted(names, chosen), minlength=len(names))
    third = np.searchsorted(np.quantile(length, (1 / 3, 2 / 3)), length)
    null = np.zeros(draws)
    for stratum in np.unique(size * 3 + third):
        members = np.flatnonzero(size * 3 + third == stratum)
        dealt = rng.permuted(np.tile(correct[members], (draws, 1)), axis=1)
        null += dealt @ picked[members]
    return null / len(codes)


def _verdict(
    what: str,
    value: float,
    low: float,
    high: float,
    null: np.ndarray,
    questions: int,
    rows: int,
    alpha: float,
    spread: float,
) -> Verdict:
    """The verdict from a statistic, its interval, its null [draws] and its spread between questions."""
    chance, p = float(null.mean()), float(permutation_p(null, value))
    verdict: Literal["reads", "does not read", "cannot tell"] = "cannot tell"
    if p < alpha:
        verdict = "reads"
    elif high < chance + MARGIN:
        verdict = "does not read"
    told = verdict != "cannot tell"
    needed = None if told else _needed(value, chance, spread, questions, alpha)
    shown = f"over {questions} held-out questions the judge {what.format(value=value)} "
    shown += f"({low:.0%} to {high:.0%}; by chance {chance:.0%}, p = {p:.2g})"
    end = {
        "reads": ", more often than a judge that does not read",
        "does not read": f", less than {MARGIN:.0%} above chance: it does not read",
        "cannot tell": f"; that does not tell whether it reads, {needed} questions would",
    }[verdict]
    return Verdict(
        verdict, value, low, high, chance, p, questions, rows, needed, f"{shown[0].upper()}{shown[1:]}{end}."
    )


def _needed(value: float, chance: float, spread: float, questions: int, alpha: float) -> int:
    """Questions with which one of the two sides shows in four cases of five, if value and spread stay as they are."""
    sides = ((value - chance, alpha), (chance + MARGIN - value, alpha / 2))
    numbers = [((normal.ppf(1 - a) + normal.ppf(_POWER)) * spread / room) ** 2 for room, a in sides if room > 0]
    return max(ASK, questions + 1, math.ceil(min(numbers)))


def _too_few(questions: int, rows: int, what: str) -> Verdict:
    nan = float("nan")
    sentence = f"{questions} held-out questions {what} do not tell whether the judge reads; {ASK} would."
    return Verdict("cannot tell", nan, nan, nan, nan, nan, questions, rows, ASK, sentence)


def _check_balance(held: Held) -> None:
    n = held.orders.shape[1]
    for key in dict.fromkeys(held.questions.tolist()):
        orders = held.orders[held.questions == key]
        shown = max(int((orders == c).sum(0).max()) for c in range(n))
        if shown > math.ceil(len(orders) / n):
            raise KvattnError(
                f"question {key!r}: over its {len(orders)} orders some slot shows one candidate {shown} times; a "
                "content test needs balanced orders, such as the cyclic ones"
            )


def _repeated(questions: np.ndarray) -> np.ndarray:
    """[rows], whether a row's question has others."""
    codes, _ = clusters(questions)
    return np.bincount(codes)[codes] > 1 if len(codes) else np.zeros(0, dtype=bool)


def _chosen(held: Held, rows: np.ndarray) -> Held:
    return Held(**{name: value[rows] for name, value in vars(held).items()})


def _batches(draws: int, size: int) -> list[int]:
    """Draws in batches of bounded memory."""
    step = max(1, _CHUNK // max(size, 1))
    return [min(step, draws - start) for start in range(0, draws, step)]
