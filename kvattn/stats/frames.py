"""The tables that statistics are made of: checked judgements, and pairs of a method and its reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn.decision import margin, softmax
from kvattn.errors import KvattnError
from kvattn.questions.answers import final_answer

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


def read_questions(questions: pd.DataFrame) -> dict[str, Question]:
    """The questions by id. Raises KvattnError for a missing column or an id that stands there twice."""
    _need(questions, "questions", ("question_id", "candidate_ids", "texts"))
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
            ids=ids,
            agents=agents or (None,) * n,
            texts=texts,
            template=row.get("template") or "math",
            content=np.array([texts.index(t) for t in texts], dtype=int),
            corrects=np.array([_flag(c) for c in corrects or (None,) * n], dtype=float),
            lengths=np.array(lengths if counted else [len(t) for t in texts], dtype=float),
        )
    return out


def read_judgements(judgements: Table, known: dict[str, Question], column: Column) -> Table:
    """The judgements in one form, whichever `column` the decisions stand in.

    Columns: question_id, order (tuple), method, n, choice, slot, candidate (index into the question's candidates),
    content (see `Question`), correct (1, 0, NaN), p ([slots], softmax of the scores), margin (best score less second).
    A written verdict that names no candidate has no choice, -1 for slot, candidate and content, and is not correct.

    Raises KvattnError for: missing columns or decisions, several readouts in one table, the same (question, order,
    method) twice, a question that is not in `known`, or a choice that is not the candidate the order shows in its slot.
    """
    if column not in _BESIDE:
        raise KvattnError(f"column {column!r} holds no choices; use 'choice' or 'choice_calibrated'")
    slot_column, score_column = _BESIDE[column]
    _need(judgements, "judgements", ("question_id", "order", "method", column, slot_column, score_column))
    written = "readout" in judgements and (judgements["readout"] == "generate").all() and column == "choice"
    if judgements[column].isna().any() and not written:
        missing = int(judgements[column].isna().sum())
        raise KvattnError(f"{missing} of {len(judgements)} judgements have no {column!r}; calibrate, or use 'choice'")
    if "readout" in judgements and judgements["readout"].nunique() > 1:
        names = ", ".join(sorted(judgements["readout"].unique()))
        raise KvattnError(f"the judgements hold several readouts ({names}); choose the rows of one")
    made = [
        _judgement(known, *values)
        for values in zip(
            *(judgements[c] for c in ("question_id", "order", "method", column, slot_column, score_column)),
            strict=True,
        )
    ]
    columns = ["question_id", "order", "method", "n", "choice", "slot"]
    frame: Table = pd.DataFrame(made, columns=[*columns, "candidate", "content", "correct", "p", "margin"])
    twice = frame.duplicated(["question_id", "order", "method"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise KvattnError(
            f"method {row['method']!r} judged question {row['question_id']!r} twice in order {list(row['order'])}; "
            "give one run's judgements at a time"
        )
    return frame


def paired(
    judgements: pd.DataFrame, questions: pd.DataFrame, reference: str = "dense", column: Column = "choice"
) -> pd.DataFrame:
    """Each judgement of the other methods beside the reference's on the same question in the same order.

    One row per (question_id, order, method), method not the reference:

    n                                     number of candidates
    choice, slot, correct                 the method's; correct is 1, 0 or NaN
    choice_ref, slot_ref, correct_ref     the reference's
    agree                                 whether both choose the same candidate (equal texts are the same one); no
                                          choice agrees with nothing, not even with no choice
    agree_answer                          whether the chosen texts state the same final answer (`final_answer`); a text
                                          without one agrees with itself alone
    p, p_ref                              [slots], softmax of the scores
    margin_ref                            the reference's best score less its second best

    Raises KvattnError when the reference is absent, or absent for some pair.
    """
    known = read_questions(questions)
    return pair(read_judgements(judgements, known, column), known, reference)


def pair(frame: Table, known: dict[str, Question], reference: str) -> Table:
    """`paired`, of judgements that `read_judgements` made."""
    dense = frame[frame["method"] == reference]
    if dense.empty:
        names = ", ".join(sorted(frame["method"].unique())) or "none"
        raise KvattnError(f"the judgements have no method {reference!r} to compare with; there are: {names}")
    out = frame[frame["method"] != reference].merge(
        dense.drop(columns=["method", "n"]), how="left", on=["question_id", "order"], suffixes=("", "_ref")
    )
    alone = out["slot_ref"].isna()
    if alone.any():
        row = out[alone].iloc[0]
        raise KvattnError(
            f"{reference!r} did not judge question {row['question_id']!r} in order {list(row['order'])}, but "
            f"{row['method']!r} did; judge both in the same orders ({int(alone.sum())} such rows)"
        )
    out["slot_ref"] = out["slot_ref"].astype(int)
    out["agree"] = (out["content"] == out["content_ref"]) & (out["content"] >= 0)
    picks = zip(out["question_id"], out["candidate"], out["candidate_ref"], out["agree"], strict=True)
    out["agree_answer"] = [bool(same) or _same_answer(known[q], a, int(b)) for q, a, b, same in picks]
    columns = ["question_id", "order", "method", "n", "choice", "slot", "correct", "choice_ref", "slot_ref"]
    return out[[*columns, "correct_ref", "agree", "agree_answer", "p", "p_ref", "margin_ref"]]


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
            f"question {key!r}, method {method!r}: the choice {choice!r} does not stand in slot {s} of order "
            f"{list(shown)}; judgements and questions do not belong together"
        )
    values = np.asarray(scores, dtype=float)
    if values.shape != (q.n,):
        raise KvattnError(f"question {key!r}, method {method!r}: {values.size} scores for {q.n} candidates")
    p, gap = softmax(values), margin(values)
    if s == -1:
        right = np.nan if np.isnan(q.corrects).all() else 0.0
        return key, shown, method, q.n, None, -1, -1, -1, right, p, gap
    c = shown[s]
    return key, shown, method, q.n, choice, s, c, int(q.content[c]), q.corrects[c], p, gap


def one_hot(slots: Any, n: int) -> np.ndarray:
    """[rows, n], 1 where a row's slot is; a row without a choice (-1) is all 0."""
    return (np.asarray(slots)[:, None] == np.arange(n)).astype(float)


def _same_answer(q: Question, a: int, b: int) -> bool:
    return min(a, b) >= 0 and q.answers[a] is not None and q.answers[a] == q.answers[b]


def _flag(value: Any) -> float:
    return np.nan if value is None or value is pd.NA or value != value else float(bool(value))


def _items(value: Any) -> tuple[Any, ...]:
    """A list cell's items, None for missing ones (DuckDB gives lists with gaps as masked arrays); () for no list."""
    if isinstance(value, np.ma.MaskedArray):
        return tuple(value.tolist())
    return tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else ()


def _need(frame: pd.DataFrame, name: str, columns: Iterable[str]) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise KvattnError(f"the {name} table lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
