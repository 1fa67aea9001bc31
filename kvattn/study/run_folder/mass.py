"""What the decision row attends to in a run: by slot, layer, head, order, place; and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

from kvattn.decision import MASS_FLOOR, SlotMass
from kvattn.errors import KvattnError
from kvattn.stats.mass import MassChange, mass_change
from kvattn.stats.resampling import CONFIDENCE, USUAL, Resampling
from kvattn.stats.slot_views import Sinks, View, slot_values
from kvattn.study.run_folder.reader import SUMS, TOTALS, Run, to_means

Picked = Literal["all", "flipped", "kept"]


def shape(run: Run) -> tuple[int, int]:
    """Layers and heads of the captured rows; zeros where none were."""
    row = run.sql("SELECT max(layer) + 1 AS layers, max(head) + 1 AS heads FROM heads").iloc[0]
    return (0, 0) if pd.isna(row["layers"]) else (int(row["layers"]), int(row["heads"]))


def by_slot(
    run: Run,
    query: str,
    view: View = "raw",
    sinks: Sinks = "kept",
    picked: Picked = "all",
    by: Sequence[str] = (),
) -> pd.DataFrame:
    """Slot mass, mean over layers and heads, with a t interval over questions: method, `by`, slot, value, low, high, n.

    The same numbers as `stats.over_questions(stats.slot_values(...))` of a run's means by question.

    picked: only judgements in which the method picks another candidate than dense ("flipped"), or the same ("kept");
            dense stands for all its judgements
    by:     further columns of the table slots to split by, e.g. ("distance",)
    """
    if view not in ("raw", "among", "per_token") or sinks not in ("kept", "out"):
        raise KvattnError(f"unknown view {view!r} with sinks {sinks!r}")
    weight = "mass" if sinks == "kept" else "free"
    whole = "sum(weight) OVER (PARTITION BY question_id, method {also})" if view == "among" else "row"
    per = " / tokens" if view == "per_token" else ""
    also = "".join(f', "{c}"' for c in by)
    condition = {"all": "true", "flipped": "coalesce(NOT agree, true)", "kept": "coalesce(agree, true)"}[picked]
    if picked != "all":
        condition = f"(method = 'dense' OR {condition})"
    table: Any = run.sql(
        f"""
        WITH sums AS (
            SELECT question_id, method {also}, slot, sum({weight}) AS weight, avg(tokens) AS tokens,
                   sum({"1.0" if sinks == "kept" else "row_free"}) AS row
            FROM slots WHERE query = ? AND {condition} GROUP BY question_id, method {also}, slot),
        per_question AS (
            SELECT method {also}, slot, weight / nullif({whole.format(also=also)}, 0) {per} AS value FROM sums)
        SELECT method {also}, slot, avg(value) AS value, stddev_samp(value) AS spread, count(value)::BIGINT AS n
        FROM per_question GROUP BY ALL ORDER BY ALL
        """,
        [query],
    )
    out: Any = _with_t(table)
    return out.assign(low=out["low"].clip(lower=0))


def by_place(run: Run, query: str, sinks: Sinks = "kept") -> pd.DataFrame:
    """Slot mass against the place of display with the candidate held fixed: method, slot, value, low, high, n.

    value: what a candidate gets in a slot over its own mean over the slots it was shown in (1: the place does not
    matter), mean over candidates and questions; candidates shown in one slot alone are left out.
    """
    weight = "mass" if sinks == "kept" else "free"
    table: Any = run.sql(
        f"""
        WITH cells AS (
            SELECT question_id, method, candidate, slot, avg({weight}) AS mass
            FROM slots WHERE query = ? GROUP BY ALL),
        own AS (
            SELECT *, mass / nullif(avg(mass) OVER w, 0) AS factor, count(*) OVER w AS places
            FROM cells WINDOW w AS (PARTITION BY question_id, method, candidate)),
        per_question AS (
            SELECT question_id, method, slot, avg(factor) AS value FROM own WHERE places > 1 GROUP BY ALL)
        SELECT method, slot, avg(value) AS value, stddev_samp(value) AS spread, count(value)::BIGINT AS n
        FROM per_question GROUP BY ALL ORDER BY ALL
        """,
        [query],
    )
    return _with_t(table)


def _with_t(table: Any) -> pd.DataFrame:
    n = table["n"].to_numpy()
    half = student.ppf(0.5 + CONFIDENCE / 2, np.maximum(n - 1, 1)) * table["spread"].astype(float) / np.sqrt(n)
    return table.drop(columns="spread").assign(low=table["value"] - half, high=table["value"] + half)


def changes(run: Run, query: str, by: Sequence[str], sinks: Sinks = "kept", where: str = "true") -> pd.DataFrame:
    """Change of the mass on each candidate against dense on the same judgements: `by`, slot, value (log of the mean
    mass over dense's mean mass, so that a head that looks at nothing weighs nothing); without dense."""
    table: Any = run.mass_means(query, [*by, "name"], f"name LIKE 'candidate:%' AND {where}")
    return _against_dense(table, by, sinks).dropna(subset=["value"])


def own_less_others(run: Run) -> pd.DataFrame:
    """What the branch of a slot looks at its own candidate more than, on average, at the others: method, slot, value
    (difference in shares of the row, mean over layers and heads), low, high, n; empty for readouts without branches."""
    table: Any = run.sql(
        """
        WITH per_question AS (
            SELECT question_id, method, split_part(query, ':', 2)::INTEGER AS branch,
                   avg(mass) FILTER (slot = branch) - avg(mass) FILTER (slot <> branch) AS value
            FROM slots WHERE query LIKE 'at_choice:%' GROUP BY ALL)
        SELECT method, branch AS slot, avg(value) AS value, stddev_samp(value) AS spread, count(value)::BIGINT AS n
        FROM per_question GROUP BY ALL ORDER BY ALL
        """
    )
    return _with_t(table)


def with_intervals(
    run: Run,
    query: str,
    by: Sequence[str] = ("method",),
    view: View | Literal["change"] = "raw",
    sinks: Sinks = "kept",
    where: str = "true",
    bands: int | None = None,
) -> pd.DataFrame:
    """Slot mass, or its paired change against dense, with intervals: `by`, slot, value, low, high.

    bands: cut the layers into so many parts of equal depth; `by` may then hold "band", from 0 (see `band_of`)

    Delete-a-group jackknife over the folds (Wolter 2007, ch. 4): the value without each fold of questions, and
    Student's t with one degree of freedom less than there are folds. It holds for ratios, too.
    """
    conditions = where if view != "change" else f"name LIKE 'candidate:%' AND {where}"
    keys = ["fold", *by, "name"]
    band = f"((2 * layer + 1) * {bands or 1}) // (2 * {max(1, shape(run)[0])})"
    sums: Any = run.sql(
        f"SELECT {', '.join(keys)}, {TOTALS} "
        f"FROM (SELECT *, {band} AS band FROM heads) WHERE query = ? AND {conditions} GROUP BY ALL ORDER BY ALL",
        [query],
    )
    if sums.empty:
        return pd.DataFrame(columns=[*by, "slot", "value", "low", "high"])
    cells = sums.groupby([*by, "name"], sort=True)[list(SUMS)].sum()
    whole = _slot_numbers(cells.reset_index(), by, view, sinks)
    folds = np.sort(sums["fold"].unique())
    if len(folds) < 2:
        return whole.assign(low=np.nan, high=np.nan)
    # [folds, cells, sums]: what is left of every cell without each fold
    left = np.repeat(cells.to_numpy()[None], len(folds), axis=0)
    at = cells.index.get_indexer(pd.MultiIndex.from_frame(sums[[*by, "name"]]))
    left[np.searchsorted(folds, sums["fold"]), at] -= sums[list(SUMS)].to_numpy()
    keys = pd.concat([cells.index.to_frame(index=False)] * len(folds), ignore_index=True)
    rest = pd.concat([keys, pd.DataFrame(left.reshape(-1, len(SUMS)), columns=list(SUMS))], axis=1)
    # A fold stands for a question: slot_values splits by it.
    rest["question_id"] = np.repeat(folds, len(cells))
    table = _slot_numbers(rest, ["question_id", *by], view, sinks).sort_values(["question_id", *by, "slot"])
    whole = whole.sort_values([*by, "slot"]).reset_index(drop=True)
    left_out = table["value"].to_numpy().reshape(len(folds), len(whole))
    g = len(folds)
    error = np.sqrt((g - 1) / g * ((left_out - left_out.mean(0)) ** 2).sum(0))
    half = student.ppf(0.5 + CONFIDENCE / 2, g - 1) * error
    low = whole["value"] - half
    return whole.assign(low=low if view == "change" else low.clip(lower=0), high=whole["value"] + half)


def band_of(layer: int, layers: int, bands: int) -> int:
    """The band, from 0, that holds the middle of a layer (from 0) when the depth is cut into `bands` equal parts.

    Models of different depth have their bands at the same relative depth; with fewer layers than bands some are empty.
    """
    return (2 * layer + 1) * bands // (2 * layers)


def _slot_numbers(sums: Any, by: Sequence[str], view: View | Literal["change"], sinks: Sinks) -> Any:
    table = to_means(sums, [*by, "name"])
    if view == "change":
        return _against_dense(table, by, sinks)
    if "method" in by:
        return slot_values(table, view, sinks)[[*by, "slot", "value"]]
    raise KvattnError("slot mass is split by method")


def _against_dense(means: Any, by: Sequence[str], sinks: Sinks) -> Any:
    """`by`, slot, value: log of the mean mass over dense's, of every other method's cells that were paired with it."""
    weight, at = "mass" if sinks == "kept" else "free", [*(c for c in by if c != "method"), "name"]
    base = means[means["method"] == "dense"][[*at, weight]]
    table = means[(means["method"] != "dense") & (means["pairs"] > 0)].merge(base, on=at, suffixes=("", "_dense"))
    value = np.log(table[weight].clip(lower=MASS_FLOOR)) - np.log(table[f"{weight}_dense"].clip(lower=MASS_FLOOR))
    slot = table["name"].str.removeprefix("candidate:").astype(int)
    return table.assign(slot=slot, value=value)[[*by, "slot", "value"]]


def sink_shares(run: Run, query: str) -> dict[str, float]:
    """By method, the share of the row that falls on sink tokens, mean over judgements, layers and heads; methods whose
    sinks nobody looked for have none."""
    table: Any = run.sql(
        "SELECT method, 1 - avg(row_free) AS share FROM slots WHERE query = ? AND slot = 1 GROUP BY method", [query]
    )
    return {str(m): float(s) for m, s in zip(table["method"], table["share"], strict=True) if pd.notna(s)}


def head_change(run: Run, query: str, method: str, slot: int, how: Resampling = USUAL) -> MassChange | None:
    """The paired change of slot mass against dense head by head, with corrected p-values; slot from 1. None where no
    pair was captured, or not every question with all its heads."""
    table: Any = run.sql(
        "SELECT question_id, layer, head, m.change_sum / m.pairs AS value, m.pairs, m.mass_sum / m.count AS own, "
        "d.mass_sum / d.count AS base FROM sums m JOIN (SELECT * FROM sums WHERE method = 'dense') d "
        "USING (question_id, query, layer, head, name) WHERE query = ? AND m.method = ? AND name = ? AND m.pairs > 0 "
        "ORDER BY question_id, layer, head",
        [query, method, f"candidate:{slot}"],
    )
    if table.empty:
        return None
    size = (table["question_id"].nunique(), int(table["layer"].max()) + 1, int(table["head"].max()) + 1)
    if len(table) != np.prod(size):
        return None
    pairs = int(table.groupby("question_id")["pairs"].first().sum())
    value, own, base = (table[c].to_numpy().reshape(size) for c in ("value", "own", "base"))
    return mass_change(value, own, base, pairs, how=how)


def mass_lost(run: Run, query: str, reference: str = "dense") -> pd.DataFrame:
    """Slot mass lost against dense, one row per (question_id, order, method, slot), without dense itself.

    slot:   from 0
    lost:   log of dense's mass over the method's, each the mean over layers and heads, in nats: 0.69 is half lost,
            negative values are gained. Mass is floored at MASS_FLOOR
    tokens: length of the candidate in the slot

    Judgements whose candidate has another length than dense's, and methods that were not captured, have no row.
    """
    table: Any = run.sql(
        'SELECT question_id, "order", a.method, slot - 1 AS slot, '
        f"ln(greatest(d.mass::DOUBLE, {MASS_FLOOR})) - ln(greatest(a.mass::DOUBLE, {MASS_FLOOR})) AS lost, tokens "
        "FROM slots a JOIN (SELECT * EXCLUDE (method) FROM slots WHERE method = $reference) d "
        'USING (question_id, "order", query, slot, tokens) '
        "WHERE query = $query AND a.method <> $reference ORDER BY question_id, 2, a.method, slot",
        {"query": query, "reference": reference},
    )
    return table.assign(order=[tuple(map(int, o)) for o in table["order"]])


def row_table(row: SlotMass, layer: int, head: int) -> pd.DataFrame:
    """A captured row of one head: segment, tokens, mass, sink (None where nobody looked for sinks)."""
    cells = {"mass": row.mass[layer, head], "sink": None if row.sink is None else row.sink[layer, head]}
    return pd.DataFrame({"segment": row.names, "tokens": row.lengths, **cells})
