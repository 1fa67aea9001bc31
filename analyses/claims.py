"""What a judge that reads says of claims that judges which do not need each other's candidates cannot tell.

    python -m analyses.claims RUN RUN

Asks what the studies in figures/runs that are named beside the families below wrote down before: does KVCOMM or PAL-KV
keep more of dense's choices than naive reuse on the calls that reused, does a larger pool, does choosing which 15 % to
recompute over choosing at random, does an order far from the candidates' own lose more than one near it, what would a
mix-up of orders look like, is it the sight of the others that brings choices back, what do the steps between the mask
and reuse take, what is lost where agents run on the judge's base, or on another model and through a map, and what does
training add to tails?
Found: docs/findings.md. Overturned by: another judge that reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import binomtest, fisher_exact
from statsmodels.stats.proportion import confint_proportions_2indep

from analyses import kit
from analyses.shuffle_stress import distances
from kvattn import methods, stats
from kvattn.plots import theme
from kvattn.stats.intervals import difference, rate

ANCHORS, FEWER = "size=60,gamma=1.0,pool=frozen", "size=20,gamma=1.0,pool=frozen"
RANDOM = "random:budget=0.15"
BLIND = "tail:tokens=8,sight=blind"
MAPPED = "mapped(model=qwen2.5-coder-0.5b-instruct-q4_k_m.gguf,map=maps/coder-0.5b-to-1.5b.json)"
REPAIRED = "repaired(folder=repairs/gsm8k)"
MAPPED_ONE = MAPPED.replace("map=", "layers=1,map=").replace(".json", "-one.json")


@dataclass(frozen=True)
class Claim:
    """A question of two methods: does the first agree with dense more often than the second?

    reused: whether on the calls alone in which both methods kept candidates' tokens
    """

    asked: str
    first: str
    second: str
    reused: bool = False


LOOKED = Claim("most looked at 15 % less random", "query-attention:budget=0.15", RANDOM)
DRIFTED = Claim("most drifted 15 % less random", "kv-deviation:budget=0.15", RANDOM)
LAST = Claim("last 15 % less random", "last-k:budget=0.15", RANDOM)
SEEING = Claim("eight tail tokens, seeing less blind", "tail:tokens=8", BLIND)
LOSS = Claim("null edit less linked reuse", "null-edit", "naive-linked")
NOTHING = Claim("eight blind tail tokens, less reuse alone", BLIND, "naive-linked")
MISSING = Claim("null edit less eight seeing tail tokens", "null-edit", "tail:tokens=8")
MASKED = Claim("true mask less linked reuse", "true-mask", "naive-linked")
REUSED_KVCOMM = Claim("KVCOMM that reuses, less naive reuse", f"kvcomm:{FEWER}", "naive", reused=True)
REUSED_PAL = Claim("PAL-KV that reuses, less naive reuse", f"pal-kv:{FEWER}", "naive", reused=True)
FAMILIES: tuple[tuple[Claim, ...], ...] = (
    (  # claims.yaml
        Claim("KVCOMM that reuses, less naive reuse", f"kvcomm:{ANCHORS}", "naive", reused=True),
        Claim("PAL-KV that reuses, less naive reuse", f"pal-kv:{ANCHORS}", "naive", reused=True),
        Claim("a pool of 60 less one of 5", f"kvcomm:{ANCHORS}", "kvcomm:size=5,gamma=1.0,pool=frozen", reused=True),
        Claim("first 15 % less random 15 %", "first-k:budget=0.15", RANDOM),
        LOOKED,
        DRIFTED,
        LAST,
        Claim("orders mixed up, less reuse alone", "mismatched-order", "naive-linked"),
    ),
    (  # selective.yaml
        LOOKED,
        Claim("CacheClip's 15 % less random", "cacheclip:budget=0.15,window=2", RANDOM),
        Claim("A3's 15 % less random", "a3:budget=0.15", RANDOM),
        Claim("SamKV's 15 % less random", "sam-kv:budget=0.15,initial=0,block=2", RANDOM),
        LAST,
    ),
    (SEEING, NOTHING, MISSING),  # sight.yaml
    (  # thousand.yaml
        MASKED,
        Claim("linked reuse less naive reuse", "naive-linked", "naive"),
        NOTHING,
        MISSING,
        Claim("eight seeing tail tokens less the last 15 %", "tail:tokens=8", "last-k:budget=0.15"),
    ),
    (  # mapped.yaml
        Claim("another model's KV, mapped, less own", MAPPED, "naive-linked"),
        Claim("another model's KV, mapped, less another question's", MAPPED, "foreign-kv"),
        Claim("mapped from eight layers less from one", MAPPED, MAPPED_ONE),
    ),
    (  # agents.yaml
        Claim("linked headers, base's KV less own", "agents:base=naive-linked", "naive-linked"),
        Claim("eight tail tokens, base's KV less own", "agents:base=tail(tokens=8)", "tail:tokens=8"),
        Claim("base's KV, eight tail tokens less none", "agents:base=tail(tokens=8)", "agents:base=naive-linked"),
    ),
    (  # power-1.5b.yaml
        LOSS,
        MASKED,
        SEEING,
        NOTHING,
        REUSED_KVCOMM,
        REUSED_PAL,
        LAST,
        LOOKED,
        DRIFTED,
    ),
    (LOSS, MASKED, SEEING, NOTHING),  # power-0.5b.yaml
    (REUSED_KVCOMM, REUSED_PAL),  # pools-1.5b.yaml
    (  # repair-1.5b.yaml
        Claim("trained tails less offsets of untrained ones", REPAIRED, "slot-offset:base=tail(tokens=8)"),
        Claim("trained tails less untrained ones", REPAIRED, "tail:tokens=8"),
    ),
    (  # own-1.5b.yaml; humaneval.yaml has the same methods, and wrote no test down
        LOSS,
        Claim("eight seeing tail tokens less linked reuse", "tail:tokens=8", "naive-linked"),
    ),
    (  # steps-1.5b.yaml
        Claim("made apart, less cut apart in place", "isolated", "true-mask"),
        Claim("agents' own contexts, less isolated blocks", "naive-linked:headers=isolated", "isolated"),
        Claim("headers that link, less isolated ones", "naive-linked", "naive-linked:headers=isolated"),
        Claim("own stale KV less another question's", "naive-linked", "foreign-kv"),
        Claim("offsets taken away, less linked reuse", "slot-offset:base=naive-linked", "naive-linked"),
        Claim("null edits: a line end less a rewording", "null-edit", "null-edit:edit=reword"),
    ),
)
"""Pairs of methods whose tests are corrected together. A run answers the largest family all of whose methods it has."""
SHUFFLED = (
    "tail:tokens=4"  # beside naive-linked, in runs that have it: orders far from the candidates' own, and near it
)


def label(method: str) -> str:
    """What a run calls a method; one whose files are elsewhere is written as its label."""
    return method if "(" in method.partition(":")[0] else methods.get(method).label


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row for each claim of the run's family: JCR of both sides with intervals, their difference with its interval,
    exact p, and Holm's over the rows of the run."""
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    pairs = pairs.assign(order=pairs["order"].map(tuple))
    key = ["question_id", "order"]
    kept = run.judgements.assign(order=run.judgements["order"].map(tuple))
    agree = pairs.pivot(index=key, columns="method", values="agree")
    reused = kept.pivot(index=key, columns="method", values="candidate_tokens_kept").reindex(agree.index) > 0
    whole = [f for f in FAMILIES if all({label(c.first), label(c.second)} <= set(agree) for c in f)]
    rows = [_paired(c, agree, reused) for c in max(whole, key=len, default=())]
    if label(SHUFFLED) in agree:
        apart = distances(run).set_index("method")
        rows += [_apart(m, apart.loc[label(m)]) for m in ("naive-linked", SHUFFLED) if {"near", "far"} <= set(apart)]
    if not rows:
        raise SystemExit(
            f"{run.title} has the methods of no family of claims; give a run of a study in figures/runs whose file "
            "writes one down, as claims.yaml does"
        )
    frame = pd.DataFrame(rows).assign(run=run.title)
    return frame.assign(p_holm=stats.holm(frame["p"].to_numpy()))


