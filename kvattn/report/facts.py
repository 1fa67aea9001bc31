"""What a report is made of: a run's tables, its methods in display order, and what its content test allows to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.store import Run

Column = Literal["choice", "choice_calibrated"]

# The rungs from dense down to naive reuse, each with the one change that leads to it.
RUNGS: dict[str, str] = {
    "dense": "",
    "true-mask": "no sight of each other",
    "isolated": "made apart, moved",
    "isolated(labelled=False)": "label not bound",
    "naive(headers=isolated)": "agents' context",
    "naive": "headers link again",
}

# Coverage under this: the judge would rather have said something else than a label.
LEAST_COVERAGE = 0.5
# More than this share of picks in one slot: the judge is locked to it.
LOCKED = 0.8


@dataclass
class Facts:
    """A run, read once. Raises KvattnError for a run without a finished question, or without dense judgements."""

    run: Run

    def __post_init__(self) -> None:
        self.manifest = self.run.manifest
        self.judgements: Any = self.run.judgements()
        self.questions: Any = self.run.questions()
        if self.judgements.empty:
            raise KvattnError(f"{self.run.folder} has no finished question yet; run its study first")
        if "dense" not in set(self.judgements["method"]):
            raise KvattnError(f"{self.run.folder} has no dense judgements, which all others are compared with")

    @cached_property
    def methods(self) -> list[str]:
        """Methods that were run, in the manifest's order, dense first."""
        known = [m["name"] for m in self.manifest.get("methods", []) if isinstance(m, dict) and "name" in m]
        ran = list(dict.fromkeys(self.judgements["method"]))
        ordered = [m for m in known if m in ran] + [m for m in ran if m not in known]
        return sorted(ordered, key=lambda m: m != "dense")

    @property
    def others(self) -> list[str]:
        """The methods but dense."""
        return self.methods[1:]

    @cached_property
    def calibrated(self) -> bool:
        """Whether every judgement has a calibrated choice beside the raw one."""
        return bool(self.judgements["choice_calibrated"].notna().all())

    @property
    def columns(self) -> list[Column]:
        """The choice columns that can be evaluated."""
        return ["choice", "choice_calibrated"] if self.calibrated else ["choice"]

    @property
    def orders(self) -> int:
        """The largest number of orders of a question."""
        dense = self.judgements[self.judgements["method"] == "dense"]
        return int(dense.groupby("question_id").size().max())

    def test(self, column: Column) -> dict[str, Any] | None:
        """The content test of that column's choices, as it stands in the manifest, or None."""
        tests = self.manifest.get("content_test") or {}
        return tests.get("calibrated" if column == "choice_calibrated" else "raw")

    def meaningless(self, column: Column) -> str | None:
        """Why JCR says nothing about these choices, or None where it may be read."""
        test = self.test(column)
        if test is None or test.get("verdict") != "fails":
            return None
        return "the judge failed the content test, so it has no consistency to lose"

    @cached_property
    def query(self) -> str | None:
        """The query token whose rows are shown: the last prompt token where it was captured."""
        found = self.run.queries()
        return "last_prompt" if "last_prompt" in found else found[0] if found else None

    def mass(self, by: Sequence[str]) -> Any:
        """Means of slot mass of the query shown, split by these columns."""
        return self.run.mass_means(str(self.query), by)

    def slots(self, by: Sequence[str], view: Any = "raw", sinks: Any = "kept") -> Any:
        """Slot values of a view, split by these columns and slot."""
        return stats.slot_values(self.mass([*by, "name"]), view, sinks)

    def changes(self, by: Sequence[str]) -> Any:
        """Paired change of log mass on each candidate against dense, split by these columns and slot."""
        means = self.mass([*by, "name"])
        means = means[means["name"].str.startswith("candidate:") & (means["method"] != "dense")]
        slot = means["name"].str.removeprefix("candidate:").astype(int)
        return means.assign(slot=slot, value=means["change"]).dropna(subset=["value"])[[*by, "slot", "value"]]

    def head_change(self, method: str, slot: int) -> stats.MassChange | None:
        """The paired change of slot mass against dense head by head, with corrected p-values; slot from 1. None where
        no pair was captured, or not every question with all its heads."""
        table: Any = self.run.sql(
            "SELECT question_id, layer, head, change_sum / pairs AS value, pairs FROM sums WHERE query = ? "
            "AND method = ? AND name = ? AND pairs > 0 ORDER BY question_id, layer, head",
            [str(self.query), method, f"candidate:{slot}"],
        )
        if table.empty:
            return None
        shape = (table["question_id"].nunique(), int(table["layer"].max()) + 1, int(table["head"].max()) + 1)
        if len(table) != np.prod(shape):
            return None
        pairs = int(table.groupby("question_id")["pairs"].first().sum())
        return stats.mass_change(table["value"].to_numpy().reshape(shape), pairs)

    def rungs(self) -> dict[str, str]:
        """The rungs of the ladder that were run, with what leads to each."""
        found = {name: step for name, step in RUNGS.items() if name in self.methods}
        if "naive" in found and "naive(headers=isolated)" not in found:
            found["naive"] = RUNGS["naive(headers=isolated)"]
        return found

    def candidate(self, question_id: str) -> dict[str, Any]:
        """The questions row of a question, as plain values."""
        return self._by_id[question_id]

    @cached_property
    def _by_id(self) -> dict[str, dict[str, Any]]:
        return {str(row["question_id"]): row for row in self.questions.to_dict("records")}


def in_order(table: pd.DataFrame, methods: Sequence[str]) -> Any:
    """The rows of a table with a method column, in the order of `methods`; other methods are left out."""
    frame: Any = table
    rank = {m: i for i, m in enumerate(methods)}
    known = frame[frame["method"].isin(rank)]
    return known.assign(_rank=known["method"].map(rank)).sort_values("_rank", kind="stable").drop(columns="_rank")


def verdict_words(test: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """What a content test says of "raw" or "calibrated" choices: passes, fails or unsure; a sentence; advice."""
    looks = {"passes": "passes", "fails": "fails"}.get(test["verdict"], "unsure")
    head = {
        "passes": f"Content test passed ({kind} choices): the judge reads its candidates.",
        "fails": f"Content test failed ({kind} choices): nothing shows that the judge reads its candidates.",
    }.get(test["verdict"], f"Content test undecided ({kind} choices).")
    advice = {
        "passes": "Its consistency with dense means something.",
        "fails": "A judge that does not read has no consistency to lose. Its JCR is not meaningful and is shown "
        "greyed out: it tells how often two slot habits coincide.",
    }.get(test["verdict"], "Read the JCR below with care: it may only tell how often two slot habits coincide.")
    return looks, head, advice
