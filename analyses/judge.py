"""Does the judge that ships read? `python -m analyses.judge [--model MODEL] [--gsm8k FILE]`; docs/judge.md.

Questions that no training saw, judged densely in every rotation: of the kinds it was trained on (other seeds), of kinds
that it never saw, of more candidates than it ever saw, with another instruction, under both readouts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.kit import RUNS, Held, Series, ci, forest, parsed, publish, shown, teller
from analyses.train_judge import LADDER, LESSONS, TRAINED_KINDS
from kvattn import stats
from kvattn.judge.judge import Judge, load
from kvattn.methods import Dense, Method, NullEdit
from kvattn.questions import load as load_data
from kvattn.questions import mixed_only
from kvattn.questions.orders import assign
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.relational import KINDS, RelationalPrompt, relational
from kvattn.questions.synthetic import LADDER as ALL_LADDER
from kvattn.questions.synthetic import synthetic
from kvattn.study.study import Study

SEED = 77  # of no training and no choice on the way
GSM8K_ROWS = slice(300, 700)


@dataclass(frozen=True)
class Asked:
    """Questions of one sort.

    trained: whether training saw this sort, with other seeds
    edit:    of the instruction ("reword"), "" for none
    """

    name: str
    prompts: Sequence[JudgePrompt]
    trained: bool
    readout: str = "label"
    edit: str = ""

    @property
    def method(self) -> Method:
        """Dense, of the prompt as it stands or with its instruction edited."""
        return NullEdit(self.edit) if self.edit else Dense()


def asked(count: int, gsm8k: Path | None, ladder: bool = True) -> list[Asked]:
    """Everything that the judge is asked, `count` questions a sort. ladder: with the long texts of word problems."""
    sets = []
    for kind in KINDS:
        n = 4 if 4 in KINDS[kind].sizes else 5
        sets.append(Asked(f"{kind}, {n}", relational(count, SEED, n, [kind]), kind in TRAINED_KINDS))
    known = [k for k in KINDS if k in TRAINED_KINDS]
    for n in (6, 8):
        sets.append(Asked(f"trained kinds, {n}", relational(count, SEED, n, known), False))
    four = relational(count, SEED + 1, 4, known)
    sets.append(Asked("trained kinds, 4, reworded", four, False, edit="reword"))
    asked_so = {x.kind for x in LESSONS if x.readout == "yesno"}
    for name, trained in (("lookup and plurality", True), ("other trained kinds", False)):
        kinds = [k for k in known if (k in asked_so) == trained]
        sets.append(Asked(f"{name}, 4, yes/no", relational(count, SEED, 4, kinds), trained, "yesno"))
    for kind in ALL_LADDER if ladder else ():
        sets.append(Asked(f"ladder {kind}, 4", synthetic(count, SEED, 4, ladder=[kind]), kind in LADDER))
    if gsm8k:
        real = mixed_only(load_data(str(gsm8k))[GSM8K_ROWS])[:count]
        sets.append(Asked("GSM8K, 4 real solutions", real, False))
    return [replace(s, prompts=assign(list(s.prompts), SEED)) for s in sets]


def judged(judge: Judge, what: Asked, folder: Path) -> Held:
    """The run of one sort, judged as far as it is not yet."""
    name = what.name.replace(", ", "-").replace(" ", "-").replace("/", "")
    study = Study(judge, what.prompts, [what.method], "rotations", capture=False, seed=SEED)
    return Held(study.run(folder / name, teller(what.name)))


def row(what: Asked, held: Held) -> dict[str, Any]:
    """The numbers of one sort."""
    picks, questions = held.judgements, held.questions
    name = str(picks["method"].iloc[0])
    table = stats.accuracy(picks, questions, reference=name).set_index("method")
    test = stats.content_test(picks, questions)
    alone = [p.pointwise for p in what.prompts if isinstance(p, RelationalPrompt) and p.kind != "lookup"]
    right, same = table.loc[name], test.reading
    return {
        "asked": what.name,
        "trained": "other seeds" if what.trained else "never",
        "questions": len(questions),
        "accuracy": right["accuracy"],
        "accuracy_low": right["low"],
        "accuracy_high": right["high"],
        "chance": table.loc["random pick", "accuracy"],
        "pointwise": float(np.mean(alone)) if alone else float("nan"),
        "majority": table.loc["majority answer", "accuracy"],
        "same": same.value,
        "same_low": same.low,
        "same_high": same.high,
        "same_chance": same.chance,
        "reads": same.verdict,
        "quality": test.quality.verdict,
    }


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-judge")
    parser.add_argument(
        "--gsm8k", type=Path, help="a candidates file of GSM8K solutions; its rows 300 to 699 are asked"
    )
    parser.add_argument("--questions", type=int, default=48, help="of each sort")
    parser.add_argument("--relational", action="store_true", help="not the ladder, whose texts take most of the time")
    args = parsed(parser, given)
    sets = asked(args.questions, args.gsm8k, not args.relational)
    judges = {readout: load(args.model, readout=readout) for readout in ("label", "yesno")}
    name = Path(args.model).name
    folder = RUNS / f"judge-{name}"
    runs = [judged(judges[s.readout], s, folder) for s in sets]
    frame = pd.DataFrame([row(s, h) for s, h in zip(sets, runs, strict=True)])
    series = [Series("accuracy", "a right candidate"), Series("same", "the same candidate in two orders", "diamond")]
    fig = forest(frame.assign(run=name), series, row="asked", tick_label="accuracy by chance")
    cells = {
        "asked": "asked",
        "in training": "trained",
        "questions": "questions",
        "right": ci("accuracy"),
        "chance": "chance",
        "pointwise": "pointwise",
        "majority": "majority",
        "same in two orders": ci("same"),
        "chance of it": "same_chance",
        "reads": "reads",
        "for quality": "quality",
    }
    caption = (
        f"{name} on questions of no training, dense, in every rotation. Pointwise: the best of scores that see one "
        "candidate at a time."
    )
    publish("judge", fig, shown(frame, cells), args, runs, frame, caption)


if __name__ == "__main__":
    main()
