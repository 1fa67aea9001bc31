"""What the measures of loss are made of: a method's scores beside dense's, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column, Question, clusters, read_questions


@dataclass(frozen=True)
class Pairs:
    """A method and dense on the same (question, order) pairs, by slot; all with the same number of candidates.

    dense, method: [pairs, slots], scores in nats
    questions:     [pairs], what tells the questions apart
    orders:        [pairs, slots], the candidate that each slot shows
    classes:       [pairs, slots], equal numbers are equal texts, the same choice; one numbering for all orders of a
                   question
    floor:         [pairs, slots], scores of the null edit, or None where none was run
    correct:       [pairs, slots], 1 right, 0 wrong, NaN unknown
    answers:       [pairs, slots], equal numbers state the same final answer; equal texts do

    Raises KvattnError for shapes that do not fit, or scores that are no numbers (written verdicts have none: `Picks`).
    """

    dense: np.ndarray
    method: np.ndarray
    questions: np.ndarray
    orders: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    answers: np.ndarray
    floor: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.dense.shape
        if len(shape) != 2 or len(self.questions) != shape[0]:
            raise KvattnError(f"pairs take scores [pairs, slots] and a question for each; got {shape}")
        for name in ("method", "floor", "orders", "classes", "correct", "answers"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise KvattnError(f"pairs: {name} has shape {value.shape} where dense has {shape}")
            if value is not None and name in ("method", "floor") and not np.isfinite(value).all():
                raise KvattnError(f"pairs: {name} has scores that are no numbers; compare its picks alone")
        if not np.isfinite(self.dense).all():
            raise KvattnError("pairs: dense has scores that are no numbers; compare its picks alone")

    @cached_property
    def codes(self) -> np.ndarray:
        """[pairs], the questions' numbers, 0.."""
        return clusters(self.questions)[0]

    @property
    def count(self) -> int:
        """Number of questions."""
        return int(self.codes.max()) + 1 if len(self.codes) else 0

    @cached_property
    def same(self) -> np.ndarray:
        """[pairs, slots, slots], whether two slots show equal texts."""
        return together(self.classes)

    @property
    def picks(self) -> Picks:
        """Their picks alone."""
        floor = None if self.floor is None else self.floor.argmax(1)
        return Picks(self.dense.argmax(1), self.method.argmax(1), self.questions, self.classes, self.answers, floor)

    @property
    def of_floor(self) -> Pairs | None:
        """The null edit in the method's place."""
        return None if self.floor is None else replace(self, method=self.floor, floor=None)


@dataclass(frozen=True)
class Picks:
    """The slots that dense, a method and the null edit choose, [pairs] from 0, -1 where a written verdict names none;
    questions, classes and answers as in `Pairs`."""

    dense: np.ndarray
    method: np.ndarray
    questions: np.ndarray
    classes: np.ndarray
    answers: np.ndarray
    floor: np.ndarray | None = None

    @cached_property
    def codes(self) -> np.ndarray:
        """[pairs], the questions' numbers, 0.."""
        return clusters(self.questions)[0]


def together(classes: np.ndarray) -> np.ndarray:
    """[pairs, slots, slots], whether two slots of a pair are of one class; classes: [pairs, slots]."""
    return classes[:, :, None] == classes[:, None, :]


def read_pairs(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    method: str,
    reference: str = "dense",
    floor: str | None = "null-edit",
    column: Column = "choice",
) -> Pairs:
    """A run's judgements of one method beside the reference's and the floor's (None where it was not run).

    Raises KvattnError where a pair lacks the reference's or the floor's judgement, or pairs have different numbers of
    candidates.
    """
    name = "scores" if column == "choice" else "calibrated"
    rows, known = _aligned(judgements, questions, method, reference, floor, name)
    scores = {m: np.stack([np.asarray(v, dtype=float) for v in values]) for m, values in rows.items() if m != "order"}
    rest = {k: v for k, v in contents(rows["order"], known).items() if k != "lengths"}
    return Pairs(dense=scores["dense"], method=scores["method"], floor=scores.get("floor"), **rest)


