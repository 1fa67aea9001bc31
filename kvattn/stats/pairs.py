"""What the measures of loss are made of: a method's scores beside dense's, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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
    lengths:       [pairs, slots], of the texts in tokens or characters, or None

    Raises KvattnError for shapes that do not fit, and for scores that are no numbers.
    """

    dense: np.ndarray
    method: np.ndarray
    questions: np.ndarray
    orders: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    answers: np.ndarray
    floor: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.dense.shape
        if len(shape) != 2 or len(self.questions) != shape[0]:
            raise KvattnError(f"pairs take scores [pairs, slots] and a question for each; got {shape}")
        for name in ("method", "floor", "orders", "classes", "correct", "answers"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise KvattnError(f"pairs: {name} has shape {value.shape} where dense has {shape}")
            if value is not None and name in ("method", "floor") and not np.isfinite(value).all():
                raise KvattnError(f"pairs: {name} has scores that are no numbers; their picks alone can be compared")
        if not np.isfinite(self.dense).all():
            raise KvattnError("pairs: dense has scores that are no numbers; their picks alone can be compared")

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
        slots = {
            k: None if v is None else v.argmax(1)
            for k, v in (("dense", self.dense), ("method", self.method), ("floor", self.floor))
        }
        return Picks(**slots, **{k: getattr(self, k) for k in ("questions", "classes", "answers", "correct")})

    @property
    def of_floor(self) -> Pairs | None:
        """The null edit in the method's place."""
        return None if self.floor is None else replace(self, method=self.floor, floor=None)


@dataclass(frozen=True)
class Picks:
    """The slots that dense, a method and the null edit choose, [pairs] from 0, -1 where a written verdict names none;
    the rest as in `Pairs`."""

    dense: np.ndarray
    method: np.ndarray
    questions: np.ndarray
    classes: np.ndarray
    answers: np.ndarray
    correct: np.ndarray
    floor: np.ndarray | None = None

    @property
    def picks(self) -> Picks:
        """Itself."""
        return self

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
) -> Pairs | Picks:
    """A run's judgements of one method beside the reference's and the floor's (None where it was not run); of written
    verdicts, whose choice is no matter of scores, the picks alone.

    Raises KvattnError where a pair lacks the reference's or the floor's judgement, or pairs have different numbers of
    candidates.
    """
    table: Any = judgements
    raw = column == "choice"
    written = raw and "readout" in table and bool(table["readout"].eq("generate").all())
    values = table["slot" if written else "scores" if raw else "calibrated"]
    by_pair: dict[str, dict[tuple[str, tuple[int, ...]], Any]] = {m: {} for m in (method, reference, floor) if m}
    for key, order, m, value in zip(*(table[c] for c in ("question_id", "order", "method")), values, strict=True):
        if m in by_pair:
            by_pair[m][key, tuple(int(i) for i in order)] = value
    pairs = list(by_pair[method])
    if not pairs:
        names = ", ".join(sorted(set(table["method"])))
        raise KvattnError(f"the judgements have no method {method!r}; there are: {names}")
    if len({len(order) for _, order in pairs}) > 1:
        raise KvattnError("the pairs have different numbers of candidates; give those of one number at a time")
    rows: dict[str, Any] = {}
    for role, m in {
        "dense": reference,
        "method": method,
        **({"floor": floor} if floor and by_pair[floor] else {}),
    }.items():
        absent = [p for p in pairs if p not in by_pair[m]]
        if absent:
            key, order = absent[0]
            raise KvattnError(
                f"{m!r} did not judge question {key!r} in order {list(order)}, but {method!r} did; judge both in the "
                f"same orders ({len(absent)} such rows)"
            )
        found = [by_pair[m][p] for p in pairs]
        rows[role] = (
            np.array([-1 if pd.isna(v) else int(v) for v in found]) if written else np.array(found, dtype=float)
        )
    shown = contents(pairs, read_questions(questions))
    left_out = ("orders", "lengths") if written else ()
    return (Picks if written else Pairs)(**rows, **{k: v for k, v in shown.items() if k not in left_out})


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
