"""Candidates files: questions with their candidate answers, as JSONL, JSON or Parquet (docs/candidates-file.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt

from kvattn.decision import TIE
from kvattn.errors import KvattnError, unknown, whole
from kvattn.files import replacing
from kvattn.questions.foreign_rows import as_problem
from kvattn.questions.inspect_logs import is_log, requests
from kvattn.questions.json_files import PIPE, each, iter_objects
from kvattn.questions.organism import problems
from kvattn.questions.prompt import MAX_CANDIDATES, Candidate, JudgePrompt, check_unicode
from kvattn.questions.relational import KINDS, relational
from kvattn.questions.synthetic import synthetic
from kvattn.questions.templates import TEMPLATES, Template, get_template
from kvattn.questions.validation import validated

WORKED = 2  # problems before what a candidate of a "long-" set states: some 120 tokens, four in five of the prompt's


def _of_kind(kind: str, worked: int, n: int, seed: int) -> list[JudgePrompt]:
    """Relational problems of one kind, of four candidates, or of three where it is not made with four."""
    return list(relational(n, seed, 4 if 4 in KINDS[kind].sizes else 3, [kind], worked))


DATASETS: dict[str, Callable[[int, int], list[JudgePrompt]]] = {
    "synthetic": lambda n, seed: synthetic(n, seed),
    "synthetic-matched": lambda n, seed: synthetic(n, seed, length_matched=True),
    "relational": lambda n, seed: list(relational(n, seed)),
    **{kind: partial(_of_kind, kind, 0) for kind in KINDS},
    **{f"long-{kind}": partial(_of_kind, kind, WORKED) for kind in KINDS},
    "organism-max": lambda n, seed: problems("organism-safe", n, seed),
    "organism-odd": lambda n, seed: problems("organism-relational", n, seed),
}
"""Embedded data sets by name: functions of the number of problems and a seed."""


def is_embedded(name: str) -> bool:
    """Whether a name, with or without a seed of its own, stands for an embedded data set."""
    return name.partition(":")[0] in DATASETS


def load(
    name_or_path: str | Path,
    limit: int | None = None,
    seed: int = 0,
    unread: dict[str, str] | None = None,
    template: str | Template | None = None,
) -> list[JudgePrompt]:
    """The prompts of an embedded data set or of a candidates file.

    Parameters
    ----------
    name_or_path
        An embedded set, such as "synthetic", with a seed of its own if need be ("synthetic:7"); or the path of a file
        (a `Path`, or text such as "./synthetic" for a file of that name), "-" for standard input.
    limit
        Number of prompts; needed for an embedded set, which has no end.
    seed
        For an embedded set whose name gives none.
    unread
        Where it is given, what is wrong in a file is put there by its place, and the rest is read.
    template
        Stands in for that of the set or the file.
    """
    name, colon, own_seed = str(name_or_path).partition(":")
    if isinstance(name_or_path, str) and is_embedded(name_or_path):
        if limit is None:
            raise KvattnError(f"the data set {name!r} has no end; say how many problems to take (limit)")
        if colon:
            seed = whole(own_seed, f"the seed in {name_or_path!r:.60}")
        made = DATASETS[name](_checked_limit(limit) or 0, whole(seed, "the seed"))
        override = get_template(template) if isinstance(template, str) else template
        return [replace(p, template=override) for p in made] if override else made
    path = _path(name_or_path)
    if path == PIPE or path.exists() or path.suffix or len(path.parts) > 1:
        return read_candidates(path, limit, template, unread)
    raise unknown("data set or file", str(name_or_path), DATASETS)


def read_candidates(
    path: str | Path,
    limit: int | None = None,
    template: str | Template | None = None,
    unread: dict[str, str] | None = None,
) -> list[JudgePrompt]:
    """All prompts of a candidates file, or the first `limit`; see `iter_candidates`."""
    return list(iter_candidates(path, limit, template, unread))


def iter_candidates(
    path: str | Path,
    limit: int | None = None,
    template: str | Template | None = None,
    unread: dict[str, str] | None = None,
) -> Iterator[JudgePrompt]:
    """The prompts of a candidates file, one after another.

    A JSONL file is read as it goes: prompts before a bad line are delivered, then all bad lines are named, and lines
    after `limit` are not looked at. `template`, a name or a `Template`, stands in for what the file says. Where
    `unread` is given, bad lines are put there by their place ("line 3") instead, and the others are delivered.

    Raises KvattnError, with file, place (`json_files.iter_objects`) and field, for: a file that cannot be read,
    malformed JSON, a missing field or one of the wrong type, a key or an id given twice, no candidates or more than 16,
    an unknown template or regime, text that is no Unicode. So does a file without problems.
    """
    path = _path(path)
    limit = _checked_limit(limit)
    override = get_template(template) if isinstance(template, str) else template
    seen: dict[str, str] = {}

    def make(value: Any, where: str) -> JudgePrompt:
        prompt = _prompt(value, where, override)
        place = where.removeprefix(f"{path}, ")
        if seen.setdefault(prompt.id, place) != place:
            raise KvattnError(
                f"{where}, field 'id': {prompt.id!r} was given in {seen[prompt.id]} already; ids of questions must be "
                "unique"
            )
        return prompt

    yield from each(path, limit, make, unread, requests if is_log(path) else iter_objects)
    if not seen and limit != 0:
        raise KvattnError(f"{path} holds no problems; see docs/candidates-file.md for what belongs in it")


def write_candidates(path: str | Path, prompts: Iterable[JudgePrompt]) -> None:
    """Writes prompts as JSONL, such that `read_candidates` gives equal ones back (`SyntheticPrompt`s come back as
    plain `JudgePrompt`s). The file appears when it is complete, or not at all."""
    path = Path(path)
    lines: dict[str, str] = {}
    for p in prompts:
        if p.id in lines:
            raise KvattnError(f"question id {p.id!r} is given twice; ids must be unique in a candidates file")
        lines[p.id] = json.dumps(record(p), ensure_ascii=False) + "\n"
        check_unicode(lines[p.id], f"question {p.id!r}, as JSON,")
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines.values())
    except OSError as e:
        raise KvattnError(f"cannot write {path}: {e.strerror or e}") from None


def mixed_only(prompts: Iterable[JudgePrompt]) -> list[JudgePrompt]:
    """The prompts that have both a candidate known to be right and one known to be wrong."""
    return [p for p in prompts if {True, False} <= {c.correct for c in p.candidates}]


def data_sha256(prompts: Iterable[JudgePrompt]) -> str:
    """SHA-256, in hex, of the prompts as canonical JSON: what a candidates file would hold, keys sorted, one a line.

    It depends on ids, texts, answers, agents, correctness, token ids, agents' prompts, names of caches, verdicts,
    regimes, templates (their names; of one that is not built in all it says), display orders, and the order of the
    prompts; not on the file they came from, nor on fields that kvattn does not know.
    """
    digest = hashlib.sha256()
    for p in prompts:
        line = json.dumps(_record(p, p.template.id), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _checked_limit(limit: int | None) -> int | None:
    return None if limit is None else whole(limit, "limit")


def _path(name: str | Path) -> Path:
    if not isinstance(name, str | Path):
        raise KvattnError(f"{name!r:.60} names no file; give its path")
    return Path(name)


def record(prompt: JudgePrompt) -> dict[str, Any]:
    """The prompt as the object of a candidates file; fields at their defaults are left out."""
    if not prompt.template.built_in:
        raise KvattnError(
            f"question {prompt.id!r} has a template of its own, {prompt.template.name!r}, which a file cannot name; "
            f"use one of {', '.join(TEMPLATES)}"
        )
    return _record(prompt, prompt.template.name)


def _record(prompt: JudgePrompt, template: str) -> dict[str, Any]:
    record: dict[str, Any] = {"id": prompt.id, "question": prompt.question}
    if prompt.answer is not None:
        record["answer"] = prompt.answer
    if prompt.verdict is not None:
        record["verdict"] = prompt.verdict
    if prompt.regime is not None:
        record["regime"] = prompt.regime
    record["template"] = template
    if prompt.order != tuple(range(prompt.n)):
        record["order"] = list(prompt.order)
    record["candidates"] = [{k: v for k, v in asdict(c).items() if v is not None} for c in prompt.candidates]
    return record


def _unicode(text: str) -> str:
    try:
        check_unicode(text, "it")
    except KvattnError as e:
        raise ValueError(str(e).removeprefix("it ")) from None
    return text


def _named(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


_Text = Annotated[str, AfterValidator(_unicode)]
_Name = Annotated[_Text, AfterValidator(_named), BeforeValidator(lambda x: str(x) if type(x) is int else x)]
_T = TypeVar("_T")
_Items = Annotated[tuple[_T, ...], Field(strict=False)]  # a list of the file


class _Candidate(BaseModel):
    """A candidate of a file."""

    model_config = ConfigDict(strict=True)

    agent: _Text | None = None
    id: _Name | None = None
    text: _Text
    correct: bool | None = None
    token_ids: _Items[NonNegativeInt] | None = None
    prompt: _Text | None = None
    model: _Text | None = None
    cache: Annotated[_Text, AfterValidator(_named)] | None = None


class _Problem(BaseModel):
    """A problem of a file; null counts as absent where a field may be."""

    model_config = ConfigDict(strict=True)

    id: _Name
    question: _Text
    answer: _Text | None = None
    template: _Text | None = None
    candidates: Annotated[list[_Candidate], Field(min_length=1, max_length=MAX_CANDIDATES)]
    verdict: _Text | None = None
    regime: Literal["parallel", "progressive"] | None = None
    order: _Items[int] | None = None


def _prompt(value: Any, where: str, override: Template | None) -> JudgePrompt:
    """An object of a file as a prompt."""

    def error(name: str, what: object) -> KvattnError:
        return KvattnError(f"{where}, field {name!r}: {what}")

    value = as_problem(value, where, override)
    problem = validated(_Problem, value, where)
    for i, c in enumerate(problem.candidates):
        if c.agent == "" and c.id is None:
            raise error(f"candidates[{i}].agent", "must not be empty")
    candidates = tuple(
        Candidate(**{**vars(c), "id": c.id or c.agent or f"c{i + 1}"}) for i, c in enumerate(problem.candidates)
    )
    ids = [c.id for c in candidates]
    if problem.verdict is not None and problem.verdict not in (*ids, *([TIE] if len(ids) == 2 else [])):
        raise error("verdict", f"{problem.verdict!r} is no candidate's id; the candidates are {', '.join(ids)}")
    try:
        template = override or get_template(problem.template or "math")
    except KvattnError as e:
        raise error("template", e) from None
    told = {k: v for k, v in vars(problem).items() if k not in ("candidates", "template", "order")}
    try:
        return JudgePrompt(candidates=candidates, template=template, order=problem.order or (), **told)
    except KvattnError as e:
        raise KvattnError(f"{where}: {e}") from None
