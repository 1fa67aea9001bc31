"""What was picked, out of a digest: consistency, accuracy, slots, flips, and cost. The numbers of `kvattn.stats`,
reduced in DuckDB, so that they come at once from millions of judgements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from kvattn.errors import KvattnError
from kvattn.stats import agreement
from kvattn.stats.agreement import is_named
from kvattn.stats.resampling import CONFIDENCE, cluster_interval, rate_interval
from kvattn.study.run_folder.summary import Digest

# Above so many questions a resampled interval and its linear approximation are the same to the eye, and resampling
# takes seconds.
MOST_RESAMPLED = 400


@dataclass(frozen=True)
class Scope:
    """Which judgements count, and which of their choices.

    calibrated: the choice after the prior was subtracted
    mixed:      only questions with right and wrong candidates
    n:          only questions with so many candidates
    """

    calibrated: bool = False
    mixed: bool = False
    n: int | None = None

    @property
    def where(self) -> str:
        """The SQL condition over a table joined with questions, called q."""
        conditions = ["true"]
        if self.mixed:
            conditions.append("q.mixed")
        if self.n is not None:
            conditions.append(f"len(q.candidate_ids) = {int(self.n)}")
        return " AND ".join(conditions)

    @property
    def suffix(self) -> str:
        """What the columns of the choice end with."""
        return "_calibrated" if self.calibrated else ""


def methods(digest: Digest) -> list[str]:
    """Methods that were run, in the manifest's order, dense first."""
    known = [str(m["name"]) for m in digest.manifest.get("methods", []) if isinstance(m, dict) and "name" in m]
    ran = [str(m) for m in digest.sql("SELECT DISTINCT method FROM judgements ORDER BY method")["method"]]
    ordered = [m for m in known if m in ran] + [m for m in ran if m not in known]
    return sorted(ordered, key=lambda m: m != "dense")


def size(digest: Digest) -> dict[str, Any]:
    """Counts: questions, judgements, most orders of a question, numbers of candidates, mixed questions; `calibrated`:
    whether every judgement has a calibrated choice."""
    row = digest.sql(
        "SELECT count(*)::BIGINT AS judgements, count(DISTINCT unit)::BIGINT AS questions, "
        "count(choice_calibrated)::BIGINT AS calibrated FROM judgements"
    ).iloc[0]
    shape = digest.sql(
        "SELECT list(DISTINCT len(candidate_ids) ORDER BY len(candidate_ids)) AS n, "
        "count(*) FILTER (mixed)::BIGINT AS mixed FROM questions"
    ).iloc[0]
    orders = digest.sql("SELECT max(c)::BIGINT AS m FROM (SELECT count(DISTINCT o) c FROM judgements GROUP BY unit)")
    judged = int(row["judgements"])
    return {
        "questions": int(row["questions"]),
        "judgements": judged,
        "calibrated": judged > 0 and int(row["calibrated"]) == judged,
        "n": [int(x) for x in np.atleast_1d(shape["n"])] if judged else [],
        "mixed": int(shape["mixed"]),
        "orders": 0 if orders.empty or pd.isna(orders["m"].iloc[0]) else int(orders["m"].iloc[0]),
    }


def jcr(digest: Digest, scope: Scope = Scope()) -> pd.DataFrame:
    """Judge consistency rate: method, jcr, low, high, pairs, questions, chance (as in `kvattn.stats.jcr`)."""
    out: Any = _rates(digest, scope, "pairs", f"agree{scope.suffix}", ("method",)).rename(columns={"rate": "jcr"})
    x = scope.suffix
    moves: Any = digest.sql(
        f"SELECT method, slot{x}_ref AS base, CASE WHEN agree{x} THEN slot{x}_ref ELSE slot{x} END AS slot, "
        f"count(*)::BIGINT AS count FROM pairs JOIN questions q USING (unit) "
        f"WHERE {scope.where} AND agree{x} IS NOT NULL GROUP BY ALL"
    )
    chances = []
    for name in out["method"]:
        part = moves[moves["method"] == name]
        own, other = (
            part.groupby(c)["count"].sum() / part["count"].sum() for c in ("slot", "base")
        )  # no slot: left out
        chances.append(float((own * other).sum()))
    return out.assign(chance=chances)


