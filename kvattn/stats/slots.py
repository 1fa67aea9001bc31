"""Where picks fall: slots by method, whether a method shifts them, and how a judge depends on the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import jensenshannon

from kvattn.stats.agreement import rate
from kvattn.stats.frames import Column
from kvattn.stats.intervals import mean
from kvattn.stats.picks import RAW, Scope, Source, source_of
from kvattn.stats.resampling import RESAMPLES, USUAL, Resampling, holm, permutation_p, signs


def slot_histogram(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """How often each method picks each slot.

    One row per (method, slot), slots from 0: count, share, low, high (resampling questions), uniform (the share of a
    judge that picks slots at random), rows, questions.
    """
    source = source_of(judgements, questions, column=column, alone=True)
    most = int(source.sql(f"SELECT coalesce(max(n), 0) AS n FROM picks WHERE {scope.rows}").iloc[0, 0])
    counts = [f"count(*) FILTER (slot = {s})::DOUBLE AS s{s}" for s in range(most)]
    counts += [f"sum(CASE WHEN n > {s} THEN 1 / n ELSE 0 END) AS u{s}" for s in range(most)]
    sums: Any = source.sql(
        f"SELECT {', '.join(['method, question_id, count(*)::DOUBLE AS rows', *counts])} FROM picks "
        f"WHERE {scope.rows} GROUP BY ALL ORDER BY method, question_id"
    )
    rows = []
    for method, part in sums.groupby("method", sort=True):
        totals = part["rows"].to_numpy()
        for slot in range(most):
            r = rate(part[f"s{slot}"].to_numpy(), totals, "share", how)
            row = {"method": method, "slot": slot, "count": int(part[f"s{slot}"].sum())}
            row |= {k: r[k] for k in ("share", "low", "high")} | {"uniform": part[f"u{slot}"].sum() / totals.sum()}
            rows.append({**row, "rows": r["pairs"], "questions": r["questions"]})
    columns = ["method", "slot", "count", "share", "low", "high", "uniform", "rows", "questions"]
    return pd.DataFrame(rows, columns=columns)


def slot_marginal_test(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    scope: Scope = RAW,
    draws: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Does a method pick slots in other proportions than the reference?

    One row a method, from the pairs in which both made a choice:

    p_swap, p_swap_holm   method and reference swapped at random within whole questions, statistic sum over slots of
                          (difference in picks)^2; and corrected for the number of methods (Holm 1979)
    js_distance           Jensen-Shannon distance, base 2, of the two shares of picks by slot, 0 to 1
    pairs, questions      counts
    """
    source = source_of(judgements, questions, reference, column)
    cells: Any = source.sql(
        f"SELECT method, question_id, slot_ref, slot, count(*) AS count FROM picks WHERE {scope.pairs} "
        "AND slot IS NOT NULL AND slot_ref IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )
    slots = int(cells[["slot", "slot_ref"]].to_numpy().max()) + 1 if len(cells) else 0
    rows = []
    for method, part in cells.groupby("method", sort=True):
        codes, names = pd.factorize(part["question_id"])
        count = part["count"].to_numpy()
        picked, difference = np.zeros((2, slots)), np.zeros((len(names), slots))
        for side, (place, sign) in enumerate((("slot_ref", -1), ("slot", 1))):
            np.add.at(picked[side], part[place].to_numpy(), count)
            np.add.at(difference, (codes, part[place].to_numpy()), sign * count)
        flips, complete = signs(len(names), draws, seed)
        null = ((flips @ difference) ** 2).sum(1)
        row = {"method": method, "p_swap": float(permutation_p(null, float((difference.sum(0) ** 2).sum()), complete))}
        row |= {"js_distance": float(jensenshannon(*picked, base=2)), "pairs": int(count.sum())}
        rows.append(row | {"questions": len(names)})
    out = pd.DataFrame(rows, columns=["method", "p_swap", "js_distance", "pairs", "questions"])
    out.insert(2, "p_swap_holm", holm(out["p_swap"].to_numpy(dtype=float)))
    return out


def position_bias(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
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
    source = source_of(judgements, questions, column=column, alone=True)
    frame: Any = source.sql(_BY_ORDER.format(rows=scope.rows))
    rows = []
    for method, part in frame.groupby("method", sort=True):
        values = part.loc[part["orders"] > 1, ["same", "always", "later", "orders"]].to_numpy(dtype=float)
        row: dict[str, object] = {"method": method}
        ones = np.ones(len(values))
        for i, name in enumerate(("order_consistency", "position_consistency", "preference_fairness")):
            scale = (-1.0, 1.0) if name == "preference_fairness" else (0.0, 1.0)
            row[name], row[f"{name}_low"], row[f"{name}_high"], _ = mean(values[:, i], ones, scale, how=how)
        row["questions"] = len(values)
        row["orders"] = values[:, 3].mean() if len(values) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


# By method and question: how many orders; which share of their pairs has one pick, whether all have, and which share
# went to the later candidate less that to the earlier. Orders in which no choice was made say nothing of it. Picks of
# a candidate are told by how many they are, so that pairs of orders need not be walked through.
_BY_ORDER = """
WITH chosen AS (
    SELECT question_id, method, "order", slot, "order"[slot + 1] AS candidate, pick
    FROM picks WHERE {rows} AND slot IS NOT NULL),
taken AS (
    SELECT question_id, method, candidate, any_value(pick) AS content, count(*) AS times FROM chosen GROUP BY ALL),
alike AS (
    SELECT question_id, method, sum(n) AS orders, sum(n * (n - 1)) AS pairs, count(*) = 1 AS always
    FROM (SELECT question_id, method, sum(times) AS n FROM taken GROUP BY question_id, method, content) GROUP BY ALL),
apart AS (
    SELECT question_id, method, sum(times * sign(slot + 1 - list_position("order", taken.candidate))) AS later
    FROM chosen JOIN taken USING (question_id, method) WHERE content <> pick GROUP BY ALL)
SELECT question_id, method, orders, pairs / (orders * (orders - 1)) AS same, always::INTEGER AS always,
    coalesce(later, 0) / (orders * (orders - 1)) AS later
FROM alike LEFT JOIN apart USING (question_id, method) ORDER BY method, question_id
"""


def flow(source: Source, method: str, scope: Scope = RAW) -> pd.DataFrame:
    """From the reference's slot to the method's, where both picked one: base_slot, slot (from 1), count."""
    return source.sql(
        f"SELECT slot_ref + 1 AS base_slot, slot + 1 AS slot, count(*)::BIGINT AS count FROM picks "
        f"WHERE method = ? AND {scope.pairs} AND slot IS NOT NULL AND slot_ref IS NOT NULL GROUP BY ALL ORDER BY ALL",
        [method],
    )
