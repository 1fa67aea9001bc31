"""How well does dense agree with itself? The floor that every consistency is read against.

    python analyses/noise_floor.py [--model smollm2-135m] [--problems 24] [--out figures]

Asks: how often does dense pick another candidate when only arithmetic changes (masked kernel in chunks, batch shape,
bfloat16), when an edit changes no meaning (a newline, a reworded instruction), and when the order changes?
Found: see the table it writes. Overturned by: a judge or data set whose floor is far from the one found here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from kvattn import load, stats
from kvattn.data import load as load_data
from kvattn.inert import csv
from kvattn.judge import Judge
from kvattn.methods.dense import Dense
from kvattn.orders import orders
from kvattn.plan import Visibility, dense_plan
from kvattn.store import question_row


class Masked(Dense):
    """Dense, the causal rule given as an explicit mask, in chunks of queries: another kernel, other sums."""

    name = "masked kernel, chunks of 64"

    def plan(self, layout, blocks, engine):
        """The same rule, not marked as plain."""
        return dense_plan(layout, engine.layers, Visibility(Visibility.full(layout).allowed, causal=False))


def rows(judge: Judge, prompts, name: str, methods, single: bool = False) -> list[dict]:
    """Judgement rows of two orders a problem under one name; `single` judges the orders one by one."""
    out = []
    for p in prompts:
        asked = orders("shuffle:2", p.n, 0, p.id)
        batches = [[o] for o in asked] if single else [asked]
        for batch in batches:
            for d in judge.judge(p, methods, batch, capture=False):
                out.append(
                    {"question_id": d.question_id, "order": list(d.order), "method": name, "n": len(d.order)}
                    | {"slot": d.slot, "choice": d.choice, "scores": d.scores.tolist(), "correct": d.correct}
                )
    return out


def main() -> None:
    """Judge, compare, write a table as Markdown and CSV."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="synthetic:21")
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args()
    prompts = load_data(args.data, args.problems)
    judge = load(args.model)
    made = rows(judge, prompts, "dense", ["dense"])
    chunk, judge.engine.chunk = judge.engine.chunk, 64
    made += rows(judge, prompts, Masked.name, [Masked()])
    judge.engine.chunk = chunk
    made += rows(judge, prompts, "one order at a time", ["dense"], single=True)
    made += rows(judge, prompts, "newline added", ["null-edit"])
    made += rows(judge, prompts, "instruction reworded", ["null-edit:edit=reword"])
    del judge
    made += rows(load(args.model, dtype="bfloat16"), prompts, "bfloat16", ["dense"])
    questions = pd.DataFrame([question_row(p, [0] * p.n) for p in prompts])
    judgements = pd.DataFrame(made)
    table = stats.jcr(judgements, questions, floors=())[
        ["method", "jcr", "low", "high", "pairs", "questions", "chance"]
    ]
    across = stats.position_bias(judgements[judgements["method"] == "dense"], questions).iloc[0]
    extra = {"method": "dense under the other order", "jcr": across["order_consistency"]}
    extra |= {"low": across["order_consistency_low"], "high": across["order_consistency_high"]}
    table = pd.concat([table, pd.DataFrame([{**extra, "pairs": len(prompts), "questions": len(prompts)}])])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "noise_floor.csv").write_text(csv(table), encoding="utf-8")
    lines = ["| dense against itself | same pick | 95 % | pairs |", "|---|---|---|---|"]
    for r in table.to_dict("records"):
        lines.append(f"| {r['method']} | {r['jcr']:.2f} | {r['low']:.2f}-{r['high']:.2f} | {int(r['pairs'])} |")
    text = "\n".join(lines)
    (args.out / "noise_floor.md").write_text(f"{args.model}, {args.data}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
