"""Runs beside each other: the numbers are those of the statistics and of the captured rows, in every form of output."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import Fake, write_fake_run
from scipy.stats import t as student
from typer.testing import CliRunner

from kvattn import stats
from kvattn.cli.main import app
from kvattn.errors import KvattnError
from kvattn.report.tables import markdown, tables
from kvattn.stats import Scope
from kvattn.study.grid import merge
from kvattn.study.run_folder import Run, RunWriter, side_by_side
from kvattn.study.run_folder.mass import band_of
from kvattn.study.run_folder.schema import TABLES
from kvattn.study.run_folder.side_by_side import Comparison, open_runs

METHODS = ("dense", "true-mask", "naive", "null-edit")
SHALLOW = Fake(questions=9, orders=4, layers=3, heads=2, methods=METHODS)
DEEP = replace(SHALLOW, layers=8, seed=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("runs")
    made = [write_fake_run(home / "shallow", SHALLOW), write_fake_run(home / "deep", DEEP)]
    return [*made, merge([made[1]], home / "slim", rows=False)]


def by_hand(run: Run, bands: int) -> dict[tuple[str, int, int], np.ndarray]:
    """By method, band and slot, [questions, 2]: sums of mass under the method and under dense."""
    out: dict[tuple[str, int, int], list[np.ndarray]] = {}
    for _, part in run.judgements().groupby("question_id"):
        found: dict[tuple[str, int, int], list[np.ndarray]] = {}
        for row in part[part["method"] != "dense"].to_dict("records"):
            own, base = (run.slot_mass(row["question_id"], row["order"], m) for m in (row["method"], "dense"))
            assert own is not None
            assert base is not None
            both = np.stack([own.mass, base.mass]).astype(float)
            for layer, slot in itertools.product(range(both.shape[1]), range(1, 5)):
                key = (row["method"], int((layer + 0.5) / both.shape[1] * bands), slot)
                found.setdefault(key, []).append(both[:, layer, :, own.names.index(f"candidate:{slot}")].sum(1))
        for key, values in found.items():
            out.setdefault(key, []).append(np.sum(values, axis=0))
    return {key: np.array(values) for key, values in out.items()}


@pytest.mark.parametrize("bands", [3, 4])
def test_bands_are_those_of_the_captured_rows(folders: list[Path], bands: int) -> None:
    table = side_by_side.by_band(open_runs(folders[1:2])["deep"], bands)
    hand = by_hand(Run(folders[1]), bands)
    assert len(table) == len(hand) == 3 * bands * 4
    for row in table.to_dict("records"):
        values = hand[row["method"], round(row["from_depth"] * bands), row["slot"]]
        g, whole = len(values), np.log(values[:, 0].sum() / values[:, 1].sum())
        left = values.sum(0) - values  # [questions left out, 2]
        left_out = np.log(left[:, 0] / left[:, 1])
        half = student.ppf(0.975, g - 1) * np.sqrt((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum())
        wanted = np.exp([whole, whole - half, whole + half])
        np.testing.assert_allclose([row[f"factor{end}"] for end in ("", "_low", "_high")], wanted, rtol=1e-4)
        assert (row["pairs"], row["questions"]) == (36, 9)
    # The made-up judge under-reads later slots, the more the deeper.
    naive = table[(table["method"] == "naive") & (table["slot"] == 4)]["factor"].to_numpy()
    assert (np.diff(naive) < 0).all()
    assert naive[-1] < 0.6


def test_slots_are_those_of_one_band_and_of_the_captured_rows(folders: list[Path]) -> None:
    run = open_runs(folders[1:2])["deep"]
    table = side_by_side.by_slot(run).set_index(["method", "slot"])
    whole = side_by_side.by_band(run, 1).set_index(["method", "slot"])
    for end in ("factor", "factor_low", "factor_high"):
        np.testing.assert_allclose(table.loc[whole.index, end], whole[end], rtol=1e-6)
    assert table.loc["dense", "factor"].isna().all()
    masses = [run.slot_mass(r["question_id"], r["order"], "naive") for r in run.judgements().to_dict("records")[::4]]
    of = [np.mean([m.mass[..., m.names.index(f"candidate:{s}")].mean() for m in masses if m]) for s in (1, 2, 3, 4)]
    np.testing.assert_allclose(table.loc["naive", "mass"], of, rtol=1e-5)
    np.testing.assert_allclose(table.loc["naive", "first_to_last"], of[0] / of[3], rtol=1e-5)
    assert side_by_side.by_slot(Run(folders[2])).empty


def test_models_are_apart_by_the_ratio_of_their_factors(folders: list[Path]) -> None:
    shallow, deep = (side_by_side.by_slot(r) for r in open_runs(folders[:2]).values())
    found = side_by_side.apart(shallow, deep).set_index(["method", "slot"])
    factors = [t.set_index(["method", "slot"])["factor"] for t in (shallow, deep)]
    np.testing.assert_allclose(found["ratio"], (factors[0] / factors[1]).loc[found.index])
    assert (found["low"] < found["ratio"]).all()
    assert (found["ratio"] < found["high"]).all()
    assert "dense" not in found.index.get_level_values("method")
    alike = side_by_side.apart(deep, deep)
    assert (alike["ratio"] == 1).all()
    half = np.log(deep.dropna(subset=["factor"])["factor_high"] / deep["factor"].dropna()).to_numpy()
    np.testing.assert_allclose(np.log(alike["high"]), half * np.sqrt(2), rtol=1e-6)


def test_bands_stand_at_the_same_relative_depth() -> None:
    assert [band_of(i, 8, 4) for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [band_of(i, 2, 4) for i in range(2)] == [1, 3]
    for layers, bands in itertools.product(range(1, 40), range(1, 7)):
        for i in range(layers):
            assert band_of(i, layers, bands) == int((2 * i + 1) / (2 * layers) * bands + 1e-9)


def test_a_run_without_slot_mass_is_compared_and_it_is_said(folders: list[Path]) -> None:
    made = Comparison(open_runs(folders))
    assert list(made.runs["run"]) == ["shallow", "deep", "slim"]
    assert made.without == ["slim"]
    assert set(made.mass["run"]) == {"shallow", "deep"}
    slim, deep = (made.consistency[made.consistency["run"] == r].drop(columns="run") for r in ("slim", "deep"))
    pd.testing.assert_frame_equal(slim.reset_index(drop=True), deep.reset_index(drop=True))
    said = CliRunner().invoke(app, ["compare", str(folders[2])])
    assert said.exit_code == 0
    assert "slim: no slot mass" in said.stdout
    assert "slot mass as a factor" not in said.stdout


def test_every_form_of_output_says_the_same(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    both = [str(f) for f in folders[:2]]
    made = Comparison(open_runs(both))
    naive = made.consistency.set_index(["run", "method"]).loc[("deep", "naive")]
    read = json.loads(CliRunner().invoke(app, ["compare", *both, "--json"]).stdout)
    row = next(r for r in read["consistency"] if (r["run"], r["method"]) == ("deep", "naive"))
    assert row["jcr"] == pytest.approx(naive["jcr"])
    assert next(r for r in read["consistency"] if r["method"] == "dense")["jcr"] is None
    assert len(read["mass"]) == len(made.mass)
    assert read["runs"][0]["content"] == Run(folders[0]).manifest["content_test"]["raw"]["reading"]["verdict"]
    monkeypatch.setattr(side_by_side, "Comparison", lambda *_: made)  # what the others say of: computed once
    rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, ["compare", *both, "--csv"]).stdout)))
    row = next(r for r in rows if (r["run"], r["method"], r["measure"]) == ("deep", "naive", "kappa"))
    assert float(row["value"]) == pytest.approx(naive["kappa"])
    assert (row["n"], row["questions"]) == ("36", "9")
    beside = {r["measure"]: r["chance"] or r["floor"] for r in rows if r["method"] == "naive"}
    assert {"jcr", "accuracy", "jcr_c", "tv", "tau_c", "net_harm", "excess"} <= set(beside)
    assert all(r["value"] for r in rows)
    assert all(v for k, v in beside.items() if k not in ("equivalence", "again", "accuracy_dense")), beside
    text = CliRunner().invoke(app, ["compare", *both, "--markdown"]).stdout
    assert f"| deep | naive | {naive['jcr']:.2f} ({naive['low']:.2f}-{naive['high']:.2f}) |" in text
    shown = CliRunner().invoke(app, ["compare", *both], env={"COLUMNS": "200"}).stdout
    for table in tables(made, short=True):
        for cells in table.rows:
            for cell in cells[table.left :]:
                assert cell.split(" (")[0] in shown
    two = CliRunner().invoke(app, ["compare", *both, "--csv", "--json"])
    assert isinstance(two.exception, KvattnError)


def test_names_cannot_break_a_markdown_table(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "a|b<i>", replace(SHALLOW, questions=2))
    text = markdown(Comparison(open_runs([folder])))
    lines = [x for x in text.splitlines() if "naive" in x]
    assert lines
    assert all(x.startswith("| a\\|b&lt;i> | naive |") for x in lines)


def test_what_cannot_be_compared_is_refused_in_one_line(folders: list[Path], tmp_path: Path) -> None:
    bad = shutil.copytree(folders[0], tmp_path / "bad")
    open_runs([bad])
    part = sorted((bad / "sums").glob("part-*"))[4]
    times = part.stat()
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    # Even where size and time give the damage away to nobody: every part is hashed.
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(KvattnError, match="is damaged") as caught:
        open_runs([folders[1], bad])
    assert "\n" not in str(caught.value)
    with pytest.raises(KvattnError, match="given twice"):
        open_runs([folders[0], folders[0]])
    with pytest.raises(KvattnError, match="no run folder"):
        open_runs([tmp_path])
    with RunWriter(tmp_path / "empty", SHALLOW.manifest()):
        pass
    with pytest.raises(KvattnError, match="no finished question"):
        open_runs([tmp_path / "empty"])
    alone = write_fake_run(tmp_path / "alone", replace(SHALLOW, methods=("naive",), questions=2))
    with pytest.raises(KvattnError, match="no dense judgements"):
        open_runs([alone])
    raw = write_fake_run(tmp_path / "raw", replace(SHALLOW, calibrated=False, questions=2))
    with pytest.raises(KvattnError, match="no calibrated choices"):
        Comparison(open_runs([raw]), Scope(calibrated=True))


def test_every_part_is_hashed_once(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), real(path))[1])
    Comparison(open_runs(folders[:1]))
    parts = [name for name in read if name.startswith("part-")]
    assert len(parts) == len(set(parts)) == 9 * len(TABLES)


def test_accuracy_counts_the_same_rows_for_every_method_and_for_chance(tmp_path: Path) -> None:
    """Of a question with a candidate that nobody marked no pick counts, not even one that is known to be right: report,
    comparison and app count the same judgements, and chance is that of the same rows."""
    with RunWriter(tmp_path / "partly", SHALLOW.manifest()) as writer:
        for i, (row, decisions) in enumerate(SHALLOW.units()):
            corrects = [None, *row["corrects"][1:]] if i % 3 == 0 else row["corrects"]
            ds = [replace(d, correct=corrects[d.order[d.slot]]) for d in decisions]
            writer.write_unit(row["question_id"], {**row, "corrects": corrects}, ds)
    run = Run(tmp_path / "partly")
    ours = side_by_side.numbers(run).set_index("method")
    theirs = stats.accuracy(run.judgements(), run.questions()).set_index("method")
    whole = run.judgements().merge(run.questions())
    whole = whole[[None not in list(c) for c in whole["corrects"]]]
    for method in METHODS:
        right = whole[whole["method"] == method]["correct"].astype(bool)
        assert ours.loc[method, "judgements"] == theirs.loc[method, "rows"] == len(right) == 6 * 4
        assert ours.loc[method, "accuracy"] == pytest.approx(right.mean())
        assert theirs.loc[method, "accuracy"] == pytest.approx(right.mean())
        assert ours.loc[method, "random"] == pytest.approx(theirs.loc["random pick", "accuracy"])


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    both = [write_fake_run(tmp_path / x / "run", replace(SHALLOW, questions=2)) for x in "ab"]
    assert list(open_runs(both)) == [str(f) for f in both]


def test_a_judge_that_fails_its_content_test_is_marked(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "blind", replace(SHALLOW, signal=0.0, seed=5))
    said = CliRunner().invoke(app, ["compare", str(folder)], env={"COLUMNS": "200"}).stdout
    assert "blind: content test: does not read, so nothing shows" in said
