"""Does it matter how, or where, the judge is asked? The same questions in the same orders in several runs.

    python -m analyses.readouts RUN RUN [RUN ...]

Asks: of one judge under several readouts, or one readout on several machines, on the judgements that all runs have: how
often does each method pick what dense picks there, and what the same method picks in the first run? Found:
docs/findings.md. Overturned by: another judge, or a readout that loses less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses import kit
from kvattn import stats

KEY = ["question_id", "texts", "order"]


def common(runs: Sequence[kit.Held]) -> list[pd.DataFrame]:
    """Each run's judgements, of the questions (their candidates' texts too), orders and methods that all have."""
    each: list[Any] = []
    for r in runs:
        texts = r.questions.set_index("question_id")["texts"].map(tuple)
        judged = r.judgements.assign(order=r.judgements["order"].map(tuple))
        each.append(judged.assign(texts=judged["question_id"].map(texts)))
    methods = set.intersection(*(set(j["method"]) for j in each))
    asked = pd.concat([j[KEY].drop_duplicates() for j in each]).value_counts()
    asked = asked[asked == len(each)].index.to_frame(index=False)
    if "dense" not in methods or asked.empty:
        raise SystemExit("no question was judged densely in one order in every run; give runs of the same questions")
    return [j[j["method"].isin(list(methods))].merge(asked, on=KEY) for j in each]


def numbers(runs: Sequence[kit.Held]) -> pd.DataFrame:
    """One row a run and method: JCR against the run's dense, agreement with the same method of the first run, right
    picks, each with interval, and picks by slot."""
    rows, all_of = [], common(runs)
    for run, judged in zip(runs, all_of, strict=True):
        questions: Any = run.questions[run.questions["question_id"].isin(set(judged["question_id"]))]
        agree = stats.jcr(judged, questions).set_index("method")
        right: Any = stats.accuracy(judged, questions).set_index("method")
        for method, own in judged.groupby("method"):
            row = {"run": run.title, "method": method, "questions": len(questions), "judgements": len(own)}
            if run is not runs[0]:
                first = all_of[0][all_of[0]["method"] == method].assign(method="dense")
                both = pd.concat([first, own.assign(method="again")])
                same = stats.jcr(both.assign(readout="generate"), questions).iloc[0]  # some may name nobody
                row |= {"same": same["jcr"], "same_low": same["low"], "same_high": same["high"]}
                row |= {"same_chance": same["chance"]}
            row |= {f"right{k}": right.loc[method, f"{k[1:]}" if k else "accuracy"] for k in ("", "_low", "_high")}
            for name, k in (("jcr", "jcr"), ("chance", "chance"), ("jcr_low", "low"), ("jcr_high", "high")):
                row[name] = agree[k].get(method)  # dense has none
            slots = own["slot"].value_counts().reindex(range(int(own["n"].max())), fill_value=0)
            rows.append({**row, "picks": " ".join(map(str, slots)), "none": int(own["slot"].isna().sum())})
    return pd.DataFrame(rows)


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "method": "method",
    "JCR": kit.ci("jcr"),
    "chance": "chance",
    "as in the first run": kit.ci("same"),
    "by chance": "same_chance",
    "right": kit.ci("right"),
    "picks by slot": "picks",
    "named nobody": "none",
    "judgements": "judgements",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    if len(args.runs) < 2:
        raise SystemExit("give two runs or more of the same questions in the same orders")
    runs = kit.held(args.runs)
    frame = numbers(runs)
    series = [
        kit.Series("jcr", "JCR"),
        kit.Series("same", "as in the first run", "square-open"),
        kit.Series("right", "right", "diamond-open"),
    ]
    caption = "Raw picks of the judgements that all runs have: agreement with the run's dense, and with the first run."
    fig = kit.forest(frame, series)
    kit.publish("readouts", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
