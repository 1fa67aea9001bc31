"""How well scores tell safe from unsafe reuse, and what a gate saves. All scores are out of fold by question, and all
intervals resample questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kvattn.errors import KvattnError
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import rate_of_sums
from kvattn.stats.resampling import CONFIDENCE, ratio, tails
from kvattn.study.gate import scorers
from kvattn.study.gate.examples import Examples, learners, read_examples
from kvattn.study.gate.features import Recipe, family_of
from kvattn.study.gate.gate import content_test, fit, judged, one_order, out_of_fold
from kvattn.study.gate.guarantee import Promise, Refused, upper_bound
from kvattn.study.run_folder import Run
from kvattn.text import plain

RESAMPLES = 1000
PROMISE = Promise()
# Kinds that name no feature, so that any can be left out.
FREE = ("logistic", "boosting", "threshold")
KINDS = ("logistic", "boosting", "threshold", "threshold:decision.margin")
COVERAGES = tuple(round(0.05 * i, 2) for i in range(1, 21))


def areas(safe: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """[AUC, AP]. AUC: area under the ROC curve, ties counting half, P(a safe one scores higher than an unsafe one); NaN
    with one class. AP: mean over safe rows of the share of safe ones among those that score as high or higher; by
    chance the share of safe rows, NaN without one.

    weights: [rows], how often each row counts
    """
    w = np.ones(len(safe)) if weights is None else weights
    _, level = np.unique(-scores, return_inverse=True)
    good, bad = np.bincount(level, w * safe), np.bincount(level, w * ~safe)
    above, total = np.cumsum(good), np.cumsum(good + bad)
    precision = above / np.where(total > 0, total, 1.0)
    with np.errstate(invalid="ignore"):
        area = (bad * (above - good / 2)).sum() / np.float64(good.sum() * bad.sum())
        return np.array([area, (good * precision).sum() / np.float64(good.sum())])


def resampled(
    statistic: Callable[[np.ndarray], np.ndarray], question: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentile interval (`kvattn.stats.resampling.tails`) of statistics of rows, resampling questions.

    statistic: maps row weights [rows] to values [k]; returns (low [k], high [k]), NaN with fewer than two questions
    """
    codes, count = clusters(question)
    rng = np.random.default_rng(seed)
    draws = [statistic(w[codes]) for w in rng.multinomial(count, np.full(count, 1 / count), size=resamples)]
    values = np.array(draws, dtype=float)
    if count < 2 or np.isnan(values).all():
        values = np.full((2, values.shape[1]), np.nan)
    low, high = np.nanquantile(values, tails(max(2, count), CONFIDENCE), axis=0)
    return low, high


def discrimination(examples: Examples, scores: np.ndarray, resamples: int = RESAMPLES) -> dict[str, Any]:
    """AUC and AP of scores with intervals, beside AP's chance (the share of safe rows)."""
    safe = examples.safe
    ends = [np.full(2, np.nan)] * 2
    if len(np.unique(safe)) == 2:
        ends = resampled(lambda w: areas(safe, scores, w), examples.question, resamples)
    values = zip(("auc", "ap"), areas(safe, scores), *ends, strict=True)
    out = {f"{n}{e}": float(v) for n, *each in values for e, v in zip(("", "_low", "_high"), each, strict=True)}
    return {**out, "ap_chance": float(safe.mean()), "rows": len(safe), "questions": examples.questions}


def risk_coverage(examples: Examples, scores: np.ndarray) -> list[dict[str, float]]:
    """What the gate would do at each share of accepted rows, the safest first.

    accepted, coverage: wanted share, and the share that ties allow
    risk, risk_low, risk_high: share of flips among the accepted; random_risk: among a random choice (all rows')
    jcr, random_jcr: same pick as dense after falling back on the rest; with a random gate at the same rate
    cost: token-layers over always-dense, the passes that are looked at included
    """
    out = []
    ranked = np.sort(scores)[::-1]
    codes, count = clusters(examples.question)
    base = float((~examples.safe).mean())
    for wanted in COVERAGES:
        threshold = ranked[max(0, round(wanted * len(ranked)) - 1)]
        taken = scores >= threshold
        flips, rows = (np.bincount(codes, v, count) for v in ((taken & ~examples.safe), taken))
        low, high = rate_of_sums(flips, rows)[1:3]
        risk, share = float(ratio(np.array([flips.sum(), rows.sum()]))), float(taken.mean())
        out.append(
            {
                "accepted": wanted,
                "coverage": share,
                "risk": risk,
                "risk_low": low,
                "risk_high": high,
                "random_risk": base,
                "jcr": 1 - share * risk,
                "random_jcr": 1 - share * base,
                "cost": float(examples.cost(taken).mean()),
            }
        )
    return out


