"""The one reduction of judgements: every judgement beside the reference's, then sums per question, in DuckDB.

`PICKS` makes the relation `picks` from `judged` (a row a judgement and kind of choice) and `asked` (`asked_table`): a
unit of a run folder is reduced so when it is written, a run of an older kvattn when it is read, and DataFrames when
they are given to `kvattn.stats`. Statistics ask a `Source` for sums of its rows.

A row of `picks`, one per (question_id, order, method, calibrated):

| column | what |
|---|---|
| calibrated | whether the row is about the choice after the prior was subtracted |
| n, labelled, mixed, right, agreeing | of the question: candidates, whether all are known to be right or wrong and whether there are both, share of right ones, how many state the commonest answer |
| distance | Kendall's tau distance of the order from the candidates' own |
| slot, pick, correct | chosen slot (from 0), content (index of the first candidate of the same text), right or wrong; NULL for none |
| is_reference | whether the method is the reference (dense) itself |
| slot_ref, correct_ref, margin_ref | the reference's in the same order; NULL where it was not judged |
| agree, agree_answer | same content, same final answer as the reference; NULL where it was not judged |
| surprise | -ln of the probability that the reference gave the chosen slot |

and of raw choices readout, coverage and costs, where the judgements have them.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import numpy as np

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column, Question, Table, read_judgements, read_questions

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

P = ParamSpec("P")
R = TypeVar("R")
# Extensions are never fetched: Parquet is built in, and a run is read without a network.
LOCAL: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}

# Kendall's tau distance of an order from 0, 1, 2, ...: pairs that stand the other way round.
DISTANCE = (
    'list_sum(list_transform(range(1, len("order") + 1), lambda i: '
    'len(list_filter("order"[i + 1:], lambda x: x < "order"[i]))))::INTEGER'
)

_LISTS = ", a.scores AS scores, exp_list(a.logs) AS p, exp_list(d.logs) AS p_ref"
_MACRO = "CREATE OR REPLACE TEMP MACRO exp_list(s) AS list_transform(s, lambda x: exp(x))"
PICKS = f"""
WITH scored AS MATERIALIZED (
    SELECT j.* EXCLUDE (top, place), q.* EXCLUDE (question_id, content, answers, corrects),
        q.content[place] AS pick, q.answers[place] AS stated,
        CASE WHEN place IS NOT NULL THEN q.corrects[place] WHEN list_count(q.corrects) > 0 THEN false END AS correct,
        list_transform(scores, lambda x: x - top - ln(list_sum(list_transform(scores, lambda y: exp(y - top)))))
            AS logs,
        CASE WHEN len(scores) > 1 THEN list_sort(scores, 'DESC')[1] - list_sort(scores, 'DESC')[2]
            ELSE 'inf'::DOUBLE END AS margin
    FROM (SELECT *, list_max(scores) AS top, "order"[slot + 1] + 1 AS place FROM judged) j
    JOIN asked q USING (question_id))
SELECT a.* EXCLUDE (scores, logs, stated, margin), {DISTANCE.replace('"order"', 'a."order"')} AS distance,
    a.method = $reference AS is_reference, d.slot AS slot_ref, d.correct AS correct_ref, d.margin AS margin_ref,
    CASE WHEN d.method IS NOT NULL THEN coalesce(a.pick = d.pick, false) END AS agree,
    CASE WHEN d.method IS NOT NULL THEN coalesce(a.pick = d.pick OR a.stated = d.stated, false) END AS agree_answer,
    -d.logs[a.slot + 1] AS surprise {{lists}}
FROM scored a LEFT JOIN scored d
    ON a.question_id = d.question_id AND a."order" = d."order" AND a.calibrated = d.calibrated AND d.method = $reference
"""


class Source(Protocol):
    """Something that holds `picks`: a run folder (`kvattn.study.run_folder.Run`) or DataFrames (`Frames`)."""

    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """The answer to a DuckDB query over the source's relations."""
        ...

    @property
    def asked(self) -> Mapping[str, Question]:
        """The questions by id."""
        ...


@dataclass(frozen=True)
class Scope:
    """Which judgements count, and which of their choices.

    calibrated: the choice after the prior was subtracted
    mixed:      only questions with right and wrong candidates
    n:          only questions with so many candidates
    """

    calibrated: bool = False
    mixed: bool = False
    n: int | None = None

    @property
    def rows(self) -> str:
        """The SQL condition over `picks`."""
        parts = ["calibrated" if self.calibrated else "NOT calibrated"]
        parts += ["mixed"] if self.mixed else []
        parts += [f"n = {int(self.n)}"] if self.n is not None else []
        return " AND ".join(parts)

    @property
    def pairs(self) -> str:
        """The same, of judgements beside the reference's."""
        return f"{self.rows} AND NOT is_reference AND agree IS NOT NULL"


RAW = Scope()


