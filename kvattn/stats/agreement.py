"""Judge consistency rate: how often a method picks the candidate that dense prefill picks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.chance import LEAST_KAPPA, LEAST_QUESTIONS, LOCKED, NO_FLOOR, Agreement
from kvattn.stats.frames import Column
from kvattn.stats.intervals import UNKNOWN, Estimate, rate_of_sums
from kvattn.stats.picks import RAW, Scope, Source, once, source_of
from kvattn.stats.resampling import USUAL, Resampling

FLOORS = ("null-edit",)


@once
def jcr(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    floors: Sequence[str] = FLOORS,
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """Judge consistency rate of every method (arXiv 2601.08343), with what it has to be read against.

    One row a method, the reference left out; intervals resample questions (`kvattn.stats.chance.Against`):

    jcr, low, high               share of (question, order) pairs in which method and reference choose the same
                                 candidate; equal texts are the same candidate
    pairs, questions             counts
    answer_agreement             share of pairs whose chosen texts state the same final answer
    chance                       what two judges agree on who pick slots in these proportions and read nothing
    kappa, kappa_low, kappa_high (jcr - chance) / (1 - chance)
    floor, floor_method          the lowest JCR among the methods named by `floors` ("null-edit" means all its
                                 variants), and whose it is: how well dense agrees with itself under a change that
                                 should not matter
    score, score_low, score_high kappa over the floor's own: 0 at chance, 1 at the floor
    lock, kappa_max, locked      the largest share of picks in one slot, the largest kappa that slots allow, and whether
                                 that is under 0.2, on eight questions or more: then JCR, kappa and score are
                                 arithmetic of slots
    parsed, jcr_parsed           share of pairs in which both made a choice (written verdicts may name no candidate, or
                                 several), and the JCR over those alone; a pair with such a verdict is none that agrees
    note                         why `score` is NaN, or that the method is locked, else ""

    With different numbers of candidates in one table chance and kappa are pooled over them; choose the rows of one
    number where that matters.
    """
    source = source_of(judgements, questions, reference, column)
    slots = int(source.sql("SELECT coalesce(max(n), 0) AS n FROM picks").iloc[0, 0])
    places = "".join(f"count(*) FILTER ({c} = {s}), " for c in ("slot_ref", "slot") for s in range(slots))
    table: Any = source.sql(
        f"SELECT method, question_id, sum(agree::INT), count(*), {places} sum(agree_answer::INT) AS answers, "
        f"count(*) FILTER ({_READ}) AS parsed, count(*) FILTER ({_READ} AND agree) AS parsed_same FROM picks "
        f"WHERE {scope.pairs} GROUP BY ALL ORDER BY method, question_id"
    )
    table = table.set_index(["method", "question_id"])
    counts = table.iloc[:, : 2 + 2 * slots].astype(float)
    sums = pd.DataFrame(np.hstack([counts, _same_choice(source, counts, slots, scope)]), index=table.index)
    totals: Any = sums.groupby(level="method", sort=True).sum()
    rates = totals[0] / totals[1]
    named = [m for m in rates.index if is_named(str(m), floors)]
    floor = str(rates[named].idxmin()) if named else None
    rows = []
    for method in rates.index:
        part = sums.loc[method]
        beside = None if floor is None else sums.loc[floor].reindex(part.index, fill_value=0.0).to_numpy()
        rest, pairs = table.loc[method, ["answers", "parsed", "parsed_same"]].sum(), totals.loc[method, 1]
        rows.append(
            {
                "method": method,
                **_against(Agreement(part.to_numpy(), beside, how), method == floor),
                "answer_agreement": rest["answers"] / pairs,
                "floor_method": floor,
                "parsed": rest["parsed"] / pairs,
                "jcr_parsed": rest["parsed_same"] / rest["parsed"] if rest["parsed"] else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _same_choice(source: Source, counts: pd.DataFrame, slots: int, scope: Scope) -> np.ndarray:
    """[methods and questions, slots^2], in how many pairs slots s and t show the same text. Questions whose texts all
    differ need no look at their orders."""
    asked, keys = source.asked, list(counts.index)
    there = np.arange(slots) < np.array([asked[q].n for _, q in keys], dtype=int)[:, None]
    out = np.eye(slots) * there[:, None, :] * counts.iloc[:, 1].to_numpy()[:, None, None]
    twins = [q for q, found in asked.items() if len(set(found.content.tolist())) < found.n]
    if twins:
        out[[q in set(twins) for _, q in keys]] = 0
        rows = source.sql(
            f'SELECT method, question_id, "order", count(*) AS pairs FROM picks WHERE {scope.pairs} '
            "AND list_contains($twins, question_id) GROUP BY ALL",
            {"twins": twins},
        )
        at = {key: i for i, key in enumerate(keys)}
        for method, key, order, pairs in rows.itertuples(index=False):
            shown, n = asked[key].content[list(order)], len(order)
            out[at[method, key], :n, :n] += pairs * (shown[:, None] == shown)
    return out.reshape(len(keys), slots * slots)


def _against(found: Agreement, is_floor: bool) -> dict[str, Any]:
    """The columns of `jcr` that one method's sums give."""
    rate, total = found.rate(), found.sums.sum(0)
    most = float(found.kappa_max_of(total))
    locked = len(found.sums) >= LEAST_QUESTIONS and not most >= LEAST_KAPPA
    score = UNKNOWN if is_floor else found.score()
    note = "is the noise floor itself" if is_floor else NO_FLOOR if found.beside is None else ""
    if not note and np.isnan(score.value):
        note = "the null edit itself agrees no more than by chance: no score"
    return {
        **dict(zip(("jcr", "low", "high", "floor"), rate, strict=True)),
        **_columns("kappa", found.kappa()),
        **_columns("score", score),
        "pairs": int(found.sums[:, 1].sum()),
        "questions": len(found.sums),
        "chance": float(found.chance_of(total)),
        "lock": found.lock().value,
        "kappa_max": most,
        "locked": locked,
        "note": LOCKED if locked else note,
    }


