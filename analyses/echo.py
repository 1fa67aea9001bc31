"""Does a candidate gain when an earlier one states the same final answer, and what is left of that under reuse?

    python -m analyses.echo [--model NAME --data FILE --data FILE --limit N --readout yesno --dtype bfloat16]

Asks: the final answer of one earlier candidate is edited to that of a later one, and in the control to an answer that
nobody states; nothing else changes. What does that do to the later candidate's score, less that of candidates that
state something else? Under pointwise it is 0 by construction, which is a check; under methods whose candidates do not
see each other only the instruction and the question at the end can carry it. Tails recomputed seeing the others and
blind to them tell whether their sight brings it back. Found: docs/findings.md. Overturned by: a
judge whose dense echo is 0, or reuse that keeps it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analyses import kit
from kvattn import questions as data
from kvattn.judge.edits import echo
from kvattn.judge.judge import Judge, load
from kvattn.methods import Method
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats import over_questions

METHODS = (
    *("dense", "null-edit", "tail", "tail:sight=blind"),
    *("naive-linked", "naive-linked:headers=isolated", "naive", "isolated", "true-mask", "pointwise"),
)


def measured(
    judge: Judge, prompts: Sequence[JudgePrompt], methods: Sequence[str | Method], name: str, per_question: int = 1
) -> pd.DataFrame:
    """One row a method: the causal echo in nats with its 95 % interval over questions, and from how many. Exits where
    no question can be edited."""
    found = echo(judge, prompts, methods, per_question)
    if found.empty:
        raise SystemExit(
            f"{name}: in none of {len(prompts)} questions can an earlier candidate be given a later one's final answer "
            "(a number) beside a third that states another; give more (--limit) or other questions (--data)"
        )
    table = found.groupby(["question_id", "method"], as_index=False)["value"].mean()
    out = over_questions(table).rename(columns={"value": "echo", "low": "echo_low", "high": "echo_high"})
    order = {m: i for i, m in enumerate(dict.fromkeys(found["method"]))}
    return out.sort_values("method", key=lambda c: c.map(order), ignore_index=True).assign(run=name)


TABLE: dict[str, kit.Cell] = {"questions of": "run", "method": "method", "echo, nats": kit.ci("echo"), "n": "n"}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument("--data", action="append", help="a candidates file, or an embedded set (default: plurality)")
    parser.add_argument("--limit", type=int, default=24, help="questions of each; those without an edit count too")
    parser.add_argument("--readout", default="label")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--per-question", type=int, default=1, help="edits of each question")
    args = kit.arguments(__doc__, given, parser)
    judge = load(args.model, args.readout, args.dtype)
    asked = {d: list(data.load(d, limit=args.limit)) for d in args.data or ["plurality"]}
    frame = pd.concat(
        [measured(judge, p, METHODS, Path(d).stem, args.per_question) for d, p in asked.items()], ignore_index=True
    )
    ends = frame[["echo_low", "echo_high"]].to_numpy()
    room = 0.1 * (ends.max() - ends.min()) + 0.05
    fig = kit.forest(frame, [kit.Series("echo", "echo, nats")], tick=None, span=(ends.min() - room, ends.max() + room))
    fig.update_xaxes(tickvals=None, autorange=False).add_vline(x=0, line_width=1, line_color="#7b8494")
    caption = (
        f"Causal echo on {args.model} ({args.readout}): score of a candidate when an earlier one states "
        "its final answer, less when that one states another; minimal edits, 95 % intervals over questions."
    )
    kit.publish("echo", fig, kit.shown(frame, TABLE), args, (), frame, caption)


if __name__ == "__main__":
    main()
