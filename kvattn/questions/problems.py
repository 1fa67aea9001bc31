"""Problems: questions with a right answer and no candidates yet, which execution agents answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError, unknown, whole
from kvattn.questions import datasets
from kvattn.questions.candidates import DATASETS as EMBEDDED
from kvattn.questions.candidates import is_embedded
from kvattn.questions.candidates import load as load_prompts
from kvattn.questions.json_files import PIPE, each
from kvattn.questions.prompt import check_unicode
from kvattn.questions.templates import get_template

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    """A question that agents answer.

    answer:   what `kvattn.questions.check(task, answer, text)` compares a text with: the number ("math"), the letter
              ("choice"), or Python source that raises unless the program before it is right ("code"). None: unknown
    task:     "math", "choice", "code" or "free", by which answers are checked
    template: name of the prompt template
    meta:     what else the source says, such as an MMLU subject or a HumanEval entry point
    """

    id: str
    question: str
    answer: str | None = None
    task: str = "math"
    template: str = "math"
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


def load_problems(
    name_or_path: str | Path, limit: int | None = None, seed: int = 0, unread: dict[str, str] | None = None
) -> list[Problem]:
    """The problems of a public data set, of an embedded one, or of a file.

    Parameters
    ----------
    name_or_path
        "gsm8k", "mmlu" (the paper's 153 validation questions) or "humaneval", from the Hugging Face Hub at a pinned
        revision, with another split if need be ("mmlu:test"); "synthetic" and the other embedded sets, with a seed of
        their own if need be ("synthetic:7"); or the path of a JSONL, JSON or Parquet file with rows such as GSM8K's,
        MMLU's or HumanEval's, or of a candidates file, whose candidates are not looked at.
    limit
        Number of problems, from the first; needed for an embedded set, which has no end.
    seed
        For an embedded set whose name gives none; nothing else is drawn with it.
    unread
        Where it is given, what is wrong in a file is put there by its place, and the rest is read.

    Raises KvattnError for an unknown name or split, a missing package, and a row that is none of these.
    """
    if limit is not None:
        limit = whole(limit, "limit")
    if isinstance(name_or_path, str):
        if is_embedded(name_or_path):
            return [
                Problem(p.id, p.question, p.answer, _task(p.template.name), p.template.name)
                for p in load_prompts(name_or_path, limit, seed)
            ]
        name, _, split = name_or_path.partition(":")
        if name in datasets.SOURCES:
            rows = datasets.rows(name, split or None, limit)
            return [problem_of(row, where, id_) for id_, row, where in rows]
    path = Path(name_or_path)
    if path == PIPE or path.exists() or path.suffix or len(path.parts) > 1:
        return _read(path, limit, unread)
    raise unknown("data set or file", str(name_or_path), [*EMBEDDED, *datasets.SOURCES])


def problem_of(row: Any, where: str, default_id: str) -> Problem:
    """A row of a data set as a problem. Which data set it is of is seen from its fields.

    HumanEval: `prompt`, `test`, `entry_point`, `task_id`. MMLU: `question`, `choices`, `answer` (letter or index),
    `subject`. Others: `question`, `answer` (GSM8K's ends in "#### n"), `template`. Any may have an `id`.
    """
    if not isinstance(row, Mapping):
        raise KvattnError(f"{where}: a problem must be an object with a question")
    id_ = row.get("id", row.get("task_id", default_id))
    id_ = str(id_) if type(id_) is int else id_
    if not isinstance(id_, str) or not id_:
        raise KvattnError(f"{where}, field 'id': must be a string that is not empty")
    if "entry_point" in row:
        made = _humaneval(row, where, id_)
    elif "choices" in row:
        made = _mmlu(row, where, id_)
    else:
        made = _plain(row, where, id_)
    for name, text in (("id", made.id), ("question", made.question), ("answer", made.answer or "")):
        check_unicode(text, f"{where}, field {name!r}:")
    return made


def _humaneval(row: Mapping[str, Any], where: str, id_: str) -> Problem:
    entry = _text(row, "entry_point", where)
    if not entry.isidentifier():
        raise KvattnError(f"{where}, field 'entry_point': {entry!r} is no name of a Python function")
    tests = f"{_text(row, 'test', where).strip()}\n\ncheck({entry})\n"
    meta = {"entry_point": entry}
    if isinstance(row.get("canonical_solution"), str):
        meta["canonical_solution"] = row["canonical_solution"]
    return Problem(id_, _text(row, "prompt", where), tests, "code", "code", meta)


def _mmlu(row: Mapping[str, Any], where: str, id_: str) -> Problem:
    choices, answer = row["choices"], row.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise KvattnError(f"{where}, field 'choices': must be a list of 2 to {len(LETTERS)} strings")
    if not all(isinstance(c, str) for c in choices):
        raise KvattnError(f"{where}, field 'choices': must hold strings alone")
    known = LETTERS[: len(choices)]
    if type(answer) is int and 0 <= answer < len(known):
        answer = known[answer]
    if answer is not None and (not isinstance(answer, str) or len(answer) != 1 or answer not in known):
        raise KvattnError(f"{where}, field 'answer': must be one of {', '.join(known)} or its index from 0")
    options = "\n".join(f"{letter}) {text}" for letter, text in zip(known, choices, strict=True))
    meta = {"subject": row["subject"]} if isinstance(row.get("subject"), str) else {}
    return Problem(id_, f"{_text(row, 'question', where).rstrip()}\n\n{options}", answer, "choice", "choice", meta)


def _plain(row: Mapping[str, Any], where: str, id_: str) -> Problem:
    name = row.get("template") or "math"
    if not isinstance(name, str):
        raise KvattnError(f"{where}, field 'template': must be a string")
    try:
        get_template(name)
    except KvattnError as e:
        raise KvattnError(f"{where}, field 'template': {e}") from None
    answer = None if row.get("answer") is None else _text(row, "answer", where)
    meta = {}
    if answer is not None and "####" in answer:  # GSM8K: the worked solution, then "#### " and the number
        meta["solution"], _, answer = (x.strip() for x in answer.rpartition("####"))
    return Problem(id_, _text(row, "question", where), answer, _task(name), name, meta)


def _task(template: str) -> str:
    return template if template in ("math", "choice", "code") else "free"


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise KvattnError(f"{where}, field {key!r}: {'is missing' if value is None else 'must be a string'}")
    return value


def _read(path: Path, limit: int | None, unread: dict[str, str] | None) -> list[Problem]:
    made: dict[str, Problem] = {}
    count = itertools.count(1)

    def make(row: Any, where: str) -> Problem:
        problem = problem_of(row, where, f"{path.name.partition('.')[0]}-{next(count):04d}")
        if made.setdefault(problem.id, problem) is not problem:
            raise KvattnError(f"{where}, field 'id': {problem.id!r} is given twice; ids of problems must be unique")
        return problem

    list(each(path, limit, make, unread))
    if not made and limit != 0:
        raise KvattnError(f"{path} holds no problems")
    return list(made.values())
