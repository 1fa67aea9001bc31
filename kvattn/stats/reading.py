"""Does a judge read its candidates, and does it read them for quality? Two verdicts, each of three.

A test that finds nothing on ten questions has not shown that there is nothing. So "does not read" needs an upper bound,
and where neither side is shown the verdict says how many held-out questions would show it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import norm as normal
from statsmodels.discrete.conditional_models import ConditionalLogit

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column, clusters, read_questions
from kvattn.stats.intervals import rate, rate_bounds
from kvattn.stats.pairs import contents
from kvattn.stats.resampling import CONFIDENCE, per_question, permutation_p

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
    value, low, high: agreement or accuracy, and its 95 % interval over questions
    most:             its upper bound, one-sided at the level of the test
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
    most: float
    chance: float
    p: float
    questions: int
    rows: int
    needed: int | None
    sentence: str


def read_held(judgements: pd.DataFrame, questions: pd.DataFrame, column: Column = "choice") -> Held:
    """One method's judgements of held-out questions in this form; written verdicts that name no candidate are left out.

    judgements: question_id, order, and slot (slot_calibrated); questions: a run's table
    """
    known = read_questions(questions)
    slots = judgements["slot" if column == "choice" else "slot_calibrated"]
    rows = [
        (str(key), tuple(int(i) for i in order), int(slot))
        for key, order, slot in zip(judgements["question_id"], judgements["order"], slots, strict=True)
        if not pd.isna(slot)
    ]
    if not rows or len({len(order) for _, order, _ in rows}) > 1:
        raise KvattnError(
            "a content test takes judgements of questions with one number of candidates, and at least one"
        )
    lengths = np.stack([known[key].lengths[list(order)] for key, order, _ in rows])
    shown = contents([(key, order) for key, order, _ in rows], known)
    return Held(slots=np.array([slot for *_, slot in rows]), lengths=lengths, **shown)


def reading(held: Held, draws: int = 4000, alpha: float = 0.05, seed: int = 0) -> Verdict:
    """Does the judge pick the same text over a question's orders, more often than if its slots knew of no contents?

    Null: every row keeps its slot, its contents are dealt out anew. The judge reads if the agreement of picks over
    pairs of orders has p < alpha. It does not read if the agreement's upper bound, one-sided at alpha as well, is under
    chance + 0.10.

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
    counts = {"questions": count, "rows": int(pairs.sum() // 2)}
    low, high, most = (
        float(rate_bounds(value, spread**2 / count, informative, **counts, confidence=c)[end])
        for c, end in ((CONFIDENCE, 0), (CONFIDENCE, 1), (1 - 2 * alpha, 1))
    )
    return _verdict(
        "picks the same text in {value:.0%} of pairs of orders",
        "reads",
        *(value, low, high, most, null.mean(1), count, len(codes), alpha, max(spread, float(null.std(0).mean()))),
    )


def reading_for_quality(held: Held, draws: int = 4000, alpha: float = 0.05, seed: int = 0) -> Verdict:
    """Does the judge pick right candidates more often than its love of common answers and of lengths explains?

    From questions with right and wrong candidates. Two nulls keep the picks, and the one that explains more counts:
    right and wrong are dealt out anew to the candidates of a question; and which final answers are right is drawn anew
    from a conditional logit of how many candidates state them and how long their texts are beside the others, fitted to
    these questions (a conditional randomization test, Candes et al. 2018). A judge that follows the majority, or the
    longest text, is right no more often than under the second.
    """
    known = ~np.isnan(held.correct).any(1)
    held = _chosen(held, known & (held.correct.max(1) > held.correct.min(1)))
    codes, count = clusters(held.questions)
    if count < 2:
        return _too_few(count, len(codes), "with right and wrong candidates")
    rng, rows = np.random.default_rng(seed), np.arange(len(codes))
    right = held.correct[rows, held.slots]
    nulls = (_dealt_in_questions(held, codes, count, draws, rng), _drawn_alike(held, codes, count, draws, rng))
    value = float(right.mean())
    null = max(nulls, key=lambda x: (float(permutation_p(x, value)), float(x.mean())))
    estimate, most = rate(right, codes), rate(right, codes, confidence=1 - 2 * alpha).high
    by_question = per_question(right, codes, count) / np.bincount(codes)
    return _verdict(
        "picks a right candidate in {value:.0%} of judgements",
        "reads for quality",
        *(value, estimate.low, estimate.high, most, null, count, len(codes), alpha),
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


def _drawn_alike(held: Held, codes: np.ndarray, count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws], accuracy when the right answers of each question, as many as there are, are drawn by plurality and
    length."""
    n, rows = held.orders.shape[1], np.arange(len(codes))
    first = np.unique(codes, return_index=True)[1]
    # The slots of a question's first row stand for its candidates, the first slot of an answer for the answer.
    same = held.answers[first][:, :, None] == held.answers[first][:, None, :]
    there = ~np.tril(same, -1).any(-1)  # [questions, answers]
    size = same.sum(-1)
    length = np.log(held.lengths[first])
    length, right = ((same * x[:, None, :]).sum(-1) / size for x in (length, held.correct[first]))
    chosen = held.answers[rows, held.slots][:, None] == held.answers[first][codes]
    picked = per_question(chosen & there[codes], codes, count)
    features = np.stack([size, size**2, length, length**2], -1)[there].astype(float)
    asked, won = np.nonzero(there)[0], right[there] > 0.5
    features = features - (per_question(features, asked, count) / there.sum(1)[:, None])[asked]
    features = features[:, np.abs(features).max(0) > 1e-9]
    utility = np.full((count, n), -np.inf)
    utility[there] = 0.0
    number = per_question(won, asked, count)[:, None]
    if features.shape[1] and (number < there.sum(1)[:, None]).any(where=number > 0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # perfect prediction leaves nothing for the judge to add
            model: Any = ConditionalLogit(won.astype(int), features / features.std(0), groups=asked)
            utility[there] = features / features.std(0) @ model.fit(disp=0, skip_hessian=True).params
    null = []
    for d in _batches(draws, utility.size):
        order = np.argsort(-(utility + rng.gumbel(size=(d, count, n))), axis=-1)
        null.append((np.take_along_axis(picked[None], order, -1) * (np.arange(n) < number)).sum((1, 2)) / len(codes))
    return np.concatenate(null)


def _verdict(
    what: str,
    does: str,
    value: float,
    low: float,
    high: float,
    most: float,
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
    elif most < chance + MARGIN:
        verdict = "does not read"
    told = verdict != "cannot tell"
    needed = None if told else _needed(value, chance, spread, questions, alpha)
    shown = f"over {questions} held-out questions the judge {what.format(value=value)} "
    shown += f"({low:.0%} to {high:.0%}; by chance {chance:.0%}, p = {p:.2g})"
    end = {
        "reads": f": it {does}",
        "does not read": f", less than {MARGIN:.0%} above chance: it {does.replace('reads', 'does not read')}",
        "cannot tell": f"; that does not tell whether it {does}, {needed} questions would",
    }[verdict]
    return Verdict(
        verdict, value, low, high, most, chance, p, questions, rows, needed, f"{shown[0].upper()}{shown[1:]}{end}."
    )


def _needed(value: float, chance: float, spread: float, questions: int, alpha: float) -> int:
    """Questions with which one of the two sides shows in four cases of five, if value and spread stay as they are."""
    room = max(value - chance, chance + MARGIN - value)
    number = ((normal.ppf(1 - alpha) + normal.ppf(_POWER)) * spread / room) ** 2
    return max(ASK, questions + 1, math.ceil(number))


def _too_few(questions: int, rows: int, what: str) -> Verdict:
    nan = float("nan")
    sentence = f"{questions} held-out questions {what} do not tell whether the judge reads; {ASK} would."
    return Verdict("cannot tell", nan, nan, nan, nan, nan, nan, questions, rows, ASK, sentence)


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
