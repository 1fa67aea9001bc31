"""How often a candidate that was not chosen decides among the others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvattn.stats.intervals import difference, rate


def independence(edits: pd.DataFrame) -> pd.DataFrame:
    """Rates of edits of candidates that were not chosen (`kvattn.judge.edits.independence`).

    One row a kind of edit, the question for the unit: edit; iia, low, high: share of edits that change the choice among
    the others less the null edit's share on the same rows (0: irrelevant alternatives are irrelevant); changed,
    changed_low, changed_high, floor: the two shares; edits, questions: counts."""
    rows = []
    for kind, part in edits.groupby("edit", sort=True):
        codes = np.unique(part["question_id"], return_inverse=True)[1]
        changed, null = (part[c].to_numpy(dtype=float) for c in ("changed", "changed_floor"))
        less = difference(changed * (1 - null), null * (1 - changed), codes)
        share = rate(changed, codes, floor=float(null.mean()))
        found = {"edit": kind, "iia": less.value, "low": less.low, "high": less.high, "changed": share.value}
        found |= {"changed_low": share.low, "changed_high": share.high, "floor": share.floor}
        rows.append({**found, "edits": len(part), "questions": int(codes.max()) + 1})
    columns = ["edit", "iia", "low", "high", "changed", "changed_low", "changed_high", "floor", "edits", "questions"]
    return pd.DataFrame(rows, columns=columns)
