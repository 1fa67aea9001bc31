"""Do judgements flip where the candidate that dense picked lost attention? Logistic regressions, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linprog
from scipy.stats import t as student
from statsmodels.genmod.cov_struct import Independence
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_estimating_equations import GEE

from kvattn.errors import KvattnError
from kvattn.stats.frames import Table, clusters
from kvattn.stats.picks import RAW, Source
from kvattn.stats.resampling import CONFIDENCE, holm

COVARIATES = ("length", "position", "margin")

# With fewer questions a robust covariance matrix is noise.
LEAST_QUESTIONS = 10

_COLUMNS = ["method", "term", "odds_ratio", "low", "high", "p", "p_holm", "step", "pairs", "flips", "questions", "note"]


def flip_rows(source: Source, lost: pd.DataFrame) -> pd.DataFrame:
    """What the regression is made of, one row per pair of a method's and the reference's judgement: raw picks of a run,
    or of DataFrames (`kvattn.stats.Frames`).

    lost: as `kvattn.study.run_folder.mass.mass_lost` makes it: question_id, order, method, slot (from 0), lost, tokens

    question_id, order, method; flip (1: another candidate than the reference's); and of the candidate that the
    reference picked: lost (nats of attention), length (natural logarithm of its tokens), position (of its slot, 0 the
    first, 1 the last); margin (the reference's best score less its second best). Pairs of which the lost mass is not
    known, or in which one of the two made no choice, are left out.
    """
    pairs: Table = source.sql(
        'SELECT question_id, "order", method, n, slot_ref, margin_ref, agree FROM picks '
        f"WHERE {RAW.pairs} AND slot IS NOT NULL AND slot_ref IS NOT NULL ORDER BY 1, 2, 3"
    )
    pairs["order"] = [tuple(map(int, o)) for o in pairs["order"]]
    known: Table = lost.rename(columns={"slot": "slot_ref"})
    rows = pairs.merge(known, on=["question_id", "order", "method", "slot_ref"])
    return pd.DataFrame(
        {
            "question_id": rows["question_id"],
            "order": rows["order"],
            "method": rows["method"],
            "flip": 1.0 - rows["agree"].astype(float),
            "lost": rows["lost"].astype(float),
            "length": np.log(rows["tokens"].astype(float)),
            "position": rows["slot_ref"] / (rows["n"] - 1).clip(lower=1),
            "margin": rows["margin_ref"].astype(float),
        }
    )


def flip_regression(
    rows: Table, covariates: Sequence[str] = ("length", "position"), confidence: float = CONFIDENCE
) -> pd.DataFrame:
    """Odds of a flip against the attention that the reference's pick lost, its length and position held fixed.

    Logistic regression of `flip` in rows of `flip_rows` on `lost` and the covariates ("length", "position", "margin"),
    a method at a time: generalized estimating equations with independence as the working correlation (Liang and Zeger
    1986), so that estimates are those of plain logistic regression, and a covariance matrix that takes the question for
    a unit, corrected for the number of questions (Mancl and DeRouen 2001).

    One row per method and term ("lost", then the covariates):

    odds_ratio, low, high     of one step; interval and p by Student's t with questions less terms degrees of freedom
    p, p_holm                 of an odds ratio of 1; p_holm corrects the term over methods (Holm 1979)
    step                      what one step is, in the column's unit: a standard deviation over the method's pairs, for
                              position all the way from the first slot to the last
    pairs, flips, questions   counts
    note                      "", or why there is nothing to say; the numbers are then NaN

    There is nothing to say when no pair or every pair flips, a column is constant or follows from others, a plane
    separates flips from the rest (the odds ratio has no finite estimate: Albert and Anderson 1984), or fewer than ten
    questions are there. It is an association within a run, not an effect: what takes attention away may flip the choice
    by other ways, too.

    Raises KvattnError for an unknown covariate.
    """
    unknown = [c for c in covariates if c not in COVARIATES]
    if unknown:
        raise KvattnError(f"no covariate {unknown[0]!r}; there are: {', '.join(COVARIATES)}")
    terms = ["lost", *dict.fromkeys(covariates)]
    lines = [
        line
        for method, part in rows.groupby("method", sort=True)
        for line in _of_method(str(method), part, terms, confidence)
    ]
    out = pd.DataFrame(lines, columns=[c for c in _COLUMNS if c != "p_holm"])
    corrected: Any = out.groupby("term", sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    out.insert(6, "p_holm", corrected.astype(float))
    return out


def _of_method(method: str, part: Table, terms: list[str], confidence: float) -> list[dict[str, Any]]:
    x, y = part[terms].to_numpy(dtype=float), part["flip"].to_numpy()
    codes, count = clusters(part["question_id"])
    steps = np.array([1.0 if t == "position" else x[:, i].std() for i, t in enumerate(terms)])
    counts = {"pairs": len(y), "flips": int(y.sum()), "questions": count}
    note = _why_not(x, y, count, terms)
    if note:
        nothing = dict.fromkeys(("odds_ratio", "low", "high", "p", "step"), np.nan)
        return [{"method": method, "term": t, **nothing, **counts, "note": note} for t in terms]
    scaled = np.column_stack([np.ones(len(y)), x / steps])
    fitted: Any = GEE(y, scaled, groups=codes, family=Binomial(), cov_struct=Independence()).fit(
        cov_type="bias_reduced"
    )
    b, error, df = fitted.params[1:], fitted.bse[1:], count - scaled.shape[1]
    half = student.ppf((1 + confidence) / 2, df) * error
    numbers = {
        "odds_ratio": np.exp(b),
        "low": np.exp(b - half),
        "high": np.exp(b + half),
        "p": 2 * student.sf(np.abs(b / error), df),
        "step": steps,
    }
    return [
        {"method": method, "term": t, **{k: float(v[i]) for k, v in numbers.items()}, **counts, "note": ""}
        for i, t in enumerate(terms)
    ]


def _why_not(x: np.ndarray, y: np.ndarray, questions: int, terms: list[str]) -> str:
    """Why a regression of y [pairs] on x [pairs, terms] would say nothing, or ""."""
    if questions < LEAST_QUESTIONS:
        return f"{questions} questions are too few; {LEAST_QUESTIONS} are needed"
    if y.min() == y.max():
        return "every pair flips" if y[0] else "no pair flips"
    constant = [t for i, t in enumerate(terms) if np.ptp(x[:, i]) < 1e-9 * max(1.0, np.abs(x[:, i]).max())]
    if constant:
        return f"{' and '.join(constant)}: the same in all pairs"
    z = (x - x.mean(0)) / x.std(0)
    if np.linalg.matrix_rank(np.column_stack([np.ones(len(y)), z])) <= len(terms):
        return f"{', '.join(terms)}: some follow from the others"
    if separated(z, y):
        return "flips are separated from the rest: no finite odds ratio"
    return ""


def separated(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a plane has all y = 1 on one side, all y = 0 on the other, some point off it: then the likelihood of a
    logistic regression has no maximum (Albert and Anderson 1984). x: [rows, columns], without a constant; y: [rows].

    A linear programme: the sum of signed distances from a bounded plane that no row lies behind is zero unless there
    is such a plane.
    """
    signed = np.where(y > 0.5, 1.0, -1.0)[:, None] * np.column_stack([np.ones(len(y)), x])
    found: Any = linprog(-signed.sum(0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=[(-1, 1)] * signed.shape[1])
    if not found.success:
        raise KvattnError(f"cannot tell whether flips are separated ({found.message})")
    return bool(-found.fun > 1e-6)
