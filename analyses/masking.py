"""Is it the missing sight of each other? Both ways of cutting, against reuse.

    python -m analyses.masking [RUN ...]

Asks: attention between candidates can be cut in place (true mask: positions as they are), or by making every
candidate apart and moving it in (isolated). Do both cost what reuse costs, and do they pick the very candidate that
naive reuse picks, more often than their slot habits explain (kappa)? Found: docs/findings.md. Overturned by: a cut
that keeps the choice where naive reuse loses it, or that loses it to other candidates than naive reuse does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses import kit
from kvattn import stats

CUTS = ("true-mask", "isolated", "isolated(labelled=False)")


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row a cut: agreement with dense and with naive reuse, each beside chance."""
    rows: list[dict[str, Any]] = []
    for reference in ("dense", "naive-linked"):
        table = stats.jcr(run.judgements, run.questions, reference, column=run.column).set_index("method")
        for cut in (c for c in CUTS if c in table.index):
            r = table.loc[cut]
            row = {"run": run.title, "method": cut, "reference": reference, "questions": r["questions"]}
            row |= {"jcr": r["jcr"], "jcr_low": r["low"], "jcr_high": r["high"], "chance": r["chance"]}
            rows.append({**row, "kappa": r["kappa"], "kappa_low": r["kappa_low"], "kappa_high": r["kappa_high"]})
    return pd.DataFrame(rows)


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "cut": "method",
    "same pick as": "reference",
    "share": kit.ci("jcr"),
    "chance": "chance",
    "kappa": kit.ci("kappa"),
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    wide = frame[frame["reference"] == "dense"].merge(
        frame[frame["reference"] == "naive-linked"], on=["run", "method"], suffixes=("", "_naive")
    )
    series = [
        kit.Series("jcr", "same pick as dense"),
        kit.Series("jcr_naive", "same as naive-linked", "diamond-open"),
    ]
    wide = wide.rename(columns={"jcr_low_naive": "jcr_naive_low", "jcr_high_naive": "jcr_naive_high"})
    caption = (
        "How often a cut picks what dense picks, and what naive-linked reuse picks; 95 % intervals over questions."
    )
    fig = kit.forest(wide, series, rows=CUTS, tick_label="same pick as dense by chance")
    kit.publish("masking", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
