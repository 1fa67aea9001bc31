"""Does shuffling the candidates hurt reuse, and how much of a drop could be a mix-up of orders?

    python -m analyses.shuffle_stress [RUN ...]

Asks: JCR by the distance of the display order from the candidates' own; and beside it two controls. "dense, other
order" compares dense with itself under another order of the same candidates: what a perfect method would score if the
order of one side were mixed up. "mismatched-order" is naive reuse under another order than dense's. Published
shuffled figures (arXiv 2601.08343) may contain such a mix-up, since the judge's template was made once while later
calls drew new orders. Found: docs/findings.md. Overturned by: a JCR that falls with distance, other things equal, on
a judge that reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses import kit
from kvattn import stats
from kvattn.stats.agreement import inversions
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import rate_of_sums
from kvattn.stats.resampling import per_question

REACHES = ("near", "middle", "far")
SHOWN = ("naive-linked", "mismatched-order", "kvcomm", "pal-kv", "last-k", "null-edit", "true-mask", "tail")


def distances(run: kit.Held) -> pd.DataFrame:
    """JCR by how far the order is from the candidates' own, one row a method: `near` are the orders that turn round
    less than a third of the pairs of candidates, `far` those that turn round more than two thirds."""
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    pairs = pairs[pairs["method"].str.startswith(SHOWN)]
    share = np.array([inversions(o) for o in pairs["order"]]) / (pairs["n"] * (pairs["n"] - 1) / 2)
    pairs["reach"] = np.select([share < 1 / 3, share <= 2 / 3], ["near", "middle"], "far")
    table = stats.jcr(run.judgements, run.questions, column=run.column).set_index("method")
    rows = []
    for method, part in pairs.groupby("method"):
        row: dict[str, Any] = {"run": run.title, "method": method, "chance": table.loc[method, "chance"]}
        for reach, p in part.groupby("reach"):
            codes, count = clusters(p["question_id"])
            sums = per_question(np.stack([p["agree"].astype(float), np.ones(len(p))], 1), codes, count)
            low, high = rate_of_sums(sums[:, 0], sums[:, 1])[1:3]
            row |= {reach: p["agree"].mean(), f"{reach}_low": low, f"{reach}_high": high, f"{reach}_pairs": len(p)}
        rows.append(row)
    return pd.DataFrame(rows)


def controls(run: kit.Held) -> pd.DataFrame:
    """JCR over all orders, and dense against itself under another order."""
    frame = stats.jcr(run.judgements, run.questions, column=run.column)
    rows: list[dict[str, Any]] = [
        {"run": run.title, "method": r["method"], "jcr": r["jcr"], "jcr_low": r["low"], "jcr_high": r["high"],
         "chance": r["chance"], "questions": r["questions"], "pairs": r["pairs"]}
        for r in frame.to_dict("records")
        if str(r["method"]).startswith(SHOWN)
    ]  # fmt: skip
    dense = run.judgements[run.judgements["method"] == "dense"]
    if dense.groupby("question_id").size().max() > 1:
        d = stats.position_bias(dense, run.questions, column=run.column).iloc[0]
        row = {"run": run.title, "method": "dense, other order", "jcr": d["order_consistency"], "chance": np.nan}
        row |= {"jcr_low": d["order_consistency_low"], "jcr_high": d["order_consistency_high"]}
        rows.append({**row, "questions": d["questions"]})
    return pd.DataFrame(rows)


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "method": "method",
    **{f"JCR, {reach}": kit.ci(reach) for reach in REACHES},
    "JCR over all orders": kit.ci("jcr"),
    "chance": "chance",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    frame = pd.concat([distances(r) for r in runs], ignore_index=True)
    table = pd.concat([controls(r) for r in runs], ignore_index=True)
    table = table.merge(frame.drop(columns="chance"), on=["run", "method"], how="left")
    series = [kit.Series(k, k, s) for k, s in zip(REACHES, ("circle", "square-open", "diamond"), strict=True)]
    caption = (
        "JCR by how many pairs of candidates the display order turns round against the candidates' own order: near is "
        "less than a third of them, far more than two thirds; 95 % intervals over questions."
    )
    kit.publish(
        "shuffle_stress",
        kit.forest(frame, series),
        kit.shown(table, TABLE),
        args,
        runs,
        frame,
        kit.warned(caption, runs),
    )


if __name__ == "__main__":
    main()
