"""Statistics of agreement, accuracy, slots and mass, against scikit-learn, statsmodels, scipy, loops and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats as scipy_stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import SquareTable, mcnemar
from statsmodels.stats.multitest import multipletests

from kvattn import stats as kvattn_stats
from kvattn.errors import KvattnError
from kvattn.stats.agreement import inversions
from kvattn.stats.resampling import cluster_resamples, permutation_p, ratio, sign_flip_p, signs, tails

# The annotations of pandas and scipy make unions of every selection and result.
stats: Any = kvattn_stats
scipystats: Any = scipy_stats

Rng = np.random.Generator
CYCLIC = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]


def question(
    i: int, corrects: Sequence[bool | None], texts: Sequence[str] | None = None, **more: Any
) -> dict[str, Any]:
    """A row of the questions table."""
    n = len(corrects)
    row = {
        "question_id": f"q{i}",
        "candidate_ids": [f"c{k}" for k in range(n)],
        "agents": [f"agent-{k}" for k in range(n)],
        "texts": list(texts) if texts else [f"text {k}. The answer is {100 * i + k}" for k in range(n)],
        "corrects": list(corrects),
        "lengths": [10 + k for k in range(n)],
        "template": "math",
    }
    return {**row, **more}


def judged(q: dict[str, Any], order: Sequence[int], method: str, slot: int, scores: Any = None) -> dict[str, Any]:
    """A row of the judgements table; the scores favour the slot unless they are given."""
    c = order[slot]
    values = np.zeros(len(order)) if scores is None else np.asarray(scores, dtype=float)
    if scores is None:
        values[slot] = 1.0
    return {
        "question_id": q["question_id"],
        "order": np.array(order),
        "method": method,
        "choice": q["candidate_ids"][c],
        "slot": slot,
        "scores": values,
        "correct": q["corrects"][c],
        "choice_calibrated": None,
        "slot_calibrated": None,
        "calibrated": None,
    }


def simulate(
    rng: Rng, questions: int, methods: dict[str, Callable[[Rng, int], int]], orders: Sequence[Sequence[int]] = CYCLIC
) -> tuple[Any, Any]:
    """Judgements and questions; a method maps (rng, dense's slot) to a slot, dense's slots are skewed at random."""
    asked = [question(i, (rng.random(4) < 0.5).tolist()) for i in range(questions)]
    rows = []
    for q in asked:
        for o in orders:
            dense = int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))
            rows.append(judged(q, o, "dense", dense, np.eye(4)[dense] + rng.normal(size=4) * 0.1))
            for name, pick in methods.items():
                s = pick(rng, dense)
                rows.append(judged(q, o, name, s, np.eye(4)[s] + rng.normal(size=4) * 0.1))
    return pd.DataFrame(rows), pd.DataFrame(asked)


def sticky(keep: float) -> Callable[[Rng, int], int]:
    """A method that picks dense's slot with that probability, else any."""
    return lambda rng, dense: dense if rng.random() < keep else int(rng.integers(4))


@pytest.fixture(scope="module")
def tables() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return simulate(rng, 60, {"naive": sticky(0.5), "foreign-kv": sticky(0.0), "null-edit(edit=reword)": sticky(0.9)})


def slots_of(judgements: Any, method: str) -> np.ndarray:
    return judgements[judgements["method"] == method]["slot"].to_numpy()


def test_jcr_against_libraries_and_loops(tables: tuple[Any, Any]) -> None:
    judgements, questions = tables
    table = stats.jcr(judgements, questions).set_index("method")
    assert list(table.index) == ["foreign-kv", "naive", "null-edit(edit=reword)"]
    dense = slots_of(judgements, "dense")
    floor = np.mean(slots_of(judgements, "null-edit(edit=reword)") == dense)
    for method in table.index:
        own, row = slots_of(judgements, str(method)), table.loc[method]
        assert row["jcr"] == pytest.approx(np.mean(own == dense))
        assert (row["pairs"], row["questions"]) == (240, 60)
        assert row["kappa"] == pytest.approx(cohen_kappa_score(dense, own))
        chance = sum(np.mean(dense == s) * np.mean(own == s) for s in range(4))
        assert row["chance"] == pytest.approx(chance)
        assert row["floor"] == pytest.approx(floor)
        assert row["low"] < row["jcr"] < row["high"]
        assert row["kappa_low"] < row["kappa"] < row["kappa_high"]
        if method != "null-edit(edit=reword)":
            assert row["score"] == pytest.approx(row["kappa"] / table.loc["null-edit(edit=reword)", "kappa"])
            assert row["score_low"] < row["score"] < row["score_high"]
            assert row["note"] == ""
    assert np.isnan(table.loc["null-edit(edit=reword)", "score"])
    assert "itself" in str(table.loc["null-edit(edit=reword)", "note"])
    assert abs(table.loc["foreign-kv", "score"]) < 0.2
    assert 0.35 < table.loc["naive", "score"] < 0.75


def test_jcr_says_why_there_is_no_score() -> None:
    rng = np.random.default_rng(3)
    without = stats.jcr(*simulate(rng, 20, {"naive": sticky(0.5)}))
    assert without["score"].isna().all()
    assert without["note"].tolist() == ["no null edit was run: no score"]
    low = stats.jcr(*simulate(rng, 20, {"naive": sticky(0.5), "noise": lambda r, d: 3 - d}), floors=["noise"])
    assert low["score"].isna().all()
    assert "no more than by chance" in low.set_index("method").loc["naive", "note"]


def test_equal_texts_are_one_choice_and_equal_answers_are_counted_apart() -> None:
    q = question(0, [True] * 4, ["so 7", "so 7", "it is $7.00", "it is 8"])
    order = (3, 2, 1, 0)
    rows = [judged(q, order, "dense", 3)] + [judged(q, order, f"m{s}", s) for s in range(4)]
    pairs = stats.paired(pd.DataFrame(rows), pd.DataFrame([q])).set_index("method")
    assert pairs["agree"].tolist() == [False, False, True, True]
    assert pairs["agree_answer"].tolist() == [False, True, True, True]
    assert pairs.loc["m0", ["choice", "choice_ref", "slot", "slot_ref"]].tolist() == ["c3", "c0", 0, 3]
    table = stats.jcr(pd.DataFrame(rows), pd.DataFrame([q])).set_index("method")
    assert table["jcr"].tolist() == [0, 0, 1, 1]
    assert table["answer_agreement"].tolist() == [0, 1, 1, 1]
    assert table["chance"].tolist() == [0, 0, 1, 1]  # always slot 2, which shows dense's text, is always the same text
    silent = question(1, [True] * 4, ["none", "nothing", "3", "4"])
    rows = [judged(silent, order, "dense", 3), judged(silent, order, "naive", 2)]
    assert stats.paired(pd.DataFrame(rows), pd.DataFrame([silent]))["agree_answer"].tolist() == [False]


def test_calibrated_column_reads_the_calibrated_choice_slot_and_scores() -> None:
    q = question(0, [True, False, False, False])
    row = judged(q, (0, 1, 2, 3), "dense", 0)
    other = judged(q, (0, 1, 2, 3), "naive", 1)
    for r, s in ((row, 2), (other, 2)):
        r.update(choice_calibrated=f"c{s}", slot_calibrated=s, calibrated=[0.0, 0, 5, 3])
    frame, asked = pd.DataFrame([row, other]), pd.DataFrame([q])
    assert stats.jcr(frame, asked)["jcr"][0] == 0
    assert stats.jcr(frame, asked, column="choice_calibrated")["jcr"][0] == 1
    pairs = stats.paired(frame, asked, column="choice_calibrated")
    assert pairs["margin_ref"][0] == 2
    assert pairs["correct"][0] == 0


def test_tails_by_the_tables() -> None:
    # t(15) = 2.13145 by the table, times sqrt(16 / 15) = 2.20133, below which the normal has 0.01386.
    assert tails(16) == pytest.approx((0.01386, 0.98614), abs=1e-5)
    assert tails(10**7) == pytest.approx((0.025, 0.975), abs=1e-6)
    assert tails(10**7, 0.9) == pytest.approx((0.05, 0.95), abs=1e-6)


def stderr(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / np.sqrt(len(x)))


def test_interval_of_a_rate_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(7)
    successes, totals = rng.binomial(4, 0.6, size=40).astype(float), np.full(40, 4.0)
    drawn = cluster_resamples(np.stack([successes, totals], 1), ratio, stats.Resampling(resamples=20000))
    ours = tuple(np.quantile(drawn, tails(40)))
    theirs = scipystats.bootstrap((successes / 4,), np.mean, method="percentile", n_resamples=20000, rng=1)
    ends = tails(40)
    assert ours == pytest.approx(tuple(np.quantile(theirs.bootstrap_distribution, ends)), abs=0.006)
    # Of a mean the expanded interval is about the t interval, whose standard error has n - 1 below, too.
    assert ours == pytest.approx(
        scipystats.t.interval(0.95, 39, np.mean(successes / 4), stderr(successes / 4)), abs=0.008
    )


def test_signs_and_permutation_p() -> None:
    every, complete = signs(3)
    assert complete
    assert {tuple(row) for row in every} == set(itertools.product([1.0, -1.0], repeat=3))
    some, complete = signs(40, draws=100)
    assert not complete
    assert some.shape == (100, 40)
    assert set(np.unique(some)) == {-1, 1}
    assert permutation_p(np.arange(9.0), 9.0) == pytest.approx(0.1)
    assert permutation_p(np.arange(10.0), np.array([8.0, 0.0]), complete=True) == pytest.approx([0.2, 1.0])


def test_sign_flip_p_against_scipy() -> None:
    d = np.array([1.0, 2, -1, 3, 2, 2, 0, 1, -1, 4])
    exact = scipystats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=10**6)
    assert sign_flip_p(d) == pytest.approx(exact.pvalue)
    assert sign_flip_p(np.repeat(d, 2), draws=20000) == pytest.approx(
        scipystats.permutation_test(
            (np.repeat(d, 2),), np.sum, permutation_type="samples", n_resamples=20000, rng=1
        ).pvalue,
        abs=0.004,
    )


