"""The run folder: what is committed survives anything, what is not never happened, and damage shows."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT
from fake_run import HOSTILE, Fake, write_fake_run

from kvattn import methods
from kvattn.decision import MASS_FLOOR, Decision
from kvattn.errors import KvattnError
from kvattn.plots.row import segment_row
from kvattn.report.findings import findings
from kvattn.stats.agreement import jcr
from kvattn.stats.slot_views import slot_values
from kvattn.study.run_folder import Run, RunWriter, older, set_aside
from kvattn.study.run_folder import mass as run_mass
from kvattn.study.run_folder.mass import by_slot
from kvattn.study.run_folder.schema import TABLES, file_key

SMALL = Fake(questions=3, orders=2, layers=2, heads=2, methods=("dense", "naive"))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_fake_run(tmp_path / "run", SMALL)


def child(code: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `code` in another Python that can import fake_run and kvattn."""
    path = os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)])
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=check,
    )


def files(folder: Path) -> list[Path]:
    return [p for table in TABLES for p in (folder / table).iterdir()]


def all_decisions(fake: Fake) -> list[Decision]:
    return [d for _, decisions in fake.units() for d in decisions]


def test_what_is_written_is_read(run_folder: Path) -> None:
    run = Run(run_folder)
    records: list[Any] = list(run.judgements().itertuples())
    rows = {(r.question_id, tuple(r.order), r.method): r for r in records}
    decisions = all_decisions(SMALL)
    assert len(rows) == len(decisions) == 3 * 2 * 2
    for d in decisions:
        row = rows[d.question_id, d.order, d.method]
        assert (row.choice, row.slot, row.n, row.correct) == (d.choice, d.slot, 4, d.correct)
        assert (row.choice_calibrated, row.slot_calibrated) == (d.choice_calibrated, d.slot_calibrated)
        np.testing.assert_array_equal(row.scores, d.scores)
        np.testing.assert_array_equal(row.calibrated, d.calibrated)
        assert row.margin == d.margin
        assert (row.tokens, row.token_layers, row.seconds) == (d.cost.tokens, d.cost.token_layers, d.cost.seconds)
        mass = run.slot_mass(d.question_id, d.order, d.method)
        assert mass is not None
        assert d.mass is not None
        assert mass.norm is not None
        assert d.mass.norm is not None
        np.testing.assert_array_equal(mass.mass, d.mass.mass)
        np.testing.assert_array_equal(mass.sink, d.mass.sink)
        np.testing.assert_array_equal(mass.norm, d.mass.norm)
        assert (mass.names, mass.lengths, mass.query) == (d.mass.names, d.mass.lengths, "last_prompt")
    questions = run.questions()
    assert list(questions["question_id"]) == ["fake-000", "fake-001", "fake-002"]
    assert list(questions["candidate_ids"][0]) == ["c0", "c1", "c2", "c3"]
    assert len(run) == 3
    assert run.check() == []


def test_nothing_known_stays_unknown(tmp_path: Path) -> None:
    row, decisions = SMALL.unit(0)
    row = {**row, "answer": None, "corrects": [None, True, None, False], "agents": [None] * 4, "lengths": None}
    unknown: dict[str, Any] = dict.fromkeys(
        ("correct", "calibrated", "choice_calibrated", "slot_calibrated", "correct_calibrated", "mass")
    )
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        writer.write_unit(row["question_id"], row, [replace(d, **unknown) for d in decisions])
    run = Run(tmp_path / "run")
    judgements = run.judgements()
    for name in ("correct", "calibrated", "choice_calibrated", "slot_calibrated", "correct_calibrated"):
        assert not list(judgements[name].dropna()), name
    assert not list(run.questions()["answer"].dropna())
    assert run.sql("SELECT corrects FROM questions WHERE corrects[1] IS NULL AND corrects[2]").shape == (1, 1)
    questions: Any = run.questions()
    assert [list(questions[name][0]) for name in ("corrects", "agents")] == [[None, True, None, False], [None] * 4]
    assert run.mass().empty
    assert run.sums().empty
    assert run.mass_means().empty
    assert run.queries() == []
    assert run.slot_mass("fake-000", (0, 1, 2, 3), "dense") is None


