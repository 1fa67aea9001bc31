"""Did a repair repair? Beside a baseline that learns slots alone, and against dense's own noise, on questions that no
training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from kvattn import methods
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.methods.repaired import Repaired
from kvattn.questions.orders import assign
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats.intervals import Estimate, difference
from kvattn.stats.picks import paired
from kvattn.study.repair.teacher import question_sha256
from kvattn.study.run_folder import Run
from kvattn.study.study import Study
from kvattn.text import Progress, silent

BASELINE = "slot-offset"  # of naive: a repair that only learns a slot bias is none
MARGIN = 0.05  # of JCR, within which the null edit's floor counts as reached
FLOOR = "null-edit"


@dataclass(frozen=True)
class Verdict:
    """What was asked before the test questions were opened, and the answer.

    gain:      JCR of the repair less that of the baseline, on the same judgements, with its interval
    p:         of the exact McNemar test that neither agrees with dense more often, two-sided
    gained, lost: judgements in which the repair alone, and the baseline alone, agrees with dense
    deficit:   JCR of the null edit less that of the repair; at the floor if its upper bound is under `MARGIN`
    """

    method: str
    baseline: str
    judgements: int
    jcr: float
    jcr_baseline: float
    jcr_floor: float
    gain: Estimate
    gained: int
    lost: int
    p: float
    deficit: Estimate

    @property
    def at_floor(self) -> bool:
        """Whether the repair is not inferior to dense's own noise by the margin."""
        return bool(self.deficit.high < MARGIN)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            **asdict(self),
            "gain": self.gain._asdict(),
            "deficit": self.deficit._asdict(),
            "at_floor": self.at_floor,
        }

    def __str__(self) -> str:
        gain, deficit = self.gain, self.deficit
        return (
            f"{self.method}: JCR {self.jcr:.2f}, {self.baseline} {self.jcr_baseline:.2f}; gain {gain.value:+.2f} "
            f"({gain.low:+.2f} to {gain.high:+.2f}), {self.gained} gained, {self.lost} lost of {self.judgements}, "
            f"exact McNemar p = {self.p:.2g}\n{FLOOR} {self.jcr_floor:.2f}; deficit {deficit.value:+.2f} "
            f"({deficit.low:+.2f} to {deficit.high:+.2f}), "
            + (f"within {MARGIN} of the floor" if self.at_floor else f"not shown to be within {MARGIN} of the floor")
        )


def judged(repaired: Repaired) -> list[str]:
    """What a repair is judged beside: the reference, its noise, reuse with and without slot offsets, and the repair's
    own plan before it was trained."""
    base = repaired.base.label
    own = [base, f"slot-offset(base={base})"] if base not in ("naive", "naive-linked") else []
    return ["dense", FLOOR, "naive", BASELINE, "naive-linked", "slot-offset(base=naive-linked)", *own, repaired.label]


def evaluate(
    judge: Judge,
    prompts: Sequence[JudgePrompt],
    heldout: Sequence[JudgePrompt],
    folder: str,
    run: Path,
    progress: Progress = silent,
    source: str = "",
    seed: int = 0,
    anew: bool = False,
) -> Verdict:
    """Judge test questions under a repair and what it is judged beside, each question in one order of a Latin square,
    into a run folder, whose manifest holds the question that is asked before any is judged.

    heldout: further questions, which offsets are fit on
    anew:    give a run that lies there another name, and begin again

    Raises KvattnError for questions that trained the repair, and for another judge or readout than it was trained for.
    """
    repaired = methods.get(f"repaired:{folder}")
    assert isinstance(repaired, Repaired)
    taught = set(repaired.repair.record.get("questions", ()))
    if seen := [p.id for p in [*prompts, *heldout] if question_sha256(p) in taught]:
        raise KvattnError(
            f"{len(seen)} of the questions, {seen[0]!r} among them, trained the repair {folder}; give another "
            "file, or of an embedded set another --seed"
        )
    asked = {
        "primary": f"JCR({repaired.label}) - JCR({BASELINE}), exact McNemar",
        "co_primary": f"JCR({FLOOR}) - JCR({repaired.label}) < {MARGIN}, upper bound",
    }
    study = Study(
        judge,
        assign(list(prompts), seed),
        judged(repaired),
        orders="fixed",
        heldout=heldout,
        seed=seed,
        source=source,
        extra={"repair": asked},
    )
    opened = Run(study.run(run, progress, anew))
    return verdict(opened.judgements(), opened.questions(), repaired.label)


def verdict(judgements: pd.DataFrame, questions: pd.DataFrame, method: str, baseline: str = BASELINE) -> Verdict:
    """The verdict on a method from judgements of dense, the null edit, the baseline and itself, on raw picks.

    Raises KvattnError where one of them was not judged on all (question, order) pairs."""
    frame: Any = paired(judgements, questions)
    table: Any = frame.pivot(index=["question_id", "order"], columns="method", values="agree")
    wanted = [FLOOR, baseline, method]
    if lacking := [m for m in wanted if m not in table or table[m].isna().any()]:
        raise KvattnError(f"{lacking[0]} was not judged on every question; judge it in the same run")
    floor, other, own = (table[m].to_numpy(dtype=bool) for m in wanted)
    codes = table.index.get_level_values(0).to_numpy()
    gained, lost = int((own & ~other).sum()), int((other & ~own).sum())
    return Verdict(
        method=method,
        baseline=baseline,
        judgements=len(table),
        jcr=float(own.mean()),
        jcr_baseline=float(other.mean()),
        jcr_floor=float(floor.mean()),
        gain=difference(own & ~other, other & ~own, codes),
        gained=gained,
        lost=lost,
        p=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        deficit=difference(floor & ~own, own & ~floor, codes),
    )