def test_holm() -> None:
    # By hand: 3 * 0.01, max(that, 2 * 0.03), max(that, 0.04).
    assert stats.holm([0.04, 0.01, np.nan, 0.03]) == pytest.approx([0.06, 0.03, np.nan, 0.06], nan_ok=True)
    for tests in range(12):
        p = np.random.default_rng(tests).random(tests).round(1)
        np.testing.assert_allclose(stats.holm(p), multipletests(p, method="holm")[1] if tests else p)
        assert np.isnan(stats.holm([np.nan, *p])).tolist() == [True, *[False] * tests]


def exact_mcnemar(cells: Any) -> float:
    result: Any = mcnemar(cells, exact=True)
    return result.pvalue


def test_accuracy_and_its_tests(tables: tuple[Any, Any]) -> None:
    judgements, questions = tables
    table = stats.accuracy(judgements, questions).set_index("method")
    right = {m: g["correct"].to_numpy(dtype=bool) for m, g in judgements.groupby("method")}
    p_values = []
    for method, own in right.items():
        row, dense = table.loc[str(method)], right["dense"]
        assert row["accuracy"] == pytest.approx(own.mean())
        assert row["low"] < row["accuracy"] < row["high"]
        if method == "dense":
            assert np.isnan(row["p_mcnemar"])
            continue
        cells = [[(own & dense).sum(), (own & ~dense).sum()], [(~own & dense).sum(), (~own & ~dense).sum()]]
        assert (row["gained"], row["lost"]) == (cells[0][1], cells[1][0])
        assert row["p_mcnemar"] == pytest.approx(exact_mcnemar(cells))
        p_values.append(row["p_mcnemar"])
    ordered = sorted(p_values)
    adjusted = np.minimum(np.maximum.accumulate([p * (3 - i) for i, p in enumerate(ordered)]), 1)
    assert sorted(table["p_mcnemar_holm"].dropna()) == pytest.approx(list(adjusted))