def test_means_equal_those_of_the_decisions(run_folder: Path) -> None:
    decisions = all_decisions(SMALL)
    naive = [d.mass for d in decisions if d.method == "naive" and d.mass]
    dense = [d.mass for d in decisions if d.method == "dense" and d.mass]
    means = Run(run_folder).mass_means().query("method == 'naive'")
    by_cell = means.set_index(["layer", "head", "name"])
    change = np.mean([np.log(a.mass) - np.log(b.mass) for a, b in zip(naive, dense, strict=True)], axis=0)
    free = [np.log(np.maximum(a.mass - a.sink, MASS_FLOOR)) for a in naive]
    free_dense = [np.log(np.maximum(b.mass - b.sink, MASS_FLOOR)) for b in dense]
    free_change = np.mean([a - b for a, b in zip(free, free_dense, strict=True)], axis=0)
    for (layer, head), s in [((0, 0), 3), ((1, 1), 12), ((0, 1), 0)]:
        cell = by_cell.loc[(layer, head, naive[0].names[s])]
        assert cell["count"] == cell["pairs"] == 6
        assert cell["mass"] == pytest.approx(np.mean([m.mass[layer, head, s] for m in naive]), rel=1e-5)
        assert cell["free"] == pytest.approx(np.mean([(m.mass - m.sink)[layer, head, s] for m in naive]), rel=1e-5)
        assert cell["tokens"] == pytest.approx(np.mean([m.lengths[s] for m in naive]))
        assert cell["change"] == pytest.approx(change[layer, head, s], abs=1e-5)
        assert cell["free_change"] == pytest.approx(free_change[layer, head, s], abs=1e-5)
    rows = Run(run_folder).mass_means(by=("method", "question_id", "layer", "name"))
    totals: dict[Any, float] = {}
    for row in rows.to_dict("records"):
        key = row["method"], row["question_id"], row["layer"]
        totals[key] = totals.get(key, 0.0) + row["mass"]
    assert list(totals.values()) == pytest.approx([1.0] * 2 * 3 * 2, rel=1e-5)


def test_segments_of_other_lengths_are_no_pairs(tmp_path: Path) -> None:
    row, (dense, naive, dense_2, naive_2) = SMALL.unit(0)
    assert dense.mass is not None
    assert naive.mass is not None
    longer = replace(naive.mass, lengths=(*naive.mass.lengths[:-1], naive.mass.lengths[-1] + 1))
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        writer.write_unit(row["question_id"], row, [dense, replace(naive, mass=longer), dense_2, naive_2])
    means = Run(tmp_path / "run").mass_means(by=("method", "name")).query("method == 'naive'").set_index("name")
    assert (means.loc["suffix", "count"], means.loc["suffix", "pairs"]) == (8, 4)
    assert (means.loc["candidate:4", "count"], means.loc["candidate:4", "pairs"]) == (8, 8)
    assert dense_2.mass is not None
    assert naive_2.mass is not None
    one_pair = np.log(naive_2.mass.mass[:, :, -1]) - np.log(dense_2.mass.mass[:, :, -1])
    assert means.loc["suffix", "change"] == pytest.approx(one_pair.mean(), abs=1e-5)


def test_rows_of_further_queries_are_kept_apart(tmp_path: Path) -> None:
    row, decisions = SMALL.unit(0)
    given = []
    for d in decisions:
        assert d.mass is not None
        given.append(replace(d, more=(replace(d.mass, query="at_choice:1", mass=d.mass.mass[..., ::-1]),)))
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        writer.write_unit(row["question_id"], row, given)
    run = Run(tmp_path / "run")
    assert run.queries() == ["last_prompt", "at_choice:1"]
    assert len(run.mass()) == 2 * len(run.mass(query="at_choice:1")) == 2 * len(decisions)
    first, second = (run.mass_means(q, by=("method", "name")).set_index(["method", "name"]) for q in run.queries())
    assert first.loc[("naive", "suffix"), "mass"] == pytest.approx(second.loc[("naive", "prefix"), "mass"])
    assert first.loc[("naive", "suffix"), "count"] == second.loc[("naive", "suffix"), "count"] == 2 * 2 * 2


