"""What the command line refuses, and what it keeps: read off the command line itself, and kind by kind."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from tiny import save

import kvattn
from kvattn.cli import main
from kvattn.engine.audit.bottom import plain
from kvattn.files import take_lock
from kvattn.judge.judge import Judge
from kvattn.questions import read_candidates, synthetic, write_candidates
from kvattn.questions.organism import problems
from kvattn.study import repair
from kvattn.study.grid import Grid
from kvattn.study.run_folder import Run, RunWriter, left_out, read_manifest
from kvattn.study.study import Study

pytestmark = pytest.mark.usefixtures("bare_page")

ORGANISM = "organism-unsafe"
BAD = ("", "-1", "nan", "x", "1e400", "9" * 30, "..", "/proc/none/x", "a\x1b[31m\nb")
# What every command is given so that the value that is tried is all that is wrong.
GIVEN: dict[str, tuple[str, ...]] = {
    "judge": ("organism-max", "--limit", "1", "--model", ORGANISM, "--methods", "dense"),
    "demo": ("--model", ORGANISM),
    "report": ("run",),
    "compare": ("run",),
    "check": ("run", "run"),
    "app": ("run",),
    "export": ("run", "--out", "out", "--to", "hub"),
    "doctor": (ORGANISM,),
    "audit": ("cache.safetensors", "--model", ORGANISM),
    "models list": (),
    "models prepare": (ORGANISM,),
    "methods list": (),
    "templates list": (),
    "templates show": ("math",),
    "templates check": ("math", "--model", ORGANISM),
    "study run": ("study.yaml", "--folder", "out"),
    "study resume": ("study.yaml", "--folder", "out"),
    "study status": ("study.yaml",),
    "study estimate": ("study.yaml",),
    "study merge": ("into", "run"),
    "candidates export": ("problems.jsonl", "--template", "own.yaml", "--out", "out.jsonl"),
    "candidates generate": (
        *("synthetic", "--limit", "1", "--out", "made.jsonl", "--model", "model"),
        *("--agents", "1", "--max-new", "2"),
    ),
    "gate fit": ("run",),
    "gate report": ("run", "--kinds", "threshold:decision.margin"),
    "repair train": (
        *("organism-max", "--limit", "2", "--model", ORGANISM, "--base", "naive-linked", "--steps", "1"),
        *("--rank", "1", "--out", "out"),
    ),
    "repair evaluate": (
        *("repair", "organism-max", "--limit", "2", "--heldout", "2", "--model", ORGANISM, "--run", "out"),
    ),
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
    marks = "\\n".join(["{{question}}", *(f"{{{{candidate.{i}}}}}" for i in (1, 2, 3, 4))])
    (folder / "own.yaml").write_text(f'messages: [{{role: user, content: "{marks}"}}]\n')
    engine = kvattn.load(ORGANISM).engine
    kvattn.caches.save(folder / "cache.safetensors", engine.encode(plain(range(8, 16))).span(0, 8))
    prompts = problems(ORGANISM, 2, seed=3)
    Study(kvattn.load(ORGANISM), prompts, ["dense", "naive"]).run(folder / "run")
    repair.train(kvattn.load(ORGANISM), prompts, repair.Recipe("naive-linked", steps=1, rank=1), folder / "repair")
    (folder / "study.yaml").write_text(
        f"models: {ORGANISM}\ndata: {{source: organism-max, limit: 1}}\nmethods: dense\n"
    )
    return folder


def apart(name: str, words: Sequence[str]) -> list[tuple[str, ...]]:
    """The arguments of a line, and each option with its value."""
    options = [p for n, p in PARAMETERS if n == name and p.param_type_name == "option"]
    arity = {o: 0 if getattr(p, "is_flag", False) else 1 for p in options for o in p.opts}
    out, left = [], list(words)
    while left:
        size = 1 + arity.get(left[0], 0)
        out.append(tuple(left[:size]))
        left = left[size:]
    return out


def shuffled(units: list[tuple[str, ...]], drawn: random.Random) -> list[tuple[str, ...]]:
    """Options at any place, arguments in their order."""
    arguments = iter([u for u in units if not u[0].startswith("--")])
    mixed = drawn.sample(units, len(units))
    return [u if u[0].startswith("--") else next(arguments) for u in mixed]


def test_the_table_names_every_command() -> None:
    assert {name for name, _ in commands()} == set(GIVEN)


@pytest.mark.parametrize("index", range(len(PARAMETERS)), ids=[f"{n} {p.name}" for n, p in PARAMETERS])
def test_a_bad_value_of_any_option_ends_in_one_line(
    index: int, home: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of the values for each option, each value for a third of all options; options before, between and behind
    the arguments."""
    name, parameter = PARAMETERS[index]
    monkeypatch.setattr("kvattn.cli.app.serve", lambda *_: None)
    if name == "demo":
        monkeypatch.setattr(main, "_study", lambda *_, **__: None)
    given, flag = GIVEN[name], getattr(parameter, "is_flag", False)
    places = [p.name for n, p in PARAMETERS if n == name and p.param_type_name == "argument"]
    for value in (None,) if flag else BAD[index % 3 :: 3]:
        if parameter.param_type_name == "argument":
            place = places.index(parameter.name)
            units = apart(name, [*given[:place], str(value), *given[place + 1 :]])
        else:
            units = [u for u in apart(name, given) if u[0] != parameter.opts[0]]  # the last one would count
            units.append((parameter.opts[0], *([] if value is None else [value])))
        line = [word for unit in shuffled(units, random.Random(f"{index} {value}")) for word in unit]
        done = run(*name.split(), *line, cwd=home)
        assert done.returncode in (0, 2), (value, done)
        assert "Traceback" not in done.stderr + done.stdout, value
        if done.returncode:
            assert done.line, value
        shutil.rmtree(home / "out", ignore_errors=True)