def test_questions_are_the_unit_of_the_flip_test() -> None:
    """One question lost in all of its many orders is one loss, not many."""
    orders = list(itertools.permutations(range(4)))
    q = [question(i, [True, False, False, False]) for i in range(6)]
    rows = [judged(x, o, "dense", o.index(0)) for x in q for o in orders]
    rows += [judged(x, o, "naive", o.index(0 if x is not q[0] else 1)) for x in q for o in orders]
    row = stats.accuracy(pd.DataFrame(rows), pd.DataFrame(q)).set_index("method").loc["naive"]
    assert row["lost"] == 24
    assert row["p_mcnemar"] < 1e-6
    assert row["p_flip"] == 1.0


def test_baselines_by_hand() -> None:
    q = [
        question(0, [True, False, False, True], ["x 5", "y 6", "z 6", "w 5"], lengths=[3, 9, 9, 2]),
        question(1, [True, False, True, False], ["1", "2", "no number", "2"], lengths=[7, 1, 1, 1]),
        question(2, [False, True, False, None]),
    ]
    orders = [(0, 1, 2, 3), (3, 2, 1, 0)]
    rows = [judged(x, o, "dense", 0) for x in q for o in orders]
    table = stats.accuracy(pd.DataFrame(rows), pd.DataFrame(q)).set_index("method")
    assert table.loc["dense", "rows"] == 4  # the third question is not known in full
    assert table.loc["dense", "accuracy"] == pytest.approx(3 / 4)
    baselines = table[table["kind"] == "baseline"]["accuracy"]
    assert baselines["random pick"] == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert baselines["longest"] == pytest.approx((0 + 1) / 2)
    assert baselines["majority answer"] == pytest.approx((0.5 + 0) / 2)  # a draw of 5 and 6; then 2
    # Over both orders and questions slots 0 and 3 show a right candidate 3 times, slots 1 and 2 once.
    assert baselines["best constant slot"] == pytest.approx(3 / 4)
    assert table.loc["best constant slot", "note"] == "slot 1"
    assert baselines["best constant agent"] == pytest.approx(2 / 2)
    assert table.loc["best constant agent", "note"] == "agent-0"
    mixed = stats.accuracy(
        pd.DataFrame(rows), pd.DataFrame([q[0], question(1, [True] * 4), q[2]]), scope=stats.Scope(mixed=True)
    )
    assert mixed.set_index("method").loc["dense", "rows"] == 2
    no_lengths = [{**x, "lengths": None} for x in q]
    table = stats.accuracy(pd.DataFrame(rows), pd.DataFrame(no_lengths)).set_index("method")
    assert table.loc["longest", "accuracy"] == pytest.approx((0.5 + 1) / 2)  # by characters: all tie; "no number"