def test_a_run_of_the_version_before_is_reduced_as_it_is_read(run_folder: Path) -> None:
    """Units without summaries give the same rows as those that were written with them, and nothing is written."""
    now = {table: getattr(Run(run_folder), table)() for table in ("picks", "slots")}
    for table in ("picks", "slots"):
        for part in sorted((run_folder / table).iterdir())[1:]:
            part.unlink()
    before = {p: p.stat().st_mtime_ns for p in run_folder.rglob("*")}
    for table, rows in now.items():
        pd.testing.assert_frame_equal(getattr(Run(run_folder), table)(), rows)
    assert Run(run_folder).check() == []
    for table in ("picks", "slots"):
        for part in (run_folder / table).iterdir():
            part.unlink()
        (run_folder / table).rmdir()
        pd.testing.assert_frame_equal(getattr(Run(run_folder), table)(), now[table])
        (run_folder / table).mkdir()
    assert {p: p.stat().st_mtime_ns for p in run_folder.rglob("*") if p.is_file()}.items() <= before.items()


def test_numbers_and_pages_read_no_slot_mass_row(tmp_path: Path) -> None:
    """A run opens by its small tables: with every part of `mass` and of `judgements` gone bad, picks, slots and the
    heads are there all the same."""
    folder = write_fake_run(tmp_path / "run", replace(SMALL, questions=60))
    for table in ("mass", "judgements"):
        for part in (folder / table).iterdir():
            part.write_bytes(b"")
    run = Run(folder)
    assert len(jcr(run)) == 1
    assert findings(run)
    assert not by_slot(run, "last_prompt").empty
    assert not run.mass_means().empty
    with pytest.raises(KvattnError, match="is damaged"):
        run.mass()


def test_views_answer_sql_and_errors_are_one_line(run_folder: Path) -> None:
    run = Run(run_folder)
    counts = run.sql('SELECT method, count(*) AS n, max("order"[1]) AS first FROM judgements GROUP BY 1 ORDER BY 1')
    assert counts.to_dict("list") == {"method": ["dense", "naive"], "n": [6, 6], "first": [1, 1]}
    joined = run.sql("SELECT count(*) AS n FROM judgements JOIN questions USING (question_id) JOIN mass USING (method)")
    assert list(joined["n"]) == [72]
    with pytest.raises(KvattnError, match="DuckDB says") as error:
        run.sql("SELECT nonsense FROM judgements")
    assert "\n" not in str(error.value)
    with pytest.raises(KvattnError, match="by"):
        run.mass_means(by=("method", "name; DROP TABLE x"))


KILLED = """
import os, signal, sys
from pathlib import Path
from fake_run import Fake
from kvattn.study.run_folder import RunWriter
fake = Fake(questions=3, orders=2, layers=2, heads=2, methods=("dense", "naive"))
real, left = os.replace, [int(sys.argv[2])]
def replace(a, b):
    if sys.argv[3] == "after": real(a, b)
    left[0] -= 1
    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[3] == "before": real(a, b)
writer = RunWriter(Path(sys.argv[1]), fake.manifest())
os.replace = replace
for row, decisions in fake.units():
    writer.write_unit(row["question_id"], row, decisions)
"""


@pytest.mark.parametrize(
    ("renames", "moment", "whole"),
    [(1, "before", 0), (2, "before", 0), (6, "before", 0), (6, "after", 1), (9, "after", 1), (18, "before", 2)],
)
def test_a_killed_writer_loses_nothing_and_resumes_to_the_same_run(
    tmp_path: Path, run_folder: Path, renames: int, moment: str, whole: int
) -> None:
    folder = tmp_path / "killed"
    assert child(KILLED, str(folder), str(renames), moment, check=False).returncode == -signal.SIGKILL
    assert len(Run(folder)) == whole
    assert set(Run(folder).judgements()["question_id"]) == {f"fake-{i:03d}" for i in range(whole)}
    assert len(Run(folder).mass()) == whole * 4
    with RunWriter(folder, SMALL.manifest()) as writer:
        assert writer.done == {file_key(f"fake-{i:03d}") for i in range(whole)}
        assert len(files(folder)) == whole * len(TABLES), "leftovers of the interrupted unit are still there"
        for row, decisions in SMALL.units():
            if file_key(row["question_id"]) not in writer.done:
                writer.write_unit(row["question_id"], row, decisions)
    for table in TABLES:
        pd.testing.assert_frame_equal(getattr(Run(folder), table)(), getattr(Run(run_folder), table)())
    assert [p.name for p in files(folder)]
    assert {p.name for p in files(folder)} == {p.name for p in files(run_folder)}


