"""Does the attention of the deciding token tell a restored judge from a broken one?

    python -m analyses.restored RUN ... [--restored METHOD --broken METHOD]

Asks: two ways of reuse compute the same tokens, one brings dense's choices back and the other does not. Is there a
statistic of the decision row, known without dense, that tells them apart, or that tells the judgements of one method
that keep dense's pick from those that lose it? Tried: mass on candidates, entropy over slots and the largest slot's
share, as means over heads, at the best of all heads (chosen on half of the questions, told on the other) and at all
heads together (a logistic regression, likewise), and that regression fitted on dense against naive reuse. Beside them
the margin of the scores, which costs nothing. Found: docs/findings.md. Overturned by: a statistic of attention that
does better than the margin in both questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analyses import kit
from kvattn.errors import KvattnError
from kvattn.study.run_folder.schema import slot_mass_of

STATISTICS = ("mass on candidates", "entropy over slots", "largest slot")
NAIVE = "naive-linked"
LEAST = 12  # rows of either side in either half
DRAWS = 1000
APART = "restored or broken?"

Score = Callable[["Rows"], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """Judgements whose decision row is known.

    told:   question_id, method, kept (the same pick as dense), margin (of the best score over the next)
    heads:  [rows, statistics, layers * heads]
    """

    told: pd.DataFrame
    heads: np.ndarray

    @classmethod
    def of(cls, run: kit.Held) -> Rows:
        """All of a run's."""
        judged = {(r["question_id"], tuple(r["order"]), r["method"]): r for r in run.judgements.to_dict("records")}
        told, heads = [], []
        for row in run.run.mass(query=run.run.deciding).to_dict("records"):
            question, order, method = row["question_id"], tuple(row["order"]), row["method"]
            found, dense = judged[question, order, method], judged[question, order, "dense"]
            best = np.sort(found["scores"])
            kept = found["choice"] == dense["choice"]
            told.append({"question_id": question, "method": method, "kept": kept, "margin": best[-1] - best[-2]})
            heads.append(_statistics(row))
        if not heads:
            raise KvattnError(f"{run.folder} holds no decision rows; judge it with them (without --no-rows)")
        return cls(pd.DataFrame(told), np.stack(heads))

    def where(self, chosen: Any) -> Rows:
        """Those rows."""
        chosen = np.asarray(chosen)
        return Rows(self.told[chosen].reset_index(drop=True), self.heads[chosen])


def _statistics(row: dict[str, Any]) -> np.ndarray:
    """[statistics, layers * heads] of one decision row."""
    mass = slot_mass_of(row)
    slots = mass.mass[..., [i for i, name in enumerate(mass.names) if name.startswith("candidate:")]]
    slots = rearrange(slots, "layer head slot -> (layer head) slot").astype(float)
    total = slots.sum(-1)
    share = slots / np.maximum(total, 1e-12)[:, None]
    return np.stack([total, -(share * np.log(np.maximum(share, 1e-12))).sum(-1), share.max(-1)])


def scores(fit: Rows, positive: np.ndarray, reuse: Rows) -> Iterator[tuple[str, Score]]:
    """Every way to score a row, its name first. What is fitted is fitted on `fit`, where `positive` says which rows are
    the good ones, or on `reuse`, whose dense rows are."""
    yield "margin of the scores", lambda rows: rows.told["margin"].to_numpy()
    for i, name in enumerate(STATISTICS):
        yield f"{name}, mean of heads", lambda rows, i=i: rows.heads[:, i].mean(-1)
    apart = auc(fit.heads, positive) - 0.5
    which, head = np.unravel_index(np.abs(apart).argmax(), apart.shape)
    sign = np.sign(apart[which, head])
    yield "the best head's statistic", lambda rows: sign * rows.heads[:, which, head]
    yield "all heads together", _regression(fit, positive)
    yield "all heads, fitted on dense against naive", _regression(reuse, (reuse.told["method"] == "dense").to_numpy())


def _regression(fit: Rows, positive: np.ndarray) -> Score:
    flat = rearrange(fit.heads, "row statistic head -> row (statistic head)")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(flat, positive)
    return lambda rows: model.decision_function(rearrange(rows.heads, "row statistic head -> row (statistic head)"))


def contrasts(rows: Rows, restored: str, broken: str) -> Iterator[tuple[str, Rows, np.ndarray]]:
    """(name, rows, which of them are the good ones) of every question asked of the rows."""
    method, kept = rows.told["method"], rows.told["kept"]
    asked = {
        "dense or null-edit?": ("dense", "null-edit"),
        f"dense or {NAIVE}?": ("dense", NAIVE),
        APART: (restored, broken),
    }
    for name, (good, bad) in asked.items():
        part = rows.where(method.isin([good, bad]))
        yield name, part, (part.told["method"] == good).to_numpy()
    for name in dict.fromkeys(method):
        part = rows.where(method == name)
        if min(kept[method == name].sum(), (~kept[method == name]).sum()) >= 2 * LEAST:
            yield f"{name}: kept or lost?", part, part.told["kept"].to_numpy()


