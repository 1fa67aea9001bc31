"""What a report is made of: a run, its methods in display order, and its choices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pandas as pd

from kvattn import stats
from kvattn.stats.picks import RAW, Scope
from kvattn.study.run_folder import mass, picks
from kvattn.study.run_folder.reader import Run
from kvattn.study.run_folder.side_by_side import first_query, measured, need_dense

# The rungs from dense's noise floor down to naive reuse, each with the one change that leads to it.
RUNGS: dict[str, str] = {
    "null-edit": "",
    "true-mask": "no sight of each other",
    "isolated": "made apart, moved",
    "isolated(labelled=False)": "label not bound",
    "naive-linked(headers=isolated)": "agents' context",
    "naive-linked": "headers link again",
    "naive": "template and question kept, too",
}


class Facts:
    """A run, as its report asks for it. Raises KvattnError for one without a finished question or dense judgements."""

    def __init__(self, run: Run) -> None:
        need_dense(run)
        self.run, self.manifest = run, run.manifest
        self.size = picks.size(run)
        self.methods = picks.methods(run)
        self.others = self.methods[1:]
        self.query = first_query(run)

    @property
    def calibrated(self) -> bool:
        """Whether every judgement has a calibrated choice beside the raw one."""
        return self.size["calibrated"]

    @property
    def scopes(self) -> list[Scope]:
        """The choices that can be evaluated: raw ones, and calibrated ones where there are."""
        return [RAW, Scope(calibrated=True)] if self.calibrated else [RAW]

    def meaningless(self, scope: Scope = RAW) -> str | None:
        """Why JCR says nothing about these choices, or None where it may be read."""
        return picks.meaningless(self.run, scope.calibrated)

    def slots(self, by: Sequence[str], view: Any = "raw", sinks: Any = "kept") -> Any:
        """Slot values of a view, split by these columns and slot."""
        return stats.slot_values(self.run.mass_means(str(self.query), [*by, "name"]), view, sinks)

    def changes(self, by: Sequence[str]) -> Any:
        """Paired change of log mass on each candidate against dense, split by these columns and slot."""
        return mass.changes(self.run, str(self.query), by)

    def rungs(self) -> dict[str, str]:
        """The rungs of the ladder that were run, with what leads to each."""
        found = {name: step for name, step in RUNGS.items() if name in self.methods}
        if "naive-linked" in found and "naive-linked(headers=isolated)" not in found:
            found["naive-linked"] = RUNGS["naive-linked(headers=isolated)"]
        return found

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every measure of every method (`measured`)."""
        return measured(self.run)

    @cached_property
    def questions(self) -> dict[str, dict[str, Any]]:
        """The rows of the questions table by id."""
        return {str(row["question_id"]): row for row in self.run.questions().to_dict("records")}


def kind(scope: Scope) -> str:
    """What these choices are called."""
    return "calibrated" if scope.calibrated else "raw"


def in_order(table: pd.DataFrame, methods: Sequence[str]) -> Any:
    """The rows of a table with a method column, in the order of `methods`; other methods are left out."""
    frame: Any = table
    rank = {m: i for i, m in enumerate(methods)}
    known = frame[frame["method"].isin(rank)]
    return known.assign(_rank=known["method"].map(rank)).sort_values("_rank", kind="stable").drop(columns="_rank")