def _columns(name: str, x: Estimate) -> dict[str, float]:
    return {name: x.value, f"{name}_low": x.low, f"{name}_high": x.high}


_COLUMNS = [
    *("method", "jcr", "low", "high", "pairs", "questions", "answer_agreement", "chance"),
    *("kappa", "kappa_low", "kappa_high", "floor", "floor_method", "score", "score_low", "score_high"),
    *("lock", "kappa_max", "locked", "parsed", "jcr_parsed", "note"),
]
_READ = "slot IS NOT NULL AND slot_ref IS NOT NULL"


def by_permutation_distance(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """JCR by how far the order is from the file's order, in Kendall's tau distance.

    One row per (method, n, distance): distance is the number of pairs of candidates that stand the other way round, 0
    to n(n-1)/2; tau is Kendall's coefficient, 1 - 4 distance / (n(n-1)), 1 to -1; then jcr, low, high, pairs,
    questions as in `jcr`.
    """
    source = source_of(judgements, questions, reference, column)
    out = rates(source, ("method", "n", "distance"), "agree", scope.pairs, "jcr", how)
    n = out["n"].astype(float)
    out.insert(3, "tau", 1 - 4 * out["distance"] / (n * (n - 1)))
    return out


def by_margin(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    bins: int = 4,
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """JCR by the reference's margin, its best score less its second best: are flips where dense was undecided?

    Bins hold equal shares of the pairs of all methods. One row per (method, bin): margin_low, margin_high (the smallest
    and the largest margin in the bin), then jcr, low, high, pairs, questions as in `jcr`.
    """
    source = source_of(judgements, questions, reference, column)
    if bins < 1:
        raise KvattnError(f"{bins} bins asked for; give at least one")
    rows = f"{scope.pairs} AND isfinite(margin_ref)"
    shares = [i / bins for i in range(1, bins)]
    cut = f"quantile_cont(margin_ref, {shares})" if shares else "[]::DOUBLE[]"
    edges: Any = source.sql(
        "SELECT unnest(cuts) AS cut, least "
        f"FROM (SELECT {cut} AS cuts, min(margin_ref) AS least FROM picks WHERE {rows})"
    )
    # Equal edges make one bin, and so does the least margin: a bin holds its upper edge.
    inner = sorted(set(edges["cut"][edges["cut"] > edges["least"]].astype(float)))
    number = f"list_sum(list_transform({inner}::DOUBLE[], lambda e: (margin_ref > e)::INT))"
    table = f"SELECT *, coalesce({number}, 0)::INT AS bin FROM picks WHERE {rows}"
    ends = source.sql(
        f"SELECT bin, min(margin_ref) AS margin_low, max(margin_ref) AS margin_high FROM ({table}) GROUP BY bin"
    )
    out: Any = rates(source, ("method", "bin"), "agree", "true", "jcr", how, f"({table})").merge(
        ends, on="bin", how="left"
    )
    return out[["method", "bin", "margin_low", "margin_high", *out.columns[2:-2]]]


def by_candidate_agreement(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """JCR by how far a question's candidates agree among themselves: do methods flip where there is more to choose?

    One row per (method, n, agreeing): agreeing is the number of candidates that state the commonest final answer
    (`final_answer`; a text without one agrees with itself alone), 1 to n; then jcr, low, high,
    pairs, questions as in `jcr`, and answer_agreement, the share of pairs whose chosen texts state the same answer.
    """
    source = source_of(judgements, questions, reference, column)
    keys = ("method", "n", "agreeing")
    answers = source.sql(
        f"SELECT {', '.join(keys)}, avg(agree_answer::INT) AS answer_agreement FROM picks WHERE {scope.pairs} "
        "GROUP BY ALL"
    )
    return rates(source, keys, "agree", scope.pairs, "jcr", how).merge(answers, on=list(keys), how="left")


def inversions(order: Sequence[int]) -> int:
    """Kendall's tau distance of an order from 0, 1, 2, ...: the number of pairs that stand the other way round."""
    a = np.asarray(order)
    return int(np.triu(a[:, None] > a[None, :], 1).sum())


def rates(
    source: Source,
    keys: Sequence[str],
    hit: str,
    where: str,
    name: str,
    how: Resampling = USUAL,
    table: str = "picks",
) -> pd.DataFrame:
    """How often `hit` (an SQL condition over `picks`) is true, by `keys`: keys, then as `rate`."""
    listed = ", ".join(keys)
    sums: Any = source.sql(
        f"SELECT {listed}, question_id, sum(({hit})::INT)::DOUBLE AS hits, count(*)::DOUBLE AS rows FROM {table} "
        f"WHERE {where} GROUP BY ALL ORDER BY ALL"
    )
    rows = [
        (*values, *rate(part["hits"].to_numpy(), part["rows"].to_numpy(), name, how).values())
        for values, part in sums.groupby(list(keys), sort=True)
    ]
    return pd.DataFrame(rows, columns=[*keys, name, *_ENDS])


_ENDS = ("low", "high", "pairs", "questions")


def rate(hits: np.ndarray, rows: np.ndarray, name: str = "rate", how: Resampling = USUAL) -> dict[str, float]:
    """`name`, low, high, pairs, questions of sum(hits) / sum(rows), both [questions]."""
    x = rate_of_sums(hits, rows, how=how)
    return dict(zip((name, *_ENDS), (*x[:3], int(np.sum(rows)), int((np.asarray(rows) > 0).sum())), strict=True))


def is_named(method: str, names: Sequence[str]) -> bool:
    """Whether a method's label, "name" or "name(parameter=value,...)", is one of the names or has one for its name."""
    return method in names or method.partition("(")[0] in names
