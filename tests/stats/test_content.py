"""The content test, on simulated judges whose reading is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.questions import synthetic
from kvattn.questions.prompt import JudgePrompt

Rng = np.random.Generator
# A judge maps a prompt as displayed, and a random generator, to a slot.
Judge = Callable[[JudgePrompt, Rng], int]


def table(prompts: list[JudgePrompt]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "question_id": p.id,
            "candidate_ids": [c.id for c in p.candidates],
            "texts": [c.text for c in p.candidates],
            "corrects": [c.correct for c in p.candidates],
        }
        for p in prompts
    )


def cyclic(n: int) -> list[tuple[int, ...]]:
    return [tuple((k + s) % n for s in range(n)) for k in range(n)]


def picks(prompts: list[JudgePrompt], judge: Judge, seed: int = 0, orders: Any = None) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"question_id": p.id, "order": list(o), "slot": judge(p.ordered(o), rng)}
        for p in prompts
        for o in orders or cyclic(p.n)
    )


def locked(_: JudgePrompt, __: Rng) -> int:
    return 0


def random(p: JudgePrompt, rng: Rng) -> int:
    return int(rng.integers(p.n))


def reader(p: JudgePrompt, rng: Rng) -> int:
    """Sees the right candidates through noise that stays with a text."""
    return int(np.argmax([1.5 * bool(p.shown(s).correct) + taste(p.shown(s).text) for s in range(p.n)]))


def stylist(p: JudgePrompt, _: Rng) -> int:
    """Has a firm taste that has nothing to do with correctness."""
    return int(np.argmax([taste(p.shown(s).text) for s in range(p.n)]))


@cache
def taste(text: str) -> float:
    return float(np.random.default_rng(list(text.encode())).normal())


PROMPTS = synthetic(40, seed=21)


@pytest.mark.parametrize(
    ("judge", "verdict", "words"),
    [
        (locked, "fails", "no more often than a judge that does not read"),
        (random, "fails", "no more often than a judge that does not read"),
        (stylist, "fails", "but a right one"),
        (reader, "passes", "and a right one"),
    ],
)
def test_verdict_on_judges_that_are_known(judge: Judge, verdict: str, words: str) -> None:
    result = stats.content_test(picks(PROMPTS, judge), table(PROMPTS))
    assert result.verdict == verdict, result.sentence
    assert words in result.sentence
    assert result.sentence.count("\n") == 0
    assert (result.questions, result.rows, result.mixed_questions, result.mixed_rows) == (40, 160, 40, 160)
    assert result.agreement_null == pytest.approx(0.25, abs=0.01)
    chance = np.mean([np.mean([bool(c.correct) for c in p.candidates]) for p in PROMPTS])
    assert result.accuracy_null == pytest.approx(chance, abs=0.01)
    if judge is locked:
        assert result.agreement == 0
        assert result.accuracy == pytest.approx(chance)
    if judge is stylist:
        assert result.agreement == 1
        assert result.agreement_p < 0.001


def test_statistics_against_loops() -> None:
    mixed = [*synthetic(6, 1), *synthetic(6, 2, candidates=3)]
    made = picks(mixed, random, seed=4)
    result = stats.content_test(made, table(mixed))
    agree, right = [], []
    for p in mixed:
        rows = made[made["question_id"] == p.id]
        chosen = [o[s] for o, s in zip(rows["order"], rows["slot"], strict=True)]
        agree.append(np.mean([a == b for i, a in enumerate(chosen) for b in chosen[:i]]))
        right += [p.candidates[c].correct for c in chosen]
    assert result.agreement == pytest.approx(np.mean(agree))
    assert result.accuracy == pytest.approx(np.mean(right))
    assert result.agreement_low < result.agreement < result.agreement_high


def test_p_of_accuracy_is_the_binomial_one_when_rows_are_redrawn() -> None:
    """With two of four right everywhere, redrawn rows are fair coins."""
    prompts = [p for p in synthetic(200, 5) if sum(bool(c.correct) for c in p.candidates) == 2][:20]
    result = stats.content_test(picks(prompts, reader), table(prompts), draws=20000)
    k = round(result.accuracy * 80)
    assert result.accuracy_p_rows == pytest.approx(scipy.stats.binomtest(k, 80, 0.5, "greater").pvalue, abs=0.002)
    made = picks(prompts, random, seed=3)
    result = stats.content_test(made, table(prompts), draws=20000)
    k = round(result.accuracy * 80)
    assert 0.02 < result.accuracy_p_rows < 0.98
    assert result.accuracy_p_rows == pytest.approx(scipy.stats.binomtest(k, 80, 0.5, "greater").pvalue, abs=0.015)


def test_p_of_accuracy_by_question_against_a_direct_simulation() -> None:
    prompts = [*PROMPTS[:10], *synthetic(30, 22, candidates=2)]
    made = picks(prompts, stylist)
    result = stats.content_test(made, table(prompts), draws=8000)
    rng = np.random.default_rng(1)
    chosen: dict[str, list[int]] = {p.id: [] for p in prompts}
    for key, order, slot in zip(made["question_id"], made["order"], made["slot"], strict=True):
        chosen[key].append(order[slot])
    null = []
    for _ in range(1500):
        dealt = {p.id: rng.permutation([bool(c.correct) for c in p.candidates]) for p in prompts}
        null.append(np.mean([dealt[k][c] for k, cs in chosen.items() for c in cs]))
    direct = np.mean(np.array(null) >= result.accuracy - 1e-9)
    assert result.accuracy_p_questions == pytest.approx(direct, abs=0.05)


def test_a_judge_with_a_firm_taste_rarely_passes_though_rows_alone_would_let_it() -> None:
    """The false pass rate of `stylist` stays near 5 %; the row-wise p by itself is under 5 % far more often."""
    passed = by_rows = 0
    runs = 80
    for seed in range(runs):
        prompts = synthetic(16, seed=1000 + seed)
        result = stats.content_test(picks(prompts, stylist), table(prompts), draws=200, seed=seed)
        passed += result.verdict == "passes"
        by_rows += result.accuracy_p_rows < 0.05
    assert passed / runs < 0.11
    assert by_rows / runs > 0.12


def test_level_of_the_agreement_test_on_a_random_judge() -> None:
    runs = 120
    small = 0
    for seed in range(runs):
        prompts = PROMPTS[:12]
        small += (
            stats.content_test(picks(prompts, random, seed), table(prompts), draws=200, seed=seed).agreement_p < 0.05
        )
    assert 1 <= small < 0.11 * runs


def test_equal_texts_count_as_the_same_pick() -> None:
    twin = [
        JudgePrompt(p.question, (*p.candidates[:3], type(p.candidates[3])("twin", p.candidates[2].text)), id=p.id)
        for p in PROMPTS
    ]
    result = stats.content_test(picks(twin, random), table(twin))
    assert result.agreement_null == pytest.approx((1 + 1 + 4) / 16, abs=0.01)
    assert result.agreement == pytest.approx(6 / 16, abs=0.08)
    assert result.verdict == "fails"


def test_cannot_tell() -> None:
    few = stats.content_test(picks(PROMPTS[:5], reader), table(PROMPTS))
    assert few.verdict == "cannot tell"
    assert "too few" in few.sentence
    blind = table(PROMPTS).assign(corrects=[[None] * 4] * len(PROMPTS))
    unknown = stats.content_test(picks(PROMPTS, reader), blind)
    assert unknown.verdict == "cannot tell"
    assert "only 0 of them are known" in unknown.sentence
    assert unknown.agreement_p < 0.001
    assert unknown.accuracy_p != unknown.accuracy_p
    # That it is no more consistent than chance can be told without knowing what is right.
    assert stats.content_test(picks(PROMPTS, locked), blind).verdict == "fails"
    one_order = picks(PROMPTS, reader, orders=[(0, 1, 2, 3)])
    assert stats.content_test(one_order, table(PROMPTS)).questions == 0
    nothing = stats.content_test(pd.DataFrame(columns=["question_id", "order", "slot"]), table(PROMPTS))
    assert nothing.verdict == "cannot tell"


def test_result_is_plain_json_and_seeded() -> None:
    made = picks(PROMPTS, random)
    first, again = (stats.content_test(made, table(PROMPTS), seed=3) for _ in range(2))
    assert first == again
    blind = stats.content_test(made, table(PROMPTS).assign(corrects=None))
    text = json.dumps(blind.to_dict(), allow_nan=False)
    assert json.loads(text)["accuracy"] is None
    assert json.loads(json.dumps(first.to_dict()))["verdict"] == first.verdict


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("q", (0, 1), 0), ("q", (0, 1), 0)], "judged twice"),
        ([("q", (0, 1), 0), ("z", (0, 1), 0)], "not in the questions table"),
        ([("q", (0, 1), 2)], "does not fit 2 candidates"),
        ([("q", (0, 2), 0)], "does not fit 2 candidates"),
    ],
)
def test_picks_that_do_not_fit_are_refused(rows: list[tuple], words: str) -> None:
    two = synthetic(1, candidates=2)[0]
    asked = table([JudgePrompt(two.question, two.candidates, id="q")])
    with pytest.raises(KvattnError, match=words):
        stats.content_test(pd.DataFrame(rows, columns=["question_id", "order", "slot"]), asked)


def test_unbalanced_orders_are_refused_since_a_locked_judge_would_pass() -> None:
    made = picks(PROMPTS, locked, orders=[(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)])
    with pytest.raises(KvattnError, match="balanced orders"):
        stats.content_test(made, table(PROMPTS))
    with pytest.raises(KvattnError, match="lack the column 'slot'"):
        stats.content_test(made.drop(columns="slot"), table(PROMPTS))
