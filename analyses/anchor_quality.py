"""What do anchors buy? Pool size, frame of the key differences, online against frozen, KVCOMM and PAL-KV.

    python -m analyses.anchor_quality

Asks: a JCR of an anchor method mixes calls that fell back to dense, which agree by construction, with calls that
reused. How many reused, and how often do *those* pick what dense picks, beside naive reuse on the same calls? Over
pool sizes, both frames of the key difference, a pool that learns online and one that is frozen, and gates opened
wider (gamma). Found: docs/findings.md. Overturned by: reused calls that agree with dense clearly more often than
naive reuse on the same calls. It makes its own runs, on the unsafe organism and the embedded judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses import kit
from kvattn import stats
from kvattn.stats.frames import clusters
from kvattn.stats.intervals import rate_of_sums
from kvattn.stats.resampling import per_question

METHODS = (
    *("dense", "naive-linked", "naive", "kvcomm", "kvcomm:size=20", "kvcomm:size=20,gamma=1.0"),
    *("kvcomm:size=20,gamma=1.0,frame=rotated", "kvcomm:size=20,gamma=1.0,pool=frozen"),
    *("pal-kv", "pal-kv:size=20", "null-edit"),
)
RUNS = {
    "anchors-organism-unsafe": kit.Made("organism-unsafe", "organism-max", 120, 24, "fixed", METHODS),
    "anchors-smollm2": kit.Made("smollm2-135m", "synthetic", 16, 10, "fixed", METHODS),
}


def numbers(run: kit.Held) -> pd.DataFrame:
    """One row an anchor method: calls, calls that kept any candidate token, and the JCR of those, of all, and of naive
    reuse on those."""
    pairs: Any = stats.paired(run.judgements, run.questions, column=run.column)
    key = ["question_id", "order"]
    kept = run.judgements[[*key, "method", "candidate_tokens_kept"]].assign(order=lambda t: t["order"].map(tuple))
    pairs = pairs.assign(order=pairs["order"].map(tuple)).merge(kept, on=[*key, "method"])
    naive = pairs[pairs["method"] == "naive-linked"].set_index(key)["agree"]
    rows = []
    for method, part in pairs.groupby("method"):
        if not str(method).startswith(("kvcomm", "pal-kv", "slot-aligned")):
            continue
        some = part[part["candidate_tokens_kept"] > 0]
        row: dict[str, Any] = {"run": run.title, "method": method, "calls": len(part), "reused": len(some)}
        row |= _rate(part, "all")
        row |= _rate(some, "jcr")
        row["naive-linked"] = naive.loc[pd.MultiIndex.from_frame(some[key])].mean() if len(some) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _rate(part: Any, name: str) -> dict[str, float]:
    if part.empty:
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    codes, count = clusters(part["question_id"])
    sums = per_question(np.stack([part["agree"].astype(float), np.ones(len(part))], 1), codes, count)
    low, high = rate_of_sums(sums[:, 0], sums[:, 1])[1:3]
    return {name: part["agree"].mean(), f"{name}_low": low, f"{name}_high": high}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    args = kit.arguments(__doc__, given)
    folders = [kit.made(name, spec) for name, spec in RUNS.items()]
    given = [r for r in args.runs if kit.Held(r).run.manifest["readout"] and r not in folders]
    runs = [kit.Held(f) for f in folders] + [
        r for r in map(kit.Held, given) if r.judgements["method"].str.startswith(("kvcomm", "pal-kv")).any()
    ]
    frame = pd.concat([numbers(r) for r in runs], ignore_index=True)
    table = kit.shown(
        frame,
        {
            "run": "run",
            "method": "method",
            "calls": "calls",
            "that reused": "reused",
            "JCR, all calls": kit.ci("all"),
            "JCR, calls that reused": kit.ci("jcr"),
            "naive-linked on those": "naive-linked",
        },
    )
    series = [kit.Series("jcr", "JCR of calls that reused"), kit.Series("all", "JCR of all calls", "diamond-open")]
    reused = frame.groupby("run")["reused"].transform("sum") > 0
    fig = kit.forest(
        frame[reused] if reused.any() else frame,
        series,
        tick="naive-linked",
        tick_label="naive-linked on the calls that reused",
    )
    caption = "Anchor methods: JCR of the calls that reused anything, beside naive-linked reuse on those very calls."
    kit.publish("anchor_quality", fig, table, args, runs, frame, kit.warned(caption, runs))


if __name__ == "__main__":
    main()
