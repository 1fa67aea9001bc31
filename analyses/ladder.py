"""Which rung between dense and naive reuse costs what?

    python -m analyses.ladder [RUN ...]

Asks: of the changes that lie between dense prefill, under an edit that changes no meaning, and naive reuse - candidates
no longer see each other (true mask), each is made apart and moved (isolated), its label is not bound to it
(unlabelled), it comes from the agent's context (naive-linked with isolated headers), headers link candidates again
(naive-linked), template and question are kept, too (naive) - which one loses the choice? And is the content of a stale
candidate worth more than another question's (foreign-kv)? Each step is a paired difference on the same
questions and orders. Found: docs/findings.md. Overturned by: a step whose interval lies clear of 0 where the findings
say it costs nothing, or the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from analyses import kit
from kvattn import stats
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import difference
from kvattn.stats.resampling import per_question, sign_flip_p

RUNGS = (
    *("null-edit", "true-mask", "isolated", "isolated(labelled=False)"),
    *("naive-linked(headers=isolated)", "naive-linked", "naive", "foreign-kv"),
)


def steps(run: kit.Held) -> pd.DataFrame:
    """One row a rung that was run: JCR, and what the step from the rung above changes."""
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    pairs["order"] = pairs["order"].map(tuple)
    agree = pairs.pivot(index=["question_id", "order"], columns="method", values="agree").astype(float)
    codes, count = clusters(agree.index.get_level_values(0))
    table = stats.jcr(run.judgements, run.questions, column=run.column).set_index("method")
    rows, there = [], [r for r in RUNGS if r in agree.columns]
    for above, rung in pairwise(there):
        own, before = (agree[r].to_numpy() for r in (rung, above))
        step = difference(own > before, own < before, codes)
        r = table.loc[rung]
        rows.append(
            {
                "run": run.title, "method": rung, "from": above, "reads": run.reads, "questions": count,
                "jcr": r["jcr"], "jcr_low": r["low"], "jcr_high": r["high"], "chance": r["chance"],
                "step": step.value, "step_low": step.low, "step_high": step.high,
                "p": sign_flip_p(per_question(own - before, codes, count)),
            }
        )  # fmt: skip
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
    kit.publish("ladder", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
