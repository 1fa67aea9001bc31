"""What was picked in a run: its methods and sizes, flips one by one, and cost. Rates stand in `kvattn.stats`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kvattn.decision import ties
from kvattn.errors import KvattnError
from kvattn.stats.picks import RAW, Scope, once
from kvattn.stats.reading import ContentTest
from kvattn.study.run_folder.reader import Run


def methods(run: Run) -> list[str]:
    """Methods that were run, in the manifest's order, dense first."""
    known = [str(m["name"]) for m in run.manifest.get("methods", []) if isinstance(m, dict) and "name" in m]
    ran = [str(m) for m in run.sql("SELECT DISTINCT method FROM picks ORDER BY method")["method"]]
    ordered = [m for m in known if m in ran] + [m for m in ran if m not in known]
    return sorted(ordered, key=lambda m: m != "dense")


@once
def size(run: Run) -> dict[str, Any]:
    """Counts: questions, judgements, most orders of a question, numbers of candidates, mixed questions; `calibrated`:
    whether every judgement has a calibrated choice."""
    row: Any = run.sql(
        "SELECT count(DISTINCT question_id) AS questions, count(*) FILTER (NOT calibrated) AS judgements, "
        "count(*) FILTER (calibrated) AS calibrated, list_sort(list(DISTINCT n)) AS n, "
        "count(DISTINCT question_id) FILTER (mixed) AS mixed FROM picks"
    ).iloc[0]
    orders = 'SELECT DISTINCT question_id, "order" FROM picks WHERE NOT calibrated'
    counts = f"SELECT count(*) AS c FROM ({orders}) GROUP BY question_id"
    most = run.sql(f"SELECT coalesce(max(c), 0) AS m FROM ({counts})").iloc[0, 0]
    judged = int(row["judgements"])
    return {
        **{k: int(row[k]) for k in ("questions", "judgements", "mixed")},
        "calibrated": judged > 0 and int(row["calibrated"]) == judged,
        "n": [int(x) - ties(run.manifest.get("readout")) for x in np.atleast_1d(row["n"])] if judged else [],
        "orders": int(most),
    }


def meaningless(run: Run, calibrated: bool) -> str | None:
    """Why JCR says nothing about these choices, or None where it may be read."""
    test = ContentTest.stored(run.manifest, calibrated)
    if test is None or test.verdict != "does not read":
        return None
    return "by its content test the judge does not read its candidates, so it has no consistency to lose"


def floor(table: pd.DataFrame) -> tuple[float, float] | None:
    """Interval of the JCR that dense reaches against itself under a null edit, from `kvattn.stats.jcr`, or None where
    none was run."""
    frame: Any = table
    rows = frame[frame["method"].str.startswith("null-edit")].dropna(subset=["low"])
    return None if rows.empty else (float(rows["low"].min()), float(rows["high"].max()))


def flips(
    run: Run,
    method: str,
    scope: Scope = RAW,
    limit: int = 100,
    dense_slot: int | None = None,
    slot: int | None = None,
) -> pd.DataFrame:
    """Judgements in which a method picks another candidate than dense, the most surprising first; where they are
    given, those alone that leave `dense_slot` and go to `slot` (both from 1).

    surprise: -log2 of the probability (softmax of scores) that dense gave to the slot that the method picks, in bits
    """
    ends = (("slot_ref", dense_slot), ("slot", slot))
    where = "".join(f" AND {column} = {int(at) - 1}" for column, at in ends if at is not None)
    return run.sql(
        'SELECT question_id, "order", slot_ref + 1 AS dense_slot, slot + 1 AS slot, correct_ref AS dense_correct, '
        "correct, surprise / ln(2) AS surprise, margin_ref FROM picks "
        f'WHERE method = ? AND NOT agree AND {scope.pairs}{where} ORDER BY surprise DESC, question_id, "order" '
        f"LIMIT {int(limit)}",
        [method],
    )


def cost(run: Run, scope: Scope = RAW) -> pd.DataFrame:
    """What every method computes: method, share (of dense's token-layers), kept (share of candidate tokens reused),
    and means over judgements of tokens, tokens_computed, seconds, batch, kv_bytes; batch_least, batch_most."""
    rows = Scope(mixed=scope.mixed, n=scope.n).rows
    means = ", ".join(f"avg({c}) AS {c}" for c in ("tokens", "tokens_computed", "seconds", "batch", "kv_bytes"))
    return run.sql(
        "SELECT method, avg(token_layers / (tokens * layers)) AS share, "
        f"sum(candidate_tokens_kept) / nullif(sum(candidate_tokens), 0) AS kept, {means}, "
        f"min(batch) AS batch_least, max(batch) AS batch_most FROM picks WHERE {rows} GROUP BY method ORDER BY method"
    )


def question(run: Run, question_id: str) -> dict[str, Any]:
    """A question's row, as plain values. Raises KvattnError where it was not judged."""
    rows = run.sql("SELECT * FROM questions WHERE question_id = ?", [question_id]).to_dict("records")
    if not rows:
        raise KvattnError(f"{run.folder} has no question {question_id!r}")
    return {
        str(k): v.tolist() if isinstance(v, np.ndarray) else None if v is None or v is pd.NA else v
        for k, v in rows[0].items()
    }


def question_ids(run: Run, limit: int = 1000) -> list[str]:
    """Ids of judged questions, the first so many."""
    rows = run.sql(f"SELECT DISTINCT question_id FROM picks ORDER BY 1 LIMIT {int(limit)}")
    return [str(q) for q in rows["question_id"]]


def orders_of(run: Run, question_id: str) -> list[tuple[int, ...]]:
    """The display orders in which a question was judged."""
    rows = run.sql('SELECT DISTINCT "order" FROM picks WHERE question_id = ? ORDER BY 1', [question_id])
    return [tuple(int(i) for i in order) for order in rows["order"]]


def all_orders(run: Run, limit: int) -> list[tuple[int, ...]]:
    """The run's display orders, the first so many, by their distance from the candidates' own."""
    rows = run.sql(f'SELECT DISTINCT distance, "order" FROM picks WHERE NOT calibrated ORDER BY ALL LIMIT {int(limit)}')
    return [tuple(int(i) for i in order) for order in rows["order"]]
