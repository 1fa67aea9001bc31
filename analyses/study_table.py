"""The main table of a run, as Markdown: consistency and accuracy of every method, with what to read them against.

    python analyses/study_table.py figures/runs/gsm8k-1.5b

Asks: how often does each method pick what dense picks, how often is it right, and at what cost? Found: docs/results.md.
Overturned by: the same table of another judge, readout or data set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from kvattn import stats
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import rate
from kvattn.study.run_folder import Run
from kvattn.text import interval


def table(run: Run) -> str:
    """One row a method, then the baselines of accuracy."""
    judged, questions = run.judgements(), run.questions()
    raw = stats.jcr(judged, questions).set_index("method")
    calibrated = raw
    if judged["choice_calibrated"].notna().all():
        calibrated = stats.jcr(judged, questions, column="choice_calibrated").set_index("method")
    right = stats.accuracy(judged, questions)
    spent = judged.assign(share=(judged.token_layers + judged.probe_token_layers) / (judged.tokens * judged.layers))
    share = spent.groupby("method")["share"].mean()
    slots = range(int(judged["n"].max()))
    picks = judged.groupby("method")["slot"].value_counts().unstack(fill_value=0).reindex(columns=slots, fill_value=0)
    lines = [
        "| method | JCR | chance | kappa | score | JCR, calibrated | right | p (McNemar, Holm) | picks | cost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in right[right["kind"] == "method"].to_dict("records"):
        name = r["method"]
        cells = ["", "", "", "", ""]
        if name in raw.index:
            x, y = raw.loc[name], calibrated.loc[name]
            score = interval(x["score"], x["score_low"], x["score_high"])
            cells = [interval(x["jcr"], x["low"], x["high"]), f"{x['chance']:.2f}", f"{x['kappa']:.2f}", score]
            cells.append(interval(y["jcr"], y["low"], y["high"]))
        p = "" if pd.isna(r["p_mcnemar"]) else f"{r['p_mcnemar']:.3f}, {r['p_mcnemar_holm']:.2f}"
        shown = " ".join(str(n) for n in picks.loc[name])
        cells += [interval(r["accuracy"], r["low"], r["high"]), p, shown, f"{share[name]:.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| baseline of accuracy | right |", "|---|---|"]
    for r in right[right["kind"] == "baseline"].to_dict("records"):
        note = f" ({r['note']})" if r["note"] else ""
        lines.append(f"| {r['method']}{note} | {interval(r['accuracy'], r['low'], r['high'])} |")
    return "\n".join(lines)


def reused(run: Run) -> str:
    """Methods that fall back to dense: calls that kept anything, and how many of those pick what dense picks."""
    pairs = stats.paired(run.judgements(), run.questions())
    order = ["question_id", "order", "method"]
    kept = run.judgements()[[*order, "candidate_tokens_kept"]]
    pairs["order"], kept["order"] = pairs["order"].map(tuple), kept["order"].map(tuple)
    pairs = pairs.merge(kept, on=order)
    lines = ["| method | calls | calls that reused | of those, same pick as dense |", "|---|---|---|---|"]
    for method, part in pairs.groupby("method"):
        some = part[part["candidate_tokens_kept"] > 0]
        if 0 < len(some) < len(part):
            share = interval(*rate(some["agree"].to_numpy(), clusters(some["question_id"])[0])[:3])
            lines.append(f"| {method} | {len(part)} | {len(some)} | {some['agree'].sum()}, {share} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    run = Run(args.run)
    print(f"{len(run)} questions, {len(run.judgements())} judgements\n")
    print(table(run))
    print(f"\n{reused(run)}")


if __name__ == "__main__":
    main()