HOLDER = """
import sys, time
from pathlib import Path
from fake_run import Fake
from kvattn.study.run_folder import RunWriter
fake = Fake(questions=3, orders=2, layers=2, heads=2, methods=("dense", "naive"))
writer = RunWriter(Path(sys.argv[1]), fake.manifest())
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(KvattnError, match=rf"being written by process {holder.pid};") as error:
            RunWriter(folder, SMALL.manifest())
        assert "\n" not in str(error.value)
        assert Run(folder).judgements().empty
    finally:
        holder.kill()
        holder.wait()
    RunWriter(folder, SMALL.manifest()).close()


def test_a_fork_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", SMALL.manifest())
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, b".")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(KvattnError, match=f"process {os.getpid()}"):
            RunWriter(tmp_path / "run", SMALL.manifest())
        writer.close()
        RunWriter(tmp_path / "run", SMALL.manifest()).close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_other_parameters_are_refused_and_named(run_folder: Path) -> None:
    manifest = SMALL.manifest()
    other = {**manifest, "readout": "yesno", "model": {"id": "fake-judge", "revision": "other"}, "extra": 1}
    with pytest.raises(KvattnError) as error:
        RunWriter(run_folder, other)
    message = str(error.value)
    assert 'readout ("label" there, "yesno" here)' in message
    assert 'model.revision ("main" there, "other" here)' in message
    assert 'extra ("absent" there, 1 here)' in message
    assert "model.id" not in message
    assert "\n" not in message
    other = {**manifest, "methods": [{**m, "parameters": {"template": "kept"}} for m in manifest["methods"]]}
    with pytest.raises(KvattnError, match=r"methods\.naive\.parameters"):
        RunWriter(run_folder, other)
    fewer = {**manifest, "methods": manifest["methods"][:1]}
    with pytest.raises(KvattnError, match=r"methods\.naive"):
        RunWriter(run_folder, fewer)


def test_what_killed_writers_left_goes_and_what_others_write_stays(run_folder: Path) -> None:
    (run_folder / "pools").mkdir()
    left = [run_folder / p for p in (".tmp-manifest.json-0a", "mass/.tmp-part-x-0a", "pools/.tmp-anchor-0a")]
    others = run_folder / ".tmp-report.html-0a"  # a report that is written while the study goes on
    for path in (*left, others):
        path.touch()
    RunWriter(run_folder, SMALL.manifest()).close()
    assert [p for p in (*left, others) if p.exists()] == [others]


def test_a_run_goes_on_with_another_device_and_says_so(run_folder: Path) -> None:
    other = {"device": "cuda:1", "kernel": "sdpa (flash)", "threads": 8}
    RunWriter(run_folder, {**SMALL.manifest(), **other}).close()
    sessions = Run(run_folder).manifest["sessions"]
    assert {k: sessions[0][k] for k in other} == {k: SMALL.manifest()[k] for k in other}
    assert {k: sessions[-1][k] for k in other} == other
    with pytest.raises(KvattnError, match="dtype"):
        RunWriter(run_folder, {**SMALL.manifest(), **other, "dtype": "bfloat16"})


def test_versions_and_late_fields_do_not_hinder_a_resume(run_folder: Path) -> None:
    with RunWriter(run_folder, {**SMALL.manifest(), "versions": {"torch": "9"}, "kvattn": "9"}) as writer:
        writer.update_manifest(content_test={"passed": True, "p": np.float64(0.01), "bad": float("nan")}, hours=(1, 2))
    with RunWriter(run_folder, SMALL.manifest()):
        pass
    manifest = Run(run_folder).manifest
    assert manifest["content_test"] == {"passed": True, "p": 0.01, "bad": None}
    assert manifest["hours"] == [1, 2]
    assert manifest["schema"] == 2
    assert [s["versions"] for s in manifest["sessions"]][1] == {"torch": "9"}
    assert len(manifest["sessions"]) == 3
    with RunWriter(run_folder, SMALL.manifest()) as writer, pytest.raises(KvattnError, match="readout"):
        writer.update_manifest(readout="yesno")


def test_another_schema_is_refused_by_writer_and_reader(run_folder: Path) -> None:
    path = run_folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 7'))
    for refuse in (Run, lambda folder: RunWriter(folder, SMALL.manifest())):
        with pytest.raises(KvattnError, match="has schema 7, this kvattn reads 1 and 2"):
            refuse(run_folder)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(KvattnError, match=r"no manifest\.json"):
        Run(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(KvattnError, match=r"no run folder and holds 'thesis\.tex'"):
        RunWriter(tmp_path, SMALL.manifest())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text('{"schema": 1,')
    with pytest.raises(KvattnError, match="cannot be read") as error:
        Run(tmp_path / "bad")
    assert "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(KvattnError, match="cannot be written"):
        RunWriter(tmp_path / "file", SMALL.manifest())


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("harm", ["truncated", "edited", "emptied"])
def test_a_damaged_part_is_named_and_nothing_is_read_from_it(run_folder: Path, table: str, harm: str) -> None:
    victim = sorted((run_folder / table).iterdir())[1]
    data = bytearray(victim.read_bytes())
    if harm == "edited":
        data[len(data) // 2] ^= 1
    victim.write_bytes({"truncated": data[:-9], "edited": data, "emptied": b""}[harm])
    run = Run(run_folder)
    for refuse in (getattr(run, table), lambda: RunWriter(run_folder, SMALL.manifest())):
        with pytest.raises(KvattnError, match=victim.name) as error:
            refuse()
        assert "\n" not in str(error.value)
    assert len(run.check()) == 1
    assert victim.name in run.check()[0]


def test_the_way_out_of_damage_works(run_folder: Path) -> None:
    victim = sorted((run_folder / "mass").iterdir())[1]
    victim.unlink()
    problem = Run(run_folder).check()
    assert len(problem) == 1
    assert "lacks its part" in problem[0]
    mark = problem[0].split("delete ")[1].split(" and run again")[0]
    Path(mark).unlink()
    with RunWriter(run_folder, SMALL.manifest()) as writer:
        assert writer.done == {file_key("fake-000"), file_key("fake-002")}
        row, decisions = SMALL.unit(1)
        writer.write_unit(row["question_id"], row, decisions)
    assert len(Run(run_folder)) == 3
    assert Run(run_folder).check() == []


NAMES = [
    *("../../etc/passwd", "/abs", "", ".", "..", "a/b", "a\\b", "A", "a", "a b", "a-b", "\x00", "\n", "con", "*?[x]"),
    *("'; DROP TABLE x --", "\u00e9", "e\u0301", "\u65e5\u672c", "\U0001f600", "x" * 5000, "part-x", *HOSTILE),
]


def test_hostile_ids_stay_inside_and_apart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    row, decisions = SMALL.unit(0)
    with RunWriter(folder, SMALL.manifest()) as writer:
        for name in NAMES:
            writer.write_unit(name, {**row, "question_id": name}, [replace(d, question_id=name) for d in decisions[:1]])
    assert {p.name for p in tmp_path.iterdir()} == {"run"}
    assert {p.name for p in folder.iterdir()} == {*TABLES, ".lock", "manifest.json"}
    for table in TABLES:
        found = [p.name for p in (folder / table).iterdir()]
        assert len(found) == len({n.lower() for n in found}) == len(NAMES)
        assert all(n.isascii() and len(n) < 100 for n in found)
    assert set(Run(folder).judgements()["question_id"]) == set(NAMES)
    with RunWriter(folder, SMALL.manifest()) as writer:
        assert writer.done == set(map(file_key, NAMES))
    assert Run(folder).slot_mass("'; DROP TABLE x --", decisions[0].order, "dense") is not None


def test_text_that_is_no_unicode_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    row, decisions = SMALL.unit(0)
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        with pytest.raises(KvattnError, match="lone surrogate") as error:
            writer.write_unit("q", {**row, "texts": ["\ud800"] * 4}, decisions)
        str(error.value).encode()
        assert files(writer.folder) == []
    assert file_key("\ud800") != file_key("\ud801")


def test_units_that_make_no_sense_are_refused(run_folder: Path) -> None:
    row, decisions = SMALL.unit(0)
    new = [replace(d, question_id="new") for d in decisions]
    with RunWriter(run_folder, SMALL.manifest()) as writer:
        for key, question, given, reason in [
            ("fake-000", row, decisions, "already in"),
            ("new", row, new, "about question 'new' was given with question 'fake-000'"),
            ("new", {**row, "question_id": "new"}, [*new, new[0]], "twice"),
            ("new", {**row, "question_id": "new"}, [], "no decisions"),
            ("new", {"question_id": "new"}, new, "missing or unknown columns"),
            ("new", {**row, "question_id": "new", "lengths": ["long"]}, new, "does not fit"),
        ]:
            with pytest.raises(KvattnError, match=reason):
                writer.write_unit(key, question, given)
        assert len(files(run_folder)) == 3 * len(TABLES)
    with pytest.raises(KvattnError, match="closed"):
        writer.write_unit("new", {**row, "question_id": "new"}, new)


@pytest.mark.parametrize("failing_write", range(len(TABLES)))
def test_no_room_on_disk_is_one_line_and_loses_nothing(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    row, decisions = SMALL.unit(0)
    question = {**row, "question_id": "new"}
    new = [replace(d, question_id="new") for d in decisions]
    calls = iter(range(100))
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 2 * failing_write:  # one sync for the file, one for its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with RunWriter(run_folder, SMALL.manifest()) as writer:
        before = {p: p.read_bytes() for p in files(run_folder)}
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(KvattnError, match="no room on disk") as error:
            writer.write_unit("new", question, new)
        assert "3 finished questions are safe" in str(error.value)
        assert "\n" not in str(error.value)
        assert {p: p.read_bytes() for p in files(run_folder)} == before
        assert file_key("new") not in writer.done
        monkeypatch.setattr(os, "fsync", real)
        writer.write_unit("new", question, new)
    assert len(Run(run_folder)) == 4


def test_no_room_for_the_manifest_keeps_the_old_one(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunWriter(run_folder, SMALL.manifest()) as writer:
        before = (run_folder / "manifest.json").read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(KvattnError, match="no room on disk"):
            writer.update_manifest(content_test={"passed": True})
    assert (run_folder / "manifest.json").read_bytes() == before
    assert not list(run_folder.glob(".tmp-*"))


def test_any_folder_name_can_be_read(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "it's [a] *run*? {x} 日本", SMALL)
    assert len(Run(folder).judgements()) == 12
    assert len(Run(folder).mass_means()) > 0
    write_fake_run(tmp_path / "rx", SMALL)
    assert len(Run(write_fake_run(tmp_path / "r*", SMALL)).judgements()) == 12


def test_reading_needs_no_heavy_import_before_a_table_is_asked_for() -> None:
    code = "import sys, kvattn.study.run_folder; print([m for m in ('torch', 'pandas', 'duckdb') if m in sys.modules])"
    assert child(code).stdout == "[]\n"


def test_sinks_that_nobody_looked_for_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rows, sums and all that reads them; never 0."""
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    fake = replace(SMALL, sinks=False, methods=("naive", "null-edit"))
    folder = write_fake_run(tmp_path / "run", fake)
    run = Run(folder)
    row, decisions = fake.unit(0)
    stored = run.slot_mass(row["question_id"], decisions[0].order, "naive")
    assert stored is not None
    assert stored.sink is None
    assert run.sql("SELECT count(*) AS n FROM mass WHERE sink IS NOT NULL")["n"][0] == 0
    means = run.mass_means()
    assert means["mass"].notna().all()
    assert means["free"].isna().all()
    assert slot_values(means, "raw", "out")["value"].isna().all()
    assert run_mass.sink_shares(run, "last_prompt") == {}
    for view in ("raw", "among", "per_token"):
        assert run_mass.by_slot(run, "last_prompt", view, "kept")["value"].notna().all()
        assert run_mass.by_slot(run, "last_prompt", view, "out")["value"].isna().all()
    assert run_mass.by_place(run, "last_prompt", "out")["value"].isna().all()
    assert run_mass.with_intervals(run, "last_prompt", sinks="out")["value"].isna().all()
    shown = run.slot_mass(row["question_id"], decisions[0].order, "naive")
    assert shown is not None
    assert shown.sink is None
    assert segment_row(shown.names, shown.lengths, shown.mass[0, 0], shown.sink).data
    assert run_mass.row_table(shown, 0, 0)["sink"].isna().all()
    assert ["Sinks are unknown" in f.sentence for f in findings(run) if f.topic == "sinks"] == [True]


