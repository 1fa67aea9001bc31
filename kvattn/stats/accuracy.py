"""How often the chosen candidate is right, beside what simple rules reach, and what flips do to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar

from kvattn.errors import KvattnError
from kvattn.stats.frames import Column, Question, Table, clusters, pair, read_judgements, read_questions
from kvattn.stats.resampling import (
    CONFIDENCE,
    RESAMPLES,
    holm,
    per_question,
    rate_interval,
    sign_flip_p,
    wilson,
)

_COLUMNS = [
    *("method", "kind", "accuracy", "low", "high", "wilson_low", "wilson_high", "rows", "questions"),
    *("gained", "lost", "p_mcnemar", "p_mcnemar_holm", "p_flip", "p_flip_holm", "note"),
]


def accuracy(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    mixed: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of judgements whose chosen candidate is right, of every method and of the baselines on the same rows.

    Only questions whose candidates are all known to be right or wrong count; with `mixed`, only those that have both
    kinds (on the others no choice can change anything). One row a method, then one a baseline:

    kind                      "method" or "baseline"
    accuracy, low, high       interval that resamples questions (`rate_interval`); NaN where nothing is known
    wilson_low, wilson_high   Wilson's interval, which takes rows for independent: too narrow with several orders
    rows, questions           counts
    gained, lost              rows that the method has right and the reference wrong, and the other way round
    p_mcnemar                 exact McNemar test (1947) of that, binomial in the discordant rows. It takes rows for
                              independent: with several orders of a question it is too small
    p_flip                    the same question with the question for a unit: signs of per-question differences flipped
    p_..._holm                the two, corrected for the number of methods (Holm 1979)
    note                      which slot or agent a baseline is

    Baselines: "random" (mean share of right candidates), "longest" (tokens, or characters where lengths are unknown;
    ties averaged), "majority answer" (the commonest final answer, see `final_answer`; candidates and ties averaged;
    random where no candidate states one), "best constant slot" and "best constant agent": the best of them *on these
    very rows*, chosen with hindsight, and so is their interval. An agent counts when it has a candidate in every
    question.
    """
    known = read_questions(questions)
    frame = read_judgements(judgements, known, column)
    _need_reference(frame, reference)
    usable = {k for k, q in known.items() if _usable(q, mixed)}
    frame = frame[frame["question_id"].isin(usable)].reset_index(drop=True)
    methods = sorted(judgements["method"].unique(), key=lambda m: (m != reference, m))
    rows = []
    for method in methods:
        part = frame[frame["method"] == method]
        rate = _rate(part["correct"].to_numpy(), part["question_id"], confidence, resamples, seed)
        rows.append({"method": method, "kind": "method", **rate, "note": ""})
    tests: Table = pd.DataFrame(_tests(frame, known, reference, seed), columns=["method", *_COLUMNS[9:15]])
    shown = frame.drop_duplicates(["question_id", "order"])
    for name, values, note in _baselines(shown, known):
        rate = _rate(values, shown["question_id"], confidence, resamples, seed)
        rows.append({"method": name, "kind": "baseline", **rate, "note": note})
    table: Table = pd.DataFrame(rows)
    return table.merge(tests, on="method", how="left")[_COLUMNS]


