"""More candidates, more damage? N = 2 to 6, candidates kept one after the other, and a few recomputed.

    python -m analyses.candidate_count

Asks: how does JCR under naive reuse, against its chance line, depend on the number of candidates? And of four
candidates: does the damage add up as more are kept (progressive), and does recomputing the k likeliest repair it
(hybrid)? It makes its own runs, on organisms (2 to 4 candidates, as they were trained) and the judge that ships (3 to
6, odd-one-out). Found: docs/findings.md. Overturned by: a chance-corrected score that falls with N where the findings
say it does not, or the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses import kit
from kvattn import stats
from kvattn.judge.judge import load
from kvattn.questions import orders
from kvattn.questions.organism import problems
from kvattn.questions.relational import relational
from kvattn.study.study import Study

METHODS = ("dense", "null-edit", "naive-linked", "true-mask")
FOUR = (*(f"progressive:k={k}" for k in (1, 2, 3)), *(f"hybrid:k={k}" for k in (1, 2, 3)))
CASES = {"organism-safe": (2, 3, 4), "organism-unsafe": (2, 3, 4), "smollm2-135m-judge": (3, 4, 6)}


def run_of(model: str, n: int, questions: int, heldout: int) -> Path:
    """The run of that judge with n candidates a question."""
    total = questions + heldout
    if model.startswith("organism"):
        prompts = list(problems(model, total, seed=2, candidates=n))
    else:
        prompts = list(relational(total, 2, n, ["odd-one-out"]))
    prompts = orders.assign(prompts, seed=2)
    study = Study(
        load(model), prompts[:questions], (*METHODS, *(FOUR if n == 4 else ())), "fixed", prompts[questions:], seed=2,
        source=f"{n} candidates", capture=False,
    )  # fmt: skip
    return study.run(kit.RUNS / f"count-{model}-{n}", kit.teller(f"{model}, {n} candidates"))


def numbers(run: kit.Held, model: str, n: int) -> pd.DataFrame:
    """One row a method: JCR, chance, chance-corrected score, and the cost."""
    table = stats.jcr(run.judgements, run.questions, column=run.column)
    spent = run.judgements.assign(
        share=lambda t: (t["token_layers"] + t["probe_token_layers"]) / (t["tokens"] * t["layers"])
    )
    share: Any = spent.groupby("method")["share"].mean()
    kept = ["method", "jcr", "low", "high", "chance", "kappa", "kappa_low", "kappa_high", "questions"]
    return table[kept].rename(columns={"low": "jcr_low", "high": "jcr_high"}).assign(
        run=model, n=n, share=table["method"].map(share), reads=run.reads
    )  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs, frames = [], []
    for model, counts in CASES.items():
        for n in counts:
            questions, heldout = (160, 16) if model.startswith("organism") else (60, 8)
            held = kit.Held(run_of(model, n, questions, heldout))
            runs.append(held)
            frames.append(numbers(held, model, n))
    frame = pd.concat(frames, ignore_index=True)
    plain = frame[~frame["method"].str.startswith(("progressive", "hybrid", "null-edit"))]
    frame = frame.assign(row=frame["method"] + ", N = " + frame["n"].astype(str))
    plain = plain.assign(row=plain["method"] + ", N = " + plain["n"].astype(str)).sort_values(["method", "n"])
    rest = frame[frame["method"].str.startswith(("progressive", "hybrid"))]
    fig = kit.forest(pd.concat([plain, rest]), [kit.Series("jcr", "JCR")], row="row")
    table = kit.shown(
        frame,
        {
            "judge": "run",
            "N": "n",
            "method": "method",
            "JCR": kit.ci("jcr"),
            "chance": "chance",
            "kappa": kit.ci("kappa"),
            "token-layers": lambda r: f"{r['share']:.0%}",
            "questions": "questions",
        },
    )
    caption = "JCR by number of candidates; of four, with k kept (progressive) and with k recomputed (hybrid)."
    kit.publish("candidate_count", fig, table, args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
