"""The regression of flips on lost attention: a simulated truth, statsmodels called directly, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from fake_run import Fake, write_fake_run

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.report import write_report
from kvattn.stats.regression import LEAST_QUESTIONS, separated
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.mass import mass_lost

Rng = np.random.Generator


def regressed(judgements: Any, questions: Any, lost: Any, **kwargs: Any) -> Any:
    return stats.flip_regression(stats.flip_rows(stats.Frames(judgements, questions), lost), **kwargs)


def merged(judged: pd.DataFrame, _asked: pd.DataFrame, lost: pd.DataFrame) -> pd.DataFrame:
    """The rows of `flip_rows` by pandas alone, for simulations of many small studies; texts all differ."""
    pair = ["question_id", "order"]
    dense = judged[judged["method"] == "dense"][[*pair, "choice", "slot"]]
    rows: Any = judged[judged["method"] != "dense"].drop(columns="slot").merge(dense, on=pair, suffixes=("", "_ref"))
    rows = rows.merge(lost, on=[*pair, "method", "slot"]).sort_values([*pair, "method"], ignore_index=True)
    flip, length = (rows["choice"] != rows["choice_ref"]).astype(float), np.log(rows["tokens"].astype(float))
    return rows.assign(flip=flip, length=length, position=rows["slot"] / 3)


def simulate(
    questions: int,
    orders: int,
    odds: Callable[[Any, Any, Any, Any], Any],
    seed: int = 0,
    methods: tuple[str, ...] = ("naive",),
    spread: float = 0.0,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Judgements of 4 candidates, of methods that leave dense's pick with the given log odds of (lost, log length,
    position, a question's own normal draw); lost mass is no more than correlated with length."""
    rng = np.random.default_rng(seed)
    judged, asked, lost = [], [], []
    for q in range(questions):
        key, lengths = f"q{q}", rng.integers(20, 400, 4)
        own = rng.normal() * spread
        ids = [f"c{i}" for i in range(4)]
        asked.append({"question_id": key, "candidate_ids": ids, "texts": [f"{key} {i}" for i in ids]})
        for _ in range(orders):
            order = tuple(int(i) for i in rng.permutation(4))
            if any(j["question_id"] == key and j["order"] == order for j in judged):
                continue
            dense = int(rng.integers(4))
            for method in ("dense", *methods):
                named, slot = {"question_id": key, "order": order, "method": method}, dense
                if method != "dense":
                    here = {
                        s: rng.normal(0.3, 0.5) + 0.3 * np.log(lengths[order[s]] / 100) + 0.3 * own for s in range(4)
                    }
                    lost += [{**named, "slot": s, "lost": v, "tokens": int(lengths[order[s]])} for s, v in here.items()]
                    p = 1 / (1 + np.exp(-odds(here[dense], np.log(lengths[order[dense]]), dense / 3, own)))
                    slot = (dense + int(rng.integers(1, 4))) % 4 if rng.random() < p else dense
                scores = np.where(np.arange(4) == slot, 1.0, 0.0)
                judged.append({**named, "choice": ids[order[slot]], "slot": slot, "scores": scores})
    return pd.DataFrame(judged), pd.DataFrame(asked), pd.DataFrame(lost)


def truth(lost: float, length: float, position: float, own: float) -> float:
    return 1.2 * lost - 0.5 * (length - 5) + 0.8 * position - 0.8 + own


def test_a_simulated_truth_lies_in_the_intervals_and_the_mean_hits_it() -> None:
    hits, found = [], []
    true = {"lost": 1.2, "length": -0.5, "position": 0.8}
    for seed in range(40):
        rows: Any = stats.flip_regression(merged(*simulate(50, 4, truth, seed))).set_index("term")
        per_unit = {
            t: np.log(rows.loc[t, ["low", "odds_ratio", "high"]].astype(float)) / rows.loc[t, "step"] for t in true
        }
        hits += [[per_unit[t]["low"] <= v <= per_unit[t]["high"] for t, v in true.items()]]
        found.append([per_unit[t]["odds_ratio"] for t in true])
    assert (np.mean(hits, axis=0) >= 0.85).all()
    np.testing.assert_allclose(np.mean(found, axis=0), list(true.values()), atol=0.15)


def test_estimates_are_those_of_logistic_regression_and_errors_those_of_clusters() -> None:
    tables = simulate(300, 4, truth, seed=5, spread=1.0)
    rows = stats.flip_rows(stats.Frames(*tables[:2]), tables[2])
    ours = regressed(*tables)
    x = rows[["lost", "length", "position"]].to_numpy().copy()
    x[:, :2] /= x[:, :2].std(0)
    codes = rows["question_id"].astype("category").cat.codes
    plain = sm.Logit(rows["flip"], sm.add_constant(x)).fit(disp=0, cov_type="cluster", cov_kwds={"groups": codes})
    np.testing.assert_allclose(np.log(ours["odds_ratio"]), plain.params[1:], rtol=1e-5)
    half = np.log(ours["high"] / ours["odds_ratio"]) / 1.968
    np.testing.assert_allclose(half, plain.bse[1:], rtol=0.03)
    assert (ours["pairs"] == len(rows)).all()
    assert (ours["flips"] == rows["flip"].sum()).all()
    # Questions differ in how readily they flip: errors that take rows for independent are others.
    naive = sm.Logit(rows["flip"], sm.add_constant(x)).fit(disp=0)
    assert abs(half.to_numpy() / naive.bse[1:] - 1).max() > 0.05


