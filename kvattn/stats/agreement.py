"""Judge consistency rate: how often a method picks the candidate that dense prefill picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column, Table, clusters, one_hot, paired, read_questions
from kvattn.stats.resampling import (
    CONFIDENCE,
    RESAMPLES,
    cluster_interval,
    per_question,
    rate_interval,
    ratio,
    wilson,
)

# Under this distance between floor and chance a chance-corrected score is noise over noise.
_LEAST_ROOM = 0.05

# An interval of a statistic of sums [questions, k], as `cluster_interval` makes it.
Interval = Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], tuple[float, float]]


def jcr(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    floors: Sequence[str] = ("null-edit",),
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge consistency rate of every method (arXiv 2601.08343), with what it has to be read against.

    One row a method, the reference left out:

    jcr                          share of (question, order) pairs in which method and reference choose the same
                                 candidate; equal texts are the same candidate
    low, high                    bootstrap interval that resamples questions (`rate_interval`)
    wilson_low, wilson_high      Wilson's interval, which takes pairs for independent: too narrow with several orders
    pairs, questions             counts
    answer_agreement             share of pairs whose chosen texts state the same final answer
    chance                       marginal chance: sum over slots of the reference's and the method's share of picks of
                                 that slot. What two judges agree on who pick slots in that proportion and read nothing
    chance_soft                  distribution chance: sum over slots of softmax(scores of the reference) times
                                 softmax(scores of the method), mean over pairs. What the two would agree on if each
                                 drew its slot from its own distribution for that very pair
    kappa, kappa_low, kappa_high Cohen's (1960) kappa on slots, (jcr - chance) / (1 - chance); a tie counts as the
                                 reference's slot
    floor                        noise floor: JCR of the methods named by `floors` ("null-edit" means all its variants),
                                 pooled: how well dense agrees with itself under a change that should not matter
    corrected, corrected_low, corrected_high
                                 (jcr - chance) / (floor - chance): 0 at chance, 1 at the floor; interval by resampling
                                 questions, floor and chance included
    parsed, jcr_parsed           share of pairs in which both made a choice (written verdicts may name no candidate, or
                                 several), and the JCR over those alone; a pair with such a verdict is none that agrees
    note                         why `corrected` is NaN, else ""

    With different numbers of candidates in one table chance and kappa are pooled over them; choose the rows of one
    number where that matters.
    """
    pairs: Table = paired(judgements, questions, reference, column)
    codes, count = clusters(pairs["question_id"])
    slots = int(pairs["n"].max()) if len(pairs) else 0
    interval = partial(cluster_interval, confidence=confidence, resamples=resamples, seed=seed)
    is_floor = np.array([is_named(m, floors) for m in pairs["method"]], dtype=bool)
    floor_sums = _agreement_sums(pairs[is_floor], codes[is_floor], count)
    rows = []
    for method, index in pairs.groupby("method", sort=True).indices.items():
        part, c = pairs.iloc[index], codes[index]
        sums = np.concatenate(
            [_agreement_sums(part, c, count), floor_sums, _slot_sums(part, c, count, slots)],
            axis=1,
        )
        sums = sums[np.unique(c)]
        rows.append(
            {
                "method": method,
                **_rate(sums[:, 0], sums[:, 1], confidence, resamples, seed),
                "answer_agreement": part["agree_answer"].mean(),
                **against_chance(sums, interval),
                "chance_soft": _mean([a @ b for a, b in zip(part["p"], part["p_ref"], strict=True)]),
                **_parsed(part),
                **corrected(sums, is_named(str(method), floors), floors, interval),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = [
    *("method", "jcr", "low", "high", "wilson_low", "wilson_high", "pairs", "questions", "answer_agreement"),
    *("chance", "chance_soft", "kappa", "kappa_low", "kappa_high", "floor"),
    *("corrected", "corrected_low", "corrected_high", "parsed", "jcr_parsed", "note"),
]


def by_permutation_distance(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """JCR by how far the order is from the file's order, in Kendall's tau distance.

    One row per (method, n, distance): distance is the number of pairs of candidates that stand the other way round, 0
    to n(n-1)/2; tau is Kendall's coefficient, 1 - 4 distance / (n(n-1)), 1 to -1; then jcr, low, high, wilson_low,
    wilson_high, pairs, questions as in `jcr`.
    """
    pairs: Table = paired(judgements, questions, reference, column)
    pairs["distance"] = [inversions(o) for o in pairs["order"]]
    out = _grouped(pairs, ["method", "n", "distance"], confidence, resamples, seed)
    n = out["n"].astype(float)
    out.insert(3, "tau", 1 - 4 * out["distance"] / (n * (n - 1)))
    return out


def by_margin(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    bins: int = 4,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """JCR by the reference's margin, its best score less its second best: are flips where dense was undecided?

    Bins hold equal shares of the pairs of all methods. One row per (method, bin): margin_low, margin_high (the smallest
    and the largest margin in the bin), then jcr, low, high, wilson_low, wilson_high, pairs, questions as in `jcr`.
    """
    if bins < 1:
        raise KvattnError(f"{bins} bins asked for; give at least one")
    pairs: Table = paired(judgements, questions, reference, column)
    pairs = pairs[np.isfinite(pairs["margin_ref"])].reset_index(drop=True)
    if pairs.empty:
        pairs["bin"] = np.empty(0, dtype=int)
    else:
        pairs["bin"] = pd.qcut(pairs["margin_ref"], bins, labels=False, duplicates="drop")
        # One margin for all leaves qcut no interval to put it in.
        pairs["bin"] = pairs["bin"].fillna(0).astype(int)
    edges = pairs.groupby("bin")["margin_ref"].agg(margin_low="min", margin_high="max").reset_index()
    out = _grouped(pairs, ["method", "bin"], confidence, resamples, seed)
    merged = out.merge(edges, on="bin", how="left")
    return merged[["method", "bin", "margin_low", "margin_high", *out.columns[2:]]]


def by_candidate_agreement(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """JCR by how far a question's candidates agree among themselves: do methods flip where there is more to choose?

    One row per (method, n, agreeing): agreeing is the number of candidates that state the commonest final answer
    (`final_answer`; a text without one agrees with itself alone), 1 to n; then jcr, low, high, wilson_low, wilson_high,
    pairs, questions as in `jcr`, and answer_agreement, the share of pairs whose chosen texts state the same answer.
    """
    known = read_questions(questions)
    pairs: Table = paired(judgements, questions, reference, column)
    most = {k: max([1, *Counter(a for a in q.answers if a is not None).values()]) for k, q in known.items()}
    pairs["agreeing"] = [most[k] for k in pairs["question_id"]]
    keys = ["method", "n", "agreeing"]
    answers = pairs.groupby(keys)["agree_answer"].mean().rename("answer_agreement").reset_index()
    return _grouped(pairs, keys, confidence, resamples, seed).merge(answers, on=keys, how="left")


def inversions(order: Sequence[int]) -> int:
    """Kendall's tau distance of an order from 0, 1, 2, ...: the number of pairs that stand the other way round."""
    a = np.asarray(order)
    return int(np.triu(a[:, None] > a[None, :], 1).sum())


def _grouped(pairs: Table, keys: list[str], confidence: float, resamples: int, seed: int) -> Table:
    """JCR of each group of pairs, a row each, sorted by the keys."""
    rows = []
    for values, index in sorted(pairs.groupby(keys).indices.items()):
        part = pairs.iloc[index]
        codes, count = clusters(part["question_id"])
        sums = _agreement_sums(part, codes, count)
        rows.append(
            {**dict(zip(keys, values, strict=True)), **_rate(sums[:, 0], sums[:, 1], confidence, resamples, seed)}
        )
    columns = ["jcr", "low", "high", "wilson_low", "wilson_high", "pairs", "questions"]
    return pd.DataFrame(rows, columns=[*keys, *columns])


def is_named(method: str, names: Sequence[str]) -> bool:
    """Whether a method's label, "name" or "name(parameter=value,...)", is one of the names or has one for its name."""
    return method in names or method.partition("(")[0] in names


def _agreement_sums(part: Table, codes: np.ndarray, count: int) -> np.ndarray:
    """[questions, 2]: agreeing pairs, pairs."""
    agree = part["agree"].to_numpy(dtype=float)
    return per_question(np.stack([agree, np.ones_like(agree)], axis=1), codes, count)


def _mean(values: Sequence[float]) -> float:
    """Mean of the numbers among the values; NaN where there are none."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else np.nan


def _parsed(part: Table) -> dict[str, float]:
    both = ((part["slot"] >= 0) & (part["slot_ref"] >= 0)).to_numpy()
    return {"parsed": float(both.mean()), "jcr_parsed": float(part["agree"][both].mean()) if both.any() else np.nan}


def _slot_sums(part: Table, codes: np.ndarray, count: int, slots: int) -> np.ndarray:
    """[questions, 2 * slots]: picks of each slot by the reference, then by the method, ties at the reference's."""
    ref = part["slot_ref"].to_numpy()
    own = np.where(part["agree"], ref, part["slot"])
    return per_question(np.concatenate([one_hot(ref, slots), one_hot(own, slots)], axis=1), codes, count)


def _rate(successes: np.ndarray, totals: np.ndarray, confidence: float, resamples: int, seed: int) -> dict[str, float]:
    low, high = rate_interval(successes, totals, confidence, resamples, seed)
    wilson_low, wilson_high = wilson(successes.sum(), totals.sum(), confidence)
    return {
        "jcr": successes.sum() / totals.sum(),
        "low": low,
        "high": high,
        "wilson_low": wilson_low,
        "wilson_high": wilson_high,
        "pairs": int(totals.sum()),
        "questions": int((totals > 0).sum()),
    }


def _chance(sums: np.ndarray) -> np.ndarray:
    """Marginal chance from sums [..., 4 + 2 * slots]: agreements, pairs, the floor's two, slots of both."""
    slots = (sums.shape[-1] - 4) // 2
    ref, own = sums[..., 4 : 4 + slots], sums[..., 4 + slots :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (ref * own).sum(-1) / sums[..., 1] ** 2


def _kappa(sums: np.ndarray) -> np.ndarray:
    chance = _chance(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (ratio(sums[..., :2]) - chance) / (1 - chance), np.nan)


def _corrected_score(sums: np.ndarray) -> np.ndarray:
    chance = _chance(sums)
    room = ratio(sums[..., 2:4]) - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room >= _LEAST_ROOM, (ratio(sums[..., :2]) - chance) / room, np.nan)


def against_chance(sums: np.ndarray, interval: Interval) -> dict[str, float]:
    """chance, kappa, kappa_low, kappa_high of `jcr`.

    sums: [questions, 4 + 2 * slots], what each question adds: agreeing pairs, pairs, the same two of the floor's
          methods, the reference's picks of each slot, the method's (a tie counts as the reference's slot)
    """
    total = sums.sum(0)
    chance = float(_chance(total))
    low, high = _unless_constant(sums, chance, 1.0, interval(sums, _kappa))
    return {"chance": chance, "kappa": float(_kappa(total)), "kappa_low": low, "kappa_high": high}


def corrected(sums: np.ndarray, is_floor: bool, floors: Sequence[str], interval: Interval) -> dict[str, float | str]:
    """floor, corrected, corrected_low, corrected_high, note of `jcr`, from the sums that `against_chance` takes.

    is_floor: whether the method is one of those that the floor is made of; floors: their names, for the note
    """
    total = sums.sum(0)
    floor, chance = float(ratio(total[2:4])), float(_chance(total))
    nothing = {"floor": floor, "corrected": np.nan, "corrected_low": np.nan, "corrected_high": np.nan}
    if np.isnan(floor):
        return {**nothing, "note": f"no noise floor: none of {', '.join(floors) or '(no names)'} was run"}
    if is_floor:
        return {**nothing, "note": "is the noise floor itself"}
    if floor - chance < _LEAST_ROOM:
        return {**nothing, "note": f"the floor ({floor:.2f}) is less than {_LEAST_ROOM} above chance ({chance:.2f})"}
    low, high = _unless_constant(sums, chance, floor, interval(sums, _corrected_score))
    return {
        "floor": floor,
        "corrected": float(_corrected_score(total)),
        "corrected_low": low,
        "corrected_high": high,
        "note": "",
    }


def _unless_constant(sums: np.ndarray, chance: float, top: float, found: tuple[float, float]) -> tuple[float, float]:
    """The interval `found`, or where every question has the same JCR, so that resampling finds no spread in it, that of
    `rate_interval` on the scale from chance to top."""
    there = sums[sums[:, 1] > 0]
    if len(there) < 2 or chance > 1 - 1e-12 or np.ptp(there[:, 0] / there[:, 1]) > 1e-12:
        return found
    low, high = ((end - chance) / (top - chance) for end in rate_interval(there[:, 0], there[:, 1]))
    return min(low, found[0]), max(high, found[1])
