"""Does accuracy hide what reuse does to the choice? Accuracy and consistency with dense, method by method.

    python -m analyses.silent_flip [RUN ...]

Asks: Liang et al. (arXiv 2601.08343) report that reuse keeps accuracy and loses consistency (JCR). Does it here, and
is the loss more than two judges with the same slot habits would show? Found: docs/findings.md. Overturned by: a judge
that passes the content test, whose JCR under reuse lies well above chance, or whose accuracy falls as far as its JCR.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses import kit
from kvattn import stats

LEFT_OUT = ("random", "first-k", "kv-deviation", "mismatched-order", "naive-linked(headers")

# What the paper prints for HumanEval, progressive refinement, Llama-3.2-3B-Instruct, shuffled candidates, without n or
# interval (arXiv 2601.08343). The order that dense was run in may not be the method's (analyses.shuffle_stress).
PUBLISHED = {"dense": (None, 0.3168), "naive": (0.2360, 0.4906), "kvcomm": (0.2174, 0.4969), "pal-kv": (0.2422, 0.4907)}


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row a method: JCR against dense and accuracy, each with interval, chance and n."""
    agree = stats.jcr(run.judgements, run.questions, column=run.column).set_index("method")
    right = stats.accuracy(run.judgements, run.questions, column=run.column)
    random = right[right["method"] == "random pick"]["accuracy"].iloc[0]
    rows = []
    for r in right[right["kind"] == "method"].to_dict("records"):
        name = str(r["method"])
        if name.startswith(LEFT_OUT):
            continue
        row = {"run": run.title, "method": name, "reads": run.reads, "accuracy_random": random, "p": r["p_flip_holm"]}
        row |= {f"accuracy{k}": r[f"{k[1:]}" if k else "accuracy"] for k in ("", "_low", "_high")}
        if name in agree.index:
            a = agree.loc[name]
            row |= {"jcr": a["jcr"], "jcr_low": a["low"], "jcr_high": a["high"], "chance": a["chance"]}
            row |= {"kappa": a["kappa"], "score": a["score"], "pairs": a["pairs"]}
            row |= {"score_low": a["score_low"], "score_high": a["score_high"]}
        rows.append({**row, "questions": r["questions"]})
    return pd.DataFrame(rows)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of the paper's kind, the paper's own rows below."""
    cells: dict[str, kit.Cell] = {
        "run": "run",
        "method": "method",
        "JCR": kit.ci("jcr"),
        "chance": "chance",
        "score": kit.ci("score"),
        "right": kit.ci("accuracy"),
        "random": "accuracy_random",
        "p (sign flips, Holm)": lambda r: "" if pd.isna(r["p"]) else f"{r['p']:.3f}",
        "questions": "questions",
    }
    published = [
        {
            "run": "published, HumanEval",
            "method": name,
            "JCR": "" if jcr is None else f"{jcr:.2f}",
            "right": f"{right:.2f}",
        }
        for name, (jcr, right) in PUBLISHED.items()
    ]
    return pd.concat([kit.shown(frame, cells), pd.DataFrame(published)], ignore_index=True)


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    runs = kit.held(args.runs)
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    caption = "JCR against dense and share of right picks, with 95 % intervals over questions."
    fig = kit.forest(frame, [kit.Series("jcr", "JCR"), kit.Series("accuracy", "right", "diamond-open")])
    kit.publish("silent_flip", fig, readable(frame), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
