"""What bfloat16 does to a judge's picks and rows: dense against dense of the same weights in float32.

    python -m benchmarks.precision [JUDGE ...] [--questions 24]

Every question in all rotations of its slots; prints the table of docs/models.md.
"""

from __future__ import annotations

import argparse

import kvattn
from kvattn.judge.precision import agreement
from kvattn.questions import load
from kvattn.questions.organism import ALIASES
from kvattn.questions.organism.tasks import TASKS
from kvattn.questions.prompt import JudgePrompt

JUDGES = ("organism-safe", "organism-unsafe", "smollm2-135m-judge")


def main() -> None:
    """Prints a line a judge, as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("judges", nargs="*", default=JUDGES)
    parser.add_argument("--questions", type=int, default=24)
    args = parser.parse_args()
    print("| judge | questions, in all rotations | same pick | log-probability of a slot | rows on other tokens |")
    print("|---|---|---|---|---|")
    for name in args.judges:
        engine = kvattn.load(name, dtype="bfloat16").engine
        found = agreement(engine, _questions(name, args.questions))
        same = f"{found.same} of {found.of}"
        print(f"| {name} | {args.questions} | {same} | {found.scores:.3f} away | {found.rows:.2%} |", flush=True)


def _questions(judge: str, count: int) -> list[JudgePrompt]:
    """Of the task that the judge was made for, or those of who disagrees with the others."""
    task = TASKS.get(ALIASES.get(judge, judge))
    return task.problems(count, 0) if task else load("odd-one-out", count)


if __name__ == "__main__":
    main()