def flip_table(
    judgements: pd.DataFrame,
    questions: pd.DataFrame,
    reference: str = "dense",
    column: Column = "choice",
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """What becomes of each pair of a method's and the reference's judgement of the same question and order.

    Outcomes: "same right", "same wrong" (the same candidate), and of the flips "harmful" (right to wrong), "helpful"
    (wrong to right), "benign" (right to another right one), "joint error" (wrong to another wrong one). One row per
    (method, outcome): count, share of the method's pairs, low, high (resampling questions), pairs, questions. Pairs of
    which a choice is not known to be right or wrong are left out.
    """
    known = read_questions(questions)
    pairs = pair(read_judgements(judgements, known, column), known, reference)
    pairs = pairs[pairs["correct"].notna() & pairs["correct_ref"].notna()].reset_index(drop=True)
    now, before, agree = (pairs[c].to_numpy(dtype=bool) for c in ("correct", "correct_ref", "agree"))
    pairs["outcome"] = np.select(
        [agree & before, agree & ~before, before & ~now, ~before & now, before & now],
        ["same right", "same wrong", "harmful", "helpful", "benign"],
        "joint error",
    )
    rows = []
    for method, part in pairs.groupby("method", sort=True):
        for outcome in ("same right", "same wrong", "harmful", "helpful", "benign", "joint error"):
            hit = (part["outcome"] == outcome).to_numpy(dtype=float)
            rate = _rate(hit, part["question_id"], confidence, resamples, seed)
            rows.append(
                {
                    "method": method,
                    "outcome": outcome,
                    "count": int(hit.sum()),
                    "share": rate["accuracy"],
                    **{k: rate[k] for k in ("low", "high")},
                    "pairs": rate["rows"],
                    "questions": rate["questions"],
                }
            )
    return pd.DataFrame(rows, columns=["method", "outcome", "count", "share", "low", "high", "pairs", "questions"])


def _need_reference(frame: Table, reference: str) -> None:
    if reference not in set(frame["method"]):
        names = ", ".join(sorted(frame["method"].unique())) or "none"
        raise KvattnError(f"the judgements have no method {reference!r} to compare with; there are: {names}")


def _usable(q: Question, mixed: bool) -> bool:
    if np.isnan(q.corrects).any():
        return False
    return not mixed or 0 < q.corrects.mean() < 1


def _rate(values: np.ndarray, question_ids: Table, confidence: float, resamples: int, seed: int) -> dict[str, float]:
    """Mean of the values of rows, with both intervals and counts."""
    codes, count = clusters(question_ids)
    successes, totals = per_question(values, codes, count), per_question(np.ones(len(codes)), codes, count)
    low, high = rate_interval(successes, totals, confidence, resamples, seed)
    wilson_low, wilson_high = wilson(successes.sum(), totals.sum(), confidence)
    return {
        "accuracy": successes.sum() / totals.sum() if count else np.nan,
        "low": low,
        "high": high,
        "wilson_low": wilson_low,
        "wilson_high": wilson_high,
        "rows": len(codes),
        "questions": count,
    }


def _tests(frame: Table, known: dict[str, Question], reference: str, seed: int) -> list[dict[str, object]]:
    """Every method against the reference, a row each."""
    if frame.empty:
        return []
    pairs = pair(frame, known, reference)
    rows: list[dict[str, object]] = []
    for method, part in pairs.groupby("method", sort=True):
        difference = part["correct"].to_numpy() - part["correct_ref"].to_numpy()
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        codes, count = clusters(part["question_id"])
        rows.append(
            {
                "method": method,
                "gained": gained,
                "lost": lost,
                "p_mcnemar": _mcnemar(gained, lost),
                "p_flip": sign_flip_p(per_question(difference, codes, count), seed=seed),
            }
        )
    for name in ("p_mcnemar", "p_flip"):
        for row, p in zip(rows, holm([row[name] for row in rows]), strict=True):  # type: ignore[arg-type]
            row[f"{name}_holm"] = p
    return rows


def _mcnemar(gained: int, lost: int) -> float:
    result: Any = mcnemar([[0, gained], [lost, 0]], exact=True)
    return float(result.pvalue)


def _baselines(shown: Table, known: dict[str, Question]) -> Iterator[tuple[str, np.ndarray, str]]:
    """(name, chance of a right pick in each row, note) of every baseline; rows are (question, order) pairs."""
    asked = [known[k] for k in shown["question_id"]]
    yield "random", np.array([q.corrects.mean() for q in asked]), ""
    yield "longest", np.array([q.corrects[q.lengths == q.lengths.max()].mean() for q in asked]), ""
    yield "majority answer", np.array([_majority(q) for q in asked]), ""
    least = min((q.n for q in asked), default=0)
    by_slot = np.array(
        [[q.corrects[o[s]] for s in range(least)] for q, o in zip(asked, shown["order"], strict=True)]
    ).reshape(len(asked), least)
    if by_slot.size:
        best = int(by_slot.mean(0).argmax())
        yield "best constant slot", by_slot[:, best], f"slot {best}"
    names = set.intersection(*({a for a in q.agents if a is not None} for q in asked)) if asked else set()
    by_agent = {a: np.array([q.corrects[[b == a for b in q.agents]].mean() for q in asked]) for a in sorted(names)}
    if by_agent:
        agent = max(by_agent, key=lambda a: by_agent[a].mean())
        yield "best constant agent", by_agent[agent], str(agent)


def _majority(q: Question) -> float:
    """Chance of a right pick among the candidates that state the commonest final answer."""
    votes = Counter(a for a in q.answers if a is not None)
    if not votes:
        return float(q.corrects.mean())
    top = max(votes.values())
    return float(np.mean([q.corrects[[b == a for b in q.answers]].mean() for a, v in votes.items() if v == top]))
