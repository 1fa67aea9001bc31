"""Which rung between dense and naive reuse costs what?

    python -m analyses.ladder [RUN ...]

Asks: of the changes that lie between dense prefill and naive reuse - candidates no longer see each other (true mask),
each is made apart and moved (isolated), its label is not bound to it (unlabelled), it comes from the agent's context
(naive-linked with isolated headers), headers link candidates again (naive-linked), template and question are kept, too
(naive) - which one loses the choice? And is the content
of a stale candidate worth more than another question's (foreign-kv)? Each step is a paired difference on the same
questions and orders. Found: docs/findings.md. Overturned by: a step whose interval lies clear of 0 where the findings
say it costs nothing, or the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses import kit
from kvattn import stats
from kvattn.stats.frames import clusters
from kvattn.stats.resampling import cluster_interval, per_question, ratio, sign_flip_p

RUNGS = (
    *("dense", "true-mask", "isolated", "isolated(labelled=False)"),
    *("naive-linked(headers=isolated)", "naive-linked", "naive", "foreign-kv"),
)


def steps(run: kit.Held) -> pd.DataFrame:
    """One row a rung that was run: JCR, and what the step from the rung above changes."""
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    pairs["order"] = pairs["order"].map(tuple)
    agree = pairs.pivot(index=["question_id", "order"], columns="method", values="agree").astype(float)
    agree["dense"] = 1.0
    codes, count = clusters(agree.index.get_level_values(0))
    ones = np.ones(len(agree))
    table = stats.jcr(run.judgements, run.questions, column=run.column).set_index("method")
    rows, above = [], "dense"
    for rung in (r for r in RUNGS[1:] if r in agree.columns):
        step = agree[rung].to_numpy() - agree[above].to_numpy()
        sums = per_question(np.stack([step, ones], 1), codes, count)
        low, high = cluster_interval(sums, ratio)
        r = table.loc[rung]
        rows.append(
            {
                "run": run.title, "method": rung, "from": above, "reads": run.reads, "questions": count,
                "jcr": r["jcr"], "jcr_low": r["low"], "jcr_high": r["high"], "chance": r["chance"],
                "step": step.mean(), "step_low": low, "step_high": high, "p": sign_flip_p(sums[:, 0]),
            }
        )  # fmt: skip
        above = rung
    frame = pd.DataFrame(rows)
    return frame.assign(p=stats.holm(frame["p"].to_numpy())) if len(frame) else frame


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "rung": "method",
    "JCR": kit.ci("jcr"),
    "chance": "chance",
    "step from": "from",
    "change of JCR": kit.ci("step"),
    "p (Holm)": lambda r: f"{r['p']:.3f}",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    frame = pd.concat([steps(r) for r in runs], ignore_index=True)
    series = [kit.Series("jcr", "JCR"), kit.Series("step", "step from the rung above", "diamond-open")]
    fig = kit.forest(frame, series, span=(-1.1, 1.1), rows=RUNGS)
    caption = "JCR of each rung, and its paired difference from the rung above; 95 % intervals over questions."
    kit.publish("ladder", fig, kit.shown(frame, TABLE), args.out, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
