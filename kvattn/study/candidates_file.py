"""A candidates file made by execution agents: question by question, resumable, with a manifest beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.files import read_json, sha256, take_lock, write_atomically
from kvattn.judge.agents import Agents, checked
from kvattn.questions.candidates import read_candidates, record
from kvattn.questions.problems import Problem
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.templates import Template, get_template
from kvattn.study import run_folder
from kvattn.study.checks import refuse
from kvattn.text import Progress, plain, silent

Anew = Literal["never", "other", "always"]


@dataclass(frozen=True)
class Generation:
    """Problems that agents answer, and how.

    source:   what the problems came from, for the manifest
    verify:   say of each candidate whether it is right; for programs this runs them, in a sandbox, and needs
              `allow_code_execution`
    skip_bad: leave out problems that no agent can answer, instead of refusing them all
    left_out: why, by problem or by its place in the file; it stands in the manifest
    template: in whose words agents are asked; None: in those of each problem's own template
    together: problems whose agents are decoded side by side
    """

    engine: Engine
    problems: Sequence[Problem]
    agents: Agents
    source: str = ""
    verify: bool = True
    allow_code_execution: bool = False
    skip_bad: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    template: Template | None = None
    together: int = 1

    def checked(self) -> Generation:
        """This generation, all of whose problems can be answered. Raises KvattnError that lists those that cannot, or
        leaves them out; for ids that stand twice, and for no problems."""
        if not self.problems:
            raise KvattnError("no problems to answer")
        if self.together < 1:
            raise KvattnError(f"together is {self.together}; answer 1 problem or more at a time")
        ids = [p.id for p in self.problems]
        if len(set(ids)) != len(ids):
            raise KvattnError("ids of problems must be unique within a candidates file")
        if self.verify and not self.allow_code_execution and any(p.task == "code" for p in self.problems):
            raise KvattnError(
                "to say which programs are right they have to be run: allow it with --allow-code-execution (in a "
                "sandbox), or leave it open with --no-verify"
            )
        bad: dict[str, str] = {}
        for problem in self.problems:
            try:
                self.agents.check(self.engine, problem, self.template)
            except KvattnError as error:
                bad[problem.id] = str(error)
        refuse(bad, len(ids), self.source or "the problems", self.skip_bad, "answered")
        kept = [p for p in self.problems if p.id not in bad]
        return replace(self, problems=kept, left_out={**self.left_out, **bad}) if bad else self

    def write(self, out: str | Path, progress: Progress = silent, anew: Anew = "never") -> Path:
        """Write the problems with candidates of execution agents to `out`, and how they were made to
        `out`.manifest.json.

        Questions are added to `out`.part as they are answered, `together` at a time, and synced to the disk; the file
        gets its name when it is complete. A file that is complete is left as it is; one that is not is continued, and
        then equals one made in one go on the same machine (floating point differs between machines, and sampling with
        it).

        anew: give what lies there another name (`out` with .before-1 in it) and begin again, always, or where it was
              made with other parameters

        Raises KvattnError for problems that no agent can answer, a file made with other parameters, or by another
        process at this moment, for ids that stand twice, and for no problems.
        """
        path = Path(out)
        if not path.name or path.is_dir():
            raise KvattnError(f"{str(path)!r} is a folder; name the file to write")
        return self.checked()._write(path, progress, anew)

    def _write(self, path: Path, progress: Progress, anew: Anew) -> Path:
        manifest = _manifest(self)
        side, part = _side(path), _part(path)
        if anew != "never" and (anew == "always" or _otherwise(manifest, path)):
            _set_aside(path)
        if said := _otherwise(manifest, path):
            raise KvattnError(f"{said}; name another file, or begin anew, which puts this one aside (--anew)")
        if path.exists():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not side.exists():
                _dump(side, {"created": datetime.now(UTC).isoformat(timespec="seconds"), **manifest})
            with take_lock(part), part.open("ab+") as file:
                done = _finished(file, part, self.problems)
                begin = done - done % self.together if done < len(self.problems) else done
                for at in range(begin, len(self.problems), self.together):
                    some = self.problems[at : at + self.together]
                    answers = self.agents.answer(self.engine, some, self.template)
                    for problem, made in list(zip(some, answers, strict=True))[max(0, done - at) :]:
                        made = checked(made, problem, self.allow_code_execution) if self.verify else made
                        file.write(json.dumps(record(made), ensure_ascii=False).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                    progress("candidates", at + len(some), len(self.problems))
                made = read_candidates(part)
                stored = read_json(side)
                _dump(side, {**stored, "made": _made(self, made, part), "late": ["made"]})
                part.rename(path)
        except Timeout:
            raise _busy(part) from None
        except OSError as e:
            raise KvattnError(f"cannot write {path}: {e.strerror or e}; what is finished is kept in {part}") from None
        return path


def left_out(path: Path) -> Mapping[str, str]:
    """What was left out of a file that agents made, by its manifest."""
    return read_json(_side(path)).get("left_out", {})


def _side(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _set_aside(path: Path) -> None:
    """Gives the file, its part and its manifest another name beside, together."""
    part = _part(path)
    there = [p for p in (path, part, _side(path)) if p.exists()]
    names = (path.with_name(f"{path.stem}.before-{n}{path.suffix}") for n in count(1))
    aside = next(a for a in names if not any(p.exists() for p in (a, _part(a), _side(a))))
    try:
        if there:
            with take_lock(part):
                for p in there:
                    p.rename(p.with_name(aside.name + p.name.removeprefix(path.name)))
                part.unlink(missing_ok=True)  # where there was none, the lock made it
    except Timeout:
        raise _busy(part) from None
    except OSError as e:
        raise KvattnError(f"cannot put {path} aside: {e.strerror or e}; name another file") from None


def _busy(part: Path) -> KvattnError:
    return KvattnError(f"{part} is being written by another process; wait for it, or name another file")


def _manifest(asked: Generation) -> dict[str, Any]:
    lines = [json.dumps([p.id, p.question, p.answer, p.template], ensure_ascii=False) for p in asked.problems]
    names, own = sorted({p.template for p in asked.problems}), asked.template
    return {
        "schema": 1,
        **run_folder.provenance(asked.engine),
        "identity": asked.engine.identity,
        "agents": plain(asdict(asked.agents)),
        "templates": [t.to_json() for t in ([get_template(n) for n in names] if not own else [own])],
        "problems": {
            "source": asked.source,
            "count": len(asked.problems),
            "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        },
        "verified": asked.verify,
        **({"together": asked.together} if asked.together > 1 else {}),  # it rounds otherwise
        **({"left_out": dict(asked.left_out)} if asked.left_out else {}),
    }


def _otherwise(manifest: dict[str, Any], path: Path) -> str | None:
    """What hinders a file from being gone on with; None where it is new or was made in this very way."""
    side = _side(path)
    if not side.exists():
        there = next((p for p in (path, _part(path)) if p.exists()), None)
        return there and f"{there} exists and does not say how it was made"
    try:
        stored = read_json(side)
        if not isinstance(stored, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as e:
        return f"{side} cannot be read ({e})"
    differing = run_folder.differences(manifest, stored)
    return f"{path} was begun with other parameters: {'; '.join(differing[:4])}" if differing else None


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
        raise KvattnError(
            f"{part} holds other questions than the first {len(held)} asked for; begin anew, which puts it aside "
            "(--anew)"
        )
    return len(held)


def _made(asked: Generation, prompts: Sequence[JudgePrompt], file: Path) -> dict[str, Any]:
    """What came out, for the manifest."""
    candidates = [c for p in prompts for c in p.candidates]
    known = [c.correct for c in candidates if c.correct is not None]
    return {
        "sha256": sha256(file),
        "candidates": len(candidates),
        "tokens": sum(len(c.token_ids or ()) for c in candidates),
        "cut_off": sum(asked.agents.cut_off(asked.engine, p, asked.template) for p in prompts),
        "known_right_or_wrong": len(known),
        "right": sum(known),
        "mixed_questions": sum({True, False} <= {c.correct for c in p.candidates} for p in prompts),
    }


def _dump(path: Path, manifest: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(manifest, indent=1, ensure_ascii=True).encode())
