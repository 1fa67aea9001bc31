"""A unit's judgements and slot mass, reduced once to what statistics ask for: the tables `picks` and `slots`.

They are written with each unit, so that a run of a million judgements opens by reading them alone; units that were
written by an older kvattn lack them and are reduced when they are read, by the same SQL, and kept in memory.

`picks`: see `kvattn.stats.picks`. A row of `slots`, one per (question_id, order, method, query, slot):

| column | what |
|---|---|
| slot, candidate, tokens | from 1; which candidate it shows (from 0); its length |
| mass | mean over layers and heads of its share of the row |
| free, row_free | what of it, and of the whole row, falls on no sink; NULL where none were looked for |
| log_mass | mean over layers and heads of ln(mass), floored at MASS_FLOOR |
| distance, agree | as in `picks`, of the raw choice |
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kvattn.decision import MASS_FLOOR

if TYPE_CHECKING:
    import pyarrow as pa

    from kvattn.stats.frames import Question

SUMMARIES = ("picks", "slots")

JUDGED = """
CREATE OR REPLACE TEMP VIEW judged AS
SELECT question_id, "order", method, slot, scores, false AS calibrated, readout, coverage, tokens, tokens_computed,
    layers, token_layers + probe_token_layers AS token_layers, seconds, kv_bytes, batch, candidate_tokens,
    candidate_tokens_kept
FROM judgements
UNION ALL BY NAME
SELECT question_id, "order", method, slot_calibrated AS slot, calibrated AS scores, true AS calibrated
FROM judgements WHERE slot_calibrated IS NOT NULL
"""

# `size` segments, one after the other, for each layer and head: every size-th number from `place` on is the slot's.
_OWN = "[place:len(mass):size]"
SLOTS = f"""
WITH free AS (
    SELECT * EXCLUDE (sink, norm), len(names) AS size,
        CASE WHEN sink IS NOT NULL THEN
            list_transform(list_zip(mass, sink), lambda x: greatest(x[1]::DOUBLE - x[2]::DOUBLE, 0)) END AS free
    FROM mass),
cut AS (
    SELECT *, (list_sum(free) / (shape[1] * shape[2]))::FLOAT AS row_free, unnest(range(1, len("order") + 1)) AS slot
    FROM free),
placed AS (SELECT *, list_position(names, 'candidate:' || slot)::BIGINT AS place FROM cut)
SELECT question_id, "order", m.method, query, slot::INTEGER AS slot, "order"[slot] AS candidate,
    lengths[place] AS tokens, list_avg(mass{_OWN})::FLOAT AS mass, list_avg(free{_OWN})::FLOAT AS free, row_free,
    list_avg(list_transform(mass{_OWN}, lambda x: ln(greatest(x::DOUBLE, {MASS_FLOOR}))))::FLOAT AS log_mass,
    p.distance, p.agree
FROM placed m JOIN (SELECT question_id, "order", method, distance, agree FROM picks WHERE NOT calibrated) p
    USING (question_id, "order", method)
WHERE place IS NOT NULL
"""


def summarise(db: Any, questions: Iterable[Question], slots: bool = True) -> None:
    """Makes the tables `picks` and, if asked for, `slots` in a DuckDB connection that has `judgements` and `mass`."""
    from kvattn.stats.picks import reduce

    db.execute(JUDGED)
    reduce(db, questions)
    if slots:
        db.execute(f"CREATE OR REPLACE TABLE slots AS {SLOTS}")


def summaries(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The tables `picks` and `slots` of one unit, from its tables `questions`, `judgements` and `mass`."""
    from kvattn.stats.frames import read_questions

    db = _connection(os.getpid(), threading.get_ident())
    for name in ("judgements", "mass"):
        db.register(name, tables[name])
    summarise(db, read_questions(tables["questions"].to_pandas()).values())
    found = {name: db.sql(f"SELECT * FROM {name} ORDER BY ALL").to_arrow_table() for name in SUMMARIES}
    for name in ("judgements", "mass"):
        db.unregister(name)
    return found


@lru_cache(maxsize=4)
def _connection(process: int, thread: int) -> Any:
    """A connection of this thread's own: to open one takes as long as to reduce a unit."""
    import duckdb

    from kvattn.stats.picks import LOCAL

    return duckdb.connect(config={**LOCAL, "threads": 1})
