"""Recipes run as they stand in the documents and say what kvattn says; a run is read without kvattn; every column is
explained."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT

from kvattn import stats
from kvattn.judge.judge import load
from kvattn.questions.organism import problems
from kvattn.study.run_folder import Run, side_by_side
from kvattn.study.run_folder.schema import SCHEMAS
from kvattn.study.study import Study

RECIPES = re.findall(r"^## (\d+)\. .*?^```sql\n(.*?)^```", (CHECKOUT / "docs/recipes.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run: a model organism on its task, 12 questions in 3 orders."""
    judge = load("organism-safe")
    study = Study(
        judge=judge,
        prompts=problems("organism-safe", 12, 3),
        methods=["dense", "true-mask", "naive", "foreign-kv", "last-k:budget=0.5"],
        orders="shuffle:3",
        source="organism-max",
    )
    return study.run(tmp_path_factory.mktemp("recipes") / "run's [1]")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run(folder)


@pytest.fixture
def ask(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The answer to a recipe, pasted as it stands, in a folder where `runs/demo` is the run."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(folder)
    monkeypatch.chdir(tmp_path)

    def answer(number: int) -> pd.DataFrame:
        return duckdb.connect().execute(dict(RECIPES)[str(number)]).df()

    return answer


def test_there_are_ten() -> None:
    assert [int(n) for n, _ in RECIPES] == list(range(1, 11))


@pytest.mark.parametrize("number", range(1, 11))
def test_a_recipe_runs_and_answers(ask: Any, number: int) -> None:
    table = ask(number)
    assert len(table) >= 4
    # A float that is nothing anywhere would be a column that measures nothing.
    assert table.notna().any().all()


def test_jcr_and_its_standard_error(ask: Any, run: Run) -> None:
    ours = ask(1).set_index("method")
    theirs = stats.jcr(run.judgements(), run.questions()).set_index("method")
    assert set(ours.index) == set(theirs.index)
    for mine, name in (("jcr", "jcr"), ("pairs", "pairs"), ("questions", "questions")):
        np.testing.assert_allclose(ours[mine], theirs.loc[ours.index, name])
    pairs = stats.paired(run.judgements(), run.questions())
    for method, part in pairs.groupby("method"):
        rates = part.groupby("question_id")["agree"].mean()  # equally many orders: the ratio is the mean of rates
        assert ours.loc[method, "standard_error"] == pytest.approx(rates.std(ddof=1) / np.sqrt(len(rates)))


def test_chance_and_kappa(ask: Any, run: Run) -> None:
    ours = ask(2).set_index("method")
    theirs = stats.jcr(run.judgements(), run.questions()).set_index("method").loc[ours.index]
    for name in ("jcr", "chance", "kappa", "pairs"):
        np.testing.assert_allclose(ours[name], theirs[name])


def test_accuracy_and_flips(ask: Any, run: Run) -> None:
    tables = run.judgements(), run.questions()
    theirs = stats.accuracy(*tables).set_index("method")
    ours = ask(3).set_index("method")
    np.testing.assert_allclose(ours["accuracy"], theirs.loc[ours.index, "accuracy"])
    np.testing.assert_allclose(ours["at_random"], theirs.loc["random pick", "accuracy"])
    flips = stats.flip_table(*tables)
    flips = flips[flips["count"] > 0].set_index(["method", "outcome"]).sort_index()
    found = ask(4).set_index(["method", "outcome"]).sort_index()
    assert list(found.index) == list(flips.index)
    np.testing.assert_allclose(found[["count", "share"]], flips[["count", "share"]])


def test_slots_and_margins_and_orders(ask: Any, run: Run) -> None:
    tables = run.judgements(), run.questions()
    picks = stats.slot_histogram(*tables)
    picks = picks[picks["count"] > 0].reset_index(drop=True)
    np.testing.assert_allclose(ask(5)[["slot", "count", "share"]], picks[["slot", "count", "share"]])
    margins = stats.by_margin(*tables)
    np.testing.assert_allclose(
        ask(6)[["quarter", "from_margin", "to_margin", "jcr", "pairs"]],
        margins[["bin", "margin_low", "margin_high", "jcr", "pairs"]],
    )
    bias = stats.position_bias(*tables).set_index("method")
    ours = ask(7).set_index("method")
    np.testing.assert_allclose(ours["same_pick"], bias.loc[ours.index, "order_consistency"])


def test_mass_and_its_change_by_depth(ask: Any, run: Run, folder: Path, tmp_path: Path, monkeypatch) -> None:
    means = run.mass_means(by=("method", "name"))
    means = means[means["name"].str.startswith("candidate:")].sort_values(["method", "name"])
    ours = ask(8)
    np.testing.assert_allclose(ours[["mass", "without_sinks"]], means[["mass", "free"]], rtol=1e-5)
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    bands = side_by_side.by_band(Run(folder)).assign(quarter=lambda t: (t["from_depth"] * 4).astype(int))
    both = ask(9).assign(slot=lambda t: t["slot"] + 1).merge(bands, on=["method", "slot", "quarter"])
    assert len(both) == len(bands) == len(ask(9))
    np.testing.assert_allclose(both["factor_x"], both["factor_y"], rtol=1e-5)
    np.testing.assert_array_equal(both["questions_x"], both["questions_y"])


def test_one_judgement_unrolled(ask: Any, run: Run) -> None:
    table = ask(10)
    first = table.iloc[0]
    mass = run.slot_mass(first["question_id"], first["order"], "naive")
    assert mass is not None
    layers, heads, _ = mass.mass.shape
    assert len(table) == layers * heads * 4
    for row in table.iloc[::7].to_dict("records"):
        assert row["mass"] == mass.mass[row["layer"], row["head"], mass.names.index(row["segment"])]
    assert table["mass"].is_monotonic_decreasing


READ = """
import sys
sys.modules["kvattn"] = None  # an import of it would fail
folder = sys.argv[1]
import pandas
own = pandas.read_parquet(folder + "/judgements")
asked = pandas.read_parquet(folder + "/questions")
both = own.merge(asked, on="question_id")
print(len(both), both["correct"].mean(), list(own["order"].iloc[0]), len(own["scores"].iloc[0]))
import polars
frame = polars.read_parquet(folder + "/judgements/part-*.parquet")
sums = polars.read_parquet(folder + "/sums/part-*.parquet").filter(polars.col("method") == "dense")
mass = polars.read_parquet(folder + "/mass/part-*.parquet")
sizes = mass["shape"].list.eval(polars.element().product()).list.first()
print(frame.height, frame["correct"].mean(), sums["mass_sum"].sum() / sums["count"].sum() * sums["name"].n_unique(),
      (mass["mass"].list.len() == sizes).all())
"""


def test_a_run_is_read_without_kvattn(folder: Path, run: Run, tmp_path: Path) -> None:
    plain = tmp_path / "run"  # the name of the fixture's folder holds what polars takes for a pattern
    plain.symlink_to(folder)
    done = subprocess.run([sys.executable, "-c", READ, str(plain)], capture_output=True, text=True, check=True)
    by_pandas, by_polars = (line.split() for line in done.stdout.splitlines())
    judged = run.judgements()
    rows, right = len(judged), judged["correct"].astype(float).mean()
    assert int(by_pandas[0]) == int(by_polars[0]) == rows == 12 * 3 * 5
    assert float(by_pandas[1]) == pytest.approx(right)
    assert float(by_polars[1]) == pytest.approx(right)
    assert by_pandas[-1] == "4"
    assert float(by_polars[2]) == pytest.approx(1.0, abs=1e-5)  # a row's masses over all segments sum to one
    assert by_polars[3] == "True"


def dictionary() -> dict[str, set[str]]:
    """Columns by table, as the data dictionary of docs/run-folder.md has them."""
    found: dict[str, set[str]] = {}
    table = ""
    for line in (CHECKOUT / "docs/run-folder.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[1] not in ("column", "---"):
            table = cells[0] or table
            found.setdefault(table, set()).update(re.findall(r"`(\w+)`", cells[1]))
    return found


def test_the_data_dictionary_names_every_column_and_no_other() -> None:
    found = dictionary()
    assert set(found) == set(SCHEMAS)
    for table, schema in SCHEMAS.items():
        assert found[table] == set(schema.names), table


def test_the_dictionary_is_that_of_a_run(run: Run, folder: Path) -> None:
    for table, columns in dictionary().items():
        part = next((folder / table).glob("part-*.parquet"))
        assert set(pd.read_parquet(part).columns) == columns
