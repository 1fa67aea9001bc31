"""A digest says what the run and its statistics say, follows the run as it grows, and refuses damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import Fake, write_fake_run

from kvattn import digest_mass, digest_picks, stats
from kvattn.digest import FOLDS, Digest, keep_ready, open_digest, state
from kvattn.digest_picks import MOST_RESAMPLED, Scope, interval
from kvattn.errors import KvattnError
from kvattn.stats.resampling import cluster_interval, ratio
from kvattn.store import Run, RunWriter

SMALL = Fake(questions=9, orders=5, layers=3, heads=2, methods=("dense", "true-mask", "naive", "null-edit"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "ok", SMALL)


@pytest.fixture
def digest(folder: Path) -> Digest:
    return open_digest(folder)


@pytest.mark.parametrize("calibrated", [False, True])
def test_picks_are_those_of_the_statistics(folder: Path, digest: Digest, calibrated: bool) -> None:
    run, scope = Run(folder), Scope(calibrated=calibrated)
    tables = run.judgements(), run.questions()
    column = "choice_calibrated" if calibrated else "choice"
    theirs = stats.jcr(*tables, column=column)
    ours = digest_picks.jcr(digest, scope).set_index("method").loc[theirs["method"]]
    for name in ("jcr", "low", "high", "pairs", "questions", "chance"):
        np.testing.assert_allclose(ours[name], theirs[name], err_msg=name)
    far = stats.by_permutation_distance(*tables, column=column)
    near = digest_picks.by_distance(digest, scope).rename(columns={"low": "l"})
    both = far.merge(near, on=["method", "distance"], suffixes=("", "_ours"))
    assert len(both) == len(far) == len(near)
    np.testing.assert_allclose(both["jcr_ours"], both["jcr"])
    np.testing.assert_allclose(both["l"], both["low"])
    right = stats.accuracy(*tables, column=column)
    right = right[right["kind"] == "method"].set_index("method")
    mine = digest_picks.accuracy(digest, scope).set_index("method")
    np.testing.assert_allclose(mine["accuracy"], right.loc[mine.index, "accuracy"])
    picks = stats.slot_histogram(*tables, column=column)
    picks = picks[picks["count"] > 0]
    np.testing.assert_allclose(digest_picks.slots(digest, scope)["share"], picks["share"])


def test_flips_are_all_there_the_most_surprising_first(folder: Path, digest: Digest) -> None:
    run = Run(folder)
    pairs = stats.paired(run.judgements(), run.questions())
    pairs = pairs[(pairs["method"] == "naive") & ~pairs["agree"].astype(bool)]
    found = digest_picks.flips(digest, "naive")
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
def test_slot_mass_is_that_of_the_run(folder: Path, digest: Digest, view, sinks) -> None:
    run = Run(folder)
    theirs = stats.over_questions(stats.slot_values(run.mass_means(by=["question_id", "method", "name"]), view, sinks))
    ours = digest_mass.by_slot(digest, "last_prompt", view, sinks)
    both = theirs.merge(ours, on=["method", "slot"], suffixes=("", "_ours"))
    assert len(both) == len(theirs) == len(ours) == 16
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(both[f"{name}_ours"], both[name], rtol=1e-4)
    heads = digest_mass.means(digest, "last_prompt")
    np.testing.assert_allclose(heads["change"], run.mass_means()["change"], rtol=1e-3, atol=1e-5)


def test_a_jackknife_interval_of_a_mean_is_the_t_interval(digest: Digest) -> None:
    """With a question a fold and equally many rows in each, the two are one formula."""
    assert SMALL.questions < FOLDS
    theirs = digest_mass.by_slot(digest, "last_prompt")
    ours = digest_mass.with_intervals(digest, "last_prompt")
    both = theirs.merge(ours, on=["method", "slot"], suffixes=("", "_ours"))
    assert len(both) == 16
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(both[f"{name}_ours"], both[name], rtol=1e-4)


def test_every_view_can_be_split_by_band(digest: Digest) -> None:
    """A band of one layer says what that layer says."""
    for view in ("raw", "among", "per_token"):
        bands = digest_mass.with_intervals(digest, "last_prompt", ("method", "band"), view, bands=SMALL.layers)
        layers = digest_mass.with_intervals(digest, "last_prompt", ("method", "layer"), view)
        assert len(bands) == 4 * SMALL.layers * 4
        both = bands.merge(layers, left_on=["method", "slot", "band"], right_on=["method", "slot", "layer"])
        for name in ("value", "low", "high"):
            np.testing.assert_allclose(both[f"{name}_x"], both[f"{name}_y"], err_msg=f"{view} {name}")


def test_mass_against_place_holds_the_candidate_fixed(folder: Path, digest: Digest) -> None:
    run = Run(folder)
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
    ours = digest_mass.by_place(digest, "last_prompt").set_index(["method", "slot"])["value"]
    assert set(ours.index) == set(factors)
    for key, values in factors.items():
        assert ours[key] == pytest.approx(np.mean(values), rel=1e-4)


def test_flips_and_the_rest_make_the_whole(digest: Digest) -> None:
    parts = {k: digest_mass.by_slot(digest, "last_prompt", picked=k) for k in ("flipped", "kept", "all")}
    naive = {k: v[v["method"] == "naive"].set_index("slot")["value"] for k, v in parts.items()}
    assert not np.allclose(naive["flipped"], naive["kept"])
    dense = {k: v[v["method"] == "dense"]["value"] for k, v in parts.items()}
    np.testing.assert_allclose(dense["flipped"], dense["all"])


def test_many_questions_get_the_linear_interval() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 6, MOST_RESAMPLED * 2).astype(float)
    hits = rng.binomial(rows.astype(int), rng.beta(4, 2, len(rows))).astype(float)
    slow = cluster_interval(np.stack([hits, rows], 1), ratio)
    np.testing.assert_allclose(interval(hits, rows), slow, atol=0.004)


def test_a_digest_follows_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "grows"
    units = SMALL.units()
    seen = []
    for upto in (4, 9):
        with RunWriter(folder, SMALL.manifest()) as writer:
            for row, decisions in units[len(writer.done) : upto]:
                writer.write_unit(row["question_id"], row, decisions)
        told: list[tuple[int, int]] = []
        before = state(folder)
        with_progress = open_digest(folder, lambda done, of, told=told: told.append((done, of)))
        assert told[-1] == (upto, upto)
        seen.append((before, digest_picks.size(with_progress)["questions"], len(told)))
    assert [n for _, n, _ in seen] == [4, 9]
    assert seen[0][0] != seen[1][0]
    again: list = []
    extended = open_digest(folder, lambda *x: again.append(x))
    assert again == []
    whole = digest_mass.means(open_digest(write_fake_run(tmp_path / "whole", SMALL)), "last_prompt")
    np.testing.assert_allclose(digest_mass.means(extended, "last_prompt")["mass"], whole["mass"], rtol=1e-6)


@pytest.mark.parametrize("table", ["mass", "sums", "judgements", "questions"])
def test_a_damaged_part_is_named(tmp_path: Path, table: str) -> None:
    folder = write_fake_run(tmp_path / "bad", SMALL)
    assert digest_picks.size(open_digest(folder))["questions"] == 9
    part = sorted((folder / table).glob("part-*"))[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 0xFF
    part.write_bytes(data)
    with pytest.raises(KvattnError, match=rf"{part.name} is damaged.*delete .*run again"):
        open_digest(folder)


def test_an_empty_run_has_an_empty_digest(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "empty", SMALL.manifest()):
        pass
    digest = open_digest(tmp_path / "empty")
    assert digest_picks.size(digest)["judgements"] == 0
    assert digest_picks.methods(digest) == []
    assert digest_picks.jcr(digest).empty
    assert digest_mass.queries(digest) == []
    assert digest_mass.shape(digest) == (0, 0)


def test_a_cache_that_cannot_be_written_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "file"))
    with pytest.raises(KvattnError, match="set KVATTN_CACHE"):
        open_digest(folder)


def test_digests_of_removed_runs_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "own-cache"))
    gone, stays = (write_fake_run(tmp_path / name, SMALL) for name in ("gone", "stays"))
    for folder in (gone, stays):
        open_digest(folder).close()
    shutil.rmtree(gone)
    keep_ready(write_fake_run(tmp_path / "new", SMALL))
    assert len(list((tmp_path / "own-cache" / "digests").glob("*.duckdb"))) == 2
    keep_ready(tmp_path / "nothing there")
    assert digest_picks.size(open_digest(stays))["questions"] == 9