def test_the_level_holds_when_nothing_goes_with_flips_though_questions_cluster() -> None:
    p = []
    for seed in range(120):
        rows = merged(*simulate(24, 4, lambda lost, length, position, own: own - 0.3, seed, spread=1.5))
        p.append(stats.flip_regression(rows).set_index("term").loc["position", "p"])
    assert np.mean(np.array(p) < 0.05) < 0.11


def test_rows_by_hand() -> None:
    judged, asked, lost = simulate(12, 2, truth, seed=1)
    rows = stats.flip_rows(stats.Frames(judged, asked), lost)
    assert len(rows) == (judged["method"] == "naive").sum()
    columns = ["question_id", "order", "method", "flip", "lost", "length", "position"]
    pd.testing.assert_frame_equal(rows[columns], merged(judged, asked, lost)[columns])
    row = rows.iloc[7]
    here = judged[(judged["question_id"] == row["question_id"]) & (judged["order"] == row["order"])].set_index("method")
    slot = here.loc["dense", "slot"]
    mine = lost[(lost["question_id"] == row["question_id"]) & (lost["order"] == row["order"]) & (lost["slot"] == slot)]
    assert row["lost"] == mine["lost"].iloc[0]
    assert row["length"] == pytest.approx(np.log(mine["tokens"].iloc[0]))
    assert row["position"] == pytest.approx(slot / 3)
    assert row["flip"] == (here.loc["naive", "choice"] != here.loc["dense", "choice"])


def one(*tables: pd.DataFrame, **kwargs: Any) -> tuple[set[str], bool]:
    table = regressed(*tables, **kwargs)
    numbers = table[["odds_ratio", "low", "high", "p", "p_holm"]]
    return set(table["note"]), bool(numbers.isna().all(axis=None))


def test_what_cannot_be_said_is_refused_with_a_reason_and_without_numbers() -> None:
    assert one(*simulate(20, 2, lambda *_: -50.0)) == ({"no pair flips"}, True)
    assert one(*simulate(20, 2, lambda *_: 50.0)) == ({"every pair flips"}, True)
    few = one(*simulate(LEAST_QUESTIONS - 1, 4, truth))
    assert few == ({f"{LEAST_QUESTIONS - 1} questions are too few; {LEAST_QUESTIONS} are needed"}, True)
    judged, asked, lost = simulate(20, 4, truth)
    flat = lost.assign(lost=0.25)
    assert one(judged, asked, flat) == ({"lost: the same in all pairs"}, True)
    assert one(judged, asked, lost.assign(tokens=7)) == ({"length: the same in all pairs"}, True)
    assert one(judged, asked, lost.assign(tokens=7), covariates=["position"]) == ({""}, False)
    same = lost.assign(lost=3 * np.log(lost["tokens"]) - 1)
    assert one(judged, asked, same) == ({"lost, length, position: some follow from the others"}, True)
    cut = one(*simulate(40, 4, lambda lost, *_: np.sign(lost - 0.3) * 50.0))
    assert cut == ({"flips are separated from the rest: no finite odds ratio"}, True)
    with pytest.raises(KvattnError, match="no covariate 'colour'"):
        regressed(judged, asked, lost, covariates=["colour"])


def test_separation_is_found_where_the_likelihood_has_no_maximum() -> None:
    rng = np.random.default_rng(0)
    y = np.array([0, 0, 0, 1, 1, 1.0])
    line = np.arange(6.0)[:, None]
    assert separated(line, y)  # complete
    assert separated(np.array([0, 1, 2, 2, 3, 4.0])[:, None], y)  # quasi-complete: they touch at 2
    assert not separated(line, np.array([0, 1, 0, 1, 0, 1.0]))
    assert separated(np.array([0, 0, 1, 1, 1, 1.0])[:, None], y)  # a dummy under which no flip stands
    for _ in range(30):
        x, labels = rng.normal(size=(25, 2)), (rng.random(25) < 0.5).astype(float)
        try:
            fitted: Any = sm.Logit(labels, sm.add_constant(x)).fit(disp=0, maxiter=200, method="newton")
            finite = np.abs(fitted.params).max() < 50
        except Exception:
            finite = False
        assert separated(x, labels) == (not finite)


def test_holm_corrects_a_term_over_methods() -> None:
    table = regressed(*simulate(60, 3, truth, methods=("naive", "isolated", "true-mask")))
    for _, part in table.groupby("term"):
        np.testing.assert_allclose(part["p_holm"], stats.holm(part["p"].to_numpy()))
    assert (table["p_holm"] >= table["p"]).all()


def test_lost_mass_is_that_of_the_captured_rows(tmp_path: Path) -> None:
    fake = Fake(questions=12, orders=3, layers=4, heads=3, methods=("dense", "naive", "isolated"))
    run = Run(write_fake_run(tmp_path / "run", fake))
    lost = mass_lost(run, "last_prompt")
    assert len(lost) == 12 * 3 * 2 * 4
    for row in lost.iloc[::17].to_dict("records"):
        own, dense = (run.slot_mass(row["question_id"], row["order"], m) for m in (row["method"], "dense"))
        assert own is not None
        assert dense is not None
        at = own.names.index(f"candidate:{row['slot'] + 1}")
        wanted = np.log(dense.mass[..., at].mean(dtype=float) / own.mass[..., at].mean(dtype=float))
        assert row["lost"] == pytest.approx(wanted, rel=1e-5)
        assert row["tokens"] == own.lengths[at]
    page = write_report(run.folder).read_text()
    assert "What goes with flips" in page
    assert "mass lost: odds ratio" in page
    table = regressed(run.judgements(), run.questions(), lost)
    shown = table[(table["method"] == "naive") & (table["term"] == "lost")].iloc[0]
    assert shown["note"] or f"{shown['low']:.2f} to {shown['high']:.2f}" in page