def test_accuracy_without_known_answers_is_nan_and_not_missing(tables: tuple[Any, Any]) -> None:
    judgements, questions = tables
    blind = questions.assign(corrects=[[None] * 4] * len(questions))
    table = stats.accuracy(judgements, blind)
    methods = table[table["kind"] == "method"]
    assert set(methods["method"]) == set(judgements["method"])
    assert methods["accuracy"].isna().all()
    assert (methods["rows"] == 0).all()
    assert stats.flip_table(judgements, blind).empty


def test_gaps_in_lists_are_unknown_and_not_wrong() -> None:
    """A run folder's lists with gaps come as masked arrays."""
    q = question(0, [True, False, True, False])
    gaps = {**q, "corrects": np.ma.array([True, False, True, False], mask=np.array([False, False, False, True]))}
    rows = pd.DataFrame([judged(q, o, "dense", 3) for o in CYCLIC])
    assert stats.accuracy(rows, pd.DataFrame([q]))["rows"][0] == 4
    assert stats.accuracy(rows, pd.DataFrame([gaps]))["rows"][0] == 0


def test_flip_table_against_a_loop(tables: tuple[Any, Any]) -> None:
    judgements, questions = tables
    table = stats.flip_table(judgements, questions).set_index(["method", "outcome"])["count"]
    key = ["question_id", "slot", "correct"]
    for method in ("naive", "foreign-kv"):
        dense = judgements[judgements["method"] == "dense"][key].to_numpy()
        own = judgements[judgements["method"] == method][key].to_numpy()
        names = {(1, 0): "harmful", (0, 1): "helpful", (1, 1): "benign", (0, 0): "joint error"}
        counts = dict.fromkeys(["same right", "same wrong", *names.values()], 0)
        for (_, a, x), (_, b, y) in zip(dense, own, strict=True):
            name = f"same {'right' if x else 'wrong'}" if a == b else names[int(x), int(y)]
            counts[name] += 1
        assert table[method].to_dict() == counts
        assert min(counts.values()) > 0


def test_slot_histogram() -> None:
    q = [question(0, [True] * 4), question(1, [True] * 2)]
    rows = [judged(q[0], o, "dense", 3) for o in CYCLIC] + [judged(q[1], (0, 1), "dense", 0)]
    table = stats.slot_histogram(pd.DataFrame(rows), pd.DataFrame(q)).set_index("slot")
    assert table["count"].tolist() == [1, 0, 0, 4]
    assert table["share"].tolist() == pytest.approx([0.2, 0, 0, 0.8])
    assert table["uniform"].tolist() == pytest.approx([(4 / 4 + 1 / 2) / 5] * 2 + [(4 / 4) / 5] * 2)


