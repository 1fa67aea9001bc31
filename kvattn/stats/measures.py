"""The study table: what each method loses against dense, every measure with its interval and the null edit's value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats import graded as grades
from kvattn.stats.agreement import FLOORS, is_named
from kvattn.stats.chance import DRAWS, Against, against, agreement
from kvattn.stats.frames import Column, clusters
from kvattn.stats.intervals import Estimate, rate
from kvattn.stats.pairs import Pairs, read_pairs
from kvattn.stats.resampling import USUAL, Resampling, holm, per_question, sign_flip_p
from kvattn.stats.split import Split, split

PRIMARY = "excess"
"""The one measure whose tests are confirmatory: flips beyond the null edit's, paired, one test a method, `p_excess`
corrected for their number. Every other p and interval is exploratory."""

AGREEMENT = tuple(k for k, kind in Against.__annotations__.items() if kind == "Estimate")
SPLIT = tuple(k for k, kind in Split.__annotations__.items() if kind == "Estimate" and k not in AGREEMENT)
OWN = ("own_answer", "own_answer_dense")

MEASURES = (*AGREEMENT, *SPLIT, *grades.NAMES, *OWN)
"""The measures, in the order of their columns: of `kvattn.stats.chance.Against`, `split.Split` and `graded.graded`, and
the accuracy of the final answer that the judge itself wrote, the method's and dense's (written verdicts alone)."""


def measures(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    floors: Sequence[str] = FLOORS,
    how: Resampling = USUAL,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """One row a method, number of candidates, and kind of call (kvcomm mixes reuse and fallback).

    method, calls (its own note, else ""), n (candidates), pairs, questions
    floor_method   the null edit beside which each number stands: of those named by `floors` the one with the lowest JCR
    locked, note   whether slots alone decide its JCR (kappa and score are NaN then); why numbers are missing
    p, p_c         of a JCR, and of one less the method's own offsets, this high when its questions are permuted
    p_excess, p_excess_holm   of the method flipping as often as the null edit: signs of whole questions flipped, and
                   corrected for the number of rows (Holm 1979). The primary family (`PRIMARY`)
    chance_c, offsets         of the split
    NAME, NAME_low, NAME_high, NAME_floor   of every name in `MEASURES`: value, interval over questions, the null edit's

    Offsets need shuffled or cyclic orders and eight questions; what needs offsets is NaN without. Written verdicts have
    picks alone. Raises KvattnError where the reference or the floor was not judged in an order in which a method was.
    """
    others: Any = judgements[judgements["method"] != reference]
    notes = others["notes"] if "notes" in others else [None] * len(others)
    others = others.assign(
        calls=[_call(m, x) for m, x in zip(others["method"], notes, strict=True)],
        n=[len(order) for order in others["order"]],
    )
    rows = []
    for n, same in others.groupby("n", sort=True):
        floor = _floor(judgements, questions, same, reference, column, floors)
        beside: Any = judgements[judgements["method"].isin([reference, floor])]
        for (method, calls), part in same.groupby(["method", "calls"], sort=False):
            both = pd.concat([part, beside[beside["method"] != method]])
            found = read_pairs(both, questions, str(method), reference, floor, column)
            row = {"method": method, "calls": calls, "n": n, "pairs": len(part), "floor_method": floor}
            row |= _row(found, how, draws, str(method) == floor)
            rows.append(row | _own(both, str(method), reference, floor, how))
    ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high", "_floor")]
    columns = ["method", "calls", "n", "pairs", "questions", "floor_method", "locked", "note", "p", "p_c", "p_excess"]
    out = pd.DataFrame(rows, columns=[*columns, "chance_c", "offsets", *ends])
    readouts: Any = judgements.get("readout")
    for readout, names in grades.KINDS.items():
        if readouts is not None and not readouts.eq(readout).any():
            out[[f"{name}{end}" for name in names for end in ("", "_low", "_high", "_floor")]] = np.nan
    out.insert(len(columns), "p_excess_holm", holm(out["p_excess"].to_numpy(dtype=float)))
    return out


def _floor(
    judgements: pd.DataFrame, questions: pd.DataFrame, same: Any, reference: str, column: Column, floors: Sequence[str]
) -> str | None:
    """The null edit with the lowest JCR among the rows of `same`."""
    base: Any = judgements[judgements["method"] == reference]
    found = {}
    for name, part in same.groupby("method", sort=False):
        if is_named(str(name), floors):
            picks = read_pairs(pd.concat([part, base]), questions, str(name), reference, None, column).picks
            found[str(name)] = agreement(picks.dense, picks.method, picks.classes).mean()
    return min(found, key=lambda m: found[m]) if found else None


def _row(found: Any, how: Resampling, draws: int, is_floor: bool) -> dict[str, Any]:
    """Every measure of one method's pairs or picks."""
    picks = found.picks
    beside, values = against(picks, how, draws), {}
    row: dict[str, Any] = {"questions": int(picks.codes.max()) + 1, "locked": beside.locked, "p": beside.p}
    values |= {name: getattr(beside, name) for name in AGREEMENT}
    notes = [beside.note]
    if isinstance(found, Pairs):
        values |= grades.graded(found, how)
        try:
            parts = split(found, how=how, draws=draws)
            values |= {name: getattr(parts, name) for name in SPLIT}
            row |= {"p_c": parts.p, "chance_c": parts.chance_c, "offsets": parts.offsets}
        except KvattnError as error:
            notes.append(str(error))
    if picks.floor is not None and not is_floor:
        row["p_excess"] = _excess_p(picks, how, draws)
    for name, x in values.items():
        row |= _columns(name, x)
    return row | {"note": "; ".join(x for x in notes if x)}


def _excess_p(picks: Any, how: Resampling, draws: int) -> float:
    own, other = (agreement(picks.dense, x, picks.classes) for x in (picks.method, picks.floor))
    difference = other.astype(float) - own
    return sign_flip_p(per_question(difference, picks.codes, int(picks.codes.max()) + 1), draws, how.seed)


def _own(both: Any, method: str, reference: str, floor: str | None, how: Resampling) -> dict[str, float]:
    """Accuracy of the final answers that the judge wrote, where they were stored."""
    if "answer_correct" not in both:
        return {}
    known = both.dropna(subset=["answer_correct"])
    out = {}
    for name, m in zip(OWN, (method, reference), strict=True):
        part, beside = known[known["method"] == m], known[known["method"] == floor]["answer_correct"]
        if len(part):
            codes, _ = clusters(part["question_id"])
            top = float(beside.astype(float).mean()) if len(beside) else np.nan
            out |= _columns(name, rate(part["answer_correct"].astype(float).to_numpy(), codes, top, how))
    return out


def _columns(name: str, x: Estimate) -> dict[str, float]:
    return {name: x.value, f"{name}_low": x.low, f"{name}_high": x.high, f"{name}_floor": x.floor}


def _call(method: str, notes: Sequence[str] | None) -> str:
    """The kind of call that a method's own note names: "kvcomm: reused"."""
    name = method.partition("(")[0]
    return next((x for x in ([] if notes is None else notes) if x.startswith(f"{name}: ")), "")