class Frames:
    """Judgements and questions given as DataFrames. Raises KvattnError for tables that do not fit (`read_judgements`),
    a reference that was not run at all, and one that was not run in an order in which others were.

    column:    which choices count; in `picks` they stand as the raw ones
    reference: label of the method that all others are compared with
    alone:     whether methods may stand in orders that the reference did not judge
    """

    def __init__(
        self,
        judgements: pd.DataFrame,
        questions: pd.DataFrame,
        reference: str = "dense",
        column: Column = "choice",
        alone: bool = False,
    ) -> None:
        import duckdb

        self.asked: Mapping[str, Question] = read_questions(questions)
        rows = read_judgements(judgements, self.asked, column)
        if not alone and reference not in set(rows["method"]):
            names = ", ".join(sorted(rows["method"].unique())) or "none"
            raise KvattnError(f"the judgements have no method {reference!r} to compare with; there are: {names}")
        self._db: Any = duckdb.connect(config=LOCAL)
        self._db.register("judged", judged_table(rows))
        reduce(self._db, self.asked.values(), reference, lists=True)
        if not alone:
            self._check(reference)

    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """The answer to a DuckDB query over `picks`."""
        return self._db.execute(query, parameters or None).df()

    def _check(self, reference: str) -> None:
        left: Any = self.sql('SELECT question_id, "order", method FROM picks WHERE agree IS NULL ORDER BY ALL')
        if len(left):
            row = left.iloc[0]
            raise KvattnError(
                f"{reference!r} did not judge question {row['question_id']!r} in order {list(map(int, row['order']))}, "
                f"but {row['method']!r} did; judge both in the same orders ({len(left)} such rows)"
            )


def once(reduction: Callable[P, R]) -> Callable[P, R]:
    """A reduction that remembers what it gave for a run, which holds what it held when it was opened."""
    takes = signature(reduction)

    @wraps(reduction)
    def asked(*given: P.args, **more: P.kwargs) -> R:
        bound = takes.bind(*given, **more)
        bound.apply_defaults()
        source, *how = bound.arguments.values()
        known = vars(source).get("known")  # a table may have a column of that name
        if known is None:
            return reduction(*given, **more)
        key = (reduction, repr(how))
        if key not in known:
            known[key] = reduction(*given, **more)
        return copy(known[key])

    return asked


def source_of(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None,
    reference: str = "dense",
    column: Column = "choice",
    alone: bool = False,
) -> Source:
    """A source as it is, or one of DataFrames (see `Frames`)."""
    if questions is None:
        return judgements  # type: ignore[return-value]
    return Frames(judgements, questions, reference, column, alone)  # type: ignore[arg-type]


def reduce(db: Any, questions: Iterable[Question], reference: str = "dense", lists: bool = False) -> None:
    """Makes the table `picks` in a DuckDB connection that has the relation `judged`.

    lists: with the columns scores, p and p_ref (lists over slots)
    """
    db.register("asked", asked_table(questions))
    db.execute(_MACRO)
    query = PICKS.format(lists=_LISTS if lists else "")
    db.execute(f"CREATE OR REPLACE TABLE picks AS {query}", {"reference": reference})


def asked_table(questions: Iterable[Question]) -> pa.Table:
    """What `PICKS` has to know of each question."""
    import pyarrow as pa

    rows = [
        {
            "question_id": q.id,
            "n": q.n,
            "content": q.content.tolist(),
            "answers": list(q.answers),
            "corrects": [None if np.isnan(c) else bool(c) for c in q.corrects],
            "labelled": q.labelled,
            "mixed": bool((q.corrects == 1).any() and (q.corrects == 0).any()),
            "right": float(q.corrects.mean()) if q.labelled else None,
            "agreeing": max([1, *q.votes.values()]),
        }
        for q in questions
    ]
    kinds = {"question_id": pa.string(), "n": pa.int32(), "content": pa.list_(pa.int32())}
    kinds |= {"answers": pa.list_(pa.string()), "corrects": pa.list_(pa.bool_()), "labelled": pa.bool_()}
    kinds |= {"mixed": pa.bool_(), "right": pa.float64(), "agreeing": pa.int32()}
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


def judged_table(rows: Table) -> pa.Table:
    """The relation `judged` from what `read_judgements` gives."""
    import pyarrow as pa

    columns = {
        "question_id": pa.array(rows["question_id"], pa.string()),
        "order": pa.array([list(o) for o in rows["order"]], pa.list_(pa.int32())),
        "method": pa.array(rows["method"], pa.string()),
        "slot": pa.array([None if s < 0 else s for s in rows["slot"]], pa.int32()),
        "scores": pa.array([list(s) for s in rows["scores"]], pa.list_(pa.float64())),
        "calibrated": pa.array(np.zeros(len(rows), dtype=bool)),
    }
    return pa.table(columns)


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

    A written verdict that names no candidate has slot -1 and no choice. Raises KvattnError when the reference is
    absent, or absent for some pair.
    """
    source = Frames(judgements, questions, reference, column)
    columns = 'question_id, "order", method, n, slot, correct, slot_ref, correct_ref, agree, agree_answer, p, p_ref'
    frame: Any = source.sql(f"SELECT {columns}, margin_ref FROM picks WHERE {RAW.pairs} ORDER BY 1, 2, 3")
    frame["order"] = [tuple(map(int, o)) for o in frame["order"]]
    for end in ("", "_ref"):
        frame[f"slot{end}"] = frame[f"slot{end}"].fillna(-1).astype(int)
        frame[f"correct{end}"] = frame[f"correct{end}"].astype("Float64").astype(float)
        seen = zip(frame["question_id"], frame["order"], frame[f"slot{end}"], strict=True)
        frame[f"choice{end}"] = [None if s < 0 else source.asked[q].ids[o[s]] for q, o, s in seen]
    first = ["question_id", "order", "method", "n", "choice", "slot", "correct", "choice_ref", "slot_ref"]
    return frame[[*first, "correct_ref", "agree", "agree_answer", "p", "p_ref", "margin_ref"]]
