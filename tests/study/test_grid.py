"""Study files: grids, shards, merges, estimates, kills."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from fake_run import frame
from tiny import save

from kvattn.errors import KvattnError
from kvattn.questions import synthetic, write_candidates
from kvattn.study.grid import Grid, merge
from kvattn.study.run_folder import Run

YAML = """
name: small
models: model
data:
  - {source: problems.jsonl, limit: 4, heldout: 1, mixed: true}
regimes: [parallel, progressive]
orders: "shuffle:2"
methods: [dense, naive, "last-k:budget=0.3,base=isolated(labelled=false)", foreign-kv]
seed: 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    save(tmp_path / "model")
    write_candidates(tmp_path / "problems.jsonl", synthetic(14))
    (tmp_path / "study.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def equal(a, b) -> None:
    pd.testing.assert_frame_equal(frame(a).drop(columns="seconds"), frame(b).drop(columns="seconds"), check_exact=True)


def test_a_grid_runs_every_cell_and_reports_its_state(here):
    grid = Grid.read("study.yaml")
    before = grid.status("out")
    assert [(r["done"], r["of"]) for r in before] == [(0, 4), (0, 4)]
    made = grid.run("out")
    assert [p.name for p in made] == [
        "model-problems-parallel-shuffle_2-label",
        "model-problems-progressive-shuffle_2-label",
    ]
    for path in made:
        table = frame(path)
        assert len(table) == 4 * 2 * 4
        assert set(table["method"]) == {
            "dense",
            "naive",
            "last-k(base=isolated(labelled=False),budget=0.3)",
            "foreign-kv",
        }
    assert [(r["done"], r["of"]) for r in grid.status("out")] == [(4, 4), (4, 4)]
    notes = frame(made[1])["notes"].astype(str)
    assert notes[frame(made[1])["method"] == "naive"].str.contains("pr-teacher-forced").all()


def test_shards_merge_to_the_whole(here):
    grid = replace(Grid.read("study.yaml"), regimes=("parallel",))
    (whole,) = grid.run("whole")
    parts = [replace(grid, shard=(k, 2)).run(f"shard{k}")[0] for k in (1, 2)]
    assert len(Run(parts[0])) == 2
    equal(merge(parts, "merged"), whole)
    assert len(Run("merged").manifest["sessions"]) == len(parts) + 1
    small = merge(parts, "small", rows=False)
    equal(small, whole)
    assert not Run(small).check()
    assert len(Run(small).mass()) == 0 < len(Run("merged").mass())
    assert Run(small).manifest["capture"] is False
    equal(small / "heldout", parts[0] / "heldout")
    with pytest.raises(KvattnError, match="overlap"):
        merge([parts[0], parts[0]], "again")
    with pytest.raises(KvattnError, match="learns"):
        list(replace(grid, methods=("dense", "kvcomm"), shard=(1, 2)).run("bad"))


def test_an_estimate_scales_to_what_is_run(here):
    grid = Grid.of({"data": {"source": "problems.jsonl", "limit": 6, "heldout": 2}, "models": "model"})
    (row,) = grid.estimate()
    assert row["judgements"] == 6 * 3
    (run,) = grid.run("out")
    written = sum(p.stat().st_size for p in run.glob("*/part-*.parquet"))
    assert 0.5 < row["disk_bytes"] / written < 2
    assert not list(run.parent.glob("*estimate*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: [", "line 1"),
        ("- a", "mapping"),
        ("models: x", "'data'"),
        ("data: problems.jsonl\nmethod: dense", "did you mean 'methods'"),
        ("data: {source: problems.jsonl, limt: 3}", "'limt'; did you mean 'limit'. Known: agents, assign,"),
        ("data: {source: problems.jsonl, limit: -3}", r"'limit': must be 0 or more, not -3"),
        ("data: {source: problems.jsonl, limit: 99}\nmodels: model", "99 are asked for"),
        ("data: [problems.jsonl, problems.jsonl]", "share the folder"),
        ("data: problems.jsonl\nseed: x", "'seed': must be a whole number, not 'x'"),
        ("data: problems.jsonl\nmethods: []", "'methods': must be a list of 1 or more, not one of 0"),
        ("data: problems.jsonl\nmodels: [{a: b}]", r"'models\[0\]': must be a string, not {'a': 'b'}"),
        ("data: {limit: 3}", "'source': is missing"),
        ("data: problems.jsonl\nseed: 1\nseed: 2", "line 3: no valid YAML .the key 'seed' is given twice"),
        ("data: {source: problems.jsonl, limit: 3, limit: 4}", "line 1: no valid YAML .the key 'limit' is given twice"),
        ("data: problems.jsonl\nseed: -1", "'seed': must be 0 or more, not -1"),
        *(
            (f"data: problems.jsonl\nname: {name!r}", "'name': is the name of a folder")
            for name in ("../x", "/x", "..", "")
        ),
        ("data: {source: problems.jsonl, assign: file2}", "'assign': must be 'file' or 'latin', not 'file2'"),
    ],
)
def test_a_bad_study_file_is_named(here, text, said):
    (here / "bad.yaml").write_text(text)
    with pytest.raises(KvattnError, match=said):
        Grid.read("bad.yaml").run("out")


def test_a_file_of_a_known_regime_is_refused_when_the_study_is_read(here):
    """Not when the cell that does not fit begins, after hours of the cells before it."""
    write_candidates("known.jsonl", (replace(p, regime="parallel") for p in synthetic(4)))
    text = YAML.replace("problems.jsonl, limit: 4, heldout: 1, mixed: true", "known.jsonl")
    (here / "study.yaml").write_text(text)
    with pytest.raises(KvattnError, match="made under the parallel regime, and are judged as progressive"):
        Grid.read("study.yaml")
    (here / "study.yaml").write_text(text.replace("[parallel, progressive]", "parallel"))
    assert len(Grid.read("study.yaml").cells()) == 1
    with pytest.raises(KvattnError, match="judged as progressive"):
        replace(Grid.of({"data": "x", "regimes": ["progressive"]}), files={"x": "known.jsonl"})


def test_all_cells_are_checked_before_the_first_begins(here):
    long = [replace(p, candidates=tuple(replace(c, text=c.text * 60) for c in p.candidates)) for p in synthetic(3)]
    write_candidates("long.jsonl", long)
    grid = Grid.of({"data": ["problems.jsonl", "long.jsonl"], "models": "model", "methods": "dense"})
    with pytest.raises(KvattnError, match="3 questions cannot be judged: question"):
        grid.run("out")
    assert not (here / "out").exists()


def test_a_run_is_not_merged_into_itself(here):
    (run,) = Grid.of({"data": {"source": "problems.jsonl", "limit": 2}, "models": "model", "methods": "dense"}).run(
        "out"
    )
    with pytest.raises(KvattnError, match="one of the runs to be merged"):
        merge([run], f"{run.parent}/./{run.name}")