@pytest.mark.parametrize("name", GIVEN)
def test_the_order_of_arguments_changes_nothing(name: str, home: Path, run: Callable[..., Any]) -> None:
    """Up to eight orders of a line with one fault that is found as the line is read."""
    units = [*apart(name, GIVEN[name]), ("--nonsense",)]
    orders = list(itertools.permutations(range(len(units))))
    lines = {
        run(*name.split(), *(word for i in order for word in units[i]), cwd=home).line
        for order in random.Random(0).sample(orders, min(8, len(orders)))
    }
    assert len(lines) == 1
    assert "--nonsense" in lines.pop()


# -- what is kept, and what is never lost ------------------------------------------------------------------------------


@pytest.fixture
def here(home: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with a model and three questions, one of which no context holds."""
    shutil.copytree(home / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "max_position_embeddings": 1500}))
    good = list(synthetic(3))
    long = replace(good[1], id="long", candidates=tuple(replace(c, text=c.text * 40) for c in good[1].candidates))
    write_candidates(tmp_path / "good.jsonl", good)
    write_candidates(tmp_path / "mixed.jsonl", [good[0], long, good[2]])
    return tmp_path


JUDGE = ("--model", "model", "--methods", "dense,naive-linked")


def test_nothing_begins_while_a_question_cannot_be_judged(here: Path, run: Callable[..., Any]) -> None:
    for more in (("--out", "x.jsonl"), ("--run", "r"), ()):
        done = run("judge", "mixed.jsonl", *JUDGE, *more, cwd=here)
        assert done.returncode == 2
        assert "question 'long' needs" in done.line
        assert "--skip-bad" in done.line
    assert not list(here.glob("*x.jsonl*"))
    assert not (here / "r").exists()


def test_a_verdict_needs_room_in_the_context(here: Path, run: Callable[..., Any]) -> None:
    done = run("judge", "good.jsonl", *JUDGE, "--readout", "generate:1400", cwd=here)
    assert "3 questions cannot be judged" in done.line
    assert "up to 1400 for the verdict, the model's context holds 1500" in done.line


def test_bad_questions_can_be_left_out_and_are_counted(here: Path, run: Callable[..., Any]) -> None:
    done = run("judge", "mixed.jsonl", *JUDGE, "--skip-bad", "--out", "x.jsonl", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 questions: long" in done.stdout
    first, _, last = (p.id for p in synthetic(3))
    assert set(pd.read_json(here / "x.jsonl", lines=True)["question_id"]) == {first, last}
    done = run("judge", "mixed.jsonl", *JUDGE, "--skip-bad", "--run", "r", cwd=here)
    assert done.returncode == 0
    assert "1 of 3 questions could not be read or judged" in " ".join(done.stdout.split())
    opened = Run(here / "r")
    assert len(opened) == 2
    assert list(opened.manifest["left_out"]) == ["long"]


@pytest.fixture
def torn(here: Path) -> Path:
    """A file of three questions, of which the middle one fits no context, and two lines that hold none."""
    lines = (here / "mixed.jsonl").read_text().splitlines()
    (here / "torn.jsonl").write_text("\n".join([lines[0], '{"id": "cut', lines[1], '{"id": "x"}', lines[2]]))
    return here


def test_bad_lines_can_be_left_out_like_bad_questions(
    torn: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this page is read
    assert "torn.jsonl has 2 faults" in run("judge", "torn.jsonl", *JUDGE, cwd=torn).line
    said = "3 of 5 questions: line 2, line 4, long"
    done = run("judge", "torn.jsonl", *JUDGE, "--skip-bad", "--out", "x.jsonl", cwd=torn)
    assert said in done.stdout
    assert pd.read_json(torn / "x.jsonl", lines=True)["question_id"].nunique() == 2
    assert run("judge", "torn.jsonl", *JUDGE, "--skip-bad", "--run", "r", cwd=torn).returncode == 0
    opened = Run(torn / "r")
    assert list(opened.manifest["unread"]) == ["line 2", "line 4"]
    assert "malformed JSON" in opened.manifest["unread"]["line 2"]
    assert left_out(opened.manifest) == ["long", "line 2", "line 4"]
    assert "3 of 5 questions could not be read or judged" in (torn / "r" / "report.html").read_text()
    assert "r: 3 questions could not be read or judged" in " ".join(run("compare", "r", cwd=torn).stdout.split())
    # The same questions from a file without the bad lines: the run goes on.
    lines = (torn / "torn.jsonl").read_text().splitlines()
    (torn / "whole.jsonl").write_text("\n".join([lines[0], lines[4]]))
    assert run("judge", "whole.jsonl", *JUDGE, "--run", "r", cwd=torn).returncode == 0
    (torn / "torn.jsonl").write_text("\n".join([lines[1], lines[3]]))
    done = run("judge", "torn.jsonl", *JUDGE, "--skip-bad", cwd=torn)
    assert "torn.jsonl has 2 faults" in done.line  # nothing is left
    (torn / "torn.jsonl").write_text(lines[2])
    done = run("judge", "torn.jsonl", *JUDGE, "--skip-bad", cwd=torn)
    assert "question 'long' needs" in done.line
    assert done.line.endswith("nothing was judged, since no other is left")


def test_a_study_leaves_bad_lines_out_and_counts_them(torn: Path, run: Callable[..., Any]) -> None:
    (torn / "s.yaml").write_text("models: model\ndata: {source: torn.jsonl, heldout: 1}\nmethods: dense\n")
    assert "2 faults" in run("study", "run", "s.yaml", "--folder", "out", cwd=torn).line
    assert not (torn / "out").exists()
    assert run("study", "run", "s.yaml", "--folder", "out", "--skip-bad", cwd=torn).returncode == 0
    (folder,) = (torn / "out").iterdir()
    assert len(Run(folder)) == 1
    (row,) = Grid.read(torn / "s.yaml").status(torn / "out")
    assert (row["done"], row["of"], row["left out"]) == (1, 1, 3)
    told = run("study", "estimate", "s.yaml", "--skip-bad", cwd=torn).stdout
    assert "left out" in told


def test_agents_leave_out_what_cannot_be_answered_and_begin_anew(torn: Path, run: Callable[..., Any]) -> None:
    lines = (torn / "torn.jsonl").read_text().splitlines()
    long = json.dumps({"id": "long", "question": "How many? " * 400})
    (torn / "p.jsonl").write_text("\n".join([lines[0], "{", long, lines[4]]))
    ask = ("candidates", "generate", "p.jsonl", "--out", "a.jsonl", "--model", "model", "--agents", "1")
    short = (*ask, "--max-new", "2")
    assert "line 2" in run(*short, cwd=torn).line
    done = run(*short, "--skip-bad", cwd=torn)
    assert "2 of 4 questions: line 2, long" in done.stdout
    assert run(*short, "--skip-bad", cwd=torn).stdout == done.stdout  # the same command: nothing more to do
    first = (torn / "a.jsonl").read_bytes()
    other = run(*ask, "--max-new", "3", "--skip-bad", cwd=torn)
    assert "agents.max_new (2 there, 3 here)" in other.line
    assert "(--anew)" in other.line
    assert run(*ask, "--max-new", "3", "--skip-bad", "--anew", cwd=torn).returncode == 0
    assert (torn / "a.before-1.jsonl").read_bytes() == first
    assert json.loads((torn / "a.before-1.jsonl.manifest.json").read_text())["agents"]["max_new"] == 2
    assert len(read_candidates(torn / "a.jsonl")) == 2
    into = run("candidates", "generate", "p.jsonl", "--out", "p.jsonl", "--model", "model", "--anew", cwd=torn)
    assert "is what is read" in into.line
    with take_lock(torn / "a.jsonl.part"):
        assert "by another process" in run(*short, "--skip-bad", "--anew", cwd=torn).line
    assert not (torn / "a.before-2.jsonl").exists()


def test_a_study_begun_anew_asks_its_agents_anew_where_they_were_asked_otherwise(
    here: Path, run: Callable[..., Any]
) -> None:
    study = "models: model\ndata: {source: good.jsonl, agents: 1, max_new: %d}\nmethods: dense\n"
    for length, said in ((2, ""), (3, "begun with other parameters: agents.max_new (2 there, 3 here)")):
        (here / "s.yaml").write_text(study % length)
        done = run("study", "run", "s.yaml", "--folder", "out", cwd=here)
        assert said in done.stderr
    assert run("study", "run", "s.yaml", "--folder", "out", "--anew", cwd=here).returncode == 0
    assert run("study", "run", "s.yaml", "--folder", "out", "--anew", cwd=here).returncode == 0
    assert len(list((here / "out" / "candidates").glob("*before*.jsonl"))) == 1
    assert len(list((here / "out").glob("*.before-*"))) == 2


def test_a_folder_in_which_nothing_was_judged_is_no_obstacle(here: Path, run: Callable[..., Any]) -> None:
    with RunWriter(here / "r", {"readout": "other"}):
        pass
    assert run("judge", "good.jsonl", *JUDGE, "--run", "r", cwd=here).returncode == 0
    assert read_manifest(here / "r")["readout"] == "label"
    again = run("judge", "good.jsonl", *JUDGE, "--run", "r", "--orders", "latin", cwd=here)
    assert 'orders.scheme ("fixed" there, "latin" here)' in again.line


def test_a_run_goes_on_under_another_spelling_of_the_same_content(here: Path, run: Callable[..., Any]) -> None:
    assert run("judge", "good.jsonl", *JUDGE, "--run", "r", cwd=here).returncode == 0
    shutil.copytree(here / "model", here / "elsewhere" / "twin")
    shutil.copy(here / "good.jsonl", here / "elsewhere" / "same.jsonl")
    spelt = ("elsewhere/same.jsonl", "--model", "elsewhere/twin", *JUDGE[2:])
    assert run("judge", *spelt, "--run", "r", cwd=here).returncode == 0
    assert len(Run(here / "r").manifest["sessions"]) == 2
    lines = (here / "good.jsonl").read_text().splitlines()
    (here / "other.jsonl").write_text("\n".join(lines[:2]))
    other = run("judge", "other.jsonl", *JUDGE, "--run", "r", cwd=here)
    assert "data.sha256" in other.line


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_output_takes_the_place_of_the_old_one_when_it_is_whole(
    here: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Stopped at the second question, the old file is as it was, and what was judged lies beside it and is shown."""
    out = here / f"x.{ending}"
    out.write_text("old")
    real, calls = Judge.judge, []

    def judge(self: Judge, *args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", judge)
        done = run("judge", "good.jsonl", *JUDGE, "--out", out.name, "--overwrite", cwd=here)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.line == f"kvattn: terminated; the 1 questions judged before are kept in x.part.{ending}"
    assert "naive-linked" in done.stdout
    assert out.read_text() == "old"
    part = here / f"x.part.{ending}"
    kept = pd.read_json(part, lines=True) if ending == "jsonl" else pd.read_parquet(part)
    assert kept["question_id"].nunique() == 1
    assert run("judge", "good.jsonl", *JUDGE, "--out", out.name, "--overwrite", cwd=here).returncode == 0
    whole = pd.read_json(out, lines=True) if ending == "jsonl" else pd.read_parquet(out)
    assert whole["question_id"].nunique() == 3
    assert not list(here.glob(".tmp-*"))
    # Stopped again, with the first part for its input: that stays, too.
    before, calls = part.read_bytes(), []
    shutil.copy(here / "good.jsonl", part)
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "judge", judge)
        done = run("judge", part.name, *JUDGE, "--out", out.name, "--overwrite", cwd=here)
    assert done.line.endswith(f"are kept in x.part1.{ending}")
    assert part.read_bytes() == (here / "good.jsonl").read_bytes() != before


def test_ctrl_c_says_what_is_kept(here: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "judge", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    done = run("judge", "good.jsonl", *JUDGE, cwd=here)
    assert (done.returncode, done.line) == (130, "kvattn: interrupted; nothing was judged")
    done = run("judge", "good.jsonl", *JUDGE, "--run", "r", cwd=here)
    assert (done.returncode, done.line) == (
        130,
        "kvattn: interrupted; what was finished is kept, the same command goes on from there",
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--out", "good.jsonl", "--overwrite"), "is what is read"),
        (("--out", "./here/../good.jsonl", "--overwrite"), "is what is read"),
        (("--out", "x.jsonl", "--run", "r"), "leave out --run or --out"),
        (("--overwrite",), "--out names"),
        (("--gate", "g.json", "--methods", "dense,naive,naive-linked"), "leave out --methods"),
        (("--seed", "-1"), "--seed"),
        (("--orders", "shuffle:²"), "a whole number of 1 or more"),
        (("--orders", "shuffle:99", "--run", "r"), "have 24 orders, fewer than shuffle:99"),
        (("--orders", "nope", "--run", "r"), "unknown order scheme 'nope'"),
        (("--readout", "generate:²"), "a whole number of 1 or more"),
        (("--regime", "serial"), "unknown regime 'serial'"),
        (("--caches", "here", "--run", "r"), "leave out --run and --gate"),
        (("--caches", "here"), "holds no cache"),
        (("--methods", "foreign-cache", "--run", "r"), "a run is made from texts"),
    ],
)
def test_options_that_would_lose_something_or_do_nothing_are_refused(
    here: Path, run: Callable[..., Any], more: tuple[str, ...], said: str
) -> None:
    (here / "here").mkdir()
    before = (here / "good.jsonl").read_bytes()
    done = run("judge", "good.jsonl", "--model", "model", *more, cwd=here)
    assert done.returncode == 2
    assert said in done.line
    assert (here / "good.jsonl").read_bytes() == before
    assert not (here / "r").exists()


def test_no_command_writes_over_what_it_reads(home: Path, run: Callable[..., Any]) -> None:
    """A gate's page lies beside JSON of its name: it must be neither a gate nor a manifest."""
    (home / "run" / "gate.json").write_text('{"format": "kvattn-gate-2"}')
    before = {p: p.read_bytes() for p in (home / "run").rglob("*.json")}
    for line, said in (
        (("report", "run", "--out", "run/manifest.json"), "ends in .html"),
        (("gate", "report", "run", "--reuse", "naive", "--out", "run/manifest.html"), "no kvattn gate report"),
        (("gate", "report", "run", "--reuse", "naive", "--out", "run/gate.html"), "no kvattn gate report"),
        (("gate", "fit", "run", "--reuse", "naive", "--out", "run/manifest.json"), "no kvattn gate"),
    ):
        done = run(*line, cwd=home)
        assert done.returncode == 2
        assert said in done.line
    assert {p: p.read_bytes() for p in (home / "run").rglob("*.json")} == before


def test_a_run_begins_anew_beside_the_old_one(here: Path, run: Callable[..., Any]) -> None:
    assert run("judge", "good.jsonl", *JUDGE, "--run", "r", cwd=here).returncode == 0
    held = {p.name: p.read_bytes() for p in (here / "r" / "judgements").iterdir()}
    other = ("judge", "good.jsonl", *JUDGE, "--orders", "latin", "--run", "r")
    refused = run(*other, cwd=here)
    assert refused.returncode == 2
    assert "begin anew, which puts this one aside (--anew)" in refused.line
    assert run(*other, "--anew", cwd=here).returncode == 0
    assert Run(here / "r").manifest["orders"] == {"scheme": "latin"}
    assert {p.name: p.read_bytes() for p in (here / "r.before-1" / "judgements").iterdir()} == held
    with RunWriter(here / "r", Run(here / "r").manifest):
        taken = run(*other, "--anew", cwd=here)
    assert "is being written by process" in taken.line
    assert not (here / "r.before-2").exists()
    assert "--run names" in run("judge", "good.jsonl", *JUDGE, "--anew", cwd=here).line
