"""What the decision row attends to, out of a digest: by slot, layer, head, order and place, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

from kvattn.decision import SlotMass
from kvattn.digest import Digest
from kvattn.errors import KvattnError
from kvattn.stats.resampling import CONFIDENCE
from kvattn.stats.slot_views import Sinks, View, slot_values
from kvattn.store_files import committed, read_part

Picked = Literal["all", "flipped", "kept"]

_SUMS = ("count", "tokens_sum", "mass_sum", "free_sum", "pairs", "change_sum", "free_change_sum")


def queries(digest: Digest) -> list[str]:
    """Query tokens whose rows were captured, the last prompt token first."""
    found = [str(q) for q in digest.sql("SELECT DISTINCT query FROM heads ORDER BY query")["query"]]
    return sorted(found, key=lambda q: q != "last_prompt")


def shape(digest: Digest) -> tuple[int, int]:
    """Layers and heads of the captured rows; zeros where none were."""
    row = digest.sql("SELECT max(layer) + 1 AS layers, max(head) + 1 AS heads FROM heads").iloc[0]
    return (0, 0) if pd.isna(row["layers"]) else (int(row["layers"]), int(row["heads"]))


def by_slot(
    digest: Digest,
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
    by:     further columns of the table orders to split by, e.g. ("distance",)
    """
    if view not in ("raw", "among", "per_token") or sinks not in ("kept", "out"):
        raise KvattnError(f"unknown view {view!r} with sinks {sinks!r}")
    weight = "mass" if sinks == "kept" else "free"
    whole = "sum(weight) OVER (PARTITION BY unit, method {also})" if view == "among" else "row"
    per = " / tokens" if view == "per_token" else ""
    also = "".join(f", {c}" for c in by)
    pairs = "" if picked == "all" else "LEFT JOIN pairs USING (unit, o, method)"
    condition = {"all": "true", "flipped": "coalesce(NOT agree, true)", "kept": "coalesce(agree, true)"}[picked]
    table: Any = digest.sql(
        f"""
        WITH sums AS (
            SELECT unit, method {also}, shown.slot AS slot, sum({weight}) AS weight, avg(tokens) AS tokens,
                   sum({"1.0" if sinks == "kept" else "row_free"}) AS row
            FROM shown {"JOIN orders USING (o)" if by else ""} {pairs}
            WHERE query = ? AND {condition} GROUP BY unit, method {also}, shown.slot),
        per_question AS (
            SELECT method {also}, slot, weight / nullif({whole.format(also=also)}, 0) {per} AS value FROM sums)
        SELECT method {also}, slot, avg(value) AS value, stddev_samp(value) AS spread, count(value)::BIGINT AS n
        FROM per_question GROUP BY ALL ORDER BY ALL
        """,
        [query],
    )
    out: Any = _with_t(table)
    return out.assign(low=out["low"].clip(lower=0))