def read_picks(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    method: str,
    reference: str = "dense",
    floor: str | None = "null-edit",
    column: Column = "choice",
) -> Picks:
    """`read_pairs` of the choices alone, which written verdicts have too."""
    name = "slot" if column == "choice" else "slot_calibrated"
    rows, known = _aligned(judgements, questions, method, reference, floor, name)
    slots = {m: np.array([-1 if pd.isna(v) else int(v) for v in values]) for m, values in rows.items() if m != "order"}
    rest = {k: v for k, v in contents(rows["order"], known).items() if k not in ("orders", "correct", "lengths")}
    return Picks(dense=slots["dense"], method=slots["method"], floor=slots.get("floor"), **rest)


def _aligned(
    judgements: pd.DataFrame, questions: pd.DataFrame, method: str, reference: str, floor: str | None, name: str
) -> tuple[dict[str, list], dict[str, Question]]:
    """Values of the column `name` of dense, method and floor on the method's pairs, and those (question, order)."""
    by_pair: dict[str, dict] = {m: {} for m in (method, reference, floor) if m is not None}
    for key, order, m, value in zip(*(judgements[c] for c in ("question_id", "order", "method", name)), strict=True):
        if m in by_pair:
            by_pair[m][key, tuple(int(i) for i in order)] = value
    pairs = list(by_pair[method])
    if not pairs:
        names = ", ".join(sorted(set(judgements["method"])))
        raise KvattnError(f"the judgements have no method {method!r}; there are: {names}")
    if len({len(order) for _, order in pairs}) > 1:
        raise KvattnError("the pairs have different numbers of candidates; give those of one number at a time")
    names = {"dense": reference, "method": method, **({"floor": floor} if floor and by_pair[floor] else {})}
    for m in names.values():
        absent = [p for p in pairs if p not in by_pair[m]]
        if absent:
            key, order = absent[0]
            raise KvattnError(
                f"{m!r} did not judge question {key!r} in order {list(order)}, but {method!r} did; judge both in the "
                f"same orders ({len(absent)} such rows)"
            )
    rows = {role: [by_pair[m][p] for p in pairs] for role, m in names.items()}
    return {**rows, "order": pairs}, read_questions(questions)


def contents(pairs: list[tuple[str, tuple[int, ...]]], known: dict[str, Question]) -> dict[str, np.ndarray]:
    """questions, and by slot orders, classes, correct, answers (as in `Pairs`) and lengths of (question id, order)
    pairs; -1 and NaN past a question's last candidate."""
    most = max((len(order) for _, order in pairs), default=0)
    answers = {k: _answer_classes(known[k]) for k, _ in pairs}

    def by_slot(of: Callable[[str], np.ndarray], fill: float, kind: type) -> np.ndarray:
        rows = [[*of(k)[list(order)], *[fill] * (most - len(order))] for k, order in pairs]
        return np.array(rows, dtype=kind).reshape(len(pairs), most)

    return {
        "questions": np.array([k for k, _ in pairs], dtype=object),
        "orders": by_slot(lambda k: np.arange(known[k].n), -1, int),
        "classes": by_slot(lambda k: known[k].content, -1, int),
        "correct": by_slot(lambda k: known[k].corrects, np.nan, float),
        "answers": by_slot(lambda k: answers[k], -1, int),
        "lengths": by_slot(lambda k: known[k].lengths, np.nan, float),
    }


def _answer_classes(q: Question) -> np.ndarray:
    """[candidates], the first candidate with the same final answer; one without an answer goes with its text alone."""
    first: dict[object, int] = {}
    keys = [(a,) if a is not None else int(c) for a, c in zip(q.answers, q.content, strict=True)]
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)])
