"""Scores of safety: one number a judgement, the higher the safer. Fitted with scikit-learn, stored as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from kvattn.errors import KvattnError

KINDS = ("logistic", "boosting", "threshold", "dg-jkr")


@dataclass(frozen=True)
class Scorer:
    """A fitted score.

    kind:    what was asked for: "logistic", "boosting", "threshold" or "threshold:FEATURE", "dg-jkr"
    names:   the features it reads, in order
    fill:    [features], what stands for a missing one (the median of the fitting rows)
    numbers: what `_SCORE[form]` needs, JSON-able
    """

    kind: str
    form: str
    names: tuple[str, ...]
    fill: tuple[float, ...]
    numbers: dict[str, Any] = field(default_factory=dict)

    def score(self, x: pd.DataFrame) -> np.ndarray:
        """[rows], the scores. Raises KvattnError where a feature is missing from the table."""
        missing = [n for n in self.names if n not in x.columns]
        if missing:
            raise KvattnError(f"this gate reads {missing[0]!r}, which these judgements do not have")
        values = x[list(self.names)].to_numpy(dtype=float)
        return _SCORE[self.form](np.where(np.isfinite(values), values, self.fill), self.numbers)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "names": list(self.names), "fill": list(self.fill)}

    def check(self) -> None:
        """Raises KvattnError where the numbers are none that give a score."""
        try:
            if self.form not in _SCORE or len(self.fill) != len(self.names):
                raise ValueError(self.form)
            self.score(pd.DataFrame(np.zeros((1, len(self.names))), columns=list(self.names)))
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise KvattnError(f"the gate's score is damaged ({error!r})") from None


def fit(kind: str, x: pd.DataFrame, safe: np.ndarray, seed: int = 0) -> Scorer:
    """A score fitted on rows x [rows, features] whose reuse was `safe` [rows] or not.

    "logistic":          logistic regression on standardised features, L2
    "boosting":          gradient-boosted trees of depth 2
    "threshold":         the one feature that tells safe from unsafe best (AUC), either way round, as a probability by
                         logistic regression, so that folds which choose different features compare
    "threshold:FEATURE": the same with that feature
    "dg-jkr":            whether the first probe picks the same candidate (disagreement of two reuse methods)

    Where all fitting rows are safe, or none is, nothing can be learned and every judgement gets the same score.
    """
    names = [str(c) for c in x.columns]
    columns = x.to_numpy(dtype=float)
    known = np.isfinite(columns)
    fill = np.array([np.median(c[k]) if k.any() else 0.0 for c, k in zip(columns.T, known.T, strict=True)])
    values = np.where(known, columns, fill)
    safe = np.asarray(safe, dtype=bool)
    chosen = list(range(len(names)))
    base, _, named = kind.partition(":")
    if base not in KINDS:
        raise KvattnError(f"no gate of kind {kind!r}; use {', '.join(KINDS)}, or threshold:FEATURE")
    if base == "dg-jkr":
        chosen = [i for i, n in enumerate(names) if n.startswith("probe[") and n.endswith(".agrees")][:1]
        if not chosen:
            raise KvattnError("the dg-jkr gate compares two reuse methods; name the second one (--probes)")
        form, numbers = "single", {}
    elif len(np.unique(safe)) < 2 or not names:
        form, numbers, chosen = "constant", {"value": float(safe.mean()) if len(safe) else 0.0}, []
    elif base == "boosting":
        form, numbers = "trees", _boosting(values, safe, seed)
    else:
        if base == "threshold":
            chosen = [_feature(named, names, values, safe)]
        form, numbers = "linear", _logistic(values[:, chosen], safe)
    return Scorer(kind, form, tuple(names[i] for i in chosen), tuple(fill[chosen].tolist()), numbers)


def _feature(name: str, names: list[str], values: np.ndarray, safe: np.ndarray) -> int:
    """The named feature, or the one with the AUC farthest from a half."""
    from sklearn.metrics import roc_auc_score

    if name and name not in names:
        raise KvattnError(f"there is no feature {name!r}; there are {', '.join(names)}")
    return names.index(name) if name else int(np.argmax([abs(roc_auc_score(safe, c) - 0.5) for c in values.T]))


def _logistic(values: np.ndarray, safe: np.ndarray) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    mean, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    model = LogisticRegression(C=0.1, max_iter=2000).fit((values - mean) / scale, safe)
    weights, intercept = model.coef_[0].tolist(), float(model.intercept_[0])
    return {"mean": mean.tolist(), "scale": scale.tolist(), "weights": weights, "intercept": intercept}


def _linear(values: np.ndarray, n: dict[str, Any]) -> np.ndarray:
    standard = (values - np.asarray(n["mean"])) / np.asarray(n["scale"])
    return expit(standard @ np.asarray(n["weights"]) + float(n["intercept"]))


def _boosting(values: np.ndarray, safe: np.ndarray, seed: int) -> dict[str, Any]:
    """Trees of depth 2 as arrays: `feature` and `threshold` [trees, 3] of the root and its children, the `value` that
    each of the four leaves adds [trees, 4], and where the sum `start`s."""
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(
        n_estimators=80, learning_rate=0.1, max_depth=2, subsample=0.8, min_samples_leaf=5, random_state=seed
    ).fit(values, safe)
    rows: dict[str, Any] = {"feature": [], "threshold": [], "value": []}
    for tree in (e.tree_ for e in model.estimators_[:, 0]):
        place = [0]
        for node in range(3):  # a leaf above the last level stands for both of its children
            at = place[node]
            leaf = tree.children_left[at] < 0
            place += [at, at] if leaf else [tree.children_left[at], tree.children_right[at]]
        rows["feature"].append(tree.feature[place[:3]].clip(0).tolist())
        rows["threshold"].append(tree.threshold[place[:3]].tolist())
        rows["value"].append((0.1 * tree.value[place[3:], 0, 0]).tolist())
    return {**rows, "start": float(model.decision_function(values[:1])[0] - _sum(values[:1], rows)[0])}


def _sum(values: np.ndarray, n: dict[str, Any]) -> np.ndarray:
    """[rows], what the trees add up to. scikit-learn's compare features in single precision."""
    feature, threshold, value = (np.asarray(n[k]) for k in ("feature", "threshold", "value"))
    right = values.astype(np.float32)[:, feature] > threshold  # [rows, trees, 3]
    leaf = 2 * right[..., 0] + np.where(right[..., 0], right[..., 2], right[..., 1])
    return value[np.arange(len(value)), leaf].sum(1)


_SCORE = {
    "linear": _linear,
    "trees": lambda values, n: expit(_sum(values, n) + float(n["start"])),
    "single": lambda values, n: values[:, 0],
    "constant": lambda values, n: np.full(len(values), float(n["value"])),
}
