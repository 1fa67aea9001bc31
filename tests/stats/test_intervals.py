"""Intervals that hold near 0 and 1: exact references, and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, t

from analyses.coverage import DESIGNS, QUESTIONS, RATES, covered, hits, shipped, step_coverage, tables
from kvattn.stats import Resampling
from kvattn.stats.intervals import bounded, difference, mean, rate, resampled

SIMULATIONS = 2000


def slow_rate(hit: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Korn and Graubard's interval with one question more that goes together, written out."""
    n, p, k = len(set(codes)), hit.mean(), len(codes)
    by_question = [hit[codes == c] for c in sorted(set(codes))]
    variance = n / (n - 1) * sum((x.sum() - p * len(x)) ** 2 for x in by_question) / k**2
    informative = min(sum(x.any() for x in by_question), sum(not x.all() for x in by_question))
    design = max(1.0, variance * k / (p * (1 - p))) if 0 < p < 1 and variance else k / n
    design = (informative * design + k / n) / (informative + 1)
    rows = k / design * ((t.ppf(0.975, k - 1) / t.ppf(0.975, n - 1)) ** 2 if informative else 1)
    low = 0.0 if p == 0 else beta.ppf(0.025, p * rows, rows - p * rows + 1)
    high = 1.0 if p == 1 else beta.ppf(0.975, p * rows + 1, rows - p * rows)
    return float(low), float(high)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.97, 1.0])
def test_a_rate_is_what_the_formula_written_out_says(p):
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(0, 20, 60))
    hit = (rng.random(60) < p).astype(float)
    found = rate(hit, codes * 7)
    assert found.value == hit.mean()
    assert (found.low, found.high) == pytest.approx(slow_rate(hit, codes))


def test_with_one_order_a_rate_is_clopper_and_pearsons():
    found = rate(np.arange(60) >= 3, np.arange(60))
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.025, 57, 4), beta.ppf(0.975, 58, 3)), abs=1e-3)
    assert 0.85 < found.low < found.high < 0.991  # the bootstrap said up to 1.00


@pytest.mark.parametrize("orders", [1, 4])
def test_nothing_seen_leaves_an_exact_bound_over_questions(orders):
    codes = np.repeat(np.arange(240), orders)
    all_agree, none_differ = rate(np.ones(len(codes)), codes), difference(codes < 0, codes < 0, codes)
    assert all_agree.value == all_agree.high == 1.0
    assert binom.pmf(240, 240, all_agree.low) == pytest.approx(0.025)
    assert (none_differ.value, none_differ.low) == (0.0, -none_differ.high)
    assert none_differ.high == pytest.approx(3 / 240, rel=0.01)  # the rule of three


def test_orders_that_go_together_count_once():
    rng = np.random.default_rng(1)
    once = rng.random(30) < 0.7
    codes = np.repeat(np.arange(30), 4)
    alone, copied = rate(once, np.arange(30)), rate(np.repeat(once, 4), codes)
    # All but the ratio of Student's t at 119 and 29 degrees of freedom.
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    free = rate(rng.random(120) < 0.7, codes)
    assert free.high - free.low < 0.75 * (copied.high - copied.low)


def test_coverage_is_at_least_93_percent_everywhere():
    """2,000 studies a cell: an interval with a coverage of .95 shows under .93 in one cell of 100,000. The truth lies
    below the interval, where reuse would look safer than it is, in at most 2.5 %, seen as under 3.6 % as surely."""
    for questions in QUESTIONS:
        for orders, correlation in (*DESIGNS, (4, 0.9)):
            for p in RATES:
                hold, below, above, _ = covered(
                    shipped(hits(p, questions, orders, correlation, SIMULATIONS), orders), p
                )
                cell = (questions, orders, correlation, p)
                assert hold >= 0.93, cell
                assert below <= 0.036, cell
                assert above <= 0.036, cell


@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.25), (0.02, 0.08), (0.1, 0.1), (0.0, 0.02)])
@pytest.mark.parametrize(("questions", "orders"), [(16, 1), (60, 1), (24, 4)])
def test_coverage_of_paired_differences(gained, lost, questions, orders):
    """400 studies: a coverage of .95 shows under .92 in one of 200."""
    assert step_coverage(gained, lost, questions, orders, 400) >= 0.92


def test_the_coverage_tables_are_markdown():
    lines = tables(40).splitlines()
    assert len([line for line in lines if line.startswith("| 16 x 4")]) == 3
    assert {line.count("|") for line in lines[:18]} == {len(RATES) + 2}
    assert any("(printed)" in line for line in lines)


def test_a_mean_without_spread_is_bounded_by_its_questions():
    found = mean(np.zeros(60), np.ones(60), (0.0, 1.0))
    assert found.low == 0.0 < 0.05 < found.high < 0.07
    same = mean(np.full(60, 2.0), np.ones(60), (1.0, 4.0))
    assert same.low < 2.0 < same.high
    assert np.isnan(mean(np.zeros(3), np.zeros(3)).value)
    assert np.isnan(bounded(0.5, np.empty(0), 1, (0.0, 1.0)).low)
    assert np.isnan(rate(np.ones(4), np.zeros(4)).low)
    assert np.isnan(rate(np.empty(0), np.empty(0, int)).value)


def test_resamples_come_in_any_number_of_batches(monkeypatch):
    values = np.arange(5.0)
    whole = resampled(lambda w: w @ values / w.sum(1), 5, cells=5, how=Resampling(resamples=501))
    monkeypatch.setattr("kvattn.stats.intervals._CELLS", 50)
    parts = resampled(lambda w: w @ values / w.sum(1), 5, cells=5, how=Resampling(resamples=501))
    assert len(whole) == len(parts) == 501
    assert whole.mean() == pytest.approx(2.0, abs=0.12)
    assert whole.var() == pytest.approx(2.0 / 5, rel=0.2)
    assert parts == pytest.approx(whole)
