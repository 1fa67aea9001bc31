"""A run's health in plain language, out of its digest: what its numbers may be taken for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kvattn.report.facts import LEAST_COVERAGE, LOCKED, verdict_words
from kvattn.study.run_folder import mass
from kvattn.study.run_folder import picks as digest_picks
from kvattn.study.run_folder.picks import Scope
from kvattn.study.run_folder.summary import Digest

Level = Literal["good", "warn", "bad", "note"]


@dataclass(frozen=True)
class Finding:
    """A sentence about a run, and what follows from it. Method names in it are as the manifest has them: untrusted."""

    level: Level
    topic: str
    sentence: str
    advice: str = ""


def meaningless(digest: Digest, calibrated: bool) -> str | None:
    """Why JCR says nothing about these choices, or None where it may be read."""
    test = (digest.manifest.get("content_test") or {}).get("calibrated" if calibrated else "raw")
    if not isinstance(test, dict) or test.get("verdict") != "fails":
        return None
    return "the judge failed the content test, so it has no consistency to lose"


def findings(digest: Digest) -> list[Finding]:
    """Content test, position lock, label coverage, consistency without meaning, floor and sinks, in this order."""
    if not digest_picks.size(digest)["judgements"]:
        return [Finding("note", "empty", "No question is finished yet.", "Run the same command again to continue.")]
    return [
        *_content(digest),
        *_locks(digest),
        *_coverage(digest),
        *_consistency(digest),
        *_floor(digest),
        *_sinks(digest),
    ]


def _content(digest: Digest) -> list[Finding]:
    out = []
    tests = digest.manifest.get("content_test") or {}
    for kind in ("raw", "calibrated"):
        test = tests.get(kind)
        if isinstance(test, dict) and "verdict" in test:
            looks, head, advice = verdict_words(test, kind)
            level: Level = {"passes": "good", "fails": "bad"}.get(looks, "warn")  # type: ignore[assignment]
            said = f"{head.removeprefix('Content test ')} {test.get('sentence', '')}"
            out.append(Finding(level, "content test", said, advice))
    if not out:
        said = "No content test was made: the run had no held-out questions."
        advice = "Nothing says that this judge reads its candidates; judge again with --heldout 20."
        out.append(Finding("warn", "content test", said, advice))
    return out


def _locks(digest: Digest) -> list[Finding]:
    locked = []
    picks: Any = digest_picks.slots(digest)
    for name, part in picks.groupby("method", sort=False):
        top = part.loc[part["share"].idxmax()]
        if top["share"] > LOCKED and part["count"].sum() > 4:
            locked.append(f"{name} (slot {int(top['slot'])}: {top['share']:.0%})")
    if not locked:
        return [Finding("good", "position lock", f"No method puts more than {LOCKED:.0%} of its picks in one slot.")]
    said = f"Nearly all picks fall in one slot under {', '.join(locked)}."
    return [Finding("bad", "position lock", said, "Such choices say more about slots than about candidates.")]


def _coverage(digest: Digest) -> list[Finding]:
    table: Any = digest.sql(
        "SELECT method, avg((coverage < ?)::INTEGER) AS scarce, avg(coverage) AS mean FROM judgements GROUP BY method "
        "ORDER BY scarce DESC",
        [LEAST_COVERAGE],
    )
    worst = table.iloc[0]
    if worst["scarce"] > 0:
        said = (
            f"In {worst['scarce']:.0%} of the judgements of {worst['method']} less than half of the probability falls "
            "on the labels."
        )
        return [Finding("warn", "label coverage", said, "The judge would rather have said something else.")]
    return [
        Finding(
            "good",
            "label coverage",
            f"{float(table['mean'].min()):.0%} or more of the probability falls on the labels.",
        )
    ]


def _consistency(digest: Digest) -> list[Finding]:
    table: Any = digest_picks.jcr(digest)
    why = meaningless(digest, False)
    perfect = table[(table["jcr"] > 0.999) & ~table["method"].str.startswith("null-edit")]
    if why and not perfect.empty:
        names = ", ".join(perfect["method"])
        said = f"A JCR of 100 % ({names}) means nothing here: {why}."
        return [Finding("bad", "consistency", said, "Two judges that always pick one slot always agree.")]
    near = table[(table["jcr"] - table["chance"]).abs() < 0.02]
    if not near.empty:
        names = ", ".join(near["method"])
        said = f"{names}: as consistent with dense as two judges would be that read nothing."
        return [Finding("note", "consistency", said, "Compare JCR with the chance line.")]
    return []


def _floor(digest: Digest) -> list[Finding]:
    found = digest_picks.floor(digest, Scope())
    if found is None:
        said = "No null-edit was run, so there is no floor: nobody knows how often dense agrees with itself."
        return [Finding("warn", "floor", said, "Judge with null-edit among the methods.")]
    said = f"Under an edit that changes no meaning dense agrees with itself in {found[0]:.0%} to {found[1]:.0%}."
    return [Finding("good" if found[0] > 0.9 else "note", "floor", said, "No method can be asked to do better.")]


def _sinks(digest: Digest) -> list[Finding]:
    names = mass.queries(digest)
    if not names:
        return [Finding("note", "sinks", "No decision rows were captured.", "Heatmaps and dilution have no data.")]
    share = mass.sink_shares(digest, names[0]).get("dense")
    if share is None:
        said = "Sinks are unknown: nobody looked for them, since dense was not run."
        return [Finding("note", "sinks", said, "Slot mass with sinks out has no data; judge with dense to find them.")]
    said = f"{share:.0%} of dense's decision row falls on sink tokens."
    return [Finding("note", "sinks", said, "Raw slot mass is small where sinks take much: look at it with sinks out.")]