def test_runs_of_schema_1_are_read_under_the_names_of_today() -> None:
    """What they called naive recomputed the template: it is naive-linked."""
    folder = Path(__file__).parents[2] / "figures/runs/gsm8k-1.5b"
    run = Run(folder)
    stored = json.loads((folder / "manifest.json").read_text())
    assert "naive" in {m["name"] for m in stored["methods"]}
    (now,) = (m for m in run.manifest["methods"] if m["name"].startswith("naive"))
    assert (now["name"], now["class"], now["parameters"]) == (
        "naive-linked",
        "NaiveLinked",
        {"question": "recomputed", "headers": "linked"},
    )
    want = {older.label(m["name"]) for m in stored["methods"]}
    for table in ("judgements", "picks"):
        assert set(run.sql(f"SELECT DISTINCT method FROM {table}")["method"]) == want
    assert methods.get("naive-linked").label in want


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("naive", "naive-linked"),
        ("naive(headers=isolated)", "naive-linked(headers=isolated)"),
        ("naive(template=kept,question=kept)", "naive"),
        ("naive(template=kept)", "naive(question=recomputed)"),
        ("last-k(base=naive(template=kept,question=kept),budget=0.1)", "last-k(base=naive,budget=0.1)"),
        ("last-k(budget=0.3)", "last-k(budget=0.3)"),
    ],
)
def test_labels_of_schema_1_name_the_method_that_was_run(old: str, now: str) -> None:
    assert older.label(old) == now == methods.get(now).label
    told = older.relation("(SELECT $old AS method)", {"schema": 1})
    assert duckdb.execute(f"SELECT method FROM {told}", {"old": old}).fetchall() == [(now,)]


