"""Echo: a planted effect comes back, nothing is found where nothing is, and the placebo takes another question's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT
from judges import cyclic, frames
from statsmodels.api import OLS

from kvattn.errors import KvattnError
from kvattn.stats import Resampling, echo
from kvattn.stats.pairs import Pairs
from kvattn.study.run_folder import Run

FEW = Resampling(resamples=400)
PLANTED = {"correct": 0.3, "earlier": 0.5, "later": 0.2, "length": 0.1}


def herd(seed: int, questions: int = 80, orders: int = 2, kept: float = 0.0, **effects: float) -> tuple[Any, Any]:
    """A dense judge with these effects, and a method that keeps the share `kept` of its echo. Shared answers are
    oftener right."""
    rng = np.random.default_rng(seed)
    order = cyclic(questions, orders).reshape(-1, 4)
    answers = np.array([[0, 0, 1, 2], [0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1, 1]])[rng.integers(0, 4, questions)]
    answers = rng.permuted(answers, axis=1)
    right = (answers == 0) & (rng.random(questions) < 0.7)[:, None]
    lengths = rng.integers(40, 200, (questions, 4))
    rows = np.repeat(np.arange(questions), orders)
    shown, correct, long = (np.take_along_axis(x[rows], order, 1) for x in (answers, right, lengths))
    same = shown[:, :, None] == shown[:, None, :]
    taste = np.take_along_axis(rng.normal(size=(questions, 4))[rows], order, 1)
    echoes = effects.get("earlier", 0) * np.tril(same, -1).sum(-1) + effects.get("later", 0) * np.triu(same, 1).sum(-1)
    rest = effects.get("correct", 0) * correct + effects.get("length", 0) * np.log(long) + 0.4 * taste
    noise = [0.4 * rng.normal(size=order.shape) for _ in range(2)]
    dense = rest + echoes + np.array([0.5, 0.0, 0.0, -0.5]) + noise[0]
    method = rest + kept * echoes + np.array([-1.0, 0.0, 0.0, 1.0]) + noise[1]
    pairs = Pairs(dense, method, rows, order, order, correct.astype(float), shown, dense)
    judgements, asked = frames(pairs)
    asked["texts"] = [[f"{i} so the answer is {a}" for i, a in enumerate(row)] for row in answers]
    asked["lengths"] = lengths.tolist()
    return judgements, asked


def rows(table: Any, method: str) -> Any:
    return table[table["method"] == method].set_index("term")


def test_a_planted_effect_comes_back_in_its_interval():
    held = dict.fromkeys([*PLANTED, "lost"], 0)
    for seed in range(20):
        found = echo(*herd(seed, kept=0.2, **PLANTED), how=FEW, draws=1)
        dense, naive = rows(found, "dense"), rows(found, "naive")
        for term, value in PLANTED.items():
            held[term] += dense.loc[term, "low"] <= value <= dense.loc[term, "high"]
        held["lost"] += naive.loc["earlier", "lost_low"] <= 0.8 * 0.5 <= naive.loc["earlier", "lost_high"]
    assert min(held.values()) >= 16, held  # 19 expected; fewer than 16 has a chance of 0.003
    assert dense.loc["earlier", "low"] > 0.2
    assert (dense["lost"].abs() < 1e-9).all()


def test_no_echo_is_found_where_there_is_none_though_shared_answers_are_oftener_right():
    effects, ps = [], []
    for seed in range(40):
        dense = rows(echo(*herd(100 + seed, correct=1.0), how=Resampling(resamples=2), draws=39), "dense")
        effects.append(dense.loc["earlier", "effect"])
        ps.append(dense.loc["earlier", "p"])
    assert abs(np.mean(effects)) < 4 * np.std(effects) / np.sqrt(40)
    assert np.mean(np.array(ps) <= 0.05) <= 0.15


def test_effects_are_those_of_least_squares_with_dummies_and_the_placebo_is_another_questions():
    judgements, asked = herd(3, questions=30, orders=1, **PLANTED)
    found = rows(echo(judgements, asked, how=FEW, draws=199), "dense")
    y, x = [], []
    known = asked.set_index("question_id")
    dense = judgements[judgements["method"] == "dense"]
    for i, (q, order, scores) in enumerate(zip(dense["question_id"], dense["order"], dense["scores"], strict=True)):
        said = [known["texts"][q][c][2:] for c in order]
        for s, c in enumerate(order):
            terms = [known["corrects"][q][c], said[:s].count(said[s]), said[s + 1 :].count(said[s])]
            x.append([*terms, np.log(known["lengths"][q][c]), *np.eye(30)[i], *np.eye(4)[s][1:]])
            y.append(scores[s])
    assert found["effect"].to_numpy() == pytest.approx(OLS(y, np.array(x, dtype=float)).fit().params[:4])
    assert abs(found.loc["earlier", "placebo"]) < 0.1 < found.loc["earlier", "effect"]
    assert found.loc["earlier", "p"] < 0.05
    assert np.isnan(found.loc["length", "p"])


def test_what_cannot_be_told_is_said():
    judgements, asked = herd(4, questions=20)
    blind = rows(echo(judgements, asked.assign(corrects=[[None] * 4] * 20), how=FEW, draws=9), "dense")
    assert np.isnan(blind.loc["correct", "effect"])
    assert np.isfinite(blind.loc["earlier", "effect"])
    alone = asked.assign(texts=[[f"the answer is {i}" for i in range(4)]] * 20)
    assert rows(echo(judgements, alone, how=FEW, draws=9), "dense").loc[["earlier", "later"], "effect"].isna().all()
    few: Any = judgements[judgements["question_id"].isin(asked["question_id"][:4])]
    assert set(echo(few, asked)["note"]) == {"4 questions are too few to tell slot offsets; 8 are needed"}
    with pytest.raises(KvattnError, match="no scores that an echo could raise"):
        echo(judgements.assign(readout="generate"), asked)


def test_the_larger_run_echoes_under_dense_and_not_under_reuse():
    run = Run(CHECKOUT / "figures" / "runs" / "gsm8k-1.5b")
    found = echo(run.judgements(), run.questions(), how=FEW, draws=99).set_index(["method", "term"])
    assert found.loc[("dense", "earlier"), "effect"] == pytest.approx(0.43, abs=0.005)  # as the review found
    assert found.loc[("dense", "earlier"), "low"] > 0.25
    assert found.loc[("dense", "later"), "effect"] == pytest.approx(0.24, abs=0.005)
    naive = found.loc[("naive-linked", "earlier")]
    assert naive["effect"] == pytest.approx(0.01, abs=0.005)
    assert naive["low"] < 0 < naive["high"]
    assert naive["lost_low"] > 0.2
