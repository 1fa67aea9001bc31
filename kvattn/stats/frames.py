"""DataFrames that statistics are made of: questions, and judgements that were checked against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.questions.answers import final_answer
from kvattn.questions.prompt import contents

Column = Literal["choice", "choice_calibrated"]

# A pd.DataFrame inside this package: by pandas' annotations every selection is a union with Series and arrays.
Table = Any

# For each choice column, the columns of the slot and of the scores that belong to it.
_BESIDE = {"choice": ("slot", "scores"), "choice_calibrated": ("slot_calibrated", "calibrated")}


@dataclass(frozen=True)
class Question:
    """A row of the questions table, ready for lookups.

    content:  [candidates], the index of the first candidate with the same text: equal numbers are the same choice
    corrects: [candidates], 1 right, 0 wrong, NaN unknown
    lengths:  [candidates], in tokens, or in characters where the table has no token counts
    """

    id: str
    ids: tuple[str, ...]
    agents: tuple[str | None, ...]
    texts: tuple[str, ...]
    template: str
    content: np.ndarray
    corrects: np.ndarray
    lengths: np.ndarray

    @property
    def n(self) -> int:
        return len(self.ids)

    @cached_property
    def answers(self) -> tuple[str | None, ...]:
        """[candidates], the final answers that the texts state."""
        return tuple(final_answer(t, self.template) for t in self.texts)

    @property
    def votes(self) -> Counter[str]:
        """How many candidates state each answer."""
        return Counter(a for a in self.answers if a is not None)

    @property
    def labelled(self) -> bool:
        """Whether every candidate is known to be right or wrong."""
        return not np.isnan(self.corrects).any()


def read_questions(questions: pd.DataFrame) -> dict[str, Question]:
    """The questions by id. Raises KvattnError for a missing column or an id that stands there twice."""
    need(questions, "questions", ("question_id", "candidate_ids", "texts"))
    out: dict[str, Question] = {}
    for row in questions.to_dict("records"):
        key = row["question_id"]
        ids, texts, agents, corrects, lengths = (
            _items(row.get(name)) for name in ("candidate_ids", "texts", "agents", "corrects", "lengths")
        )
        if key in out:
            raise KvattnError(f"question {key!r} stands twice in the questions table; give each question once")
        n = len(ids)
        for name, items in (("texts", texts), ("agents", agents), ("corrects", corrects), ("lengths", lengths)):
            if len(items) != n and (items or name == "texts"):
                raise KvattnError(f"question {key!r} has {n} candidates but {len(items)} {name}")
        counted = bool(lengths) and all(x is not None and x > 0 for x in lengths)
        out[key] = Question(
            id=key,
            ids=ids,
            agents=agents or (None,) * n,
            texts=texts,
            template=row.get("template") or "math",
            content=np.array(contents(texts), dtype=int),
            corrects=np.array([_flag(c) for c in corrects or (None,) * n], dtype=float),
            lengths=np.array(lengths if counted else [len(t) for t in texts], dtype=float),
        )
    return out


def read_judgements(judgements: Table, known: dict[str, Question], column: Column) -> Table:
    """The judgements in one form, whichever `column` the decisions stand in.

    Columns: question_id, order (tuple), method, slot, scores ([slots]). A written verdict that names no candidate has
    slot -1.

    Raises KvattnError for: missing columns or decisions, several readouts in one table, the same (question, order,
    method) twice, a question that is not in `known`, or a choice that is not the candidate the order shows in its slot.
    """
    if column not in _BESIDE:
        raise KvattnError(f"column {column!r} holds no choices; use 'choice' or 'choice_calibrated'")
    slot_column, score_column = _BESIDE[column]
    need(judgements, "judgements", ("question_id", "order", "method", column, slot_column, score_column))
    written = "readout" in judgements and (judgements["readout"] == "generate").all() and column == "choice"
    if judgements[column].isna().any() and not written:
        missing = int(judgements[column].isna().sum())
        raise KvattnError(f"{missing} of {len(judgements)} judgements have no {column!r}; calibrate, or use 'choice'")
    if "readout" in judgements and judgements["readout"].nunique() > 1:
        names = ", ".join(sorted(judgements["readout"].unique()))
        raise KvattnError(f"the judgements hold several readouts ({names}); choose the rows of one")
    columns = ["question_id", "order", "method", column, slot_column, score_column]
    rows = [_judgement(known, *values) for values in zip(*(judgements[c] for c in columns), strict=True)]
    frame: Table = pd.DataFrame(rows, columns=["question_id", "order", "method", "slot", "scores"])
    twice = frame.duplicated(["question_id", "order", "method"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise KvattnError(
            f"method {row['method']!r} judged question {row['question_id']!r} twice in order {list(row['order'])}; "
            "give one run's judgements at a time"
        )
    return frame


def clusters(question_ids: Iterable[Any]) -> tuple[np.ndarray, int]:
    """For each row the number of its question, 0..Q-1, and Q."""
    codes, names = pd.factorize(np.asarray(list(question_ids), dtype=object))
    return codes, len(names)


def _judgement(
    known: dict[str, Question], key: str, order: Any, method: str, choice: Any, slot: Any, scores: Any
) -> tuple[Any, ...]:
    if key not in known:
        raise KvattnError(f"question {key!r} was judged but is not in the questions table; give the run's own table")
    q, shown = known[key], tuple(int(i) for i in order)
    s = -1 if pd.isna(choice) else int(slot)
    if sorted(shown) != list(range(q.n)):
        raise KvattnError(f"question {key!r}: order {list(shown)} is no permutation of its {q.n} candidates")
    if s != -1 and (not 0 <= s < q.n or q.ids[shown[s]] != choice):
        raise KvattnError(
            f"question {key!r}, method {method!r}: the choice {choice!r} does not stand in slot {s} (from 0) of order "
            f"{list(shown)}; judgements and questions do not belong together"
        )
    values = np.asarray(scores, dtype=float)
    if values.shape != (q.n,):
        raise KvattnError(f"question {key!r}, method {method!r}: {values.size} scores for {q.n} candidates")
    return key, shown, method, s, values


def one_hot(slots: Any, n: int) -> np.ndarray:
    """[rows, n], 1 where a row's slot is; a row without a choice (-1) is all 0."""
    return (np.asarray(slots)[:, None] == np.arange(n)).astype(float)


def _flag(value: Any) -> float:
    return np.nan if value is None or value is pd.NA or value != value else float(bool(value))


def _items(value: Any) -> tuple[Any, ...]:
    """A list cell's items, None for missing ones (DuckDB gives lists with gaps as masked arrays); () for no list."""
    if isinstance(value, np.ma.MaskedArray):
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else ()


def need(frame: pd.DataFrame, name: str, columns: Iterable[str]) -> None:
    """Raises KvattnError for a missing column."""
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise KvattnError(f"the {name} table lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