def homogeneity(table: np.ndarray) -> Any:
    return SquareTable(table, shift_zeros=False).homogeneity()


def test_slot_marginal_test() -> None:
    rng = np.random.default_rng(4)
    judgements, questions = simulate(rng, 60, {"last": lambda r, d: 3 if r.random() < 0.4 else d, "same": sticky(1.0)})
    table = stats.slot_marginal_test(judgements, questions).set_index("method")
    dense, last = slots_of(judgements, "dense"), slots_of(judgements, "last")
    p, q = (np.bincount(x, minlength=4) / len(x) for x in (dense, last))
    m = (p + q) / 2
    divergence = (scipystats.entropy(p, m, base=2) + scipystats.entropy(q, m, base=2)) / 2
    assert table.loc["last", "js_distance"] == pytest.approx(math.sqrt(divergence))
    assert table.loc["last", "p_swap"] < 0.01
    assert table.loc["same", ["p_swap", "js_distance"]].tolist() == [1, 0]


def test_slot_swap_test_keeps_its_level_under_clustering() -> None:
    """Method and dense differ by question at random, all orders of a question alike: no shift in the mean."""
    rng = np.random.default_rng(8)
    swap, runs = 0, 60
    for seed in range(runs):
        asked = [question(i, [True] * 4) for i in range(12)]
        rows = []
        for q in asked:
            a, b = rng.integers(4, size=2)
            for o in CYCLIC:
                rows += [judged(q, o, "dense", int(a)), judged(q, o, "naive", int(b))]
        row = stats.slot_marginal_test(pd.DataFrame(rows), pd.DataFrame(asked), draws=100, seed=seed).iloc[0]
        swap += row["p_swap"] < 0.05
    assert swap / runs < 0.1


def position_bias_of(pick: Callable[[Sequence[int]], int], orders: Sequence[Sequence[int]], n: int = 4) -> Any:
    q = [question(i, [True] * n) for i in range(5)]
    rows = [judged(x, o, "dense", pick(o)) for x in q for o in orders]
    return stats.position_bias(pd.DataFrame(rows), pd.DataFrame(q)).iloc[0]


def test_position_bias_of_judges_that_are_known() -> None:
    first, last = position_bias_of(lambda o: 0, CYCLIC), position_bias_of(lambda o: len(o) - 1, CYCLIC)
    names = ["order_consistency", "position_consistency", "preference_fairness"]
    assert first[names].tolist() == [0, 0, -1]
    assert last[names].tolist() == [0, 0, 1]
    assert position_bias_of(lambda o: list(o).index(2), CYCLIC)[names].tolist() == [1, 1, 0]
    assert (first["questions"], first["orders"]) == (5, 4)
    assert first["preference_fairness_high"] > -0.6  # five questions that agree do not make a certainty
    # Two candidates, swapped: Shi et al.'s setting.
    assert position_bias_of(lambda o: 1, [(0, 1), (1, 0)], 2)[names].tolist() == [0, 0, 1]


def test_position_bias_against_a_loop() -> None:
    rng = np.random.default_rng(6)
    asked = [question(i, [True] * 4, ["a", "a", "b", "c"] if i % 2 else None) for i in range(8)]
    orders = list(itertools.permutations(range(4)))
    rows, same, late = [], [], []
    for q in asked:
        chosen = [orders[k] for k in rng.choice(24, size=5, replace=False)]
        slots = [int(s) for s in rng.integers(4, size=5)]
        rows += [judged(q, o, "dense", s) for o, s in zip(chosen, slots, strict=True)]
        agree, score = [], []
        for (o1, s1), (o2, s2) in itertools.combinations(zip(chosen, slots, strict=True), 2):
            a, b = o1[s1], o2[s2]
            agree.append(q["texts"][a] == q["texts"][b])
            for own, other in ((s1, o1.index(b)), (s2, o2.index(a))):
                score.append(0 if agree[-1] else np.sign(own - other))
        same.append(np.mean(agree))
        late.append(np.mean(score))
    row = stats.position_bias(pd.DataFrame(rows), pd.DataFrame(asked)).iloc[0]
    assert row["order_consistency"] == pytest.approx(np.mean(same))
    assert row["position_consistency"] == pytest.approx(np.mean(np.array(same) == 1))
    assert row["preference_fairness"] == pytest.approx(np.mean(late))
    assert row["preference_fairness_low"] < row["preference_fairness"] < row["preference_fairness_high"]


