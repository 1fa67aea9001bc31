"""Where picks fall: slots by method, whether a method shifts them, and how a judge depends on the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2
from statsmodels.stats.contingency_tables import SquareTable

from kvattn.stats.frames import Column, Table, clusters, one_hot, paired, read_judgements, read_questions
from kvattn.stats.resampling import (
    CONFIDENCE,
    RESAMPLES,
    holm,
    per_question,
    permutation_p,
    rate_interval,
    signs,
)


def slot_histogram(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    column: Column = "choice",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each method picks each slot.

    One row per (method, slot), slots from 0: count, share, low, high (resampling questions), uniform (the share of a
    judge that picks slots at random), rows, questions.
    """
    frame = read_judgements(judgements, read_questions(questions), column)
    rows = []
    for method, part in frame.groupby("method", sort=True):
        codes, count = clusters(part["question_id"])
        totals = per_question(np.ones(len(part)), codes, count)
        n = part["n"].to_numpy()
        for slot in range(int(frame["n"].max())):
            hit = (part["slot"] == slot).to_numpy(dtype=float)
            low, high = rate_interval(per_question(hit, codes, count), totals, confidence, resamples, seed)
            rows.append(
                {
                    "method": method,
                    "slot": slot,
                    "count": int(hit.sum()),
                    "share": hit.mean(),
                    "low": low,
                    "high": high,
                    "uniform": np.where(slot < n, 1 / n, 0.0).mean(),
                    "rows": len(part),
                    "questions": count,
                }
            )
    columns = ["method", "slot", "count", "share", "low", "high", "uniform", "rows", "questions"]
    return pd.DataFrame(rows, columns=columns)


def slot_marginal_test(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    draws: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Does a method pick slots in other proportions than the reference?

    One row a method, from the pairs in which both made a choice:

    statistic, df, p      Stuart-Maxwell test of marginal homogeneity (Stuart 1955, Maxwell 1970), chi-square. Slots
                          that are only ever picked by both together or by none do not enter it; groups of slots
                          between which no pick moves are tested apart and added up. It takes pairs for independent:
                          with several orders of a question p is too small
    p_swap                with the question for a unit: method and reference swapped at random within questions,
                          statistic sum over slots of (difference in picks)^2
    p_holm, p_swap_holm   the two, corrected for the number of methods (Holm 1979)
    js_distance           Jensen-Shannon distance, base 2, of the two shares of picks by slot, 0 to 1
    pairs, questions      counts
    """
    pairs: Table = paired(judgements, questions, reference, column)
    slots = int(pairs["n"].max()) if len(pairs) else 0
    rows = []
    for method, part in pairs.groupby("method", sort=True):
        part = part[(part["slot"] >= 0) & (part["slot_ref"] >= 0)]
        if part.empty:
            continue
        table = np.zeros((slots, slots))
        np.add.at(table, (part["slot_ref"].to_numpy(), part["slot"].to_numpy()), 1)
        statistic, df, p = stuart_maxwell(table)
        codes, count = clusters(part["question_id"])
        moved = one_hot(part["slot"], slots) - one_hot(part["slot_ref"], slots)
        difference = per_question(moved, codes, count)
        flips, complete = signs(count, draws, seed)
        null = ((flips @ difference) ** 2).sum(1)
        rows.append(
            {
                "method": method,
                "statistic": statistic,
                "df": df,
                "p": p,
                "p_swap": float(permutation_p(null, float((difference.sum(0) ** 2).sum()), complete)),
                "js_distance": float(jensenshannon(table.sum(1), table.sum(0), base=2)),
                "pairs": len(part),
                "questions": count,
            }
        )
    columns = ["method", "statistic", "df", "p", "p_swap", "js_distance", "pairs", "questions"]
    out = pd.DataFrame(rows, columns=columns)
    out.insert(5, "p_holm", holm(out["p"].to_numpy()))
    out.insert(6, "p_swap_holm", holm(out["p_swap"].to_numpy()))
    return out


def stuart_maxwell(table: np.ndarray) -> tuple[float, int, float]:
    """Statistic, degrees of freedom and p of the Stuart-Maxwell test of a square table of counts [slots, slots].

    The covariance matrix of the test is singular when no pick moves between two groups of slots; the groups are then
    independent, and their statistics and degrees of freedom add up. Without any move: 0, 0, 1.
    """
    moves = np.array(table, dtype=float)
    np.fill_diagonal(moves, 0)
    groups, labels = connected_components(csr_array(moves), directed=False)
    statistic, df = 0.0, 0
    for g in range(groups):
        members = np.flatnonzero(labels == g)
        if len(members) > 1:
            part: Any = SquareTable(table[np.ix_(members, members)], shift_zeros=False).homogeneity("stuart_maxwell")
            statistic, df = statistic + float(part.statistic), df + int(part.df)
    return statistic, df, float(chi2.sf(statistic, df)) if df else 1.0


def position_bias(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    column: Column = "choice",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """How each method's pick depends on the order of display, over questions judged in two orders or more.

    One row a method; each number is a mean over questions, with an interval that resamples them (..._low, ..._high):

    order_consistency      share of pairs of orders in which the same candidate is picked. The list-wise relative of
                           repetition stability in Shi et al. (2406.07791), who repeat the *same* prompt; a greedy judge
                           would score 1 there
    position_consistency   share of questions with the same pick in all orders: Shi et al.'s position consistency, for
                           any number of candidates
    preference_fairness    -1 to 1, 0 fair: share of comparisons that went to the later candidate, less that of those
                           that went to the earlier. A comparison is a pick against the pick in another order, counted
                           when the two differ; consistent pairs of orders count as neither, so that a consistent judge
                           is fair. Always the first slot over all rotations gives -1, always the last 1. Shi et al.
                           take the difference of recency and primacy rates, too, but weight each by its count and
                           rescale to the range that can be reached; this is the plain difference
    questions, orders      questions, and their mean number of orders
    """
    frame = read_judgements(judgements, read_questions(questions), column)
    frame = frame[frame["slot"] >= 0]  # orders in which no choice was made say nothing of it
    rows = []
    for method, part in frame.groupby("method", sort=True):
        values = np.array(
            [_order_dependence(group) for _, group in part.groupby("question_id", sort=True) if len(group) > 1]
        ).reshape(-1, 4)
        row: dict[str, object] = {"method": method}
        ones = np.ones(len(values))
        for i, name in enumerate(("order_consistency", "position_consistency", "preference_fairness")):
            # Fairness runs from -1 to 1 and is treated as a rate in between.
            scale, shift = (2, -1) if name == "preference_fairness" else (1, 0)
            low, high = rate_interval((values[:, i] - shift) / scale, ones, confidence, resamples, seed)
            row[name] = values[:, i].mean() if len(values) else np.nan
            row[f"{name}_low"], row[f"{name}_high"] = scale * low + shift, scale * high + shift
        row["questions"] = len(values)
        row["orders"] = values[:, 3].mean() if len(values) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _order_dependence(group: Table) -> tuple[float, float, float, float]:
    """Order consistency, position consistency, preference fairness and number of orders of one question."""
    orders, picks = np.array(group["order"].tolist()), group["candidate"].to_numpy()
    content = group["content"].to_numpy()
    r = len(picks)
    where = np.argsort(orders, axis=1)  # [orders, candidates]: the slot in which each is shown
    own = where[np.arange(r), picks][:, None]
    other = where[:, picks]
    differ = content[:, None] != content[None, :]
    later = (np.sign(own - other) * differ).sum() / (r * (r - 1))
    same = ((~differ).sum() - r) / (r * (r - 1))
    return same, float(not differ.any()), later, r
