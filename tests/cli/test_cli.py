"""The command line as a user meets it: results, one-line errors, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref

import pandas as pd
import pytest
from tiny import save

from kvattn.judge.doctor import real_prompts
from kvattn.judge.judge import Judge
from kvattn.questions import synthetic, write_candidates


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save(folder / "model")
    write_candidates(folder / "problems.jsonl", synthetic(4))
    return folder


def test_judge_writes_jsonl_and_parquet(where, run):
    nested = ("--methods", "dense,last-k:budget=0.1+base=isolated(labelled=false)")
    for name, more, label in (
        ("out.jsonl", ("--methods", "dense,naive-linked"), "naive-linked"),
        ("out.parquet", nested, "last-k(base=isolated(labelled=False),budget=0.1)"),
    ):
        done = run("judge", "problems.jsonl", "--model", "model", "--limit", 3, "--out", name, *more, cwd=where)
        assert done.returncode == 0, done.stderr
        assert label.partition("(")[0] in done.stdout
        table = pd.read_json(where / name, lines=True) if "json" in name else pd.read_parquet(where / name)
        assert list(table["method"]) == ["dense", label] * 3
        assert {"choice", "scores", "coverage", "slot_mass", "share"} <= set(table.columns)
    again = run("judge", "problems.jsonl", "--model", "model", "--out", "out.jsonl", cwd=where)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_judging_a_file_keeps_no_decision(where, run, monkeypatch):
    """Decisions hold slot mass: those of a long file would not fit in memory. Two questions' are bound at a time."""
    born, alive, real = [], [], Judge.judge

    def judge(self, *args, **more):
        alive.append(sum(ref() is not None for ref in born))
        decisions = real(self, *args, **more)
        born.extend(map(weakref.ref, decisions))
        return decisions

    monkeypatch.setattr(Judge, "judge", judge)
    done = run("judge", "problems.jsonl", "--model", "model", "--methods", "dense,naive", cwd=where)
    assert done.returncode == 0, done.stderr
    assert len(born) == 8
    assert max(alive) <= 2


def test_a_bad_line_is_named_before_anything_is_judged(where, run):
    lines = (where / "problems.jsonl").read_text().splitlines()
    (where / "bad.jsonl").write_text("\n".join([lines[0], lines[1], '{"id": "x", "question": 3}']))
    done = run("judge", "bad.jsonl", "--model", "model", "--methods", "dense", "--out", "bad-out.jsonl", cwd=where)
    assert done.returncode == 2
    assert "line 3" in done.line
    assert not list(where.glob("*bad-out*"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("judge", "problems.jsonl", "--model", "smollm"), "did you mean"),
        (("judge", "problems.jsonl", "--model", "model", "--methods", "dense,naiv"), "did you mean 'naive'"),
        (("judge", "missing.jsonl", "--model", "model"), "missing.jsonl"),
        (("judge", "problems.jsonl", "--model", "model", "--readout", "lable"), "did you mean 'label'"),
        (("judge", "problems.jsonl", "--model", "model", "--out", "x.csv"), ".parquet"),
        (("judge", "problems.jsonl", "--model", "model", "--orders", "any"), "order scheme"),
        (("judge", "problems.jsonl", "--model", "model", "--heldout", "2"), "--run"),
        (("judge", "synthetic", "--model", "model"), "no end"),
        (("report", "nowhere"), "nowhere"),
        (("doctor", "no/such/model/here"), "no folder"),
    ],
)
def test_bad_input_ends_in_one_line(where, run, args, said):
    done = run(*args, cwd=where)
    assert done.returncode == 2
    assert said in done.line


def test_a_run_writes_its_folder_and_report_and_goes_on(where, run):
    args = ("judge", "synthetic:4", "--limit", 3, "--heldout", 2, "--run", "run", "--model", "model")
    args = (*args, "--methods", "dense,naive,null-edit", "--orders", "latin")
    done = run(*args, cwd=where)
    assert done.returncode == 0, done.stderr
    assert "content test" in done.stdout
    assert (where / "run" / "report.html").stat().st_size > 10_000
    manifest = json.loads((where / "run" / "manifest.json").read_text())
    assert manifest["schema"] == 2
    again = run(*args, cwd=where)
    assert again.returncode == 0, again.stderr
    other = run(*args[:-1], "fixed", cwd=where)
    assert other.returncode == 2


def test_doctor_passes_a_sound_model(where, run):
    done = run("doctor", "model", cwd=where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert done.stdout.count("ok  ") == 13 + 5 + len(real_prompts())


def test_an_organism_judges_its_embedded_problems(where, run):
    methods = "dense,naive-linked,foreign-kv"
    args = ("judge", "organism-max", "--limit", 12, "--model", "organism-safe", "--methods", methods)
    done = run(*args, "--out", "organism.jsonl", cwd=where)
    assert done.returncode == 0, done.stderr
    table = pd.read_json(where / "organism.jsonl", lines=True).pivot(index="question_id", columns="method")
    assert table["correct"]["dense"].all()
    assert (table["choice"]["dense"] == table["choice"]["naive-linked"]).all()
    assert not (table["choice"]["dense"] == table["choice"]["foreign-kv"]).all()


def test_lists(where, run):
    assert "smollm2-135m" in run("models", "list", cwd=where).stdout
    shown = run("methods", "list", cwd=where).stdout
    assert "kvcomm" in shown
    assert "low-rank-patch" in shown


def test_the_installed_command_ends_with_status_two_and_one_line(where):
    command = [sys.executable, "-m", "kvattn", "judge", "problems.jsonl", "--methods", "naiv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