def test_a_run_of_schema_1_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", SMALL)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(KvattnError, match="it can be read, but not gone on with"):
        RunWriter(folder, SMALL.manifest())
    assert set(Run(folder).judgements()["method"]) == {"dense", "naive-linked"}
    assert set(Run(folder).mass()["method"]) == set(Run(folder).sums()["method"]) == {"dense", "naive-linked"}
    assert Run(folder).slot_mass("fake-000", (0, 1, 2, 3), "naive-linked") is not None


@pytest.mark.parametrize("table", [Run.judgements, Run.picks])
def test_choices_by_scores_that_are_no_numbers_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Any
) -> None:
    """A judge refuses them now; runs of before hold them."""
    real = Fake.units

    def spoilt(d: Decision) -> Decision:
        return replace(d, scores=d.scores * np.nan, coverage=float("nan")) if d.method == "naive" else d

    monkeypatch.setattr(Fake, "units", lambda self: [(row, [spoilt(d) for d in made]) for row, made in real(self)])
    folder = write_fake_run(tmp_path / "run", Fake(questions=3, orders=2, layers=2, heads=2, rows=False))
    run = Run(folder)
    for _ in range(2):
        with pytest.raises(KvattnError, match=r"scores of 'naive' for question 'fake-00\d' are not finite"):
            table(run)


def test_a_folder_that_is_where_one_stands_is_set_aside_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_fake_run(tmp_path / "run", SMALL)
    monkeypatch.chdir(folder)
    assert set_aside(".") == tmp_path / "run.before-1"
    assert Run(tmp_path / "run.before-1").check() == []
