"""What the command line refuses, and what it keeps: read off the command line itself, and kind by kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import save

import kvattn
from kvattn.cli import main
from kvattn.questions import synthetic, write_candidates
from kvattn.questions.organism import problems
from kvattn.study.study import Study

ORGANISM = "organism-unsafe"
BAD = ("", "-1", "nan", "x", "1e400", "9" * 30, "..", "/proc/none/x", "a\x1b[31m\nb")
# What every command is given so that the value that is tried is all that is wrong.
GIVEN: dict[str, tuple[str, ...]] = {
    "judge": ("organism-max", "--limit", "1", "--model", ORGANISM, "--methods", "dense"),
    "demo": (),
    "report": ("run",),
    "compare": ("run",),
    "app": ("run",),
    "doctor": (ORGANISM,),
    "models list": (),
    "models prepare": (ORGANISM,),
    "methods list": (),
    "study run": ("study.yaml", "--folder", "out"),
    "study resume": ("study.yaml", "--folder", "out"),
    "study status": ("study.yaml",),
    "study estimate": ("study.yaml",),
    "study merge": ("into", "run"),
    "candidates generate": (
        *("synthetic", "--limit", "1", "--out", "made.jsonl", "--model", "model"),
        *("--agents", "1", "--max-new", "2"),
    ),
    "gate fit": ("run",),
    "gate report": ("run", "--kinds", "threshold:decision.margin"),
    "gate signals": ("run", "organism-max", "--limit", "2", "--seed", "3", "--model", ORGANISM),
}


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command by its words, as typer made it."""
    command = command or typer.main.get_command(main.app)
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield " ".join(path), command


PARAMETERS = [(name, p) for name, c in commands() for p in c.params]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a study, a model and files."""
    folder = tmp_path_factory.mktemp("refusals") / "deep" / "inside"
    folder.mkdir(parents=True)
    save(folder / "model")
    write_candidates(folder / "problems.jsonl", synthetic(3))
    prompts = problems(ORGANISM, 2, seed=3)
    Study(kvattn.load(ORGANISM), prompts, ["dense", "naive"]).run(folder / "run")
    (folder / "study.yaml").write_text(
        f"models: {ORGANISM}\ndata: {{source: organism-max, limit: 1}}\nmethods: dense\n"
    )
    return folder


def test_the_table_names_every_command() -> None:
    assert {name for name, _ in commands()} == set(GIVEN)


@pytest.mark.parametrize("index", range(len(PARAMETERS)), ids=[f"{n} {p.name}" for n, p in PARAMETERS])
def test_a_bad_value_of_any_option_ends_in_one_line(
    index: int, home: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the values for each option; each value meets a third of all options."""
    name, parameter = PARAMETERS[index]
    monkeypatch.setattr("kvattn.cli.app.serve", lambda *_: None)
    if name == "demo":
        monkeypatch.setattr(main, "_study", lambda *_, **__: None)
    given, flag = GIVEN[name], getattr(parameter, "is_flag", False)
    places = [p.name for n, p in PARAMETERS if n == name and p.param_type_name == "argument"]
    for value in (None,) if flag else BAD[index % 3 :: 3]:
        if parameter.param_type_name == "argument":
            place = places.index(parameter.name)
            line = [*given[:place], value, *given[place + 1 :]]
        else:
            line = [*given, parameter.opts[0], *([] if value is None else [value])]
        done = run(*name.split(), *line, cwd=home)
        assert done.returncode in (0, 2), (value, done)
        assert "Traceback" not in done.stderr + done.stdout, value
        if done.returncode:
            assert done.line, value
        shutil.rmtree(home / "out", ignore_errors=True)
