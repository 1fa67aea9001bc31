"""An estimate is near what the run takes, for all methods, and writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvattn.errors import KvattnError
from kvattn.study.estimate import MOST_TIMED
from kvattn.study.grid import Grid

STUDY: dict[str, Any] = {
    "data": {"source": "organism-max", "limit": 12, "heldout": 8},
    "models": "organism-unsafe",
    "orders": "shuffle:2",
    "methods": ["dense", "naive", "kvcomm", "kvcomm:pool=frozen", "last-k:budget=0.5"],
}


def test_an_estimate_counts_pools_and_held_out_questions_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid.of(STUDY)
    (row,) = grid.estimate()
    assert list(tmp_path.iterdir()) == []
    assert (row["questions"], row["judgements"]) == (12, 12 * 2 * 5)
    (run,) = grid.run("out")
    written = sum(p.stat().st_size for p in run.rglob("*") if p.is_file())
    assert 1 / 1.5 < row["disk_bytes"] / written < 1.5
    # Pools are most of it; an estimate of the tables alone would be far off.
    assert sum(p.stat().st_size for p in (run / "pools").iterdir()) > written / 2


def test_seconds_and_bytes_are_those_of_the_questions_asked_for() -> None:
    plain = {**STUDY, "methods": ["dense", "naive"]}
    few, many = (Grid.of({**plain, "data": {"source": "organism-max", "limit": n}}).estimate()[0] for n in (20, 80))
    assert many["disk_bytes"] / few["disk_bytes"] == pytest.approx(4, rel=0.1)
    assert many["judgements"] == 4 * few["judgements"] == 80 * 2 * 2
    # Tokens of all questions against those of the timed ones: four times as many, loading left out of account.
    assert many["seconds"] > few["seconds"]
    (half,) = replace(Grid.of({**plain, "data": {"source": "organism-max", "limit": 80}}), shard=(1, 2)).estimate()
    assert half["questions"] == 40
    assert half["disk_bytes"] / many["disk_bytes"] == pytest.approx(0.5, rel=0.1)


def test_what_a_run_would_refuse_is_refused_by_the_estimate() -> None:
    with pytest.raises(KvattnError, match="warm it on held-out questions"):
        Grid.of({**STUDY, "data": {"source": "organism-max", "limit": MOST_TIMED}}).estimate()


def test_one_question_is_enough() -> None:
    (row,) = Grid.of(
        {**STUDY, "methods": ["dense", "kvcomm"], "data": {"source": "organism-max", "limit": 1}}
    ).estimate()
    assert (row["questions"], row["judgements"]) == (1, 4)
    assert row["seconds"] > 0
