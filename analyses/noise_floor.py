"""How well does dense agree with itself? The floor that every consistency is read against.

    python -m analyses.noise_floor [RUN ...] [--model SPEC --data SPEC [--problems N]]

Asks: how often does dense pick another candidate when only arithmetic changes (masked kernel in chunks, batch shape,
bfloat16), when an edit changes no meaning (a newline, a reworded instruction), and when the order changes? It judges
with the organisms and the embedded judge (or the one that is named), and takes from given runs what they hold. Found:
docs/findings.md. Overturned by: a judge that reads, whose floor is far below 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses import kit
from kvattn import questions as data
from kvattn import stats
from kvattn.engine.plan import Visibility, dense_plan
from kvattn.judge.judge import Judge, load
from kvattn.methods.fresh import Dense
from kvattn.questions import orders
from kvattn.study.run_folder import question_row

CHANGES = {
    "null-edit": "a newline added",
    "null-edit(edit=reword)": "instruction reworded",
}
OTHER_ORDER = "another order"
ROWS = ("one order at a time", "masked, chunks of 64", "bfloat16", *CHANGES.values(), OTHER_ORDER)
JUDGES = {
    "organism-unsafe": ("organism-max", 60),
    "organism-safe": ("organism-max", 60),
    "smollm2-135m": ("synthetic", 16),
}


class Masked(Dense):
    """Dense, the causal rule given as an explicit mask: another kernel, other sums."""

    name = "masked, chunks of 64"

    def plan(self, layout, blocks, engine):
        """The same rule, not marked as plain."""
        return dense_plan(layout, engine.layers, Visibility(Visibility.full(layout).allowed, causal=False))


def judged(judge: Judge, prompts: Sequence, methods: Sequence, name: str = "", single: bool = False) -> list[dict]:
    """Judgement rows of two orders a problem; dense's under `name`. `single` judges the orders one by one."""
    out = []
    for p in prompts:
        asked = orders.orders("shuffle:2", p.n, 0, p.id)
        for batch in [[o] for o in asked] if single else [asked]:
            for d in judge.judge(p, methods, batch, capture=False):
                row = {"question_id": d.question_id, "order": list(d.order), "n": len(d.order), "slot": d.slot}
                row |= {"method": name or d.method, "choice": d.choice, "scores": d.scores.tolist()}
                out.append({**row, "correct": d.correct})
    return out


def repeated(spec: str, prompts: Sequence) -> pd.DataFrame:
    """Dense, and dense under every change, by a judge of that name."""
    judge = load(spec)
    # An organism's words are those of its task: it cannot say another instruction.
    edits = ["null-edit", *(["null-edit:edit=reword"] if prompts[0].template.chat else [])]
    rows = judged(judge, prompts, ["dense", *edits])
    chunk, judge.engine.chunk = judge.engine.chunk, 64
    rows += judged(judge, prompts, [Masked()])
    judge.engine.chunk = chunk
    rows += judged(judge, prompts, ["dense"], "one order at a time", single=True)
    rows += judged(load(spec, dtype="bfloat16"), prompts, ["dense"], "bfloat16")
    return pd.DataFrame(rows)


def numbers(title: str, judgements: pd.DataFrame, questions: pd.DataFrame, column: Any = "choice") -> pd.DataFrame:
    """One row a change: how often dense picks the same, and by chance alone. Over orders: share of pairs of them."""
    table = stats.jcr(judgements, questions, floors=(), column=column)
    table = table.assign(run=title, method=table["method"].replace(CHANGES))
    table = table[table["method"].isin(ROWS)].rename(columns={"low": "jcr_low", "high": "jcr_high"})
    across = stats.position_bias(judgements[judgements["method"] == "dense"], questions, column)
    across = across.filter(regex="^order_consistency|^questions").dropna()
    across.columns = across.columns.str.replace("order_consistency", "jcr")
    table = pd.concat([table, across.assign(run=title, method=OTHER_ORDER)], ignore_index=True)
    return table[["run", "method", "jcr", "jcr_low", "jcr_high", "chance", "pairs", "questions"]]


TABLE: dict[str, kit.Cell] = {
    "judge": "run",
    "dense against itself": "method",
    "same pick": kit.ci("jcr"),
    "by chance": "chance",
    "pairs": "pairs",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", help="this judge in place of the small ones")
    parser.add_argument("--data", default="synthetic", help="its problems (default: synthetic)")
    parser.add_argument("--problems", type=int, default=24)
    args = kit.arguments(__doc__, given, parser)
    runs = [kit.Held(r) for r in args.runs if r.parent != kit.RUNS]
    frames = []
    for spec, (source, count) in ({args.model: (args.data, args.problems)} if args.model else JUDGES).items():
        prompts = orders.assign(list(data.load(source, limit=count, seed=21)), seed=21)
        questions = pd.DataFrame([question_row(p, [0] * p.n) for p in prompts])
        frames.append(numbers(Path(spec).stem, repeated(spec, prompts), questions))
    frames += [numbers(r.title, r.judgements, r.questions, r.column) for r in runs]
    frame = pd.concat(frames, ignore_index=True)
    caption = "How often dense picks what dense picks when nothing that matters changes; 95 % intervals over questions."
    fig = kit.forest(frame, [kit.Series("jcr", "same pick")], rows=ROWS, tick_label="by chance")
    kit.publish("noise_floor", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
