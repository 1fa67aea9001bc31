"""Results in the forms of others: logs that inspect_ai opens, and a data set folder that `datasets` loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import Fake, write_fake_run
from tiny import save, short_prompt

from kvattn.decision import TIE
from kvattn.errors import KvattnError
from kvattn.judge.judge import load
from kvattn.questions import read_candidates
from kvattn.questions.template_files import of_entries
from kvattn.report.hub import write_hub
from kvattn.report.inspect_log import inspect_log
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

OWN = of_entries(
    {
        "labels": ["A", "B", "C"],
        "agent_system": "",
        "agent_instruction": "Go.",
        "messages": [{"role": "user", "content": "{{question}}\n{{candidate.1}}\n--\n{{candidate.2}}\nA, B or C?"}],
    },
    "own",
    "own",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run of parts, one of hostile texts, and a pairwise one in a template's own words."""
    folder = tmp_path_factory.mktemp("exports")
    write_fake_run(folder / "fake", Fake(questions=6, orders=2, methods=("dense", "null-edit", "naive")))
    write_fake_run(folder / "hostile", Fake(questions=3, methods=("dense", "naive"), hostile=True))
    judge = load(save(tmp_path_factory.mktemp("model")), readout="pairwise")
    prompts = [short_prompt(f"What is {i}?", [f"It is {i}.", f"It is {i + 3}, maybe."], id=f"q{i}") for i in range(4)]
    right = [replace(p, template=OWN, candidates=(replace(p.candidates[0], correct=True),
             replace(p.candidates[1], correct=False))) for p in prompts]  # fmt: skip
    Study(judge, right, ["dense", "naive"], "rotations").run(folder / "own")
    return folder


@pytest.mark.parametrize("name", ["fake", "own"])
def test_a_log_says_what_was_judged(runs: Path, name: str) -> None:
    run = Run(runs / name)
    judged = run.judgements()
    by_method = {m: part.to_dict("records") for m, part in judged.groupby("method")}
    dense = {(r["question_id"], tuple(r["order"])): r["choice"] for r in by_method["dense"]}
    rows, log = by_method["naive"], json.loads(inspect_log(run, "naive"))
    assert [s["metadata"]["choice"] for s in log["samples"]] == [r["choice"] for r in rows]
    texts = {q: dict(zip(x.ids, x.texts, strict=True)) for q, x in run.asked.items()}
    for sample, row in zip(log["samples"], rows, strict=True):
        key, shown = row["question_id"], [run.asked[row["question_id"]].ids[i] for i in row["order"]]
        label = ("ABC" if name == "own" else "1234")[shown.index(row["choice"])]
        assert (sample["id"], sample["output"]["completion"]) == (key, label)
        assert sample["scores"]["correct"]["value"] == ("C" if row["correct"] else "I")
        same = texts[key][dense[key, tuple(row["order"])]] == texts[key][row["choice"]]
        assert sample["scores"]["as_dense"]["value"] == ("C" if same else "I")
        assert sample["metadata"]["candidates"] == [x for x in shown if x != TIE]
    found = {s["name"]: s["metrics"]["accuracy"]["value"] for s in log["results"]["scores"]}
    assert found["correct"] == pytest.approx(np.mean([r["correct"] for r in rows]))
    assert log["eval"]["dataset"]["sample_ids"] == list(dict.fromkeys(r["question_id"] for r in rows))


def test_a_log_in_ones_own_words_is_read_back(runs: Path, tmp_path: Path) -> None:
    """What was sent, the right label and the verdict come back as from any log of inspect_ai."""
    run = Run(runs / "own")
    (tmp_path / "log.json").write_bytes(inspect_log(run, "dense"))
    first = run.judgements().query("method == 'dense'")
    back = {p.id.partition(", epoch")[0]: p for p in read_candidates(tmp_path / "log.json", template=OWN)}
    for key, prompt in back.items():
        assert {c.text for c in prompt.candidates} == set(run.asked[key].texts[:2])
        last = first[first["question_id"] == key].iloc[-1]
        text = (
            None
            if last["choice"] == TIE
            else dict(zip(run.asked[key].ids, run.asked[key].texts, strict=True))[last["choice"]]
        )
        said = next((c.text for c in prompt.candidates if c.id == prompt.verdict), None)
        assert (said, prompt.verdict == TIE) == (text, last["choice"] == TIE)


@pytest.mark.parametrize("name", ["fake", "own", "hostile"])
def test_inspect_ai_opens_the_log(runs: Path, name: str, tmp_path: Path) -> None:
    logs = pytest.importorskip("inspect_ai.log")
    (tmp_path / "log.json").write_bytes(inspect_log(Run(runs / name), "naive"))
    log = logs.read_eval_log(str(tmp_path / "log.json"))
    judged = Run(runs / name).judgements().query("method == 'naive'")
    assert (log.status, len(log.samples)) == ("success", len(judged))
    assert [s.metadata["choice"] for s in log.samples] == judged["choice"].tolist()
    assert [s.scores["as_dense"].value in "CI" for s in log.samples]
    logs.write_eval_log(log, str(tmp_path / "log.eval"))
    assert len(logs.read_eval_log(str(tmp_path / "log.eval")).samples) == len(judged)


def test_another_method_has_no_log(runs: Path) -> None:
    with pytest.raises(KvattnError, match="no judgements by 'isolated'; it has dense, null-edit, naive"):
        inspect_log(Run(runs / "fake"), "isolated")


@pytest.mark.parametrize("name", ["fake", "own", "hostile"])
def test_datasets_loads_the_folder(runs: Path, name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run, folder = Run(runs / name), tmp_path / "set"
    write_hub(run, folder)
    for table, want in (("judgements", run.judgements()), ("questions", run.questions())):
        found = datasets.load_dataset(str(folder), table, split="test", cache_dir=str(tmp_path / "cache"))
        assert found["question_id"][:] == want["question_id"].tolist()
        column = "choice" if table == "judgements" else "texts"
        assert [list(x) if column == "texts" else x for x in found[column]] == [
            list(x) if column == "texts" else x for x in want[column]
        ]
    assert datasets.load_dataset(str(folder), split="test", cache_dir=str(tmp_path / "cache")).num_rows == len(
        run.judgements()
    )


def test_the_card_is_text(runs: Path, tmp_path: Path) -> None:
    write_hub(Run(runs / "fake"), tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: judgements\n")
    assert "| naive | " in card
    (tmp_path / "<img src=x>").symlink_to(runs / "fake")
    write_hub(Run(tmp_path / "<img src=x>"), tmp_path / "other")
    assert "<img" not in (tmp_path / "other" / "README.md").read_text().replace("\\<img", "")
    with pytest.raises(KvattnError, match="exists; name a new folder"):
        write_hub(Run(runs / "fake"), tmp_path / "set")


def test_the_command_writes_both(runs: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("export", runs / "fake", "--to", "inspect", "--out", "logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["dense.json", "naive.json", "null-edit.json"]
    assert run("export", runs / "fake", "--to", "hub", "--out", "set", cwd=tmp_path).returncode == 0
    assert "unknown form 'x'" in run("export", runs / "fake", "--to", "x", "--out", "y", cwd=tmp_path).line
