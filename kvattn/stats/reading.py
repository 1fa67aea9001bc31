"""Does a judge read its candidates, and does it read them for quality? Two verdicts, each of three.

A test that finds nothing on ten questions has not shown that there is nothing. So "does not read" needs an upper bound,
and where neither side is shown the verdict says how many held-out questions would show it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import norm as normal
from statsmodels.discrete.conditional_models import ConditionalLogit

from kvattn.errors import KvattnError
from kvattn.stats.frames import clusters, need, read_questions
from kvattn.stats.intervals import rate, rate_bounds
from kvattn.stats.pairs import contents
from kvattn.stats.resampling import CONFIDENCE, Resampling, per_question, permutation_p

# Agreement or accuracy that lies less than this above chance does not count as reading.
MARGIN = 0.10
# Fewer held-out questions than this are not asked for: at 24 a weak reader is told in one case of two.
ASK = 48
_POWER = 0.8
_SAME, _RIGHT = (
    "picks the same text in {value:.0%} of pairs of orders",
    "picks a right candidate in {value:.0%} of judgements",
)
_CHUNK = 4_000_000


Told = Literal["reads", "does not read", "cannot tell"]


@dataclass(frozen=True)
class Held:
    """A judge's picks on held-out questions.

    questions: [rows], what tells the questions apart
    orders:    [rows, slots], the candidate that each slot shows, -1 past a question's last
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

    @property
    def there(self) -> np.ndarray:
        """[rows, slots], whether the question has so many candidates."""
        return self.orders >= 0


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

    verdict: Told
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


@dataclass(frozen=True)
class ContentTest:
    """Whether a judge's picks depend on what the candidates say (`reading`), and on whether it is right (`quality`).

    Agreement over orders decides the first: a judge with a firm taste of its own reads, and its consistency can be
    lost.
    """

    reading: Verdict
    quality: Verdict

    @property
    def verdict(self) -> Told:
        """That of `reading`."""
        return self.reading.verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None where a number is NaN."""
        return {
            name: {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(part).items()}
            for name, part in (("reading", self.reading), ("quality", self.quality))
        }

    @classmethod
    def stored(cls, manifest: dict[str, Any], calibrated: bool = False) -> ContentTest | None:
        """The test of raw or of calibrated choices in a run's manifest, None where none was made.

        One that an older kvattn wrote as a single "passes" or "fails" is told anew from its numbers. It dealt right
        and wrong within questions alone, so that a high accuracy does not tell that the judge reads for quality.
        """
        found = (manifest.get("content_test") or {}).get("calibrated" if calibrated else "raw")
        if not isinstance(found, dict):
            return None
        if "reading" in found:
            fields = ("value", "low", "high", "most", "chance", "p")
            parts = {k: {**found[k], **{f: _number(found[k].get(f)) for f in fields}} for k in ("reading", "quality")}
            return cls(**{k: Verdict(**part) for k, part in parts.items()})
        return cls(
            _older(found, "agreement", "questions", "rows"), _older(found, "accuracy", "mixed_questions", "mixed_rows")
        )


def content_test(
    picks: pd.DataFrame, questions: pd.DataFrame, draws: int = 4000, seed: int = 0, alpha: float = 0.05
) -> ContentTest:
    """`reading` and `reading_for_quality` of one method's picks on held-out questions.

    picks:     a row per judgement: question_id, order, slot (the chosen one, from 0; rows without one are left out)
    questions: the questions table

    Raises KvattnError for picks that do not fit the questions, an order that stands there twice, and orders that are
    not balanced.
    """
    held = read_held(picks, questions)
    return ContentTest(reading(held, draws, alpha, seed), reading_for_quality(held, draws, alpha, seed))


def read_held(picks: pd.DataFrame, questions: pd.DataFrame) -> Held:
    """The picks of `content_test` in this form, checked."""
    need(picks, "picks", ("question_id", "order", "slot"))
    known = read_questions(questions)
    rows: dict[tuple[str, tuple[int, ...]], int] = {}
    for key, order, slot in zip(picks["question_id"], picks["order"], picks["slot"], strict=True):
        if pd.isna(slot):
            continue
        if key not in known:
            raise KvattnError(f"question {key!r} was judged but is not in the questions table")
        n, shown = known[key].n, tuple(int(i) for i in order)
        if sorted(shown) != list(range(n)) or not 0 <= slot < n:
            raise KvattnError(
                f"question {key!r}: slot {int(slot)} (from 0) of order {list(shown)} does not fit {n} candidates"
            )
        if (key, shown) in rows:
            raise KvattnError(
                f"question {key!r} was judged twice in order {list(shown)}; repeating an order is no test of content, "
                "give each order once"
            )
        rows[key, shown] = int(slot)
    return Held(slots=np.array([*rows.values()], dtype=int), **contents([*rows], known))


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
    rng, rows, n = np.random.default_rng(seed), np.arange(len(codes)), held.there.sum(1)
    sizes = np.bincount(codes)
    pairs = sizes * (sizes - 1)
    # One cell for each text of each question: how often it was picked.
    cells = np.unique(codes[:, None] * (held.classes.max() + 2) + held.classes, return_inverse=True)[1]
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
        _SAME,
        "reads",
        *(value, low, high, most, float(null.mean()), float(permutation_p(null.mean(1), value)), count, len(codes)),
        *(max(spread, float(null.std(0).mean())), alpha),
    )


def reading_for_quality(held: Held, draws: int = 4000, alpha: float = 0.05, seed: int = 0) -> Verdict:
    """Does the judge pick right candidates more often than its love of common answers and of lengths explains?

    From questions with right and wrong candidates. Two nulls keep the picks, and the one that explains more counts:
    right and wrong are dealt out anew to the candidates of a question; and which final answers are right is drawn anew
    from a conditional logit of how many candidates state them and how long their texts are beside the others, fitted to
    these questions (a conditional randomization test, Candes et al. 2018). A judge that follows the majority, or the
    longest text, is right no more often than under the second.
    """
    right, wrong = ((held.correct == c) & held.there for c in (1, 0))
    held = _chosen(held, (right | wrong | ~held.there).all(1) & right.any(1) & wrong.any(1))
    codes, count = clusters(held.questions)
    if count < 2:
        return _too_few(count, len(codes), "with right and wrong candidates")
    rng, rows = np.random.default_rng(seed), np.arange(len(codes))
    right = held.correct[rows, held.slots]
    nulls = (_dealt_in_questions(held, codes, count, draws, rng), _drawn_alike(held, codes, count, draws, rng))
    value = float(right.mean())
    p, chance, null = max(((float(permutation_p(x, value)), float(x.mean()), x) for x in nulls), key=lambda x: x[:2])
    estimate, most = rate(right, codes), rate(right, codes, how=Resampling(1 - 2 * alpha)).high
    by_question = per_question(right, codes, count) / np.bincount(codes)
    return _verdict(
        _RIGHT,
        "reads for quality",
        *(value, estimate.low, estimate.high, most, chance, p, count, len(codes)),
        *(max(float(by_question.std(ddof=1)), float(null.std()) * math.sqrt(count)), alpha),
    )


def _dealt_in_questions(held: Held, codes: np.ndarray, count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws], accuracy when right and wrong are permuted among a question's candidates."""
    n, rows = held.orders.shape[1], np.arange(len(codes))
    picked, correct = np.zeros((count, n)), np.zeros((count, n))
    np.add.at(picked, (codes, held.orders[rows, held.slots]), 1)
    row, slot = np.nonzero(held.there)
    correct[codes[row], held.orders[row, slot]] = held.correct[row, slot]
    number = held.there[np.unique(codes, return_index=True)[1]].sum(1)[:, None]
    null = []
    for d in _batches(draws, correct.size):
        keys = np.where(np.arange(n) < number, rng.random((d, count, n)), 2.0)  # what is not there stays behind
        dealt = np.take_along_axis(np.broadcast_to(correct, keys.shape), keys.argsort(-1), -1)
        null.append((dealt * picked).sum((1, 2)) / len(codes))
    return np.concatenate(null)