def numbers(run: kit.Held, restored: str, broken: str, seed: int = 0) -> pd.DataFrame:
    """One row a contrast and score: AUC on the half of the questions that nothing was fitted on, 95 % interval over its
    questions, and from how many rows of either side."""
    rows = Rows.of(run)
    questions = np.random.default_rng(seed).permutation(sorted(rows.told["question_id"].unique()))
    first = rows.told["question_id"].isin(questions[::2]).to_numpy()
    reuse = rows.where(first & rows.told["method"].isin(["dense", NAIVE]).to_numpy())
    found = []
    for name, part, positive in contrasts(rows, restored, broken):
        fit = part.told["question_id"].isin(questions[::2]).to_numpy()
        if min(np.bincount(positive[fit], minlength=2).min(), np.bincount(positive[~fit], minlength=2).min()) < LEAST:
            continue
        test, good = part.where(~fit), positive[~fit]
        for score, of in scores(part.where(fit), positive[fit], reuse):
            told = with_interval(of(test), good, test.told["question_id"], seed)
            found.append(
                {"contrast": name, "score": score, **dict(zip(("auc", "auc_low", "auc_high"), told, strict=True))}
            )
            found[-1] |= {"good": int(good.sum()), "bad": int((~good).sum())}
    return pd.DataFrame(found).assign(run=run.title)


def auc(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[...], how often a good row's value lies above a bad one's, ties halved; values: [rows, ...]."""
    pairs = good.sum() * (~good).sum()
    return (rankdata(values, axis=0)[good].sum(0) - good.sum() * (good.sum() + 1) / 2) / pairs


def with_interval(values: np.ndarray, good: np.ndarray, questions: pd.Series, seed: int) -> tuple[float, float, float]:
    """AUC and its 95 % interval: whole questions are drawn, and all pairs of theirs compared."""
    at = np.unique(questions, return_inverse=True)[1]
    belongs = np.eye(at.max() + 1)[at]  # [rows, questions]
    above = (values[good][:, None] > values[~good]) + 0.5 * (values[good][:, None] == values[~good])
    won = belongs[good].T @ above @ belongs[~good]
    of = np.outer(belongs[good].sum(0), belongs[~good].sum(0))
    size = len(won)
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), DRAWS)
    shares = np.einsum("dq,qr,dr->d", drawn, won, drawn) / np.maximum(np.einsum("dq,qr,dr->d", drawn, of, drawn), 1)
    return float(auc(values, good)), *(float(x) for x in np.quantile(shares, [0.025, 0.975]))


TABLE: dict[str, kit.Cell] = {
    "run": "run",
    "asked": "contrast",
    "told by": "score",
    "AUC": kit.ci("auc"),
    "rows, good": "good",
    "bad": "bad",
}


def drawn(frame: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows, a row a run and score: auc of the restored method against the broken one, and within_auc
    of the judgements of the method that keeps and loses most evenly, which `within` names."""
    kept = frame[frame["contrast"].str.endswith("kept or lost?")]
    even = kept.loc[kept[["good", "bad"]].min(axis=1).groupby(kept["run"]).idxmax(), ["run", "contrast"]]
    within = kept.merge(even).assign(within=lambda f: f["contrast"].str.removesuffix(": kept or lost?"))
    columns = {f"auc{end}": f"within_auc{end}" for end in ("", "_low", "_high")}
    within = within.rename(columns=columns)[["run", "score", "within", *columns.values()]]
    return frame[frame["contrast"] == APART].merge(within, how="left", on=["run", "score"]).assign(even=0.5)


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--restored", default="tail(tokens=8)", help="a method that keeps dense's choices")
    parser.add_argument("--broken", default="tail(tokens=8,sight=blind)", help="one of the same cost that loses them")
    args = kit.arguments(__doc__, given, parser)
    if not args.runs:
        parser.error("name runs with decision rows, such as those of figures/runs/tails.yaml")
    runs = kit.held(args.runs)
    frame = pd.concat([numbers(r, args.restored, args.broken) for r in runs], ignore_index=True)
    if frame.empty or not (frame["contrast"] == APART).any():
        parser.error(f"no run has {args.restored} and {args.broken} with {2 * LEAST} judgements each")
    shown = drawn(frame)
    within = ", ".join(f"{m} ({r})" for r, m in dict(zip(shown["run"], shown["within"], strict=True)).items())
    caption = (
        "How well a statistic of the deciding token's row tells good judgements from bad ones (AUC; 0.5: not at all), "
        "on the half of the questions that nothing was chosen or fitted on; 95 % intervals over questions. Restored: "
        f"{args.restored}; broken: {args.broken}. Kept or lost: {within}."
    )
    series = [kit.Series("auc", APART), kit.Series("within_auc", "kept or lost?", "diamond")]
    fig = kit.forest(shown, series, row="score", tick="even", tick_label="no sign")
    kit.publish("restored", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