def ablation(
    examples: Examples, scores: np.ndarray, kind: str, seed: int = 0, resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """For every family of features: AUC with it alone, AUC without it, and the change of AUC that leaving it out makes,
    with a paired interval; and what its passes cost, over dense."""
    if len(np.unique(examples.safe)) < 2:
        return []
    safe, out = examples.safe, []
    for family in dict.fromkeys(family_of(str(c)) for c in examples.x.columns):
        alone, left = (
            out_of_fold(kind, examples.columns(family, without), safe, examples.question, seed)
            for without in (False, True)
        )

        def change(w: np.ndarray | None = None, left: np.ndarray = left) -> np.ndarray:
            return areas(safe, left, w) - areas(safe, scores, w)

        low, high = resampled(change, examples.question, resamples)
        out.append(
            {
                "family": family,
                "alone": float(areas(safe, alone)[0]),
                "without": float(areas(safe, left)[0]),
                "change": float(change()[0]),
                "change_low": float(low[0]),
                "change_high": float(high[0]),
                "cost": examples.costs.get(family, 0.0),
            }
        )
    return out


def rule(examples: Examples, accepted: np.ndarray) -> dict[str, Any]:
    """What a gate that accepts these rows does, beside a random gate that accepts as many.

    risk_bound: Clopper-Pearson's one-sided 95 % bound of the risk; NaN where questions have several rows"""
    codes, count = clusters(examples.question)
    flip = ~examples.safe
    kept, rows = (np.bincount(codes, v.astype(float), count) for v in (~(accepted & flip), np.ones(len(flip))))
    low, high = rate_of_sums(kept, rows)[1:3]
    n, k = int(accepted.sum()), int((accepted & flip).sum())
    right = np.where(accepted, examples.right, examples.dense_right)
    known = ~np.isnan(right) & ~np.isnan(examples.dense_right)
    return {
        "rows": len(flip),
        "questions": count,
        "accepted": n,
        "coverage": n / len(flip),
        "flips": k,
        "risk": k / n if n else np.nan,
        "risk_bound": upper_bound(k, n, CONFIDENCE) if count == len(flip) else np.nan,
        "jcr": 1 - k / len(flip),
        "jcr_low": low,
        "jcr_high": high,
        "random_jcr": 1 - n / len(flip) * float(flip.mean()),
        "always_reuse_jcr": 1 - float(flip.mean()),
        "cost": float(examples.cost(accepted).mean()),
        "reuse_cost": float((examples.reuse / examples.dense).mean()),
        "accuracy": float(right[known].mean()) if known.any() else np.nan,
        "dense_accuracy": float(examples.dense_right[known].mean()) if known.any() else np.nan,
        "reuse_accuracy": float(examples.right[known].mean()) if known.any() else np.nan,
    }


def trial(examples: Examples, promise: Promise, kind: str, seed: int = 0) -> dict[str, Any]:
    """The guarantee on these examples: the certificate, or why it is refused."""
    try:
        _, certificate = fit(examples, promise, kind, seed)
    except Refused as refusal:
        return {"certificate": None, "refused": str(refusal)}
    return {"certificate": asdict(certificate), "refused": None}


def transfer(
    source: Examples, target: Examples, kind: str, promise: Promise, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """A score fitted on all of `source`, and a gate granted on it, on the questions of `target`, one order each.

    Raises KvattnError where the target lacks a feature."""
    one = one_order(target, seed)
    out = discrimination(target, scorers.fit(kind, source.x, source.safe, seed).score(target.x), resamples)
    try:
        scorer, certificate = fit(source, promise, kind, seed)
    except Refused:
        return {**out, "gate": None}
    return {**out, "gate": rule(one, scorer.score(one.x) >= certificate.threshold)}


def evaluate(
    run: Run,
    recipe: Recipe,
    kinds: Sequence[str] = KINDS,
    promise: Promise = PROMISE,
    others: Sequence[Run] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything a gate's report shows, as plain values.

    The promise is kept for all scores together, so that the best may be taken: each of k is tested with a k-th of the
    probability of breaking it (Bonferroni).

    kinds:  scores to compare; the first is the one that transfer and, where it names no feature, ablation look at
    others: runs that the gate is carried over to; their methods must be the recipe's
    """
    examples = read_examples(run, recipe)
    kinds = [*kinds, *(["dg-jkr"] if recipe.probes and "dg-jkr" not in kinds else [])]
    online = learners(run, (recipe.reuse, *recipe.probes))
    each = replace(promise, confidence=1 - promise.delta / len(kinds))
    gates: dict[str, Any] = {}
    for kind in kinds:
        scores = out_of_fold(kind, examples.x, examples.safe, examples.question, seed)
        gates[kind] = {
            "discrimination": discrimination(examples, scores, resamples),
            "curve": risk_coverage(examples, scores),
            "certificate": None,
            "refused": f"{online[0]} learns from question to question" if online else None,
        }
        if not online:
            gates[kind] |= trial(examples, each, kind, seed)
        if kind == "dg-jkr":
            gates[kind]["rule"] = rule(examples, scores >= 1)
        if kind == kinds[0] and kind in FREE:
            gates[kind]["ablation"] = ablation(examples, scores, kind, seed, resamples)
    carried = []
    for other in others:
        try:
            target = read_examples(other, recipe)
            carried.append({"run": other.folder.name, **transfer(examples, target, kinds[0], promise, seed, resamples)})
        except KvattnError as error:
            raise KvattnError(f"transfer to {other.folder}: {error}") from None
    return plain(
        {
            "format": "kvattn-gate-report-1",
            "run": run.folder.name,
            "judged": judged(run.manifest),
            "does_not_read": content_test(run) == "does not read",
            "recipe": asdict(recipe),
            "promise": {**asdict(promise), "least": each.least},
            "rows": len(examples),
            "questions": examples.questions,
            "safe": float(examples.safe.mean()),
            "always_reuse": rule(examples, np.ones(len(examples), dtype=bool)),
            "costs": dict(examples.costs),
            "features": [str(c) for c in examples.x.columns],
            "gates": gates,
            "transfer": carried,
        }
    )