def test_permutation_distance() -> None:
    for order in itertools.permutations(range(5)):
        tau = scipystats.kendalltau(range(5), order).statistic
        assert 1 - 4 * inversions(order) / 20 == pytest.approx(tau)
    orders = [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0)]
    q = [question(i, [True] * 4) for i in range(9)]
    rows = [judged(x, o, "dense", 0) for x in q for o in orders]
    rows += [judged(x, o, "naive", int(inversions(o) > i)) for i, x in enumerate(q) for o in orders]
    table = stats.by_permutation_distance(pd.DataFrame(rows), pd.DataFrame(q)).set_index("distance")
    assert table["jcr"].to_dict() == pytest.approx({0: 1, 1: 8 / 9, 6: 3 / 9})
    assert table["tau"].to_dict() == pytest.approx({0: 1, 1: 1 - 2 / 6, 6: -1})
    assert (table["pairs"] == 9).all()


def test_margin_bins() -> None:
    q = [question(i, [True] * 4) for i in range(40)]
    rows = []
    for i, x in enumerate(q):  # the first half is undecided, and flips
        rows.append(judged(x, (0, 1, 2, 3), "dense", 0, [i / 10, 0, -1, -1]))
        rows.append(judged(x, (0, 1, 2, 3), "naive", int(i < 20)))
    table = stats.by_margin(pd.DataFrame(rows), pd.DataFrame(q))
    assert table["jcr"].tolist() == [0, 0, 1, 1]
    assert table["pairs"].tolist() == [10] * 4
    assert table["margin_low"].tolist() == pytest.approx([0, 1, 2, 3])
    assert table["margin_high"].tolist() == pytest.approx([0.9, 1.9, 2.9, 3.9])
    flat = stats.by_margin(pd.DataFrame(rows).assign(scores=[[1.0, 0, 0, 0]] * 80), pd.DataFrame(q))
    assert flat["pairs"].tolist() == [40]


@pytest.mark.parametrize(
    ("text", "template", "answer"),
    [
        ("It is 3 * 4 = 12.\nA: 12", "math", "12"),
        ("costs $1,234.50.", "math", "1234.5"),
        ("so 10-3", "math", "3"),
        ("it is -3", "math", "-3"),
        ("007.0 and -0", "math", "0"),
        ("half is .50", "math", "0.5"),
        ("1,2,3", "math", "3"),
        ("none", "math", None),
        ("The answer is 12, which took 3 steps", "math", "12"),
        ("it is 50%", "math", "50"),
        ("The answer is 12, and 3 is not", "free", "12"),
        ("B\nbecause A is wrong", "choice", "B"),
        ("(C) since ...", "choice", "C"),
        ("The answer is D, not B. So D", "choice", "D"),
        ("nothing here", "choice", None),
        (" x = 1 \n", "code", "x = 1"),
        ("So:\n```python\nx = 1\n```\n", "code", "x = 1"),
        ("", "code", None),
        ("It  is Lima", "free", "it is lima"),
    ],
)
def test_final_answer(text: str, template: str, answer: str | None) -> None:
    assert stats.final_answer(text, template) == answer


BASE = question(0, [True] * 4)


