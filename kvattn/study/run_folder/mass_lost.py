"""How much attention each candidate loses in each judgement: one number a slot, out of a run's captured rows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd

from kvattn.study.run_folder.parts import committed, read_part
from kvattn.study.run_folder.reader import Run
from kvattn.study.run_folder.schema import MASS_FLOOR

_KEYS = ["question_id", "order", "method", "slot", "lost", "tokens"]


def mass_lost(run: Run, query: str = "last_prompt", reference: str = "dense") -> pd.DataFrame:
    """Slot mass lost against dense, one row per (question_id, order, method, slot), without dense itself.

    slot:   from 0
    lost:   mean over layers and heads of log(dense's mass) - log(the method's), in nats: 0.69 is half lost, negative
            values are gained. Mass is floored at MASS_FLOOR, as in the table `sums`
    tokens: length of the candidate in the slot

    Judgements whose candidate has another length than dense's, and methods that were not captured, have no row. Reads
    one question at a time. Raises KvattnError for a damaged part (named).
    """
    import pyarrow.parquet as pq

    parts = committed(run.folder)
    rows: list[tuple[Any, ...]] = []
    for key in parts["judgements"]:
        table = pq.read_table(io.BytesIO(read_part(run.folder, "mass", key, parts)))
        columns = ["question_id", "order", "method", "query", "names", "lengths", "shape", "mass"]
        asked = [r for r in table.select(columns).to_pylist() if r["query"] == query]
        base = {tuple(r["order"]): r for r in asked if r["method"] == reference}
        for row in asked:
            other = base.get(tuple(row["order"]))
            if row["method"] != reference and other is not None and row["names"] == other["names"]:
                rows += _of_slots(row, other)
    return pd.DataFrame(rows, columns=_KEYS).sort_values(_KEYS[:4], ignore_index=True)


def _of_slots(row: dict[str, Any], base: dict[str, Any]) -> list[tuple[Any, ...]]:
    own, dense = (
        np.log(np.maximum(np.asarray(r["mass"], dtype=float).reshape(r["shape"]), MASS_FLOOR)).mean((0, 1))
        for r in (row, base)
    )
    order = tuple(row["order"])
    made = []
    for slot in range(len(order)):
        at = row["names"].index(f"candidate:{slot + 1}")
        if row["lengths"][at] == base["lengths"][at]:
            lost = float(dense[at] - own[at])
            made.append((row["question_id"], order, row["method"], slot, lost, int(row["lengths"][at])))
    return made
