"""A candidates file made by execution agents: question by question, resumable, with a manifest beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.files import read_json, sha256, take_lock, write_atomically
from kvattn.judge.agents import Agents, checked
from kvattn.questions.candidates import read_candidates, record
from kvattn.questions.problems import Problem
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.templates import get_template
from kvattn.study import run_folder
from kvattn.study.checks import NAMED
from kvattn.text import Progress, silent


def generate(
    engine: Engine,
    problems: Sequence[Problem],
    agents: Agents,
    out: str | Path,
    source: str = "",
    verify: bool = True,
    allow_code_execution: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write the problems with candidates of execution agents to `out`, and how they were made to `out`.manifest.json.

    Questions are added to `out`.part one by one, each synced to the disk; the file gets its name when it is complete.
    A file that is complete is left as it is; one that is not is continued, and then equals one made in one go on the
    same machine (floating point differs between machines, and sampling with it).

    verify: say of each candidate whether it is right; for programs this runs them, in a sandbox, and needs
            `allow_code_execution`

    Raises KvattnError for problems that no agent can answer, a file made with other parameters, or by another process
    at this moment, for ids that stand twice, and for no problems.
    """
    path = Path(out)
    _check(problems, verify, allow_code_execution)
    manifest = _manifest(engine, problems, agents, source, verify)
    side, part = (path.parent / f"{path.name}{end}" for end in (".manifest.json", ".part"))
    _same_parameters(side, manifest, path, part)
    if path.exists():
        return path
    _answerable(engine, problems, agents)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not side.exists():
            _write(side, {"created": datetime.now(UTC).isoformat(timespec="seconds"), **manifest})
        with take_lock(part), part.open("ab+") as file:
            done = _finished(file, part, problems)
            for i, problem in enumerate(problems):
                if i >= done:
                    made = agents.answer(engine, problem)
                    made = checked(made, problem, allow_code_execution) if verify else made
                    file.write(json.dumps(record(made), ensure_ascii=False).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                progress("candidates", i + 1, len(problems))
            made = read_candidates(part)
            stored = read_json(side)
            _write(side, {**stored, "made": _made(engine, made, part, agents), "late": ["made"]})
            part.rename(path)
    except Timeout:
        raise KvattnError(f"{part} is being written by another process; wait for it, or name another file") from None
    except OSError as e:
        raise KvattnError(f"cannot write {path}: {e.strerror or e}; what is finished is kept in {part}") from None
    return path


def _check(problems: Sequence[Problem], verify: bool, allow_code_execution: bool) -> None:
    if not problems:
        raise KvattnError("no problems to answer")
    ids = [p.id for p in problems]
    if len(set(ids)) != len(ids):
        raise KvattnError("ids of problems must be unique within a candidates file")
    if verify and not allow_code_execution and any(p.task == "code" for p in problems):
        raise KvattnError(
            "to say which programs are right they have to be run: allow it with --allow-code-execution (in a sandbox), "
            "or leave it open with --no-verify"
        )


def _answerable(engine: Engine, problems: Sequence[Problem], agents: Agents) -> None:
    """Raises KvattnError that lists the problems that no agent could answer, before anything is written."""
    faults = {}
    for problem in problems:
        try:
            agents.check(engine, problem)
        except KvattnError as error:
            faults[problem.id] = str(error)
    if faults:
        said, more = list(faults.values())[:NAMED], list(faults)[NAMED:]
        rest = f"; and {len(more)} more: {', '.join(more)}" if more else ""
        raise KvattnError(
            f"{len(faults)} problems cannot be answered: {'; '.join(said)}{rest}; mend them, or leave them out"
        )


def _manifest(engine: Engine, problems: Sequence[Problem], agents: Agents, source: str, verify: bool) -> dict[str, Any]:
    lines = [json.dumps([p.id, p.question, p.answer, p.template], ensure_ascii=False) for p in problems]
    names = sorted({p.template for p in problems})
    return {
        "schema": 1,
        **run_folder.provenance(engine),
        "identity": engine.identity,
        "agents": asdict(agents),
        "templates": [get_template(n).to_json() for n in names],
        "problems": {
            "source": source,
            "count": len(problems),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        },
        "verified": verify,
    }


def _same_parameters(side: Path, manifest: dict[str, Any], path: Path, part: Path) -> None:
    if not side.exists():
        for there in (path, part):
            if there.exists():
                raise KvattnError(f"{there} exists and does not say how it was made; name another file")
        return
    try:
        stored = read_json(side)
    except (OSError, ValueError) as e:
        raise KvattnError(f"{side} cannot be read ({e}); delete it with {path.name}, and generate again") from None
    differing = run_folder.differences(manifest, stored)
    if differing:
        raise KvattnError(f"{path} was begun with other parameters: {'; '.join(differing[:4])}; name another file")


def _finished(file: Any, part: Path, problems: Sequence[Problem]) -> int:
    """How many questions the part holds; half a line at its end is dropped."""
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    if not whole:
        return 0
    held = [p.id for p in read_candidates(part)]
    if held != [p.id for p in problems[: len(held)]]:
        raise KvattnError(f"{part} holds other questions than the first {len(held)} asked for; delete it")
    return len(held)


def _made(engine: Engine, prompts: Sequence[JudgePrompt], file: Path, agents: Agents) -> dict[str, Any]:
    """What came out, for the manifest."""
    candidates = [c for p in prompts for c in p.candidates]
    known = [c.correct for c in candidates if c.correct is not None]
    return {
        "sha256": sha256(file),
        "candidates": len(candidates),
        "tokens": sum(len(c.token_ids or ()) for c in candidates),
        "cut_off": sum(agents.cut_off(engine, p) for p in prompts),
        "known_right_or_wrong": len(known),
        "right": sum(known),
        "mixed_questions": sum({True, False} <= {c.correct for c in p.candidates} for p in prompts),
    }


def _write(path: Path, manifest: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(manifest, indent=1, ensure_ascii=True).encode())
