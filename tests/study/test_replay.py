"""Is a replay the judge that it replays: dense's picks beside what production chose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvattn.judge.judge import load
from kvattn.questions.organism import problems
from kvattn.report.findings import findings
from kvattn.study.replay import replay
from kvattn.study.run_folder import Run
from kvattn.study.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An organism's run whose production judge is itself, one whose production judge picks slot 1, and one without."""
    folder, judge = tmp_path_factory.mktemp("replay"), load("organism-safe")
    prompts = [p.ordered(p.order[::-1]) for p in problems("organism-safe", 24, seed=5)]
    own = [replace(p, verdict=judge.decide(p).choice) for p in prompts]
    lock = [replace(p, verdict=p.shown(0).id) for p in prompts]
    for name, asked in (("own", own), ("lock", lock), ("none", prompts)):
        Study(judge, asked, ["dense"], "rotations", capture=False).run(folder / name)
    return folder


def test_a_judge_replays_itself(folder: Path) -> None:
    found = replay(Run(folder / "own"))
    assert found is not None
    assert (found.pairs, found.own_order, found.verdicts) == (24, True, 24)
    assert found.found.jcr.value == 1
    assert found.holds
    (said,) = [f for f in findings(Run(folder / "own")) if f.topic == "replay"]
    assert (said.level, "in 100.0% of 24 judgements in the order that it was shown" in said.sentence) == ("good", True)


def test_another_judge_is_no_replay(folder: Path) -> None:
    found = replay(Run(folder / "lock"))
    assert found is not None
    assert not found.holds
    (said,) = [f for f in findings(Run(folder / "lock")) if f.topic == "replay"]
    assert said.level == "warn"
    assert "nothing says that this replay is your judge" in said.advice


def test_agreement_is_counted_by_hand(folder: Path) -> None:
    run = Run(folder / "lock")
    table = run.judgements()
    shown = run.manifest["shown"]
    own = [
        run.manifest["verdicts"][r["question_id"]] == r["choice"]
        for r in table.to_dict("records")
        if list(r["order"]) == shown[r["question_id"]]
    ]
    found = replay(run)
    assert found is not None
    assert found.found.jcr_id.value == pytest.approx(sum(own) / len(own))


def test_without_verdicts_nothing_is_said(folder: Path) -> None:
    assert replay(Run(folder / "none")) is None
    assert not [f for f in findings(Run(folder / "none")) if f.topic == "replay"]