def _drawn_alike(held: Held, codes: np.ndarray, count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws], accuracy when the right answers of each question, as many as there are, are drawn by plurality and
    length."""
    n, rows = held.orders.shape[1], np.arange(len(codes))
    first = np.unique(codes, return_index=True)[1]
    # The slots of a question's first row stand for its candidates, the first slot of an answer for the answer.
    same = held.answers[first][:, :, None] == held.answers[first][:, None, :]
    there = ~np.tril(same, -1).any(-1) & held.there[first]  # [questions, answers]
    size = same.sum(-1)
    length, correct = (np.where(held.there[first], x[first], 1) for x in (held.lengths, held.correct))
    length, right = ((same * x[:, None, :]).sum(-1) / size for x in (np.log(length), correct))
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
    chance: float,
    p: float,
    questions: int,
    rows: int,
    spread: float,
    alpha: float = 0.05,
) -> Verdict:
    """The verdict from a statistic, its interval, its null's mean and p, and its spread between questions."""
    verdict: Told = "cannot tell"
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


def _older(test: dict[str, Any], name: str, questions: str, rows: str) -> Verdict:
    """The verdict from the numbers that an older content test stored of agreement or of accuracy."""
    value, low, high, chance, p = (_number(test.get(f"{name}{end}")) for end in ("", "_low", "_high", "_null", "_p"))
    count, number = int(test.get(questions) or 0), int(test.get(rows) or 0)
    quality = name == "accuracy"
    if count < 2 or math.isnan(value):
        return _too_few(count, number, "with right and wrong candidates" if quality else "judged in two orders or more")
    spread = float((high - low) / 2 / normal.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(count)
    what = _RIGHT if quality else _SAME
    numbers = (value, low, high, high, chance, p, count, number, spread)
    found = _verdict(what, "reads for quality" if quality else "reads", *numbers)
    if not quality or found.verdict != "reads":
        return found
    sentence = found.sentence.removesuffix(": it reads for quality.")
    sentence += "; what common answers and lengths explain of that was not asked: judge held-out questions again."
    return replace(found, verdict="cannot tell", needed=max(ASK, count), sentence=sentence)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


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
    for key in dict.fromkeys(held.questions.tolist()):
        orders = held.orders[held.questions == key]
        n = orders.max() + 1
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
