"""Whether verdicts drifted between two runs: a gate for continuous integration.

The flips of a run against a baseline's dense are set beside those of the baseline's own null edit, question by
question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kvattn.decision import ties as has_ties
from kvattn.errors import KvattnError
from kvattn.questions.labels import is_floor
from kvattn.stats.chance import agreement
from kvattn.stats.graded import graded
from kvattn.stats.intervals import Estimate, difference, mean
from kvattn.stats.pairs import Pairs, Picks, read_pairs
from kvattn.stats.resampling import exact_sum_p, per_question
from kvattn.stats.split import split
from kvattn.study.run_folder import Run, picks
from kvattn.text import between, percent

ALPHA = 0.05
MOST = 0.05  # flips beyond the floor that pass, where nobody says how many
_RUN = "the run"
_LOCKED = 0.9  # a method that picks one slot so often is said to
_ASKED = ["question", "candidate_ids", "texts"]


@dataclass(frozen=True)
class Drift:
    """A run's verdicts beside a baseline's, on the same questions in the same orders.

    flips, floor_flips: share of pairs with another pick than the baseline's; of its null edit, 0 where none was run
    excess:  flips beyond the floor's, with an interval over questions
    p:       exact, one-sided: so much beyond the floor where run and null edit are exchangeable in each question
    points:  of the readout "score": by how many points scores move beyond the floor's, the mean absolute difference,
             with its interval over questions; None for others. max_points: how many are allowed, None for any
    """

    method: str
    reference: str
    floor: str | None
    pairs: int
    questions: int
    flips: float
    floor_flips: float
    excess: Estimate
    p: float
    max_flips: float
    why: str
    points: Estimate | None = None
    max_points: float | None = None

    @property
    def passed(self) -> bool:
        """Whether no more than `max_flips` lie beyond the floor, or no more than chance explains (p > 0.05); and
        whether scores may move by no more than `max_points` (the interval's low end)."""
        moved = self.points is not None and self.max_points is not None and self.points.low > self.max_points
        return not moved and (self.excess.value <= self.max_flips or self.p > ALPHA)

    @property
    def p_text(self) -> str:
        """The p for people: "= 0.0312", or "< 0.0001"."""
        return "< 0.0001" if self.p < 1e-4 else f"= {self.p:.4f}"

    @property
    def sentence(self) -> str:
        """What was found, in one line."""
        beside = f"{percent(self.floor_flips)} under {self.floor}" if self.floor else "no null edit beside it"
        x = self.excess
        bounds = between(x.low, x.high, 1, True, "interval unknown")
        return (
            f"{self.method} beside the baseline's {self.reference}: {percent(self.flips)} of {self.pairs} verdicts on "
            f"{self.questions} questions flip, {beside}; {percent(x.value)} beyond it ({bounds}), "
            f"{percent(self.max_flips)} allowed; exact p {self.p_text}{self._moved}"
        )

    @property
    def _moved(self) -> str:
        x = self.points
        if x is None or self.max_points is None:
            return ""
        bounds = between(x.low, x.high, 2, False, "interval unknown")
        return f"; scores move by {x.value:.2f} points beyond it ({bounds}), {self.max_points:g} allowed"


def drift(
    baseline: Run,
    run: Run,
    max_flips: float = MOST,
    method: str | None = None,
    reference: str = "dense",
    max_points: float | None = None,
) -> Drift:
    """A run's drift. `method`: whose verdicts of the run count (default: its one method beside dense and null edits, or
    dense where there is no other).

    Raises KvattnError for runs that did not judge the same texts in the same orders by the same readout, for a method
    that was not run, and where it has to be named."""
    if not 0 <= max_flips <= 1:
        raise KvattnError(f"the flips that are allowed are a share from 0% to 100%, not {max_flips:.40}")
    readout = str(baseline.manifest.get("readout"))
    if max_points is not None and (readout != "score" or not max_points >= 0):
        raise KvattnError(f"the points that scores may move, {max_points}, are of the readout score, and 0 or more")
    chosen = _method(run, method)
    if reference not in picks.methods(baseline):
        raise KvattnError(f"{baseline.folder} has no judgements by {reference!r}; judge it with that method")
    _same(baseline, run)
    judged, questions = baseline.judgements(), baseline.questions()
    own: Any = run.judgements()
    own = own[(own["method"] == chosen) & own["question_id"].isin(set(questions["question_id"]))]
    floors = [m for m in picks.methods(baseline) if is_floor(m) and m != reference]
    table: Any = pd.concat([judged[judged["method"].isin([reference, *floors])], own.assign(method=_RUN)])
    floor = max(floors, key=lambda m: _flips(table, questions, m, reference)) if floors else None
    found = [
        read_pairs(part, questions, _RUN, reference, floor)
        for _, part in table.groupby(table["order"].map(len), sort=True)
    ]
    flips, beyond, codes = (np.concatenate(x) for x in zip(*map(_counted, found), strict=True))
    names, codes = np.unique(codes, return_inverse=True)
    return Drift(
        method=chosen,
        reference=reference,
        floor=floor,
        pairs=len(flips),
        questions=len(names),
        flips=float(flips.mean()),
        floor_flips=float(beyond.mean()),
        excess=difference(flips & ~beyond, beyond & ~flips, codes),
        p=exact_sum_p(per_question(flips.astype(int) - beyond, codes, len(names))),
        max_flips=max_flips,
        why=_why(found, readout),
        points=_points([f for f in found if isinstance(f, Pairs)]) if readout == "score" else None,
        max_points=max_points,
    )


def _method(run: Run, method: str | None) -> str:
    known = picks.methods(run)
    if method is not None:
        if method not in known:
            raise KvattnError(f"{run.folder} has no judgements by {method!r}; it has {', '.join(known)}")
        return method
    others = [m for m in known if m != "dense" and not is_floor(m)]
    if len(others) > 1 or not known:
        raise KvattnError(f"{run.folder} has several methods, {', '.join(others)}; say which one (--method)")
    return others[0] if others else known[0]


def _same(baseline: Run, run: Run) -> None:
    """Raises KvattnError where the runs cannot be held against each other."""
    for it in (baseline, run):
        if not len(it):
            raise KvattnError(f"{it.folder} has no finished question yet; the command that began it continues it")
    readouts = [it.manifest.get("readout") for it in (baseline, run)]
    if readouts[0] != readouts[1]:
        raise KvattnError(
            f"{run.folder} was read by {readouts[1]}, {baseline.folder} by {readouts[0]}; take one readout"
        )
    there, here = (it.questions().set_index("question_id")[_ASKED] for it in (baseline, run))
    missing = [k for k in there.index if k not in here.index]
    if missing:
        raise KvattnError(
            f"{run.folder} lacks {len(missing)} of the baseline's {len(there)} questions, such as {missing[0]!r}; "
            "judge them, too: a verdict that is missing is none that holds"
        )
    for key, row in there.iterrows():
        if any(_plain(row[c]) != _plain(here.loc[key, c]) for c in _ASKED):
            raise KvattnError(
                f"question {key!r} says something else in {run.folder} than in {baseline.folder}; judge the same texts"
            )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else list(value)


def _flips(table: Any, questions: pd.DataFrame, method: str, reference: str) -> float:
    rows = table[table["method"].isin([method, reference])]
    parts = [read_pairs(p, questions, method, reference, None) for _, p in rows.groupby(rows["order"].map(len))]
    return float(np.concatenate([_counted(p)[0] for p in parts]).mean())


def _counted(found: Pairs | Picks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[pairs] each: whether the run flips, whether the null edit does, and the question."""
    it = found.picks
    flips = ~agreement(it.dense, it.method, it.classes)
    floor = np.zeros(len(flips), dtype=bool) if it.floor is None else ~agreement(it.dense, it.floor, it.classes)
    return flips, floor, found.questions


def _why(found: list[Pairs | Picks], readout: str) -> str:
    """In one line, what the flips are of: near ties, a lock, a shift of whole slots, content that is lost; and what a
    kind of judgement has beside flips."""
    picked = np.concatenate([f.picks.method for f in found])
    flips = sum(int(_counted(f)[0].sum()) for f in found)
    said = _of_kind(found, readout)
    if not flips:
        return "; ".join(["no verdict flips", *said])
    slot, often = max(((s, float((picked == s).mean())) for s in np.unique(picked)), key=lambda x: x[1])
    if often > _LOCKED and slot >= 0:
        said.append(f"slot {slot + 1} is picked in {percent(often, 0)}: locked")
    pairs = found[0]
    if has_ties(readout):
        return "; ".join(said)
    if len(found) > 1 or not isinstance(pairs, Pairs):
        return "; ".join([*said, "written verdicts, or several numbers of candidates, are not taken apart"])
    if pairs.floor is not None:
        ties = graded(pairs)["flips_tied"].value * len(pairs.dense)
        said.append(f"{ties:.0f} of {flips} flips are ties (within the null edit's noise)")
    try:
        parts = split(pairs)
    except KvattnError as error:
        return "; ".join([*said, str(error)])
    said.append(f"{percent(parts.shift_loss.value)} are a shift of whole slots")
    if pairs.floor is not None:
        said.append(f"{percent(parts.content_loss.value)} lost content")
    return "; ".join(said)


def _points(found: list[Pairs]) -> Estimate:
    """By how many points scores move beyond the floor's, over questions."""
    values = np.concatenate([_distance(f.method, f) - (0 if f.floor is None else _distance(f.floor, f)) for f in found])
    names, codes = np.unique(np.concatenate([f.questions for f in found]), return_inverse=True)
    sums, rows = (per_question(x, codes, len(names)) for x in (values, np.ones(len(values))))
    return mean(sums, rows, (0.0, 0.0))


def _distance(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    return np.abs(scores - pairs.dense).mean(1)


def _of_kind(found: list[Pairs | Picks], readout: str) -> list[str]:
    """Which verdicts the flips of pairs are between; how far scores move, and how alike they rank."""
    said = []
    for pairs in (f for f in found if isinstance(f, Pairs) and readout in ("score", "pairwise")):
        grades = graded(pairs)
        if readout == "pairwise":
            side, tied = (percent(grades[k].value) for k in ("flips_side", "flips_tie"))
            said.append(f"{side} flip from one candidate to the other, {tied} into or out of a tie")
        else:
            x, tau = grades["points"], grades["tau"]
            bounds = between(x.low, x.high, 2, False, "interval unknown")
            beside = f", {x.floor:.2f} under the null edit" if pairs.floor is not None else ""
            said.append(f"scores move by {x.value:.2f} points ({bounds}){beside}; tau {tau.value:.2f}")
    return said
