"""A run's health in plain language: what its numbers may be taken for. Report, terminal and app render these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from kvattn.stats.agreement import is_named, jcr
from kvattn.stats.reading import ContentTest
from kvattn.study.replay import replay
from kvattn.study.run_folder import mass, picks
from kvattn.study.run_folder.picks import meaningless
from kvattn.study.run_folder.reader import Run, left_out

Level = Literal["good", "warn", "bad", "note"]

# Coverage under this: the judge would rather have said something else than a label.
LEAST_COVERAGE = 0.5
# More than this share of picks in one slot: the judge is locked to it.
LOCKED = 0.8
FEW = 4  # of so few judgements nothing is said


@dataclass(frozen=True)
class Finding:
    """A sentence about a run, and what follows from it. Method names in it are as the manifest has them: untrusted."""

    level: Level
    topic: str
    sentence: str
    advice: str = ""


def health(run: Run) -> pd.DataFrame:
    """What may be wrong with each method's judgements, a row a method, dense first.

    judgements; unread (written verdicts that name no one candidate); slot (from 1, the first of those picked most) and
    share of the picks in it; coverage, least and scarce: mean and least probability on the labels, and share of
    judgements in which it is under LEAST_COVERAGE, NaN where it is unknown (written verdicts); sinks (share of the row,
    NaN without captured rows)
    """
    rows: Any = run.sql(
        "SELECT method, count(*) AS judgements, count(*) - count(slot) AS unread, "
        "arg_max(slot, picked - slot / 1000) AS slot, max(picked) / count(slot) AS share, avg(coverage) AS coverage, "
        "min(coverage) AS least, avg((coverage < ?)::INT) AS scarce "
        "FROM (SELECT method, slot, nullif(coverage, 'nan'::DOUBLE) AS coverage, "
        "count(slot) OVER (PARTITION BY method, slot) AS picked FROM picks WHERE NOT calibrated) GROUP BY method",
        [LEAST_COVERAGE],
    )
    queries = run.queries()
    sinks = mass.sink_shares(run, queries[0]) if queries else {}
    table = rows.astype(dict.fromkeys(("share", "coverage", "least", "scarce"), float)).set_index("method")
    table = table.reindex(picks.methods(run)).reset_index()
    return table.assign(slot=table["slot"].astype("Int64") + 1, sinks=[sinks.get(m, np.nan) for m in table["method"]])


def findings(run: Run) -> list[Finding]:
    """What was left out, content test, replay of production, position lock, unread verdicts, label coverage,
    consistency without meaning, floor and sinks, in this order."""
    if not len(run):
        return [Finding("note", "empty", "No question is finished yet.", "Run the same command again to continue.")]
    table = health(run)
    return [
        *_left_out(run),
        *content(run),
        *_replay(run),
        *(_locks(table) if max(picks.size(run)["n"], default=0) > 1 else []),
        *_unread(table),
        *_coverage(table),
        *_consistency(run),
        *_sinks(table, bool(run.queries())),
    ]


def _left_out(run: Run) -> list[Finding]:
    bad = left_out(run.manifest)
    if not bad:
        return []
    asked = len(bad) + int((run.manifest.get("data") or {}).get("questions") or 0)
    return [
        Finding(
            "warn",
            "left out",
            f"{len(bad)} of {asked} questions could not be read or judged and are in no number: {', '.join(bad[:9])}"
            f"{' and more' if len(bad) > 9 else ''}.",
            "The manifest says why (left_out, unread).",
        )
    ]


def content(run: Run) -> list[Finding]:
    """What the content tests allow to say, of raw and of calibrated choices."""
    out = []
    for kind, calibrated in (("Raw", False), ("Calibrated", True)):
        test = ContentTest.stored(run.manifest, calibrated)
        if test is not None:
            level, advice = _READING[test.verdict]
            said = [f"{kind} choices: {v.sentence[0].lower()}{v.sentence[1:]}" for v in (test.reading, test.quality)]
            out.append(Finding(level, "content test", said[0], advice))
            out.append(Finding("good" if test.quality.verdict == "reads" else "note", "content test", said[1]))
    if out:
        return out
    sentence = "No content test was made: the run had no held-out questions."
    advice = (
        "Nothing here says that this judge reads its candidates at all; a judge that does not has no consistency to "
        "lose. Judge again with --heldout 20."
    )
    return [Finding("warn", "content test", sentence, advice)]


def _replay(run: Run) -> list[Finding]:
    found = replay(run)
    if found is None:
        return []
    if found.holds:
        return [Finding("good", "replay", found.sentence, "So this replay is your judge, as far as it agrees.")]
    advice = (
        "So nothing says that this replay is your judge: its model, prompt or labels may differ. What follows is about "
        "the replay."
    )
    return [Finding("warn", "replay", found.sentence, advice)]


_READING: dict[str, tuple[Level, str]] = {
    "reads": ("good", "Its consistency with dense means something."),
    "does not read": (
        "bad",
        "Such a judge has no consistency to lose. Its JCR is not meaningful and is shown greyed out: it tells how "
        "often two slot habits coincide.",
    ),
    "cannot tell": ("warn", "Read the JCR below with care: it may only tell how often two slot habits coincide."),
}


def _locks(table: Any) -> list[Finding]:
    locked = table[(table["share"] > LOCKED) & (table["judgements"] > FEW)]
    if locked.empty and table["judgements"].max() <= FEW:
        return [Finding("note", "position lock", "Too few judgements to say whether picks fall in one slot.")]
    if locked.empty:
        return [Finding("good", "position lock", f"No method puts more than {LOCKED:.0%} of its picks in one slot.")]
    names = ", ".join(f"{r.method} (slot {r.slot}: {r.share:.0%})" for r in locked.itertuples())
    sentence = f"Nearly all picks fall in one slot under {names}."
    return [Finding("bad", "position lock", sentence, "Such choices say more about slots than about candidates.")]


def _unread(table: Any) -> list[Finding]:
    return [
        Finding(
            "warn",
            "unread verdicts",
            f"{r.method} names no candidate, or several, in {r.unread} of {r.judgements} written verdicts.",
            "They agree with nothing and count as wrong.",
        )
        for r in table[table["unread"] > 0].itertuples()
    ]


def _coverage(table: Any) -> list[Finding]:
    known = table.dropna(subset=["scarce"])
    if known.empty:  # written verdicts alone: there are no labels to cover
        return []
    worst = known.loc[known["scarce"].idxmax()]
    if worst["scarce"] > 0:
        sentence = (
            f"In {worst['scarce']:.0%} of the judgements of {worst['method']} less than half of the probability falls "
            "on the labels."
        )
        return [Finding("warn", "label coverage", sentence, "The judge would rather have said something else.")]
    sentence = f"{known['coverage'].min():.0%} or more of the probability falls on the labels."
    return [Finding("good", "label coverage", sentence)]


def _consistency(run: Run) -> list[Finding]:
    """Of raw choices: JCR without meaning, JCR at chance, and the floor."""
    table: Any = jcr(run)
    out, why = [], meaningless(run, False)
    perfect = table[(table["jcr"] > 0.999) & ~table["method"].map(lambda m: is_named(m, ("null-edit",))).astype(bool)]
    near = table[(table["jcr"] - table["chance"]).abs() < 0.02]
    if why and not perfect.empty:
        sentence = f"A JCR of 100 % ({', '.join(perfect['method'])}) means nothing here: {why}."
        out.append(Finding("bad", "consistency", sentence, "Two judges that always pick one slot always agree."))
    elif not near.empty:
        sentence = f"{', '.join(near['method'])}: as consistent with dense as two judges would be that read nothing."
        out.append(Finding("note", "consistency", sentence, "Compare JCR with the chance line."))
    ends = picks.floor(table)
    if ends is None:
        sentence = "No null-edit was run, so there is no floor: nobody knows how often dense agrees with itself."
        return [*out, Finding("warn", "floor", sentence, "Judge with null-edit among the methods.")]
    sentence = f"Under an edit that changes no meaning dense agrees with itself in {ends[0]:.0%} to {ends[1]:.0%}."
    level: Level = "good" if ends[0] > 0.9 else "note"
    return [*out, Finding(level, "floor", sentence, "No method can be asked to do better.")]


def _sinks(table: Any, captured: bool) -> list[Finding]:
    if not captured:
        return [Finding("note", "sinks", "No decision rows were captured.", "Heatmaps and dilution have no data.")]
    share = table.set_index("method")["sinks"].get("dense", np.nan)
    if np.isnan(share):
        sentence = "Sinks are unknown: nobody looked for them."
        return [Finding("note", "sinks", sentence, "Slot mass with sinks out has no data; judge again to find them.")]
    sentence = f"{share:.0%} of dense's decision row falls on sink tokens."
    return [
        Finding("note", "sinks", sentence, "Raw slot mass is small where sinks take much: look at it with sinks out.")
    ]