def _paired(claim: Claim, agree: pd.DataFrame, reused: pd.DataFrame) -> dict[str, Any]:
    first, second = label(claim.first), label(claim.second)
    both: Any = agree[[first, second]]
    both = both[(reused[first] & reused[second]).to_numpy(dtype=bool)] if claim.reused else both
    own, other = (both[m].to_numpy(dtype=bool) for m in (first, second))
    codes = both.index.get_level_values(0).to_numpy()
    gained, lost = int((own & ~other).sum()), int((other & ~own).sum())
    found = difference(own & ~other, other & ~own, codes)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    row: dict[str, Any] = {"asked": claim.asked, "judgements": len(both), "gained": gained, "lost": lost, "p": p}
    row |= {"gain": found.value, "gain_low": found.low, "gain_high": found.high}
    for name, hits in (("first", own), ("second", other)):
        one = rate(hits, codes)
        row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return row


def _apart(method: str, row: Any) -> dict[str, Any]:
    """Orders far from the candidates' own against orders near it: other questions, so Fisher's exact test."""
    (far, fars), (near, nears) = (
        (round(row[reach] * row[f"{reach}_pairs"]), int(row[f"{reach}_pairs"])) for reach in ("far", "near")
    )
    low, high = confint_proportions_2indep(far, fars, near, nears, compare="diff", method="newcomb")
    out: dict[str, Any] = {"asked": f"{method}: far orders less near ones", "judgements": fars + nears}
    out |= {"p": fisher_exact([[far, fars - far], [near, nears - near]])[1]}
    out |= {"gain": far / fars - near / nears, "gain_low": low, "gain_high": high}
    for name, reach in (("first", "far"), ("second", "near")):
        out |= {f"{name}{end}": row[f"{reach}{end}"] for end in ("", "_low", "_high")}
    return out


TABLE: dict[str, kit.Cell] = {
    "asked": "asked",
    "JCR of the first": kit.ci("first"),
    "of the second": kit.ci("second"),
    "difference": kit.ci("gain"),
    "p": lambda r: f"{r['p']:.2g}",
    "p, Holm": lambda r: f"{r['p_holm']:.2g}",
    "judgements": "judgements",
    "run": "run",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    if not args.runs:
        raise SystemExit("no run was given; judge one: kvattn study run figures/runs/claims.yaml")
    runs = kit.held(args.runs)
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    caption = "Questions fixed beforehand: how much oftener the first picks what dense picks; 95 % intervals."
    series = [kit.Series("gain", "difference in JCR")]
    one = frame.assign(panel=frame["run"] if frame["asked"].duplicated().any() else "agreement with dense")
    span = (min(-0.3, float(frame["gain_low"].min())) - 0.04, 1.04)
    fig = kit.forest(one, series, "panel", "asked", tick=None, span=span)
    fig.update_traces(marker_color=theme.NEUTRAL)  # a row is no method's
    kit.publish("claims", fig, kit.shown(frame, TABLE), args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
