"""Graded measures against slow loops and SciPy, on texts that are all different and on texts that are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from judges import judged, with_classes
from scipy.spatial.distance import jensenshannon
from scipy.stats import kendalltau as scipy_tau
from scipy.stats import norm

from kvattn.errors import KvattnError
from kvattn.stats import Resampling
from kvattn.stats.graded import NAMES, graded
from kvattn.stats.pairs import Pairs


def merged(scores: np.ndarray, classes: np.ndarray, join) -> dict[int, float]:
    """One number for each text: `join` of the numbers of its slots."""
    return {c: join([s for s, k in zip(scores, classes, strict=True) if k == c]) for c in dict.fromkeys(classes)}


def kendalltau(first, second) -> float:
    """SciPy's tau-b."""
    found: Any = scipy_tau(first, second)
    return float(found.statistic)


def slow(pairs: Pairs) -> dict[str, float]:
    """The measures that need no refit, one pair after another."""
    sums: dict[str, list[float]] = {name: [] for name in NAMES}
    margins, flipped, moves = [], [], []
    assert pairs.floor is not None
    for d, m, f, classes, right in zip(
        pairs.dense, pairs.method, pairs.floor, pairs.classes, pairs.correct, strict=True
    ):
        p, q = (merged(np.exp(x) / np.exp(x).sum(), classes, sum) for x in (d, m))
        sums["tv"].append(sum(abs(p[c] - q[c]) for c in p) / 2)
        sums["jsd"].append(jensenshannon(list(p.values()), list(q.values()), base=2) ** 2)
        yes = [1 / (1 + np.exp(-x)) for x in (d, m)]
        sums["branch"].append(float(np.mean([abs(a - b) for a, b in zip(*yes, strict=True)])))
        dense, method, edit = (merged(x, classes, max) for x in (d, m, f))
        tau = kendalltau(*(list(merged(x, classes, np.mean).values()) for x in (d, m)))
        if not np.isnan(tau):
            sums["tau"].append(tau)
        first, *rest = sorted(dense, key=lambda c: -dense[c])
        picked = max(method, key=lambda c: method[c])
        sums["rank"].append(1 + sum(v > method[first] for v in method.values()))
        sums["regret"].append((dense[first] - dense[picked]) / (max(d) - min(d)))
        flip = picked != first
        sums["flips"].append(flip)
        tied = len(d) - 1 in (np.argmax(d), np.argmax(m))  # a tie's place is the last
        sums["flips_tie"].append(flip and tied)
        sums["flips_side"].append(flip and not tied)
        sums["points"].append(float(np.mean([abs(a - b) for a, b in zip(d, m, strict=True)])))
        if rest:
            margins.append(dense[first] - dense[rest[0]])
            moves.append(edit[first] - edit[rest[0]] - margins[-1])
            flipped.append(flip)
        before, now = right[np.argmax(d)], right[np.argmax(m)]
        sums["net_harm"].append(before - now)
        if flip:
            sums["benign"].append(before and now)
        if right.any():
            sums["regret_oracle"].append(1 - now)
    out = {name: float(np.mean(values)) for name, values in sums.items() if values}
    sigma = float(np.sqrt(np.mean(np.square(moves))))
    rows = len(pairs.dense)
    out["sigma0"] = sigma
    out["flips_margin"] = float(sum(m for m, f in zip(margins, flipped, strict=True) if f) / sum(margins))
    out["flips_tied"] = sum(f and m < 1.64 * sigma for m, f in zip(margins, flipped, strict=True)) / rows
    out["flips_excess"] = float((sum(flipped) - norm.cdf(-np.array(margins) / sigma).sum()) / rows)
    return out


@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [0, 0, 2, 3], [0, 0, 2, 2], [0, 0, 0, 0]])
def test_graded_measures_are_what_slow_loops_say(classes):
    pairs = with_classes(judged(np.random.default_rng(1), questions=20, orders=2, edit=0.4), classes)
    if classes == [0, 0, 0, 0]:  # nothing to choose: no margin, no rank
        got = graded(pairs, how=Resampling(resamples=20))
        assert [got[k].value for k in ("tv", "jsd", "flips", "regret", "rank")] == pytest.approx([0, 0, 0, 0, 1])
        assert np.isnan(got["tau"].value)
        return
    got, want = graded(pairs, how=Resampling(resamples=20)), slow(pairs)
    assert set(want) == set(NAMES) - {"tau_c"}
    assert {k: got[k].value for k in want} == pytest.approx(want)
    assert pairs.floor is not None
    of_floor = slow(replace(pairs, method=pairs.floor))
    assert {k: got[k].floor for k in want} == pytest.approx(of_floor)


def test_tau_less_own_offsets_is_that_of_the_scores_without_the_other_questions_means():
    pairs = judged(np.random.default_rng(7), questions=10, orders=3)
    taus = []
    for i in range(len(pairs.dense)):
        others = pairs.questions != pairs.questions[i]
        d, m = (x[i] - np.mean([r - r.mean() for r in x[others]], axis=0) for x in (pairs.dense, pairs.method))
        taus.append(kendalltau(d, m))
    assert graded(pairs, how=Resampling(resamples=20))["tau_c"].value == pytest.approx(np.mean(taus))


def test_a_lock_hides_rank_order_that_the_offsets_bring_back():
    pairs = judged(np.random.default_rng(8), gain=1.0, noise=0.2, shift=np.array([-20.0, 0, 10, 20]))
    got = graded(pairs, how=Resampling(resamples=200))
    assert got["tau"].high < 0.3 < 0.7 < got["tau_c"].low


def test_intervals_hold_the_truth_and_never_shrink_to_a_point():
    """Resampled means of 60 questions cover 93 %: of 40 studies fewer than 32 hold the truth once in 200 times."""
    crowd = graded(judged(np.random.default_rng(0), questions=20_000), how=Resampling(resamples=2))
    held = dict.fromkeys(NAMES, 0)
    for seed in range(40):
        got = graded(judged(np.random.default_rng(100 + seed)), how=Resampling(resamples=200))
        for n in NAMES:
            held[n] += got[n].low <= crowd[n].value <= got[n].high
    assert min(held.values()) >= 32, held
    same = judged(np.random.default_rng(0))
    got = graded(replace(same, method=same.dense), how=Resampling(resamples=200))
    for name in ("flips", "flips_margin", "flips_excess", "net_harm", "regret", "tv"):
        assert got[name].high > 0.03, name  # nothing seen on 60 questions: up to 3 in 60


def test_what_cannot_be_told_is_nan():
    pairs = judged(np.random.default_rng(0))
    got = graded(replace(pairs, floor=None, correct=np.full_like(pairs.correct, np.nan)), how=Resampling(resamples=20))
    assert {k for k, e in got.items() if np.isnan(e.value)} == {
        *("flips_tied", "flips_excess", "sigma0", "net_harm", "benign", "regret_oracle")
    }
    assert all(np.isnan(e.floor) for e in got.values())
    fixed = replace(pairs, orders=np.tile(np.arange(4), (60, 1)))
    assert np.isnan(graded(fixed, how=Resampling(resamples=20))["tau_c"].value)
    one = graded(judged(np.random.default_rng(0), questions=1, orders=4), how=Resampling(resamples=20))
    assert all(np.isnan(e.low) for e in one.values())
    with pytest.raises(KvattnError, match="no numbers"):
        replace(pairs, method=np.full_like(pairs.method, np.nan))
    with pytest.raises(KvattnError, match=r"classes has shape \(60, 3\)"):
        replace(pairs, classes=pairs.classes[:, :3])