def against_chance(digest: Digest, scope: Scope = Scope(), floors: tuple[str, ...] = ("null-edit",)) -> pd.DataFrame:
    """What JCR has to be read against: method, chance, kappa, floor, corrected with intervals, note, as in
    `kvattn.stats.jcr`."""
    x = scope.suffix
    most = digest.sql("SELECT coalesce(max(n), 0)::INTEGER AS n FROM pairs").iloc[0, 0]
    own = f"CASE WHEN agree{x} THEN slot{x}_ref ELSE slot{x} END"
    picks = [
        f"count(*) FILTER ({c} = {s}) AS {who}{s}"
        for who, c in (("r", f"slot{x}_ref"), ("m", own))
        for s in range(most)
    ]
    table: Any = digest.sql(
        f"SELECT method, question_id, sum(agree{x}::INTEGER) AS agreed, {', '.join(['count(*) AS rows', *picks])} "
        f"FROM pairs JOIN questions q USING (unit) WHERE {scope.where} AND agree{x} IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    ).set_index("question_id")
    counted = [c for c in table.columns if c != "method"]
    is_floor = table["method"].map(lambda m: is_named(m, floors)).astype(bool)
    floor_sums = table[is_floor].groupby(level=0)[["agreed", "rows"]].sum()
    made = []
    for method, part in table.groupby("method", sort=True):
        base = floor_sums.reindex(part.index, fill_value=0).to_numpy(dtype=float)
        own_sums = part[counted].to_numpy(dtype=float)
        sums = np.concatenate([own_sums[:, :2], base, own_sums[:, 2:]], axis=1)
        against = agreement.against_chance(sums, smooth_interval)
        made.append(
            {
                "method": method,
                **against,
                **agreement.corrected(sums, is_named(str(method), floors), floors, smooth_interval),
            }
        )
    columns = ["method", "chance", "kappa", "kappa_low", "kappa_high", "floor"]
    return pd.DataFrame(made, columns=[*columns, "corrected", "corrected_low", "corrected_high", "note"])


def floor(digest: Digest, scope: Scope = Scope()) -> tuple[float, float] | None:
    """Interval of the JCR that dense reaches against itself under a null edit, or None where none was run."""
    found: Any = jcr(digest, scope)
    rows = found[found["method"].str.startswith("null-edit")]
    return None if rows.empty else (float(rows["low"].min()), float(rows["high"].max()))


def by_distance(digest: Digest, scope: Scope = Scope()) -> pd.DataFrame:
    """JCR by how far the display order is from the candidates' own: method, distance, jcr, low, high, pairs."""
    out = _rates(digest, scope, "pairs", f"agree{scope.suffix}", ("method", "distance"))
    return out.rename(columns={"rate": "jcr"})


def accuracy(digest: Digest, scope: Scope = Scope()) -> pd.DataFrame:
    """Share of right choices among those whose candidate is known to be right or wrong: method, accuracy, low, high,
    pairs (judgements), questions, random (mean share of right ones among the candidates of the same judgements)."""
    column = f"correct{scope.suffix}"
    out: Any = _rates(digest, scope, "judgements", column, ("method",)).rename(columns={"rate": "accuracy"})
    by_chance: Any = digest.sql(
        "SELECT method, avg(list_avg(list_transform(q.corrects, lambda c: c::INTEGER))) AS random "
        f"FROM judgements JOIN questions q USING (unit) WHERE {scope.where} AND {column} IS NOT NULL GROUP BY method"
    )
    return out.merge(by_chance, on="method", how="left")


def slots(digest: Digest, scope: Scope = Scope()) -> pd.DataFrame:
    """How often each method picks each slot: method, slot (from 1), count, share."""
    column = f"slot{scope.suffix}"
    out: Any = digest.sql(
        f"SELECT method, {column} + 1 AS slot, count(*)::BIGINT AS count FROM judgements JOIN questions q USING (unit) "
        f"WHERE {scope.where} AND {column} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )
    return out.assign(share=out["count"] / out.groupby("method")["count"].transform("sum"))


def flow(digest: Digest, method: str, scope: Scope = Scope()) -> pd.DataFrame:
    """From dense's slot to the method's, where both picked one: base_slot, slot (from 1), count."""
    column = f"slot{scope.suffix}"
    return digest.sql(
        f"SELECT {column}_ref + 1 AS base_slot, {column} + 1 AS slot, count(*)::BIGINT AS count "
        f"FROM pairs JOIN questions q USING (unit) "
        f"WHERE method = ? AND {scope.where} AND {column} IS NOT NULL AND {column}_ref IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL",
        [method],
    )


def flips(digest: Digest, method: str, scope: Scope = Scope(), limit: int = 100) -> pd.DataFrame:
    """Judgements in which a method picks another candidate than dense, the most surprising first.

    surprise: -log2 of the probability (softmax of scores) that dense gave to the slot that the method picks, in bits
    """
    s = scope.suffix
    return digest.sql(
        f'SELECT q.question_id, p.unit, p.o, orders."order", p.slot{s}_ref + 1 AS dense_slot, p.slot{s} + 1 AS slot, '
        f"p.correct{s}_ref AS dense_correct, p.correct{s} AS correct, p.surprise{s} / ln(2) AS surprise, p.margin_ref "
        f"FROM pairs p JOIN questions q USING (unit) JOIN orders USING (o) "
        f"WHERE p.method = ? AND NOT p.agree{s} AND {scope.where} "
        f"ORDER BY surprise DESC, q.question_id, p.o LIMIT {int(limit)}",
        [method],
    )


def question(digest: Digest, question_id: str) -> dict[str, Any]:
    """A question's row, as plain values. Raises KvattnError where it was not judged."""
    rows = digest.sql("SELECT * FROM questions WHERE question_id = ?", [question_id]).to_dict("records")
    if not rows:
        raise KvattnError(f"{digest.folder} has no question {question_id!r}")
    return {
        str(k): v.tolist() if isinstance(v, np.ndarray) else None if v is None or v is pd.NA else v
        for k, v in rows[0].items()
    }


def cost(digest: Digest, scope: Scope = Scope()) -> pd.DataFrame:
    """What every method computes: method, share (of dense's token-layers), kept (share of candidate tokens reused),
    seconds, batch (means over judgements)."""
    return digest.sql(
        "SELECT method, avg((token_layers + probe_token_layers) / (tokens * j.layers)) AS share, "
        "sum(candidate_tokens_kept) / nullif(sum(candidate_tokens), 0) AS kept, avg(seconds) AS seconds, "
        "avg(batch) AS batch, avg(kv_bytes) AS kv_bytes "
        f"FROM judgements j JOIN questions q USING (unit) WHERE {scope.where} GROUP BY method ORDER BY method"
    )


def _rates(digest: Digest, scope: Scope, table: str, column: str, keys: tuple[str, ...]) -> pd.DataFrame:
    """A rate by `keys` with an interval that takes the question for a unit: keys, rate, low, high, pairs, questions."""
    listed = ", ".join(keys)
    sums: Any = digest.sql(
        f"SELECT {listed}, question_id, sum({column}::INTEGER)::DOUBLE AS hits, count(*)::DOUBLE AS rows "
        f"FROM {table} JOIN questions q USING (unit) JOIN orders USING (o) "
        f"WHERE {scope.where} AND {column} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )
    made = []
    for values, part in sums.groupby(list(keys), sort=True):
        hits, rows = part["hits"].to_numpy(), part["rows"].to_numpy()
        low, high = interval(hits, rows)
        made.append((*values, hits.sum() / rows.sum(), low, high, int(rows.sum()), len(rows)))
    return pd.DataFrame(made, columns=[*keys, "rate", "low", "high", "pairs", "questions"])


def interval(hits: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Interval of sum(hits) / sum(rows), both [questions]: by resampling questions, and with more than MOST_RESAMPLED
    of them by the linear approximation of the ratio's variance (Cochran 1977) and Student's t."""
    count = len(rows)
    if count <= MOST_RESAMPLED or np.ptp(hits / rows) < 1e-12:
        return rate_interval(hits, rows)
    rate = hits.sum() / rows.sum()
    error = np.sqrt(count / (count - 1) * ((hits - rate * rows) ** 2).sum()) / rows.sum()
    half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    return max(0.0, float(rate - half)), min(1.0, float(rate + half))


def smooth_interval(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Interval of a smooth statistic of sums [questions, k]: by resampling questions, and with more than MOST_RESAMPLED
    of them by the delete-one jackknife (Efron 1982) and Student's t."""
    count = len(sums)
    if count <= MOST_RESAMPLED:
        return cluster_interval(sums, statistic)
    total = sums.sum(0)
    left = statistic(total - sums)
    error = np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
    half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    whole = float(statistic(total))
    return whole - half, whole + half


def question_ids(digest: Digest, limit: int = 1000) -> list[str]:
    """Ids of judged questions, the first so many."""
    return [str(q) for q in digest.sql(f"SELECT question_id FROM questions ORDER BY 1 LIMIT {int(limit)}").iloc[:, 0]]


def orders_of(digest: Digest, question_id: str) -> list[tuple[int, ...]]:
    """The display orders in which a question was judged."""
    rows = digest.sql(
        'SELECT DISTINCT o, orders."order" AS shown FROM judgements JOIN questions USING (unit) JOIN orders USING (o) '
        "WHERE question_id = ? ORDER BY o",
        [question_id],
    )
    return [tuple(int(i) for i in order) for order in rows["shown"]]


def all_orders(digest: Digest, limit: int) -> dict[int, tuple[int, ...]]:
    """The run's display orders by number, the first so many."""
    rows = digest.sql(f'SELECT o, "order" AS shown FROM orders ORDER BY distance, shown LIMIT {int(limit)}')
    return {int(o): tuple(int(i) for i in order) for o, order in zip(rows["o"], rows["shown"], strict=True)}
