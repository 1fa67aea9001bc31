"""The prompt of one's own on the command line: listed, shown, checked, judged with, continued, and judged again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import save

from kvattn.questions.template_files import read_template
from kvattn.study.run_folder import Run, picks
from kvattn.study.run_folder.schema import prompt_of

OWN = """\
messages:
  - {role: user, content: "Q: {{question}}\\nA: {{candidate.1}}\\nB: {{candidate.2}}\\nA or B?"}
labels: [A, B]
agent_system: ""
agent_instruction: "Go."
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    save(tmp_path / "model")
    (tmp_path / "own.yaml").write_text(OWN)
    rows = [{"id": f"q{i}", "question": f"{i}+{i}?", "candidates": [{"text": f"{2 * i}"}, {"text": "no <|turn|>"}]}
            for i in range(3)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_templates_are_listed_shown_and_checked(run: Callable[..., Any], here: Path) -> None:
    assert "relational" in run("templates", "list", cwd=here).stdout
    shown = run("templates", "show", "own.yaml", cwd=here).stdout
    (here / "again.yaml").write_text(shown)
    assert read_template(here / "again.yaml") == read_template(here / "own.yaml")
    done = run("templates", "check", "own.yaml", "--model", "model", cwd=here)
    assert done.returncode == 0
    assert "candidate:2" in done.stdout
    assert "at its end one token decides: 'A', 'B'" in done.stdout
    assert f"{read_template(here / 'own.yaml').id}: can be judged by model" in done.stdout
    asked = run("templates", "check", "own.yaml", "--model", "model", "--data", "pairs.jsonl", cwd=here)
    assert "no <|turn|>" in asked.stdout
    branches = run("templates", "check", "own.yaml", "--model", "model", "--readout", "generate", cwd=here)
    assert "the judge writes its verdict, which is read by kvattn's rules" in branches.stdout


def test_what_cannot_work_is_one_line(run: Callable[..., Any], here: Path) -> None:
    (here / "bad.yaml").write_text(OWN.replace("[A, B]", "[Ann, Bob]"))
    done = run("templates", "check", "bad.yaml", "--model", "model", cwd=here)
    assert done.returncode == 2
    assert "label collision" in done.line
    (here / "bad.yaml").write_text(OWN.replace("{{candidate.2}}", "{{candidate.1}}"))
    assert "the mark {{candidate.1}} is used twice" in run("templates", "check", "bad.yaml", cwd=here).line
    assert (
        "the mark {{candidate.1}} is used twice" in run("judge", "pairs.jsonl", "--template", "bad.yaml", cwd=here).line
    )


def test_a_run_in_ones_own_words(run: Callable[..., Any], here: Path) -> None:
    """Judged, continued by what the file says and not by where it lies, reported, and put before the app again."""
    words = ("judge", "pairs.jsonl", "--model", "model", "--methods", "dense,null-edit,naive", "--orders", "all")
    done = run(*words, "--template", "own.yaml", "--run", "out", cwd=here)
    assert done.returncode == 0, done.stderr
    template, opened = read_template(here / "own.yaml"), Run(here / "out")
    assert opened.manifest["template"] == template.id
    assert template.id in (here / "out" / "report.html").read_text()
    row = picks.question(opened, "q1")
    prompt = prompt_of(row, opened.manifest)
    assert (prompt.template, prompt.candidates[1].text) == (template, "no <|turn|>")
    (here / "moved").mkdir()
    (here / "own.yaml").rename(here / "moved" / "own.yaml")
    assert run(*words, "--template", "moved/own.yaml", "--run", "out", cwd=here).returncode == 0
    (here / "moved" / "own.yaml").write_text(OWN.replace("A or B?", "B or A?"))
    again = run(*words, "--template", "moved/own.yaml", "--run", "out", cwd=here)
    assert again.returncode == 2
    assert "begun with other parameters" in again.line
    assert "template" in again.line


def test_a_study_names_the_template_of_its_data(run: Callable[..., Any], here: Path) -> None:
    (here / "study.yaml").write_text(
        "name: mine\nmodels: model\nmethods: [dense, naive]\ndata: {source: pairs.jsonl, template: own.yaml}\n"
    )
    done = run("study", "run", "study.yaml", cwd=here)
    assert done.returncode == 0, done.stderr
    assert Run(Path(done.stdout.strip())).manifest["template"] == read_template(here / "own.yaml").id
    (here / "study.yaml").write_text(
        "models: model\ndata: {source: synthetic, agents: 2, limit: 1, template: own.yaml}\n"
    )
    assert "'template' is of questions that have candidates" in run("study", "run", "study.yaml", cwd=here).line


def test_a_study_asks_in_kinds_of_judgement(run: Callable[..., Any], here: Path) -> None:
    (here / "own.yaml").write_text(
        OWN.replace("[A, B]", "[A, B, C]") + 'score_branch: "Rate {label}, {low} to {high}."\n'
    )
    (here / "study.yaml").write_text(
        "name: kinds\nmodels: model\nreadouts: [pairwise, score]\nmethods: [dense, null-edit, naive]\n"
        "data: {source: pairs.jsonl, template: own.yaml}\n"
    )
    done = run("study", "run", "study.yaml", cwd=here)
    assert done.returncode == 0, done.stderr
    folders = [here / line for line in done.stdout.split()]
    assert [Run(f).manifest["readout"] for f in folders] == ["pairwise", "score"]
    assert [len(Run(f).judgements()["scores"].iloc[0]) for f in folders] == [3, 2]
    scores = Run(folders[1]).judgements()["scores"]
    assert all(1 <= x <= 10 for row in scores for x in row)
    for folder in folders:
        assert run("report", str(folder), cwd=here).returncode == 0
    limited = run("check", str(folders[1]), str(folders[1]), "--method", "naive", "--max-points", "10", cwd=here)
    assert "points beyond it" in limited.stdout
    refused = run("check", str(folders[0]), str(folders[0]), "--method", "naive", "--max-points", "1", cwd=here)
    assert "are of the readout score" in refused.line
