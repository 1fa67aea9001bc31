"""Scores of safety: one number a judgement, the higher the safer. Fitted with scikit-learn, stored as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

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
        values = np.where(np.isfinite(values), values, np.asarray(self.fill, dtype=float)[None, :])
        return _SCORE[self.form](values, self.numbers)

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
    names = tuple(str(c) for c in x.columns)
    columns = x.to_numpy(dtype=float)
    columns = np.where(np.isfinite(columns), columns, np.nan)
    fill = np.array([np.nanmedian(c) if np.isfinite(c).any() else 0.0 for c in columns.T])
    values = np.where(np.isnan(columns), fill[None, :], columns)
    safe = np.asarray(safe, dtype=bool)
    chosen = list(range(len(names)))
    if kind == "dg-jkr":
        chosen = [i for i, n in enumerate(names) if n.startswith("probe[") and n.endswith(".agrees")][:1]
        if not chosen:
            raise KvattnError("the dg-jkr gate compares two reuse methods; name the second one (--probes)")
        form, numbers = "single", {"sign": 1.0}
    elif kind.partition(":")[0] not in KINDS:
        raise KvattnError(f"no gate of kind {kind!r}; use {', '.join(KINDS)}, or threshold:FEATURE")
    elif len(np.unique(safe)) < 2 or not names:
        form, numbers, chosen = "constant", {"value": float(safe.mean()) if len(safe) else 0.0}, []
    elif kind == "logistic":
        form, numbers = "linear", _logistic(values, safe)
    elif kind.startswith("threshold"):
        chosen = [_best(kind.partition(":")[2], names, values, safe)]
        form, numbers = "linear", _logistic(values[:, chosen], safe)
    else:
        form, numbers = "trees", _boosting(values, safe, seed)
    kept = tuple(names[i] for i in chosen)
    return Scorer(kind, form, kept, tuple(float(fill[i]) for i in chosen), numbers)


def _best(name: str, names: Sequence[str], values: np.ndarray, safe: np.ndarray) -> int:
    """The named feature, or the one with the AUC farthest from a half."""
    from sklearn.metrics import roc_auc_score

    if name:
        if name not in names:
            raise KvattnError(f"there is no feature {name!r}; there are {', '.join(names)}")
        return names.index(name)
    return int(np.argmax([abs(roc_auc_score(safe, column) - 0.5) for column in values.T]))


def _logistic(values: np.ndarray, safe: np.ndarray) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    mean, scale = values.mean(0), values.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    model = LogisticRegression(C=0.1, max_iter=2000).fit((values - mean) / scale, safe)
    weights, intercept = model.coef_[0].tolist(), float(model.intercept_[0])
    return {"mean": mean.tolist(), "scale": scale.tolist(), "weights": weights, "intercept": intercept}


def _boosting(values: np.ndarray, safe: np.ndarray, seed: int) -> dict[str, Any]:
    from sklearn.ensemble import GradientBoostingClassifier

    rate = 0.1
    model = GradientBoostingClassifier(
        n_estimators=80, learning_rate=rate, max_depth=2, subsample=0.8, min_samples_leaf=5, random_state=seed
    ).fit(values, safe)
    trees = [
        {
            "left": t.children_left.tolist(),
            "right": t.children_right.tolist(),
            "feature": t.feature.tolist(),
            "threshold": t.threshold.tolist(),
            "value": t.value[:, 0, 0].tolist(),
        }
        for t in (e.tree_ for e in model.estimators_[:, 0])
    ]
    made: dict[str, Any] = {"rate": rate, "start": 0.0, "trees": trees}
    made["start"] = float(model.decision_function(values[:1])[0] - _trees(values[:1], made, raw=True)[0])
    return made


def _linear(values: np.ndarray, n: dict[str, Any]) -> np.ndarray:
    standard = (values - np.asarray(n["mean"])) / np.asarray(n["scale"])
    return _sigmoid(standard @ np.asarray(n["weights"]) + float(n["intercept"]))


def _trees(values: np.ndarray, n: dict[str, Any], raw: bool = False) -> np.ndarray:
    # scikit-learn's trees compare features in single precision.
    x = values.astype(np.float32).astype(float)
    total = np.full(len(x), float(n["start"]))
    for tree in n["trees"]:
        left, right, feature = (np.asarray(tree[k], dtype=int) for k in ("left", "right", "feature"))
        threshold, value = np.asarray(tree["threshold"]), np.asarray(tree["value"])
        node = np.zeros(len(x), dtype=int)
        # As deep as a tree can be; a damaged file must not loop for ever.
        for _ in range(len(left)):
            inner = left[node] >= 0
            if not inner.any():
                break
            low = x[np.arange(len(x)), np.maximum(feature[node], 0)] <= threshold[node]
            node = np.where(inner, np.where(low, left[node], right[node]), node)
        total += float(n["rate"]) * value[node]
    return total if raw else _sigmoid(total)


def _sigmoid(raw: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(raw, -500, 500)))


_SCORE = {
    "linear": _linear,
    "trees": _trees,
    "single": lambda values, n: float(n["sign"]) * values[:, 0],
    "constant": lambda values, n: np.full(len(values), float(n["value"])),
}
