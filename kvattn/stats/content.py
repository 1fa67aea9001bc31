"""The content test: does a judge read its candidates at all?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.frames import Question, Table, clusters, read_questions
from kvattn.stats.resampling import per_question, permutation_p, rate_interval

# Numbers drawn at a time, [draws, rows].
_CHUNK = 4_000_000


@dataclass(frozen=True)
class ContentTest:
    """Whether a judge's picks depend on what the candidates say.

    verdict                      "passes", "fails" or "cannot tell"
    sentence                     the result in one plain sentence
    questions, rows              questions with two candidates and two orders or more, and their judgements
    agreement, _low, _high       mean over questions of the share of pairs of orders with the same pick; the interval
                                 resamples questions
    agreement_null, agreement_p  its mean under the null, and p
    mixed_questions, mixed_rows  those with right and wrong candidates
    accuracy, _low, _high        share of right picks among mixed rows; NaN without any
    accuracy_null, accuracy_p    its mean under the null, and the larger of the two p-values that follow
    accuracy_p_rows              rows redrawn one by one
    accuracy_p_questions         right and wrong dealt out anew to a question's candidates
    alpha, draws                 the level of each of the two tests, and the number of draws
    """

    verdict: Literal["passes", "fails", "cannot tell"]
    sentence: str
    questions: int
    rows: int
    agreement: float
    agreement_low: float
    agreement_high: float
    agreement_null: float
    agreement_p: float
    mixed_questions: int
    mixed_rows: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_null: float
    accuracy_p: float
    accuracy_p_rows: float
    accuracy_p_questions: float
    alpha: float
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; None where a number is NaN."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def content_test(
    picks: pd.DataFrame,
    questions: pd.DataFrame,
    draws: int = 4000,
    seed: int = 0,
    alpha: float = 0.05,
    min_questions: int = 8,
) -> ContentTest:
    """Does the judge pick the same candidate over orders, and a right one, more often than if it did not read?

    picks:     a row per judgement: question_id, order, slot (the chosen one, from 0)
    questions: the questions table

    Null: a judge whose slot does not depend on the contents. Each row keeps its slot, and its contents are dealt out
    anew, a uniform random order for every row. Two statistics, each tested one-sided at `alpha` with permutation
    p-values (1 + count) / (1 + draws): the agreement of picks within a question over its orders, and the accuracy on
    questions with right and wrong candidates. For the second a second null is tried as well, and the larger p counts:
    the picks stay, and right and wrong are dealt out anew to the candidates of a question. For a judge with a firm
    preference for anything else, such as length, is consistently right or wrong on a whole question, and redrawing rows
    one by one would take that for too much evidence.

    The judge passes when both are under `alpha`. It fails when one of the two that can be told is not. It cannot be
    told when there are fewer than `min_questions` questions with two orders or more, or, agreement being over chance,
    fewer than that with right and wrong candidates.

    Raises KvattnError for orders that are not balanced: over a question's orders each slot must show its candidates
    equally often, up to one (cyclic orders do); else a judge that is locked to a slot would seem consistent.
    """
    known = read_questions(questions)
    frame = _rows(picks, known)
    frame = frame[(frame["n"] > 1) & (frame.groupby("question_id")["slot"].transform("size") > 1)]
    rng = np.random.default_rng(seed)
    agreement = _agreement_test(frame, known, draws, rng)
    accuracy = _accuracy_test(frame, known, draws, rng)
    enough, enough_mixed = agreement["questions"] >= min_questions, accuracy["mixed_questions"] >= min_questions
    consistent, right = agreement["agreement_p"] < alpha, accuracy["accuracy_p"] < alpha
    if not enough or (consistent and not enough_mixed):
        verdict: Literal["passes", "fails", "cannot tell"] = "cannot tell"
    else:
        verdict = "passes" if consistent and right else "fails"
    numbers: dict[str, Any] = {**agreement, **accuracy}
    sentence = _sentence(numbers, enough, enough_mixed, consistent, right, min_questions)
    return ContentTest(verdict=verdict, sentence=sentence, alpha=alpha, draws=draws, **numbers)


def _rows(picks: Table, known: dict[str, Question]) -> Table:
    """question_id, n, slot, candidate, content of every pick, checked."""
    for name in ("question_id", "order", "slot"):
        if name not in picks.columns:
            raise KvattnError(f"the picks lack the column {name!r}; they have {', '.join(picks.columns)}")
    made, seen = [], set()
    for key, order, slot in zip(picks["question_id"], picks["order"], picks["slot"], strict=True):
        if key not in known:
            raise KvattnError(f"question {key!r} was judged but is not in the questions table")
        q, shown, s = known[key], tuple(int(i) for i in order), int(slot)
        if sorted(shown) != list(range(q.n)) or not 0 <= s < q.n:
            raise KvattnError(f"question {key!r}: slot {s} of order {list(shown)} does not fit {q.n} candidates")
        if (key, shown) in seen:
            raise KvattnError(
                f"question {key!r} was judged twice in order {list(shown)}; repeating an order is no test of content, "
                "give each order once"
            )
        seen.add((key, shown))
        made.append((key, q.n, s, shown[s], int(q.content[shown[s]]), shown))
    frame = pd.DataFrame(made, columns=["question_id", "n", "slot", "candidate", "content", "order"])
    for key, group in frame.groupby("question_id"):
        _check_balance(str(key), np.array(group["order"].tolist()))
    return frame


def _check_balance(key: str, orders: np.ndarray) -> None:
    rows, n = orders.shape
    shown = np.stack([(orders == c).sum(0) for c in range(n)])  # [candidates, slots]
    if shown.max() > math.ceil(rows / n):
        raise KvattnError(
            f"question {key!r}: over its {rows} orders some slot shows one candidate {shown.max()} times; a content "
            "test needs balanced orders, such as the cyclic ones"
        )


def _agreement_test(frame: Table, known: dict[str, Question], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    codes, count = clusters(frame["question_id"])
    if count == 0:
        nothing = dict.fromkeys(("", "_low", "_high", "_null", "_p"), np.nan)
        return {"questions": 0, "rows": 0, **{f"agreement{k}": v for k, v in nothing.items()}}
    n, contents = _padded(frame, known, codes, count, lambda q: q.content)
    sizes = np.bincount(codes, minlength=count)

    def statistic(picked: np.ndarray) -> np.ndarray:
        """[draws, questions], pairwise agreement of contents [draws, rows]."""
        cells = count * n.max()
        index = codes * n.max() + picked + cells * np.arange(len(picked))[:, None]
        counts = np.bincount(index.ravel(), minlength=cells * len(picked)).reshape(len(picked), count, n.max())
        return ((counts**2).sum(-1) - sizes) / (sizes * (sizes - 1))

    observed = statistic(frame["content"].to_numpy()[None])[0]
    rows = np.arange(len(codes))
    null = np.concatenate(
        [statistic(contents[rows, _deal(n[codes], d, rng)]).mean(1) for d in _batches(draws, len(codes))]
    )
    low, high = rate_interval(observed, np.ones(count))
    return {
        "questions": count,
        "rows": len(codes),
        "agreement": float(observed.mean()),
        "agreement_low": low,
        "agreement_high": high,
        "agreement_null": float(null.mean()),
        "agreement_p": float(permutation_p(null, float(observed.mean()))),
    }


def _accuracy_test(frame: Table, known: dict[str, Question], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    frame = frame[np.array([0 < known[k].corrects.mean() < 1 for k in frame["question_id"]], dtype=bool)]
    codes, count = clusters(frame["question_id"])
    if count == 0:
        nothing = dict.fromkeys(("", "_low", "_high", "_null", "_p", "_p_rows", "_p_questions"), np.nan)
        return {"mixed_questions": 0, "mixed_rows": 0, **{f"accuracy{k}": v for k, v in nothing.items()}}
    n, corrects = _padded(frame, known, codes, count, lambda q: q.corrects)
    rows, candidates = np.arange(len(codes)), frame["candidate"].to_numpy()
    right = corrects[rows, candidates]
    null = np.concatenate([corrects[rows, _deal(n[codes], d, rng)].mean(1) for d in _batches(draws, len(codes))])
    counts = np.zeros((count, n.max()))
    np.add.at(counts, (codes, candidates), 1)
    by_question = np.zeros((count, n.max()))
    by_question[codes] = corrects
    whole = np.concatenate([_redeal(counts, by_question, n, d, rng) / len(codes) for d in _batches(draws, counts.size)])
    p_rows, p_questions = (float(permutation_p(x, float(right.mean()))) for x in (null, whole))
    totals = per_question(np.ones(len(codes)), codes, count)
    low, high = rate_interval(per_question(right, codes, count), totals)
    return {
        "mixed_questions": count,
        "mixed_rows": len(codes),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_null": float(null.mean()),
        "accuracy_p": max(p_rows, p_questions),
        "accuracy_p_rows": p_rows,
        "accuracy_p_questions": p_questions,
    }


def _padded(
    frame: Table, known: dict[str, Question], codes: np.ndarray, count: int, values: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of candidates [questions], and a value of every candidate of each row's question [rows, candidates]."""
    first = frame["question_id"].to_numpy()[np.unique(codes, return_index=True)[1]]
    n = np.array([known[k].n for k in first])
    table = np.zeros((count, n.max()), dtype=np.asarray(values(known[first[0]])).dtype)
    for i, k in enumerate(first):
        table[i, : n[i]] = values(known[k])
    return n, table[codes]