@pytest.mark.parametrize(
    ("rows", "asked", "words"),
    [
        ([judged(BASE, CYCLIC[0], "naive", 0)], [BASE], "no method 'dense'"),
        ([judged(BASE, CYCLIC[0], "dense", 0), judged(BASE, CYCLIC[1], "naive", 0)], [BASE], "did not judge"),
        ([judged(BASE, CYCLIC[0], "dense", 0)] * 2, [BASE], "twice in order"),
        ([judged(BASE, CYCLIC[0], "dense", 0)], [BASE, BASE], "stands twice"),
        ([judged(BASE, CYCLIC[0], "dense", 0)], [question(1, [True] * 4)], "not in the questions table"),
        ([{**judged(BASE, CYCLIC[0], "dense", 0), "slot": 1}], [BASE], "do not belong together"),
        ([{**judged(BASE, CYCLIC[0], "dense", 0), "order": [0, 0, 1, 2]}], [BASE], "no permutation"),
        ([{**judged(BASE, CYCLIC[0], "dense", 0), "scores": [1.0]}], [BASE], "1 scores for 4"),
        ([{**judged(BASE, CYCLIC[0], "dense", 0), "scores": None}], [{**BASE, "texts": ["a"]}], "1 texts"),
        (
            [{**judged(BASE, CYCLIC[k], "dense", 0), "readout": r} for k, r in enumerate(("label", "yesno"))],
            [BASE],
            "several readouts (label, yesno)",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(rows: list[dict], asked: list[dict], words: str) -> None:
    with pytest.raises(KvattnError) as e:
        stats.jcr(pd.DataFrame(rows), pd.DataFrame(asked))
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_columns_that_are_not_there_are_refused() -> None:
    frame, asked = pd.DataFrame([judged(BASE, CYCLIC[0], "dense", 0)]), pd.DataFrame([BASE])
    with pytest.raises(KvattnError, match="1 of 1 judgements have no 'choice_calibrated'"):
        stats.jcr(frame, asked, column="choice_calibrated")
    with pytest.raises(KvattnError, match="holds no choices"):
        stats.jcr(frame, asked, column="correct")
    with pytest.raises(KvattnError, match="lacks the column 'slot'"):
        stats.jcr(frame.drop(columns="slot"), asked)
    with pytest.raises(KvattnError, match="lacks the column 'texts'"):
        stats.jcr(frame, asked.drop(columns="texts"))


def test_a_run_of_dense_alone_gives_empty_tables() -> None:
    frame, asked = pd.DataFrame([judged(BASE, CYCLIC[0], "dense", 0)]), pd.DataFrame([BASE])
    for table in (
        stats.jcr(frame, asked),
        stats.paired(frame, asked),
        stats.flip_table(frame, asked),
        stats.slot_marginal_test(frame, asked),
        stats.by_permutation_distance(frame, asked),
        stats.by_margin(frame, asked),
    ):
        assert table.empty
        assert "method" in table.columns
    assert stats.accuracy(frame, asked)["accuracy"][0] == 1
    assert stats.position_bias(frame, asked)["questions"][0] == 0


def log_normal_mass(rng: Rng, pairs: int, shape: tuple[int, int]) -> np.ndarray:
    return np.exp(rng.normal(-3, 1, size=(pairs, *shape)))


def paired_mass(mass: dict[str, np.ndarray], ids: Any, how: Any = None) -> dict[str, Any]:
    """`mass_change` from masses [pairs, layers, heads] themselves."""

    def means(values: np.ndarray) -> np.ndarray:
        return np.stack([values[np.array(list(ids)) == i].mean(0) for i in dict.fromkeys(ids)])

    dense, own = (mass[m] for m in mass)
    logs = np.log(np.maximum(own, 1e-8)) - np.log(np.maximum(dense, 1e-8))
    return {
        list(mass)[1]: stats.mass_change(means(logs), means(own), means(dense), len(ids), how or stats.Resampling())
    }


def test_paired_mass_against_loops_and_scipy() -> None:
    rng = np.random.default_rng(9)
    ids = ["a", "b", "b", "c", "c", "c", "d", "e", "f", "f"]
    dense = log_normal_mass(rng, len(ids), (3, 2))
    own = dense * np.exp(rng.normal(-0.2, 0.5, size=dense.shape))
    change = paired_mass({"dense": dense, "naive": own}, ids)["naive"]
    frame: Any = pd.DataFrame(np.log(own / dense).reshape(len(ids), -1)).assign(id=ids)
    by_question = frame.groupby("id").mean().to_numpy()
    assert change.change.ravel() == pytest.approx(by_question.mean(0))
    assert change.t.ravel() == pytest.approx(scipystats.ttest_1samp(by_question, 0).statistic)
    whole = [{m: x[np.array(ids) == i] for m, x in (("own", own), ("dense", dense))} for i in "abcdef"]
    logs = np.array([np.log(x["own"].mean() / x["dense"].mean()) for x in whole])
    assert change.mean == pytest.approx(logs.mean())
    by_layer = [np.log(x["own"].mean((0, 2)) / x["dense"].mean((0, 2))) for x in whole]
    assert change.by_layer == pytest.approx(np.mean(by_layer, axis=0))
    exceed = np.zeros(6)
    for flips in itertools.product([1, -1], repeat=6):  # all 64 of them
        t = scipystats.ttest_1samp(by_question * np.array(flips)[:, None], 0).statistic
        exceed += np.abs(t).max() >= np.abs(change.t.ravel()) - 1e-9
    assert change.p.ravel() == pytest.approx(exceed / 64)
    resampled = scipystats.bootstrap((logs,), np.mean, method="percentile", n_resamples=9999, rng=1)
    ends = np.quantile(resampled.bootstrap_distribution, tails(6))
    assert (change.low, change.high) == pytest.approx(tuple(ends), abs=0.03)
    assert (change.pairs, change.questions) == (10, 6)


def test_heads_that_look_at_nothing_do_not_lead_the_average() -> None:
    dense = np.full((6, 1, 4), 1e-7)
    dense[:, :, 0] = 0.4
    own = np.where(dense > 0.1, 0.2, 1e-5)  # the one head that looks is halved, the others rise a hundredfold
    change = paired_mass({"dense": dense, "m": own}, "abcdef")["m"]
    assert change.change.mean() > 3
    assert change.mean == pytest.approx(np.log(0.5), abs=1e-3)
    assert change.by_layer[0] == pytest.approx(np.log(0.5), abs=1e-3)


def test_paired_mass_finds_the_head_that_changed_and_rarely_another() -> None:
    rng = np.random.default_rng(10)
    ids, false = np.repeat(np.arange(30), 2), 0
    for seed in range(100):
        dense = log_normal_mass(rng, 60, (4, 4))
        shift = np.repeat(rng.normal(0, 0.3, size=(30, 4, 4)), 2, axis=0)  # questions differ, all orders alike
        shift[:, 2, 1] -= 0.5
        found = paired_mass(
            {"dense": dense, "m": dense * np.exp(shift)}, ids, how=stats.Resampling(resamples=300, seed=seed)
        )["m"].p
        assert found[2, 1] < 0.05
        found[2, 1] = 1
        false += (found < 0.05).any()
    assert false <= 12


def test_paired_mass_edges() -> None:
    dense = np.full((4, 1, 2), 0.5)
    own = np.stack([np.full((4, 1), 0.5), np.zeros((4, 1))], axis=2)
    change = paired_mass({"dense": dense, "m": own}, ["a", "a", "b", "c"])["m"]
    assert change.change[0] == pytest.approx([0, math.log(1e-8 / 0.5)])
    assert change.p[0] == pytest.approx([1, 2 / 8])  # the smallest that three questions allow
    alone = paired_mass({"dense": dense, "m": own}, ["a"] * 4)["m"]
    assert np.isnan(alone.p).all()
    assert np.isnan(alone.low)
    with pytest.raises(KvattnError, match="differences of shape"):
        stats.mass_change(dense[0], dense[0], dense[0], 24)
    with pytest.raises(KvattnError, match="must be finite"):
        stats.mass_change(dense * np.nan, dense, dense, 24)


def test_candidate_agreement_against_a_loop(tables: tuple[Any, Any]) -> None:
    judgements, questions = tables
    texts = [
        ["The answer is 1", "The answer is 1.0", "Answer: 1", "It is 2"],
        ["3", "4", "5", "6"],
        ["7", "7.", "8", "8.0"],
    ]
    asked = questions.assign(texts=[texts[i % 3] for i in range(len(questions))])
    wanted = {0: 3, 1: 1, 2: 2}
    most = {k: wanted[i % 3] for i, k in enumerate(asked["question_id"])}
    table = stats.by_candidate_agreement(judgements, asked)
    pairs = stats.paired(judgements, asked)
    assert set(table["agreeing"]) == {1, 2, 3}
    for row in table.to_dict("records"):
        mine = pairs[(pairs["method"] == row["method"]) & (pairs["question_id"].map(most) == row["agreeing"])]
        assert row["pairs"] == len(mine)
        assert row["jcr"] == pytest.approx(mine["agree"].mean())
        assert row["answer_agreement"] == pytest.approx(mine["agree_answer"].mean())
        assert row["low"] <= row["jcr"] <= row["high"]
    assert table.groupby("method")["pairs"].sum().eq(pairs.groupby("method").size()).all()
