"""What is reduced out of a run: its mass against the captured rows, its picks against their DataFrames."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import Fake, write_fake_run

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.report import write_report
from kvattn.stats.agreement import jcr
from kvattn.stats.picks import RAW, Scope
from kvattn.study.run_folder import Run, RunWriter, packs, picks
from kvattn.study.run_folder import mass as run_mass
from kvattn.study.run_folder.reader import FOLDS
from kvattn.study.run_folder.side_by_side import first_query

SMALL = Fake(questions=9, orders=5, layers=3, heads=2, methods=("dense", "true-mask", "naive", "null-edit"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "ok", SMALL)


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder)


def test_flips_are_all_there_the_most_surprising_first(run: Run) -> None:
    pairs = stats.paired(run.judgements(), run.questions())
    pairs = pairs[(pairs["method"] == "naive") & ~pairs["agree"].astype(bool)]
    found = picks.flips(run, "naive")
    assert len(found) == len(pairs) > 3
    assert found["surprise"].is_monotonic_decreasing
    expected = sorted(-np.log2(p[s]) for p, s in zip(pairs["p_ref"], pairs["slot"], strict=True))
    np.testing.assert_allclose(sorted(found["surprise"]), expected)
    columns = ["question_id", "order", "slot_ref", "slot", "correct_ref", "correct"]
    theirs = pairs.assign(slot_ref=pairs["slot_ref"] + 1, slot=pairs["slot"] + 1)[columns].to_numpy().tolist()
    columns[2], columns[4] = "dense_slot", "dense_correct"
    ours = found.assign(order=found["order"].map(tuple))[columns].to_numpy().tolist()
    assert sorted(ours, key=str) == sorted(theirs, key=str)


@pytest.mark.parametrize("view", ["raw", "among", "per_token"])
@pytest.mark.parametrize("sinks", ["kept", "out"])
def test_slot_mass_is_that_of_the_run(run: Run, view, sinks) -> None:
    theirs = stats.over_questions(stats.slot_values(run.mass_means(by=["question_id", "method", "name"]), view, sinks))
    ours = run_mass.by_slot(run, "last_prompt", view, sinks)
    both = theirs.merge(ours, on=["method", "slot"], suffixes=("", "_ours"))
    assert len(both) == len(theirs) == len(ours) == 16
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(both[f"{name}_ours"], both[name], rtol=1e-4)
    heads = run.mass_means("last_prompt")
    np.testing.assert_allclose(heads["change"], run.mass_means()["change"], rtol=1e-3, atol=1e-5)


def test_a_jackknife_interval_of_a_mean_is_the_t_interval(run: Run) -> None:
    """With a question a fold and equally many rows in each, the two are one formula."""
    assert SMALL.questions < FOLDS
    theirs = run_mass.by_slot(run, "last_prompt")
    ours = run_mass.with_intervals(run, "last_prompt")
    both = theirs.merge(ours, on=["method", "slot"], suffixes=("", "_ours"))
    assert len(both) == 16
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(both[f"{name}_ours"], both[name], rtol=1e-4)


def test_mass_against_place_holds_the_candidate_fixed(run: Run) -> None:
    factors: dict[tuple[str, int], list[float]] = {}
    for (question, method), part in run.mass().groupby(["question_id", "method"]):
        cells: dict[tuple[int, int], list[float]] = {}
        for row in part.to_dict("records"):
            mass = np.asarray(row["mass"]).reshape(row["shape"]).mean((0, 1))
            for slot, candidate in enumerate(row["order"]):
                at = list(row["names"]).index(f"candidate:{slot + 1}")
                cells.setdefault((candidate, slot + 1), []).append(float(mass[at]))
        means = {key: np.mean(v) for key, v in cells.items()}
        by_slot: dict[int, list[float]] = {}
        for (candidate, slot), value in means.items():
            own = np.mean([v for (c, _), v in means.items() if c == candidate])
            by_slot.setdefault(slot, []).append(value / own)
        for slot, values in by_slot.items():
            factors.setdefault((str(method), slot), []).append(float(np.mean(values)))
        assert question
    ours = run_mass.by_place(run, "last_prompt").set_index(["method", "slot"])["value"]
    assert set(ours.index) == set(factors)
    for key, values in factors.items():
        assert ours[key] == pytest.approx(np.mean(values), rel=1e-4)


def test_flips_and_the_rest_make_the_whole(run: Run) -> None:
    parts = {k: run_mass.by_slot(run, "last_prompt", picked=k) for k in ("flipped", "kept", "all")}
    naive = {k: v[v["method"] == "naive"].set_index("slot")["value"] for k, v in parts.items()}
    assert not np.allclose(naive["flipped"], naive["kept"])
    dense = {k: v[v["method"] == "dense"]["value"] for k, v in parts.items()}
    np.testing.assert_allclose(dense["flipped"], dense["all"])


def test_a_run_that_grew_is_opened_anew(tmp_path: Path) -> None:
    folder, units, states = tmp_path / "grows", SMALL.units(), []
    for upto in (4, 9):
        with RunWriter(folder, SMALL.manifest()) as writer:
            for row, decisions in units[len(writer.done) : upto]:
                writer.write_unit(row["question_id"], row, decisions)
        run = Run(folder)
        assert picks.size(run)["questions"] == upto
        states.append(run.state)
    assert states[0] != states[1]
    whole = Run(write_fake_run(tmp_path / "whole", SMALL)).mass_means()
    np.testing.assert_allclose(Run(folder).mass_means()["mass"], whole["mass"], rtol=1e-6)


def _large(folder: Path, monkeypatch: pytest.MonkeyPatch, upto: int | None = None) -> Path:
    monkeypatch.setattr(packs, "FROM", 4)
    with RunWriter(folder, SMALL.manifest()) as writer:
        for row, decisions in SMALL.units()[len(writer.done) : upto]:
            writer.write_unit(row["question_id"], row, decisions)
    return folder


def test_a_large_run_is_packed_and_read_alike(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _large(tmp_path / "large", monkeypatch)
    for table in ("picks", "slots", "sums"):  # what is read is the packed file
        for part in (folder / table).glob("part-*"):
            part.unlink()
    large = Run(folder)
    pd.testing.assert_frame_equal(large.picks(), run.picks())
    pd.testing.assert_frame_equal(large.slots(), run.slots())
    pd.testing.assert_frame_equal(large.questions(), run.questions())
    pd.testing.assert_frame_equal(large.mass_means(), run.mass_means())
    pd.testing.assert_frame_equal(jcr(large), jcr(run))
    assert not (run.folder / packs.FOLDER).exists()  # a small one is not


def test_a_packed_run_that_grows_is_read_from_its_parts_until_it_is_packed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _large(tmp_path / "grows", monkeypatch, upto=4)
    before = {p.name for p in (folder / packs.FOLDER).iterdir()}
    opened, asked = Run(folder), Run(folder)
    assert len(jcr(asked))
    row, decisions = SMALL.units()[4]
    writer = RunWriter(folder, SMALL.manifest())
    writer.write_unit(row["question_id"], row, decisions)
    writer.close()  # as a session that is broken off leaves it
    assert {p.name for p in (folder / packs.FOLDER).iterdir()} == before
    assert picks.size(Run(folder))["questions"] == 5
    (folder / packs.FOLDER / ".tmp-picks-of-a-writer-that-died").touch()
    _large(folder, monkeypatch)
    after = {p.name for p in (folder / packs.FOLDER).iterdir()}
    assert len(after) == len(before) == len(packs.PACKED)
    assert not after & before
    for run in (opened, asked):  # what was opened before goes on, on what was there
        assert picks.size(run)["questions"] == 4
        assert not run_mass.by_slot(run, "last_prompt").empty
    assert picks.size(Run(folder))["questions"] == SMALL.questions


@pytest.mark.parametrize("table", packs.PACKED)
def test_a_damaged_pack_is_named_and_may_go(tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _large(tmp_path / "large", monkeypatch)
    file = next((folder / packs.FOLDER).glob(f"{table}-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    ask = f"SELECT count(*) AS n FROM {table}"
    with pytest.raises(KvattnError, match=rf"{file.name} is damaged.*delete it"):
        Run(folder).sql(ask)
    file.unlink()
    assert Run(folder).sql(ask)["n"][0] > 0


def test_a_disk_that_is_full_when_a_run_is_packed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "full"
    with monkeypatch.context() as m:
        m.setattr(packs, "write_atomically", full)
        with pytest.raises(KvattnError, match=r"no room on disk.*9 finished questions are safe"):
            _large(folder, monkeypatch)
    assert picks.size(Run(folder))["questions"] == SMALL.questions
    assert len(list((_large(folder, monkeypatch) / packs.FOLDER).iterdir())) == len(packs.PACKED)


@pytest.mark.parametrize("table", ["picks", "slots", "sums"])
def test_a_damaged_part_is_named(tmp_path: Path, table: str) -> None:
    folder = write_fake_run(tmp_path / "bad", SMALL)
    part = sorted((folder / table).glob("part-*"))[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    with pytest.raises(KvattnError, match=rf"{part.name} is damaged.*delete .*run again"):
        getattr(Run(folder), table)()


def test_an_empty_run_has_empty_tables(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "empty", SMALL.manifest()):
        pass
    run = Run(tmp_path / "empty")
    assert picks.size(run)["judgements"] == 0
    assert picks.methods(run) == []
    assert jcr(run).empty
    assert run.queries() == []
    assert run_mass.shape(run) == (0, 0)


def test_nothing_is_kept_outside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    folder = write_fake_run(tmp_path / "run", SMALL)
    before = sorted(tmp_path.rglob("*"))
    assert len(jcr(Run(folder)))
    assert not run_mass.by_slot(Run(folder), "last_prompt").empty
    assert sorted(tmp_path.rglob("*")) == before


def test_a_branch_looks_at_its_own_slot_more_than_at_the_others(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {**SMALL.manifest(), "readout": "yesno"}) as writer:
        for row, decisions in SMALL.units():
            branched = []
            for d in decisions:
                assert d.mass is not None
                n = len(d.scores)
                own = [d.mass.names.index(f"candidate:{s + 1}") for s in range(n)]
                rows = []
                for s in range(n):
                    mass = np.zeros_like(d.mass.mass)
                    mass[..., own] = 0.1
                    mass[..., own[s]] = 0.1 * (s + 2)
                    rows.append(replace(d.mass, mass=mass, query=f"at_choice:{s + 1}"))
                whole = replace(d.mass, mass=np.mean([r.mass for r in rows], axis=0), query="at_choice")
                branched.append(replace(d, readout="yesno", mass=whole, more=tuple(rows)))
            writer.write_unit(row["question_id"], row, branched)
    run = Run(tmp_path / "run")
    assert run.queries()[0] == run.deciding == first_query(run) == "at_choice"
    found = run_mass.own_less_others(run).set_index(["method", "slot"])
    for (_, slot), r in found.iterrows():
        assert (r["value"], r["low"], r["high"]) == pytest.approx([0.1 * slot] * 3, abs=1e-6)
    assert "Own slot less other slots" in write_report(run.folder).read_text()


def test_a_row_in_the_middle_of_the_instruction_decides_nothing(run: Run) -> None:
    assert run_mass.own_less_others(run).empty
    old = Run(run.folder)
    old.manifest["readout"] = "yesno"  # as older runs have it: last_prompt, and no at_choice
    assert old.queries() == ["last_prompt"]
    assert first_query(old) is None


def test_what_a_run_was_asked_is_reduced_once_however_it_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = Run(folder), []
    sql = Run.sql
    monkeypatch.setattr(Run, "sql", lambda self, *x: asked.append(x) or sql(self, *x))
    first = jcr(run)
    first.loc[:, "jcr"] = -1.0  # what is given is the asker's own
    count = len(asked)
    again = jcr(run, scope=RAW)
    assert len(asked) == count > 0
    assert (again["jcr"] >= 0).all()
    pd.testing.assert_frame_equal(jcr(judgements=run), again)
    assert len(asked) == count
    jcr(run, scope=Scope(mixed=True))
    assert len(asked) > count


def test_a_table_may_have_a_column_of_any_name(run: Run) -> None:
    plain = jcr(run.judgements(), run.questions())
    named = jcr(judgements=run.judgements().assign(known=1), questions=run.questions())
    pd.testing.assert_frame_equal(named, plain)