def _batches(draws: int, size: int) -> list[int]:
    """Draws in batches of bounded memory."""
    step = max(1, _CHUNK // max(size, 1))
    return [min(step, draws - start) for start in range(0, draws, step)]


def _deal(n: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws, rows], the candidate that a fixed slot shows in a uniform random order of n [rows]: each equally likely,
    whatever the slot."""
    return rng.integers(0, n, size=(draws, len(n)))


def _redeal(
    counts: np.ndarray, corrects: np.ndarray, n: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """[draws], right picks when the correctness of a question's candidates is permuted.

    counts, corrects: [questions, candidates], how often each was picked, and whether it is right.
    """
    keys = rng.random((draws, *counts.shape))
    keys[:, np.arange(counts.shape[1]) >= n[:, None]] = 2.0  # padding sorts behind every candidate
    order = keys.argsort(-1)
    dealt = np.take_along_axis(np.broadcast_to(corrects, keys.shape), order, axis=-1)
    return (dealt * counts).sum((1, 2))


def _sentence(x: dict[str, Any], enough: bool, enough_mixed: bool, consistent: bool, right: bool, least: int) -> str:
    if not enough:
        return (
            f"{x['questions']} held-out questions judged in two orders or more are too few to tell whether the judge "
            f"reads its candidates; {least} are needed."
        )
    same = (
        f"over the orders of {x['questions']} held-out questions the judge picks the same candidate in "
        f"{x['agreement']:.0%} of pairs of orders (by chance {x['agreement_null']:.0%}, p = {x['agreement_p']:.2g})"
    )
    good = (
        f"a right one in {x['accuracy']:.0%} of judgements of {x['mixed_questions']} questions with right and wrong "
        f"candidates (by chance {x['accuracy_null']:.0%}, p = {x['accuracy_p']:.2g})"
    )
    if not consistent:
        text = f"{same}, no more often than a judge that does not read"
    elif not enough_mixed:
        text = (
            f"{same}, but only {x['mixed_questions']} of them are known to have right and wrong candidates, where "
            f"{least} are needed to tell whether it picks right ones"
        )
    elif right:
        text = f"{same}, and {good}"
    else:
        text = f"{same}, but {good}, no more often than a judge that does not read"
    return text[0].upper() + text[1:] + "."