def by_place(digest: Digest, query: str, sinks: Sinks = "kept") -> pd.DataFrame:
    """Slot mass against the place of display with the candidate held fixed: method, slot, value, low, high, n.

    value: what a candidate gets in a slot over its own mean over the slots it was shown in (1: the place does not
    matter), mean over candidates and questions; candidates shown in one slot alone are left out.
    """
    weight = "mass" if sinks == "kept" else "free"
    table: Any = digest.sql(
        f"""
        WITH cells AS (
            SELECT unit, method, candidate, slot, avg({weight}) AS mass
            FROM shown WHERE query = ? GROUP BY ALL),
        own AS (
            SELECT *, mass / nullif(avg(mass) OVER w, 0) AS factor, count(*) OVER w AS places
            FROM cells WINDOW w AS (PARTITION BY unit, method, candidate)),
        per_question AS (
            SELECT unit, method, slot, avg(factor) AS value FROM own WHERE places > 1 GROUP BY ALL)
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


def means(
    digest: Digest, query: str, by: Sequence[str] = ("method", "layer", "head", "name"), where: str = "true"
) -> pd.DataFrame:
    """Means of segment mass over judgements, as `Run.mass_means` gives them; `by` may also hold "fold"."""
    sums: Any = digest.sql(
        f"SELECT {', '.join(by)}, {', '.join(f'sum({c}) AS {c}' for c in _SUMS)} FROM heads "
        f"WHERE query = ? AND {where} GROUP BY ALL ORDER BY ALL",
        [query],
    )
    return _to_means(sums, by)


def _to_means(sums: Any, by: Sequence[str]) -> Any:
    count, pairs = (sums[c].where(sums[c] > 0) for c in ("count", "pairs"))
    return sums[list(by)].assign(
        count=sums["count"],
        pairs=sums["pairs"],
        **{c: sums[f"{c}_sum"] / count for c in ("tokens", "mass", "free")},
        **{c: sums[f"{c}_sum"] / pairs for c in ("change", "free_change")},
    )


def changes(digest: Digest, query: str, by: Sequence[str], sinks: Sinks = "kept", where: str = "true") -> pd.DataFrame:
    """Paired change of log mass on each candidate against dense: `by`, slot, value; without dense."""
    table: Any = means(digest, query, [*by, "name"], f"name LIKE 'candidate:%' AND method <> 'dense' AND {where}")
    value = table["change" if sinks == "kept" else "free_change"]
    slot = table["name"].str.removeprefix("candidate:").astype(int)
    return table.assign(slot=slot, value=value).dropna(subset=["value"])[[*by, "slot", "value"]]


def with_intervals(
    digest: Digest,
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
    conditions = where if view != "change" else f"name LIKE 'candidate:%' AND method <> 'dense' AND {where}"
    keys = ["fold", *by, "name"]
    band = f"((2 * layer + 1) * {bands or 1}) // (2 * {max(1, shape(digest)[0])})"
    sums: Any = digest.sql(
        f"SELECT {', '.join(keys)}, {', '.join(f'sum({c}) AS {c}' for c in _SUMS)} "
        f"FROM (SELECT *, {band} AS band FROM heads) WHERE query = ? AND {conditions} GROUP BY ALL ORDER BY ALL",
        [query],
    )
    if sums.empty:
        return pd.DataFrame(columns=[*by, "slot", "value", "low", "high"])
    cells = sums.groupby([*by, "name"], sort=True)[list(_SUMS)].sum()
    whole = _slot_numbers(cells.reset_index(), by, view, sinks)
    folds = np.sort(sums["fold"].unique())
    if len(folds) < 2:
        return whole.assign(low=np.nan, high=np.nan)
    # [folds, cells, sums]: what is left of every cell without each fold
    left = np.repeat(cells.to_numpy()[None], len(folds), axis=0)
    at = cells.index.get_indexer(pd.MultiIndex.from_frame(sums[[*by, "name"]]))
    left[np.searchsorted(folds, sums["fold"]), at] -= sums[list(_SUMS)].to_numpy()
    keys = pd.concat([cells.index.to_frame(index=False)] * len(folds), ignore_index=True)
    rest = pd.concat([keys, pd.DataFrame(left.reshape(-1, len(_SUMS)), columns=list(_SUMS))], axis=1)
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
    table = _to_means(sums, [*by, "name"])
    if view == "change":
        slot = table["name"].str.removeprefix("candidate:").astype(int)
        value = table["change" if sinks == "kept" else "free_change"]
        return table[list(by)].assign(slot=slot, value=value)
    if "method" in by:
        return slot_values(table, view, sinks)[[*by, "slot", "value"]]
    raise KvattnError("slot mass is split by method")


def sink_shares(digest: Digest, query: str) -> dict[str, float]:
    """By method, the share of the row that falls on sink tokens, mean over judgements, layers and heads."""
    table: Any = digest.sql(
        "SELECT method, 1 - sum(free_sum) / sum(mass_sum) AS share FROM heads WHERE query = ? GROUP BY method", [query]
    )
    return {str(m): float(s) for m, s in zip(table["method"], table["share"], strict=True) if pd.notna(s)}


def row_of(digest: Digest, question_id: str, order: Sequence[int], method: str, query: str) -> SlotMass | None:
    """The captured row of one judgement, or None: read from its unit's part alone. Raises KvattnError for damage."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    keys = digest.sql("SELECT key FROM questions JOIN units USING (unit) WHERE question_id = ?", [question_id])["key"]
    if keys.empty:
        return None
    data = read_part(digest.folder, "mass", str(keys.iloc[0]), committed(digest.folder))
    table = pq.ParquetFile(pa.BufferReader(data)).read()
    rows = table.filter((pc.field("method") == method) & (pc.field("query") == query)).to_pylist()
    row = next((r for r in rows if tuple(r["order"]) == tuple(order)), None)
    if row is None:
        return None
    arrays = {k: np.asarray(row[k], dtype=np.float32).reshape(row["shape"]) for k in ("mass", "sink")}
    return SlotMass(names=tuple(row["names"]), lengths=tuple(row["lengths"]), query=row["query"], **arrays)


def row_table(row: SlotMass, layer: int, head: int) -> pd.DataFrame:
    """A captured row of one head: segment, tokens, mass, sink."""
    cells = {"mass": row.mass[layer, head], "sink": row.sink[layer, head]}
    return pd.DataFrame({"segment": row.names, "tokens": row.lengths, **cells})
