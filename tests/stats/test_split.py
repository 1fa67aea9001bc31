"""Shift and content apart: known judges, slow loops, and the run that comes with the repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT
from judges import HABIT, SHIFT, frames, judged, with_classes

from kvattn import stats
from kvattn.errors import KvattnError
from kvattn.report import write_report
from kvattn.report.tables import measured, measured_notes, tables
from kvattn.stats.chance import LOCKED, against
from kvattn.stats.graded import graded
from kvattn.stats.measures import MEASURES
from kvattn.stats.pairs import Pairs, read_pairs
from kvattn.stats.split import centred, own_offsets, split, unfit
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.side_by_side import Comparison, open_runs

RUNS = CHECKOUT / "figures" / "runs"


@pytest.mark.parametrize("orders", [1, 4])
def test_a_known_judge_gets_its_shift_and_its_loss_back(orders):
    """Of 40 studies 95 % hold the truth: with 33 or fewer the chance of that is under 0.01."""
    gain, noise = 0.6, 0.6
    crowd = judged(np.random.default_rng(0), questions=200_000, gain=gain, noise=noise)
    pick = (crowd.method - SHIFT - HABIT).argmax(1)
    assert crowd.floor is not None
    agree, floor, raw = (p == crowd.dense.argmax(1) for p in (pick, crowd.floor.argmax(1), crowd.method.argmax(1)))
    truth = {
        "jcr": raw.mean(),
        "jcr_c": agree.mean(),
        "content_loss": floor.mean() - agree.mean(),
        "shift_loss": agree.mean() - raw.mean(),
        "shift": np.sqrt(((SHIFT - SHIFT.mean()) ** 2).mean()),
        "gain": gain,
        "corr": gain / np.hypot(gain, noise),
    }
    assert truth["shift_loss"] > 0.1 < truth["content_loss"]
    held = dict.fromkeys(truth, 0)
    for seed in range(40):
        found = split(
            judged(np.random.default_rng(seed + 1), orders=orders), how=stats.Resampling(resamples=400), draws=9
        )
        for name, value in truth.items():
            estimate = getattr(found, name)
            held[name] += estimate.low <= value <= estimate.high
    assert min(held.values()) >= 34, held


def test_no_shift_is_not_found_and_no_loss_neither():
    pairs = judged(np.random.default_rng(3), orders=4, gain=1.0, noise=0.05, shift=np.zeros(4))
    found = split(pairs, how=stats.Resampling(resamples=400), draws=99)
    assert found.shift.low == 0.0 < found.shift.high < 0.05
    assert found.content_loss.low < 0 < found.content_loss.high < 0.1
    assert found.corr.value > 0.99
    assert found.p == 0.01


def slow_own_pick(pairs: Pairs, row: int, left_out: np.ndarray) -> int:
    """The slot picked less the mean scores of the rows that are not left out."""
    scores = [r - r.mean() for r in pairs.method]
    mean = np.mean([s for s, out in zip(scores, left_out, strict=True) if not out], axis=0)
    return int(np.argmax(scores[row] - mean))


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [0, 0, 2, 2]])
def test_split_is_what_slow_loops_say(classes):
    pairs = with_classes(judged(np.random.default_rng(5), questions=12, orders=3), classes)
    found = split(pairs, how=stats.Resampling(resamples=50), draws=9)
    assert pairs.floor is not None
    own, raw, floors = [], [], []
    for i in range(len(pairs.dense)):
        pick = slow_own_pick(pairs, i, pairs.questions == pairs.questions[i])
        text = pairs.classes[i, np.argmax(pairs.dense[i])]
        own.append(pairs.classes[i, pick] == text)
        raw.append(pairs.classes[i, np.argmax(pairs.method[i])] == text)
        floors.append(pairs.classes[i, np.argmax(pairs.floor[i])] == text)
    floor = np.mean(floors)
    assert found.jcr_c.value == pytest.approx(np.mean(own))
    assert found.jcr.value == pytest.approx(np.mean(raw))
    assert found.jcr.floor == pytest.approx(floor)
    assert found.content_loss.value == pytest.approx(floor - np.mean(own))
    assert found.shift_loss.value == pytest.approx(np.mean(own) - np.mean(raw))
    residuals = []
    for scores in (pairs.method, pairs.dense):
        rows = np.array([r - r.mean() for r in scores])
        residuals.append((rows - rows.mean(0)).ravel())
    m, d = residuals
    assert found.gain.value == pytest.approx(m @ d / (d @ d))
    assert found.corr.value == pytest.approx(np.corrcoef(m, d)[0, 1])


def test_offsets_of_a_resample_are_those_of_the_copied_rows():
    pairs = judged(np.random.default_rng(2), questions=5, orders=2)
    weights = np.array([[2, 0, 1, 1, 1], [0, 3, 0, 1, 1]])
    scores = centred(pairs.method)
    got = own_offsets(scores, pairs.codes, weights)
    for w, offsets in zip(weights, got, strict=True):
        for q in range(5):
            rows = [s for s, c in zip(scores, pairs.codes, strict=True) if c != q for _ in range(w[c])]
            assert offsets[q] == pytest.approx(np.mean(rows, axis=0))


def test_a_lock_is_named_and_agrees_by_arithmetic_alone():
    pairs = judged(np.random.default_rng(4), shift=np.array([0.0, 0.0, 0.0, 9.0]))
    few = stats.Resampling(resamples=100)
    found, beside = split(pairs, how=few, draws=99), against(pairs.picks, few, draws=99)
    assert beside.locked
    assert beside.note == LOCKED
    assert beside.lock.value == 1.0
    assert beside.lock.low < 0.96  # 60 of 60
    assert beside.kappa_max.value == 0 < beside.kappa_max.high < 0.15
    assert np.isnan(beside.kappa.value)
    assert np.isnan(beside.score.value)
    assert beside.jcr.value == pytest.approx(beside.chance.value)
    assert found.jcr_c.value > 0.5  # the content is all there
    assert found.p == 0.01


def test_offsets_are_refused_where_they_cannot_be_told():
    pairs = judged(np.random.default_rng(0))
    assert unfit(pairs) == ""
    fixed = replace(pairs, orders=np.tile(np.arange(4), (60, 1)))
    with pytest.raises(KvattnError, match=r"not balanced.*75%.*shuffled or cyclic"):
        split(fixed)
    calls = np.array(["reused", "fallback"] * 30)
    with pytest.raises(KvattnError, match=r"mixes calls \(fallback, reused\)"):
        split(pairs, calls)
    assert split(pairs, np.array(["reused"] * 60), how=stats.Resampling(resamples=20), draws=9).jcr_c.value > 0.3
    with pytest.raises(KvattnError, match="7 questions are too few"):
        split(judged(np.random.default_rng(0), questions=7))


def test_random_orders_are_balanced_enough_from_sixteen_questions_on():
    rng = np.random.default_rng(0)
    orders = [np.array([rng.permutation(4) for _ in range(16)]) for _ in range(200)]
    pairs = judged(rng, questions=16)
    refused = sum(bool(unfit(replace(pairs, orders=o, classes=o, answers=o))) for o in orders)
    assert refused <= 20


# The table of the review that led to these measures, to its printed digits: JCR, JCR_c, kappa_max, JSD, tau, tau_c,
# rank, regret, flips by margin, flips, of them tied, shift, gain, corr, accuracy, accuracy_c.
REVIEW = """
null-edit | .95 .95 .93 .00 .94 .94 1.05 .00 .00 3 3 .02 1.02 1.00 .70 .70
last-k(budget=0.5,per=ramp,prefix=kept) | .72 .75 .75 .01 .67 .72 1.37 .07 .16 17 8 .10 .99 .91 .65 .67
last-k(budget=0.3) | .63 .62 .54 .03 .43 .55 1.63 .18 .27 22 9 .27 .69 .76 .60 .65
last-k(budget=0.1,prefix=kept) | .58 .58 .49 .03 .36 .52 1.72 .23 .34 25 9 .31 .51 .69 .60 .55
kv-deviation(budget=0.3) | .42 .60 .30 .03 .31 .51 1.97 .32 .49 35 12 .27 .47 .66 .47 .65
blind-tail(budget=0.1,prefix=kept) | .37 .42 .09 .05 .24 .30 1.98 .41 .59 38 12 .37 .25 .47 .45 .53
naive-linked | .35 .48 .03 .05 .14 .29 2.10 .44 .61 39 12 .36 .19 .48 .43 .67
true-mask | .38 .25 .13 .08 .10 .11 2.12 .43 .54 37 12 .64 .08 .16 .48 .48
isolated | .37 .20 .11 .09 .11 .02 2.17 .42 .57 38 12 .76 .05 .08 .48 .53
foreign-kv | .30 .25 .71 .05 .07 .11 2.45 .40 .75 42 9 .09 .05 .07 .53 .52
"""


@pytest.fixture(scope="module")
def larger() -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = [Run(RUNS / name) for name in ("gsm8k-1.5b", "frontier-1.5b", "tails-1.5b")]
    return pd.concat([r.judgements() for r in runs], ignore_index=True), runs[0].questions()


@pytest.mark.parametrize("line", REVIEW.strip().splitlines(), ids=lambda line: line.partition(" ")[0])
def test_the_larger_run_gives_the_numbers_of_the_review(larger: Any, line: str):
    method, _, numbers = line.partition(" | ")
    judgements, questions = larger
    pairs = read_pairs(judgements, questions, method)
    few = stats.Resampling(resamples=20)
    parts, grades, beside = split(pairs, how=few, draws=9), graded(pairs, few), against(pairs.picks, few, draws=9)
    rows = len(pairs.dense)
    got = [parts.jcr, parts.jcr_c, beside.kappa_max]
    got += [grades[k] for k in ("jsd", "tau", "tau_c", "rank", "regret", "flips_margin")]
    got += [grades[k]._replace(value=rows * grades[k].value) for k in ("flips", "flips_tied")]
    got += [parts.shift, parts.gain, parts.corr, beside.accuracy, parts.accuracy_c]
    assert [e.value for e in got] == pytest.approx([float(x) for x in numbers.split()], abs=0.0051)
    assert parts.jcr.floor == pytest.approx(0.95)


def test_what_the_larger_run_keeps_of_the_content(larger: Any):
    judgements, questions = larger
    naive, isolated = (split(read_pairs(judgements, questions, m)) for m in ("naive-linked", "isolated"))
    assert naive.jcr_c.low > 0.33 > 0.28 > naive.chance_c
    assert naive.p < 0.001
    assert isolated.p > 0.5
    assert naive.content_loss.low > 0.25
    assert naive.shift_loss.low < 0.0 < naive.shift_loss.high
    beside = against(read_pairs(judgements, questions, "naive-linked").picks)
    assert beside.equivalence.value == pytest.approx(0.65, abs=0.005)
    assert beside.answer.value == pytest.approx(0.52, abs=0.005)
    assert beside.p > 0.3
    assert beside.locked


def test_without_known_correctness_and_null_edit_the_rest_is_told(recwarn):
    pairs = judged(np.random.default_rng(0))
    blind = replace(pairs, floor=None, correct=np.full_like(pairs.correct, np.nan))
    found = split(blind, how=stats.Resampling(resamples=50), draws=9)
    assert np.isnan([found.accuracy_c.value, found.accuracy_c.low, found.content_loss.value, found.jcr.floor]).all()
    assert found.jcr_c.low < found.jcr_c.value < found.jcr_c.high
    assert not recwarn


def test_the_table_has_a_row_a_method_and_kind_of_call(larger: Any):
    run = Run(RUNS / "gsm8k-1.5b")
    table: Any = stats.measures(run.judgements(), run.questions())
    assert table.groupby("method")["pairs"].sum().eq(60).all()
    assert sorted(table.loc[table["method"] == "kvcomm", "calls"]) == ["kvcomm: fallback", "kvcomm: reused"]
    assert set(table["floor_method"]) == {"null-edit"}
    rows, pairs = table.set_index("method"), read_pairs(*larger, "naive-linked")
    naive, parts, beside = rows.loc["naive-linked"], split(pairs), against(pairs.picks)
    assert (naive["jcr_c"], naive["jcr_c_low"], naive["jcr_c_high"]) == parts.jcr_c[:3]
    assert (naive["shift"], naive["shift_floor"], naive["p_c"]) == (parts.shift.value, parts.shift.floor, parts.p)
    assert (naive["excess"], naive["score"]) == pytest.approx((beside.excess.value, beside.score.value), nan_ok=True)
    assert naive["p_excess_holm"] < 0.01
    assert np.isnan(rows.loc["null-edit", "p_excess"])
    whole: Any = stats.jcr(run).set_index("method")  # the same numbers, from sums in SQL
    once = table[table["calls"] == ""].set_index("method")
    for name in ("jcr", "low", "high", "floor", "chance", "lock", "kappa_max"):
        mine = {"low": "jcr_low", "high": "jcr_high", "floor": "jcr_floor"}.get(name, name)
        assert whole.loc[once.index, name].to_numpy() == pytest.approx(once[mine].to_numpy()), name
    free = once.index[~once["locked"]].drop("null-edit")
    for name in ("kappa", "kappa_low", "score", "score_high"):
        assert whole.loc[free, name].to_numpy() == pytest.approx(once.loc[free, name].to_numpy()), name
    assert set(whole.index[whole["locked"]]) == set(once.index[once["locked"].astype(bool)])
    few = run.judgements()["question_id"].isin(run.questions()["question_id"][:5])
    short: Any = stats.measures(run.judgements()[few], run.questions())
    assert short["jcr"].notna().all()
    assert short["jcr_c"].isna().all()
    assert short["note"].str.contains("too few to tell slot offsets").all()
    assert not stats.jcr(run.judgements()[few], run.questions())["locked"].any()  # five picks of one slot are no lock


def test_what_is_printed_of_a_known_judge_holds_its_shift_and_its_loss():
    truth = judged(np.random.default_rng(0), questions=100_000)
    agree = ((truth.method - SHIFT - HABIT).argmax(1) == truth.dense.argmax(1)).mean()
    pairs = judged(np.random.default_rng(6), questions=80, orders=4)
    table: Any = stats.measures(*frames(pairs))
    row = table.set_index("method").loc["naive"]
    shift = float(np.sqrt(((SHIFT - SHIFT.mean()) ** 2).mean()))
    for name, value in (("shift", shift), ("gain", 0.6), ("jcr_c", agree)):
        assert row[f"{name}_low"] <= value <= row[f"{name}_high"], name
    assert row["p_c"] < 0.001
    printed = dict(zip(measured(table)[0].heads, measured(table)[0].rows[0], strict=True))
    assert printed["shift, nats"] == f"{row['shift']:.2f} ({row['shift_low']:.2f}-{row['shift_high']:.2f})"
    assert printed["less own offsets"].startswith(f"{row['jcr_c']:.2f} (")
    assert measured_notes(table)[0].endswith("against null-edit, the null edit with the lowest JCR.")


@pytest.mark.parametrize("texts", [[0, 0, 2, 2], [0, 0, 0, 3]])
def test_two_random_judges_score_nothing_in_every_column_that_takes_chance_off(texts):
    rng = np.random.default_rng(7)
    pairs = judged(rng, questions=400)
    pairs = replace(pairs, method=rng.normal(size=pairs.dense.shape) + np.array([0.8, 0.4, 0.0, 0.0]))
    judgements, questions = frames(pairs)
    questions["texts"] = [[f"The answer is {t}" for t in texts]] * len(questions)
    row = stats.measures(judgements, questions).set_index("method").loc["naive"]
    assert row["jcr"] > row["jcr_id"] > 0.1
    for name in ("kappa", "score", "answer_kappa", "gain", "corr", "tau_c"):
        assert row[f"{name}_low"] < 0 < row[f"{name}_high"], name
    assert row["jcr_c_low"] < row["chance_c"] < row["jcr_c_high"]
    assert min(row["p"], row["p_c"]) > 0.05
    same = stats.jcr(judgements, questions).set_index("method").loc["naive"]
    assert (same["kappa"], same["chance"]) == pytest.approx((row["kappa"], row["chance"]))


def test_the_floor_is_the_lowest_of_several_null_edits():
    pairs = judged(np.random.default_rng(8), questions=100)
    judgements, questions = frames(pairs)
    worse = judgements[judgements["method"] == "null-edit"].assign(method="null-edit(edit=reword)")
    worse["scores"] = [s + np.random.default_rng(i).normal(0, 0.4, 4) for i, s in enumerate(worse["scores"])]
    worse["slot"] = [int(np.argmax(s)) for s in worse["scores"]]
    worse["choice"] = ["abcd"[o[s]] for o, s in zip(worse["order"], worse["slot"], strict=True)]
    both = pd.concat([judgements, worse], ignore_index=True)
    table: Any = stats.measures(both, questions).set_index("method")
    assert set(table["floor_method"]) == {"null-edit(edit=reword)"}
    assert table["jcr_floor"].eq(table.loc["null-edit(edit=reword)", "jcr"]).all()
    assert table.loc["null-edit(edit=reword)", "jcr"] < table.loc["null-edit", "jcr"]
    assert set(stats.jcr(both, questions)["floor_method"]) == {"null-edit(edit=reword)"}
    assert stats.measures(both[both["method"].isin(["dense", "naive"])], questions)["excess"].isna().all()


def test_written_verdicts_have_picks_and_the_judges_own_answer():
    judgements, questions = frames(judged(np.random.default_rng(9), questions=40))
    names = judgements["method"] == "naive"
    written = judgements.assign(readout="generate", scores=[np.full(4, np.nan)] * len(judgements))
    written["answer_correct"] = [m != "naive" or i % 2 == 0 for i, m in enumerate(judgements["method"])]
    written.loc[written.index[names][:10], ["slot", "choice"]] = None
    row = stats.measures(written, questions).set_index("method").loc["naive"]
    whole = stats.measures(judgements, questions).set_index("method").loc["naive"]
    assert 0.25 < row["jcr"] / whole["jcr"] < 1
    assert row["accuracy_dense"] == whole["accuracy_dense"]
    assert (row["own_answer_dense"], row["own_answer_floor"]) == (1.0, 1.0)
    assert row["own_answer_low"] < row["own_answer"] < 1
    assert np.isnan([row[k] for k in MEASURES if k in ("tv", "jcr_c", "branch")]).all()


def test_a_locked_method_is_named_in_report_and_comparison_in_the_place_of_kappa(tmp_path: Path):
    run = RUNS / "gsm8k-1.5b"
    page = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    table = page.partition("Shift and content</h2>")[2].partition("</section>")[0]
    assert "0.03, locked" in table
    assert "0.48 (0.34-0.62)" in table
    assert "Confirmatory: excess flips" in table
    consistency = next(t for t in tables(Comparison(open_runs([run]))) if t.title.startswith("consistency"))
    by_method = {row[1]: row[4:6] for row in consistency.rows}
    assert by_method["naive-linked"] == ["locked", "locked"]
    assert by_method["last-k(budget=0.3)"][0].startswith("0.47 (")
