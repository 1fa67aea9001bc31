"""Agreement against chance: random judges score nothing, whatever texts are equal; closed forms against slow loops."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from judges import judged

from kvattn.errors import KvattnError
from kvattn.questions.orders import latin_square
from kvattn.stats import Resampling
from kvattn.stats.chance import Agreement, again, against, class_chance, equivalence, permutation
from kvattn.stats.pairs import Picks, read_pairs


def random_picks(seed: int, texts: list[int], answers: list[int], questions: int = 4000) -> Picks:
    """Two judges with habits of slots who read nothing; the null edit repeats dense in nine cases of ten."""
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(4) for _ in range(questions)])
    dense, method = rng.choice(4, questions, p=[0.1, 0.2, 0.3, 0.4]), rng.choice(4, questions, p=[0.5, 0.2, 0.2, 0.1])
    floor = np.where(rng.random(questions) < 0.9, dense, rng.integers(0, 4, questions))
    shown, stated = (np.array(x)[orders] for x in (texts, answers))
    return Picks(dense, method, np.arange(questions), shown, stated, np.full(shown.shape, np.nan), floor)


@pytest.mark.parametrize("texts", [[0, 1, 2, 3], [0, 0, 2, 2], [0, 0, 0, 3], [0, 0, 2, 3]])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_random_judges_score_nothing(texts, seed):
    answers = [0, 0, 2, 2] if texts == [0, 0, 2, 3] else texts
    found = against(random_picks(seed, texts, answers), Resampling(resamples=200), draws=199)
    for name in ("kappa", "score", "answer_kappa"):
        estimate = getattr(found, name)
        assert abs(estimate.value) < 0.045, name  # three standard errors
        assert estimate.low < 0.02, name
        assert estimate.high > -0.02, name
    assert found.p > 0.01
    assert found.jcr.value >= found.jcr_id.value


def test_chance_is_the_mean_of_all_permutations():
    rng = np.random.default_rng(0)
    dense, method = rng.integers(0, 4, 5), rng.integers(0, 4, 5)
    classes = np.stack([np.array([0, 0, 2, 3])[rng.permutation(4)] for _ in range(5)])
    agree = [
        np.mean([classes[i, dense[i]] == classes[i, method[j]] for i, j in enumerate(order)])
        for order in itertools.permutations(range(5))
    ]
    slow = np.mean(
        [
            sum(sum(np.mean(dense == s) for s in at) * sum(np.mean(method == s) for s in at) for at in by_text(row))
            for row in classes
        ]
    )
    assert class_chance(dense, method, classes) == pytest.approx(slow)
    p, mean = permutation(dense, method, classes, np.arange(5), draws=20_000)
    same = np.array([[classes[i, d] == classes[i, m] for m in method] for i, d in enumerate(dense)], float)
    beyond = [[same[i, j] - same[i].mean() for i, j in enumerate(o)] for o in itertools.permutations(range(5))]
    told = [sum(x) / max(np.sqrt(sum(v**2 for v in x)), 1e-12) for x in beyond]  # the first permutation changes nothing
    assert p == pytest.approx(np.mean(np.array(told) >= told[0] - 1e-9), abs=0.015)
    assert mean == pytest.approx(np.mean(agree), abs=0.01)
    distinct = np.tile(np.arange(4), (5, 1))  # with one text a slot the two are the same number
    every = [np.mean(dense == method[list(o)]) for o in itertools.permutations(range(5))]
    assert class_chance(dense, method, distinct) == pytest.approx(np.mean(every))


def by_text(row: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(row == c) for c in set(row)]


def test_questions_move_as_wholes_and_only_where_they_have_as_many_orders():
    codes = np.array([0, 0, 1, 1, 2])
    classes = np.tile(np.arange(2), (5, 1))
    dense, method = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 0])
    p, mean = permutation(dense, method, classes, codes, draws=4000)
    assert p == pytest.approx(0.5, abs=0.04)  # the two of two orders swap or stay; the third stays
    assert mean == pytest.approx((1.0 + 0.2) / 2, abs=0.02)


def test_a_permutation_p_is_uniform_for_judges_that_read_nothing():
    ps = [
        permutation(*(getattr(random_picks(seed, [0, 0, 2, 3], [0, 0, 2, 3], 60), k) for k in NAMES), draws=199)[0]
        for seed in range(200)
    ]
    assert 3 <= sum(p <= 0.05 for p in ps) <= 18  # 10 expected, two and a half standard deviations
    assert 80 <= sum(p <= 0.5 for p in ps) <= 125


@pytest.mark.parametrize("follows", [1.0, 0.5, 0.0])
def test_a_permutation_p_is_uniform_for_judges_that_follow_a_candidate_through_its_orders(follows):
    """Dense has a favourite in each question; the method has another, or picks by its habits of slots."""
    rng, ps = np.random.default_rng(1), []
    for _ in range(300):
        shown = [latin_square(4, rng.permutation) for _ in range(24)]
        favourites = rng.integers(0, 4, (24, 2))
        dense, method = (
            np.array([o.index(f[i]) for x, f in zip(shown, favourites, strict=True) for o in x]) for i in (0, 1)
        )
        by_slot = rng.choice(4, len(method), p=[0.7, 0.1, 0.1, 0.1])
        method = np.where(rng.random(len(method)) < follows, method, by_slot)
        classes = np.array([o for x in shown for o in x])
        ps.append(permutation(dense, method, classes, np.repeat(np.arange(24), 4), draws=199)[0])
    assert 5 <= sum(p <= 0.05 for p in ps) <= 26  # 15 expected, 3.8 the standard deviation; by plain sums 45
    assert 120 <= sum(p <= 0.5 for p in ps) <= 180


NAMES = ("dense", "method", "classes", "questions")


def test_kappa_max_is_the_kappa_of_the_best_matching_of_two_habits():
    dense, method = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 2, 2, 1])
    classes = np.tile(np.arange(3), (7, 1))
    chance = class_chance(dense, method, classes)
    best = max(np.mean(dense == np.array(o)) for o in itertools.permutations(method))
    found = Agreement.of(
        Picks(dense, method, np.arange(7), classes, classes, classes), classes, Resampling(resamples=50)
    )
    assert found.lock().value == pytest.approx(4 / 7)
    assert found.kappa_max().value == pytest.approx((best - chance) / (1 - chance))


def test_equal_answers_draw_the_line_of_equivalence():
    classes = np.array([[0, 1, 2, 3], [0, 0, 2, 3]])
    answers = np.array([[0, 0, 0, 3], [0, 0, 0, 3]])
    picks = Picks(np.array([1, 0]), np.array([0, 3]), np.array([7, 8]), classes, answers, answers > 0)
    assert equivalence(picks, Resampling(resamples=20)).value == pytest.approx((1 / 3 + 2 / 3) / 2)
    found = against(picks, Resampling(resamples=20), draws=9)
    assert (found.jcr.value, found.answer.value) == (0.0, 0.5)
    assert "no null edit" in found.note


def test_dense_against_itself_in_another_order():
    texts = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 0, 2], [2, 0, 0]])
    dense = np.array([0, 1, 1, 0, -1])  # texts 0, 0, 2; then 0 and none
    picks = Picks(dense, dense, np.array(list("aaabb")), texts, texts, texts)
    assert again(picks).value == pytest.approx(1 / 3)
    assert np.isnan(again(Picks(dense, dense, np.arange(5), texts, texts, texts)).value)


def test_no_choice_agrees_with_nothing():
    classes = np.tile(np.arange(2), (40, 1))
    dense = np.tile([0, 1, -1, -1], 10)
    method = np.tile([0, 1, -1, 0], 10)
    found = against(Picks(dense, method, np.arange(40), classes, classes, classes), Resampling(resamples=50), draws=99)
    assert found.jcr.value == found.jcr_id.value == 0.5
    assert found.chance.value == pytest.approx(0.25 * 0.5 + 0.25 * 0.25)
    assert found.equivalence.value == 1.0
    none, nothing = np.zeros(0, int), np.zeros((0, 2), int)
    with pytest.raises(KvattnError, match="no pairs"):
        against(Picks(none, none, none, nothing, nothing, nothing))


def test_the_score_is_one_for_a_second_null_edit_and_chance_free():
    pairs = judged(np.random.default_rng(0), questions=200, gain=1.0, noise=0.05, shift=np.zeros(4))
    found = against(pairs.picks, Resampling(resamples=200), draws=99)
    assert found.score.low < 1 < found.score.high < 1.15
    assert found.excess.low < 0 < found.excess.high
    worse = against(
        judged(np.random.default_rng(0), questions=200, shift=np.zeros(4)).picks, Resampling(resamples=200), draws=99
    )
    assert 0.2 < worse.score.value < 0.7
    assert worse.score.value == pytest.approx(worse.kappa.value / worse.kappa.floor)
    assert worse.excess.value == pytest.approx(worse.jcr.floor - worse.jcr.value)


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    texts = ["The answer is 4", "4", "no number", "The answer is 4"]
    questions = pd.DataFrame(
        [
            {"question_id": q, "candidate_ids": list("abcd"), "texts": texts, "corrects": [True, True, False, True]}
            for q in "xy"
        ]
    )
    rows = [
        (q, [1, 0, 3, 2], m, "abcd"[[1, 0, 3, 2][s]], s, [float(s == i) for i in range(4)])
        for q in "xy"
        for m, s in (("dense", 1), ("naive", 2), ("null-edit", 0))
    ]
    return pd.DataFrame(rows, columns=["question_id", "order", "method", "choice", "slot", "scores"]), questions


def test_pairs_are_read_from_a_run_by_slot():
    judgements, questions = frames()
    pairs = read_pairs(judgements, questions, "naive")
    assert pairs.classes.tolist() == [[1, 0, 0, 2]] * 2
    assert pairs.answers.tolist() == [[0, 0, 0, 2]] * 2
    assert pairs.correct.tolist() == [[1, 1, 1, 0]] * 2
    assert pairs.picks.method.tolist() == [2, 2]
    found = against(pairs.picks, Resampling(resamples=20), draws=9)
    assert (found.jcr.value, found.jcr_id.value, found.jcr.floor, found.answer.floor) == (1.0, 0.0, 0.0, 1.0)
    picks = read_pairs(judgements, questions, "naive", floor="reword").picks
    assert picks.floor is None
    assert picks.dense.tolist() == [1, 1]
    unnamed = judgements.assign(slot=judgements["slot"].where(judgements["method"] != "naive"), readout="generate")
    assert read_pairs(unnamed, questions, "naive").method.tolist() == [-1, -1]
    with pytest.raises(KvattnError, match=r"no method 'other'; there are: dense, naive, null-edit"):
        read_pairs(judgements, questions, "other")
    with pytest.raises(KvattnError, match=r"'null-edit' did not judge question 'y' in order \[1, 0, 3, 2\]"):
        read_pairs(judgements.iloc[:-1], questions, "naive")
    mixed = judgements.assign(order=[[0, 1] if q == "x" else [1, 0, 3, 2] for q in judgements["question_id"]])
    with pytest.raises(KvattnError, match="different numbers"):
        read_pairs(mixed, questions, "naive")
