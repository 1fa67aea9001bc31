"""Judge consistency rate: how often a method picks the candidate that dense prefill picks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column
from kvattn.stats.picks import RAW, Scope, Source, source_of
from kvattn.stats.resampling import USUAL, Resampling, cluster_interval, rate_interval, ratio, wilson

# Under this distance between floor and chance a chance-corrected score is noise over noise.
_LEAST_ROOM = 0.05

FLOORS = ("null-edit",)


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

    One row a method, the reference left out:

    jcr                          share of (question, order) pairs in which method and reference choose the same
                                 candidate; equal texts are the same candidate
    low, high                    bootstrap interval that resamples questions (`rate_interval`)
    wilson_low, wilson_high      Wilson's interval, which takes pairs for independent: too narrow with several orders
    pairs, questions             counts
    answer_agreement             share of pairs whose chosen texts state the same final answer
    chance                       marginal chance: sum over slots of the reference's and the method's share of picks of
                                 that slot. What two judges agree on who pick slots in that proportion and read nothing
    chance_soft                  distribution chance: sum over slots of softmax(scores of the reference) times
                                 softmax(scores of the method), mean over pairs. What the two would agree on if each
                                 drew its slot from its own distribution for that very pair
    kappa, kappa_low, kappa_high Cohen's (1960) kappa on slots, (jcr - chance) / (1 - chance); a tie counts as the
                                 reference's slot
    floor                        noise floor: JCR of the methods named by `floors` ("null-edit" means all its variants),
                                 pooled: how well dense agrees with itself under a change that should not matter
    corrected, corrected_low, corrected_high
                                 (jcr - chance) / (floor - chance): 0 at chance, 1 at the floor; interval by resampling
                                 questions, floor and chance included
    parsed, jcr_parsed           share of pairs in which both made a choice (written verdicts may name no candidate, or
                                 several), and the JCR over those alone; a pair with such a verdict is none that agrees
    note                         why `corrected` is NaN, else ""

    With different numbers of candidates in one table chance and kappa are pooled over them; choose the rows of one
    number where that matters.
    """
    source = source_of(judgements, questions, reference, column)
    slots = int(source.sql("SELECT coalesce(max(n), 0) AS n FROM picks").iloc[0, 0])
    places = [f"count(*) FILTER ({c} = {s})" for c in ("slot_ref", _OWN) for s in range(slots)]
    sums: Any = source.sql(
        "SELECT method, question_id, sum(agree::INT), count(*), "
        f"{''.join(f'{p}, ' for p in places)} sum(agree_answer::INT) AS answers, sum(soft) AS soft, "
        f"count(soft) AS softs, count(*) FILTER ({_READ}) AS parsed, "
        f"count(*) FILTER ({_READ} AND agree) AS parsed_same FROM picks WHERE {scope.pairs} "
        "GROUP BY ALL ORDER BY method, question_id"
    ).set_index("question_id")
    counted = sums.columns[1 : 3 + 2 * slots]
    is_floor = sums["method"].map(lambda m: is_named(m, floors)).astype(bool)
    floor: Any = sums[is_floor].groupby(level=0)[list(counted[:2])].sum()
    rows = []
    for method, part in sums.groupby("method", sort=True):
        own = part[counted].to_numpy(dtype=float)
        both = floor.reindex(part.index, fill_value=0).to_numpy(dtype=float)
        of_method = np.concatenate([own[:, :2], both, own[:, 2:]], axis=1)
        total = part.drop(columns="method").sum()
        pairs = own[:, 1].sum()
        rows.append(
            {
                "method": method,
                **rate(own[:, 0], own[:, 1], "jcr", how),
                "answer_agreement": total["answers"] / pairs,
                **against_chance(of_method, how),
                "chance_soft": float(ratio(total[["soft", "softs"]].to_numpy(dtype=float))),
                "parsed": total["parsed"] / pairs,
                "jcr_parsed": float(ratio(total[["parsed_same", "parsed"]].to_numpy(dtype=float))),
                **corrected(of_method, is_named(str(method), floors), floors, how),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = [
    *("method", "jcr", "low", "high", "wilson_low", "wilson_high", "pairs", "questions", "answer_agreement"),
    *("chance", "chance_soft", "kappa", "kappa_low", "kappa_high", "floor"),
    *("corrected", "corrected_low", "corrected_high", "parsed", "jcr_parsed", "note"),
]


# A tie counts as the reference's slot.
_OWN = "CASE WHEN agree THEN slot_ref ELSE slot END"
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
    to n(n-1)/2; tau is Kendall's coefficient, 1 - 4 distance / (n(n-1)), 1 to -1; then jcr, low, high, wilson_low,
    wilson_high, pairs, questions as in `jcr`.
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
    and the largest margin in the bin), then jcr, low, high, wilson_low, wilson_high, pairs, questions as in `jcr`.
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
    (`final_answer`; a text without one agrees with itself alone), 1 to n; then jcr, low, high, wilson_low, wilson_high,
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


_ENDS = ("low", "high", "wilson_low", "wilson_high", "pairs", "questions")


def rate(hits: np.ndarray, rows: np.ndarray, name: str = "rate", how: Resampling = USUAL) -> dict[str, float]:
    """`name`, low, high, wilson_low, wilson_high, pairs, questions of sum(hits) / sum(rows), both [questions]."""
    low, high = rate_interval(hits, rows, how)
    wilson_low, wilson_high = wilson(hits.sum(), rows.sum(), how.confidence)
    value = float(ratio(np.array([hits.sum(), rows.sum()])))
    numbers = (value, low, high, wilson_low, wilson_high, int(rows.sum()), int((rows > 0).sum()))
    return dict(zip((name, *_ENDS), numbers, strict=True))


def is_named(method: str, names: Sequence[str]) -> bool:
    """Whether a method's label, "name" or "name(parameter=value,...)", is one of the names or has one for its name."""
    return method in names or method.partition("(")[0] in names


def _chance(sums: np.ndarray) -> np.ndarray:
    """Marginal chance from sums [..., 4 + 2 * slots]: agreements, pairs, the floor's two, slots of both."""
    slots = (sums.shape[-1] - 4) // 2
    ref, own = sums[..., 4 : 4 + slots], sums[..., 4 + slots :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (ref * own).sum(-1) / sums[..., 1] ** 2


def _kappa(sums: np.ndarray) -> np.ndarray:
    chance = _chance(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (ratio(sums[..., :2]) - chance) / (1 - chance), np.nan)


def _corrected_score(sums: np.ndarray) -> np.ndarray:
    chance = _chance(sums)
    room = ratio(sums[..., 2:4]) - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room >= _LEAST_ROOM, (ratio(sums[..., :2]) - chance) / room, np.nan)


def against_chance(sums: np.ndarray, how: Resampling = USUAL) -> dict[str, float]:
    """chance, kappa, kappa_low, kappa_high of `jcr`.

    sums: [questions, 4 + 2 * slots], what each question adds: agreeing pairs, pairs, the same two of the floor's
          methods, the reference's picks of each slot, the method's (a tie counts as the reference's slot)
    """
    total = sums.sum(0)
    chance = float(_chance(total))
    low, high = _unless_constant(sums, chance, 1.0, cluster_interval(sums, _kappa, how))
    return {"chance": chance, "kappa": float(_kappa(total)), "kappa_low": low, "kappa_high": high}


def corrected(
    sums: np.ndarray, is_floor: bool, floors: Sequence[str], how: Resampling = USUAL
) -> dict[str, float | str]:
    """floor, corrected, corrected_low, corrected_high, note of `jcr`, from the sums that `against_chance` takes.

    is_floor: whether the method is one of those that the floor is made of; floors: their names, for the note
    """
    total = sums.sum(0)
    floor, chance = float(ratio(total[2:4])), float(_chance(total))
    nothing = {"floor": floor, "corrected": np.nan, "corrected_low": np.nan, "corrected_high": np.nan}
    if np.isnan(floor):
        return {**nothing, "note": f"no noise floor: none of {', '.join(floors) or '(no names)'} was run"}
    if is_floor:
        return {**nothing, "note": "is the noise floor itself"}
    if floor - chance < _LEAST_ROOM:
        return {**nothing, "note": f"the floor ({floor:.2f}) is less than {_LEAST_ROOM} above chance ({chance:.2f})"}
    low, high = _unless_constant(sums, chance, floor, cluster_interval(sums, _corrected_score, how))
    return {
        "floor": floor,
        "corrected": float(_corrected_score(total)),
        "corrected_low": low,
        "corrected_high": high,
        "note": "",
    }


def _unless_constant(sums: np.ndarray, chance: float, top: float, ends: tuple[float, float]) -> tuple[float, float]:
    """The interval `ends`, or where every question has the same JCR, so that resampling finds no spread in it, that of
    `rate_interval` on the scale from chance to top."""
    there = sums[sums[:, 1] > 0]
    if len(there) < 2 or chance > 1 - 1e-12 or np.ptp(there[:, 0] / there[:, 1]) > 1e-12:
        return ends
    low, high = ((x - chance) / (top - chance) for x in rate_interval(there[:, 0], there[:, 1]))
    return min(low, ends[0]), max(high, ends[1])
