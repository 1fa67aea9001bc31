"""Echo: what a candidate's score gains where others state the same final answer, from runs as they are.

An association within a run: answers that are shared are also oftener right, and longer or shorter. Correctness, length
and slot are held fixed, other merits are not; edits of one answer tell the effect itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column
from kvattn.stats.intervals import resampled
from kvattn.stats.pairs import Pairs, read_pairs, together
from kvattn.stats.resampling import USUAL, Resampling, permutation_p, tails
from kvattn.stats.split import unfit

TERMS = ("correct", "earlier", "later", "length")
"""What a score is regressed on: 1 for a right candidate; how many candidates in earlier slots, and in later ones, state
the same final answer; and the natural logarithm of its length. In nats a step."""

DRAWS = 499


def echo(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    how: Resampling = USUAL,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Least squares of scores on `TERMS`, with an intercept for every judgement and one for every slot.

    One row a method (the reference too), number of candidates, and term:

    method, n, term, pairs, questions
    effect, low, high              nats; the interval resamples questions
    lost, lost_low, lost_high      the reference's effect less the method's, on the same pairs
    placebo, p                     of "earlier" and "later": mean effect when both are taken from another question, and
                                   how often that is as far from 0 as the effect, two-sided
    note                           why there are no numbers, else ""

    A term that is the same everywhere, or of which nothing is known, is left out and NaN. Raises KvattnError for
    written verdicts, which have no scores, and for methods of which the reference lacks a pair.
    """
    sizes = np.array([len(order) for order in judgements["order"]])
    rows: list[dict[str, Any]] = []
    for n in sorted(set(sizes.tolist())):
        same: Any = judgements[sizes == n]
        for method in dict.fromkeys([reference, *same["method"]]):
            both = same[same["method"].isin([method, reference])]
            pairs = read_pairs(both, questions, str(method), reference, None, column)
            if not isinstance(pairs, Pairs):
                raise KvattnError("written verdicts have no scores that an echo could raise; use label or yesno")
            rows += [{"method": method, "n": n, **row} for row in _effects(pairs, how, draws)]
    columns = ["method", "n", "term", "effect", "low", "high", "lost", "lost_low", "lost_high", "placebo", "p"]
    return pd.DataFrame(rows, columns=[*columns, "pairs", "questions", "note"])


def _effects(pairs: Pairs, how: Resampling, draws: int) -> list[dict[str, Any]]:
    """A row a term of one method beside the reference."""
    counts = {"pairs": len(pairs.codes), "questions": pairs.count, "note": unfit(pairs)}
    if counts["note"]:
        return [{"term": t, **counts} for t in TERMS]
    known = ~np.isnan(pairs.correct).any(1)
    known |= not known.any()  # where nothing is known the term is left out
    codes = np.unique(pairs.codes[known], return_inverse=True)[1]
    terms = _terms(pairs)[known]
    y = np.stack([pairs.method[known], pairs.dense[known] - pairs.method[known]], -1)
    there = np.array([bool(np.ptp(t) > 1e-9) for t in np.moveaxis(_within(terms), -1, 0)])
    count = int(codes.max()) + 1
    fit = _Sums(terms[..., there], y, codes)
    value = fit.solved(np.ones((1, count)))[0]
    drawn = resampled(fit.solved, count, fit.size, how)
    low, high = np.quantile(drawn, tails(count, how.confidence), axis=0)
    null = _placebo(terms, y[..., :1], codes, there, draws, how.seed)
    counts |= {"pairs": len(codes), "questions": count}
    out: list[dict[str, Any]] = []
    for i, term in enumerate(TERMS):
        row: dict[str, Any] = {"term": term, **counts}
        if there[i]:
            at = int(there[:i].sum())
            for name, j in (("effect", 0), ("lost", 1)):
                ends = ("low", "high") if name == "effect" else ("lost_low", "lost_high")
                row |= dict(zip((name, *ends), (float(x[at, j]) for x in (value, low, high)), strict=True))
            if term in ("earlier", "later"):
                row |= {"placebo": float(null[:, at].mean())}
                row["p"] = float(permutation_p(np.abs(null[:, at]), abs(row["effect"])))
        out.append(row)
    return out


def _terms(pairs: Pairs) -> np.ndarray:
    """[pairs, slots, terms]; a correctness of which nothing is known is 0."""
    if pairs.lengths is None:
        raise KvattnError("an echo is told beside the lengths of the texts: read the pairs from a run")
    same = together(pairs.answers).astype(float)
    earlier, later = np.tril(same, -1).sum(-1), np.triu(same, 1).sum(-1)
    return np.stack([np.nan_to_num(pairs.correct), earlier, later, np.log(pairs.lengths)], -1)


def _within(values: np.ndarray) -> np.ndarray:
    """Values [pairs, slots, ...] less each pair's mean."""
    return values - values.mean(1, keepdims=True)


def _placebo(
    terms: np.ndarray, y: np.ndarray, codes: np.ndarray, there: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """[draws, terms that are there], effects when "earlier" and "later" come from another question with as many
    orders."""
    rng, sizes = np.random.default_rng(seed), np.bincount(codes)
    rows, ones = np.argsort(codes, kind="stable"), np.ones((1, len(sizes)))
    starts, out = np.concatenate([[0], sizes.cumsum()[:-1]]), []
    for _ in range(draws):
        taken = np.empty(len(sizes), dtype=int)
        for size in np.unique(sizes):
            at = np.flatnonzero(sizes == size)
            taken[at] = rng.permutation(at)
        source = np.empty(len(codes), dtype=int)
        source[rows] = rows[np.concatenate([starts[q] + np.arange(k) for q, k in zip(taken, sizes, strict=True)])]
        moved = terms.copy()
        moved[..., 1:3] = terms[source][..., 1:3]
        out.append(_Sums(moved[..., there], y, codes).solved(ones)[0, :, 0])
    return np.array(out)


class _Sums:
    """Sums of products over each question's pairs, of terms [pairs, slots, k] and dummies of slots on scores [pairs,
    slots, outcomes]; both less each pair's mean."""

    def __init__(self, terms: np.ndarray, y: np.ndarray, codes: np.ndarray) -> None:
        slots = np.broadcast_to(np.eye(terms.shape[1])[:, 1:], (*terms.shape[:2], terms.shape[1] - 1))
        x, y, self.kept = _within(np.concatenate([terms, slots], -1)), _within(y), terms.shape[-1]
        count = int(codes.max()) + 1
        self.grams, self.moments = (np.zeros((count, x.shape[-1], z.shape[-1])) for z in (x, y))
        np.add.at(self.grams, codes, np.einsum("psk,psl->pkl", x, x))
        np.add.at(self.moments, codes, np.einsum("psk,pso->pko", x, y))
        self.size = self.grams[0].size

    def solved(self, weights: np.ndarray) -> np.ndarray:
        """[draws, terms, outcomes], effects with weights [draws, questions]."""
        grams, moments = (np.einsum("dq,qkl->dkl", weights, z) for z in (self.grams, self.moments))
        return (np.linalg.pinv(grams, hermitian=True) @ moments)[:, : self.kept]
