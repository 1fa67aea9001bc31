"""How often the chosen candidate is right, beside what simple rules reach, and what flips do to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from kvattn.stats.agreement import rate
from kvattn.stats.frames import Column, Question, Table, clusters
from kvattn.stats.picks import RAW, Scope, Source, once, source_of
from kvattn.stats.resampling import USUAL, Resampling, holm, per_question, sign_flip_p

_RATE = ("accuracy", "low", "high", "rows", "questions")
_TESTS = ("gained", "lost", "p_mcnemar", "p_mcnemar_holm", "p_flip", "p_flip_holm")

# Each outcome of a pair as an SQL condition over `picks`.
OUTCOMES = {
    "same right": "agree AND correct_ref",
    "same wrong": "agree AND NOT correct_ref",
    "benign": "NOT agree AND correct_ref AND correct",
    "joint error": "NOT agree AND NOT correct_ref AND NOT correct",
    "helpful": "NOT agree AND NOT correct_ref AND correct",
    "harmful": "NOT agree AND correct_ref AND NOT correct",
}


def accuracy(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """Share of judgements whose chosen candidate is right, of every method and of the baselines on the same rows.

    Only questions whose candidates are all known to be right or wrong count, so that every method is asked about the
    same rows whatever it picks; with a `mixed` scope, only those that have both kinds (on the others no choice can
    change anything). A written verdict that names no candidate is wrong. One row a method, then one a baseline:

    kind                      "method" or "baseline"
    accuracy, low, high       interval over questions (`rate_bounds`); NaN where nothing is known
    rows, questions           counts
    gained, lost              rows that the method has right and the reference wrong, and the other way round
    p_mcnemar                 exact McNemar test (1947) of that, binomial in the discordant rows. It takes rows for
                              independent: with several orders of a question it is too small
    p_flip                    the same question with the question for a unit: signs of per-question differences flipped
    p_..._holm                the two, corrected for the number of methods (Holm 1979)
    note                      which slot (from 1, as people see them) or agent a baseline is

    Baselines: "random pick" (mean share of right candidates; the method "random" is another thing), "longest" (tokens,
    or characters where lengths are unknown; ties averaged), "majority answer" (the commonest final answer, see
    `final_answer`; candidates and ties averaged; random where no candidate states one), "best constant slot" and "best
    constant agent": the best of them *on these very rows*, chosen with hindsight, and so is their interval. An agent
    counts when it has a candidate in every question.
    """
    source = source_of(judgements, questions, reference, column)
    table = of_methods(source, scope, how)
    orders: Any = source.sql(
        f'SELECT DISTINCT question_id, "order" FROM picks WHERE labelled AND {scope.rows} ORDER BY ALL'
    )
    codes, count = clusters(orders["question_id"])
    totals = per_question(np.ones(len(codes)), codes, count)
    rows = []
    for name, values, note in _baselines(orders, source.asked):
        numbers = rate(per_question(values, codes, count), totals, "accuracy", how).values()
        rows.append({"method": name, "kind": "baseline", **dict(zip(_RATE, numbers, strict=True)), "note": note})
    whole: Any = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return whole[["method", "kind", *_RATE, *_TESTS, "note"]]


@once
def of_methods(source: Source, scope: Scope = RAW, how: Resampling = USUAL) -> pd.DataFrame:
    """The rows of `accuracy` that are methods, the reference first, and `random`: the share of right candidates among
    the same judgements."""
    sums: Any = source.sql(
        "SELECT method, any_value(is_reference) AS is_reference, question_id, "
        f"sum(correct::INT) FILTER ({scope.rows} AND labelled)::DOUBLE AS hits, "
        f"count(*) FILTER ({scope.rows} AND labelled)::DOUBLE AS rows, "
        f'sum("right") FILTER ({scope.rows} AND labelled)::DOUBLE AS by_chance, '
        f"count(*) FILTER ({scope.pairs} AND labelled AND correct AND NOT correct_ref) AS gained, "
        f"count(*) FILTER ({scope.pairs} AND labelled AND correct_ref AND NOT correct) AS lost "
        "FROM picks GROUP BY ALL ORDER BY method, question_id"
    )
    rows = []
    for method, part in sums.groupby("method", sort=True):
        counted = part[part["rows"] > 0]
        hits, totals = (counted[c].to_numpy() for c in ("hits", "rows"))
        row = {"method": method, "kind": "method"}
        row |= dict(zip(_RATE, rate(hits, totals, "accuracy", how).values(), strict=True))
        row["random"] = counted["by_chance"].sum() / totals.sum() if len(counted) else np.nan
        if not part["is_reference"].any() and len(counted):
            gained, lost = int(part["gained"].sum()), int(part["lost"].sum())
            difference = (counted["gained"] - counted["lost"]).to_numpy(dtype=float)
            row |= {"gained": gained, "lost": lost, "p_mcnemar": _mcnemar(gained, lost)}
            row |= {"p_flip": sign_flip_p(difference, seed=how.seed)}
        rows.append({**row, "first": not part["is_reference"].any(), "note": ""})
    columns = ["method", "kind", *_RATE, *_TESTS, "note", "random", "first"]
    table: Any = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(_TESTS, float))
    for name in ("p_mcnemar", "p_flip"):
        table[f"{name}_holm"] = holm(table[name].to_numpy())
    return table.sort_values(["first", "method"], ignore_index=True).drop(columns="first")


def flip_table(
    judgements: Source | pd.DataFrame,
    questions: pd.DataFrame | None = None,
    reference: str = "dense",
    column: Column = "choice",
    scope: Scope = RAW,
    how: Resampling = USUAL,
) -> pd.DataFrame:
    """What becomes of each pair of a method's and the reference's judgement of the same question and order.

    Outcomes: "same right", "same wrong" (the same candidate), and of the flips "harmful" (right to wrong), "helpful"
    (wrong to right), "benign" (right to another right one), "joint error" (wrong to another wrong one). One row per
    (method, outcome): count, share of the method's pairs, low, high (resampling questions), pairs, questions. Pairs of
    which a choice is not known to be right or wrong are left out.
    """
    source = source_of(judgements, questions, reference, column)
    counts = [f'count(*) FILTER ({condition})::DOUBLE AS "{name}"' for name, condition in OUTCOMES.items()]
    sums: Any = source.sql(
        f"SELECT method, question_id, count(*)::DOUBLE AS rows, {', '.join(counts)} FROM picks "
        f"WHERE {scope.pairs} AND correct IS NOT NULL AND correct_ref IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )
    rows = []
    for method, part in sums.groupby("method", sort=True):
        for name in OUTCOMES:
            r = rate(part[name].to_numpy(), part["rows"].to_numpy(), "share", how)
            numbers = {"count": int(part[name].sum()), **{k: r[k] for k in ("share", "low", "high")}}
            rows.append(
                {"method": method, "outcome": name, **numbers, "pairs": r["pairs"], "questions": r["questions"]}
            )
    return pd.DataFrame(rows, columns=["method", "outcome", "count", "share", "low", "high", "pairs", "questions"])


def _mcnemar(gained: int, lost: int) -> float:
    result: Any = mcnemar([[0, gained], [lost, 0]], exact=True)
    return float(result.pvalue)


def _baselines(shown: Table, known: Mapping[str, Question]) -> Iterator[tuple[str, np.ndarray, str]]:
    """(name, chance of a right pick in each row, note) of every baseline; rows are (question, order) pairs."""
    asked = [known[k] for k in shown["question_id"]]
    yield "random pick", np.array([q.corrects.mean() for q in asked]), ""
    yield "longest", np.array([q.corrects[q.lengths == q.lengths.max()].mean() for q in asked]), ""
    yield "majority answer", np.array([_majority(q) for q in asked]), ""
    least = min((q.n for q in asked), default=0)
    by_slot = np.array(
        [[q.corrects[o[s]] for s in range(least)] for q, o in zip(asked, shown["order"], strict=True)]
    ).reshape(len(asked), least)
    if by_slot.size:
        best = int(by_slot.mean(0).argmax())
        yield "best constant slot", by_slot[:, best], f"slot {best + 1}"
    names = set.intersection(*({a for a in q.agents if a is not None} for q in asked)) if asked else set()
    by_agent = {a: np.array([q.corrects[[b == a for b in q.agents]].mean() for q in asked]) for a in sorted(names)}
    if by_agent:
        agent = max(by_agent, key=lambda a: by_agent[a].mean())
        yield "best constant agent", by_agent[agent], str(agent)


def _majority(q: Question) -> float:
    """Chance of a right pick among the candidates that state the commonest final answer."""
    votes = q.votes
    if not votes:
        return float(q.corrects.mean())
    top = max(votes.values())
    return float(np.mean([q.corrects[[b == a for b in q.answers]].mean() for a, v in votes.items() if v == top]))
