"""Does a recomputed tail help because it sees the other candidates?

    python -m analyses.tails [--study YAML --folder DIR]

Asks: recomputing the end of every candidate (last-k) brings back part of what reuse loses. The same tokens, recomputed
in the same place but blind to every other slot, tell whether it is the sight of the others that does it, or only a
fresh end in the judge's own context. It makes runs of its own on the organisms, takes the larger run that comes with
the repository, and with --study judges the questions of a study file anew. Found: docs/findings.md. Overturned by:
blind tails that do as well as seeing ones on a judge that reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from analyses import frontier, kit
from kvattn import stats
from kvattn.engine.plan import Visibility
from kvattn.methods.selective import LastK
from kvattn.study.grid import Grid

FURTHER = Path("figures/runs/tails-1.5b")  # on the questions and orders of kit.LARGER


@dataclass(frozen=True)
class BlindTail(LastK):
    """The last tokens of each candidate, recomputed as in last-k, blind to every other slot."""

    name = "blind-tail"
    source = "control"

    def plan(self, layout, blocks, engine):
        """last-k's plan under the rule that candidate tokens see their own slot and what belongs to none."""
        return replace(super().plan(layout, blocks, engine), visibility=Visibility.isolated(layout, ("candidate",)))


def methods(budgets: Sequence[float]) -> list[Any]:
    """Seeing and blind tails of these sizes."""
    seeing = [LastK(budget=b, prefix="kept") for b in budgets]
    return [*seeing, *(BlindTail(budget=b, prefix="kept") for b in budgets)]


RUNS = {
    f"tails-{name}": kit.Made(
        name, "organism-max", 160, 24, "fixed", ("dense", "naive-linked", *methods((0.1, 0.5, 0.9)))
    )
    for name in ("organism-unsafe", "organism-safe")
}


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row a method: JCR with interval and chance; for tails, p of an exact McNemar test of seeing against blind in
    whether dense's pick is kept, first order of every question."""
    table = stats.jcr(run.judgements, run.questions, column=run.column)
    table = table.rename(columns={"low": "jcr_low", "high": "jcr_high"}).set_index("method")
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    agree = pairs.pivot(index=["question_id", "order"], columns="method", values="agree")
    rows = []
    for blind in (m for m in table.index if m.startswith(BlindTail.name)):
        seeing = blind.replace(BlindTail.name, LastK.name)
        both = agree[[seeing, blind]].dropna().groupby("question_id").first().astype(bool)
        kept, kept_blind = both[seeing], both[blind]
        only, only_blind = int((kept & ~kept_blind).sum()), int((~kept & kept_blind).sum())
        p = binomtest(only, only + only_blind).pvalue if only + only_blind else 1.0
        rows += [{"method": seeing}, {"method": blind, "only_seeing": only, "only_blind": only_blind, "p": p}]
    found = pd.DataFrame([{"method": "naive-linked"}, *rows]).set_index("method")
    found = found.join(table[["jcr", "jcr_low", "jcr_high", "chance", "questions"]])
    return found.reset_index().assign(run=run.title.removeprefix("tails-"))


TABLE: dict[str, kit.Cell] = {
    "judge": "run",
    "method": "method",
    "JCR": kit.ci("jcr"),
    "chance": "chance",
    "kept by the seeing tail alone": "only_seeing",
    "by the blind one alone": "only_blind",
    "p": lambda r: "" if r["p"] != r["p"] else f"{r['p']:.3g}",
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", type=Path, help="judge this study's questions with blind tails; see --folder")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where that run goes (default: runs)")
    parser.add_argument("--budget", type=float, default=0.1, help="share of each candidate, with --study")
    args = kit.arguments(__doc__, given, parser)
    if args.study:
        for cell, study in Grid.read(args.study).studies(args.folder):
            blind = replace(study, methods=[BlindTail(budget=args.budget, prefix="kept")], heldout=(), capture=False)
            print(blind.run(args.folder / f"tails-{cell.folder}", kit.teller("tails")))
        return
    runs: list[kit.Held] = [kit.Held(kit.made(name, spec)) for name, spec in RUNS.items()]
    if FURTHER.is_dir():
        others = tuple(kit.Held(f) for f in (frontier.FURTHER, FURTHER))
        runs.append(frontier.Joined(kit.LARGER, others))
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    caption = "JCR of candidates whose ends are recomputed seeing the others, and blind to them; 95 % intervals."
    fig = kit.forest(frame, [kit.Series("jcr", "JCR")])
    kit.publish("tails", fig, kit.shown(frame, TABLE), args, runs, frame, caption)


if __name__ == "__main__":
    main()
