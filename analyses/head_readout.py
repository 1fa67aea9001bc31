"""Is a verdict that is read off the attention of a few heads steadier under reuse than one read off the logits?

    python -m analyses.head_readout [--heads K]

Asks: the decision row says how much each head looks at each slot. The heads whose most-looked-at slot is most often
right under dense make a readout of their own (HeadRank, arXiv 2604.17237): a slot's score is the mean over them of the
logarithm of its mass, less the head's own mean in that slot under dense. They are chosen on one half of the questions
and read on the other, and the other way round; the logits, less their own mean by slot under dense, are treated alike.
Found: docs/findings.md. Overturned by: heads that keep dense's picks where the logits do not, and are as often right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from analyses import kit
from kvattn.decision import MASS_FLOOR
from kvattn.stats.chance import against, agreement
from kvattn.stats.frames import clusters
from kvattn.stats.pairs import Picks, contents
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.schema import slot_mass_of

REUSE = ("null-edit", "naive", "naive-linked", "last-k:budget=0.1")
SPEC = kit.Made("smollm2-135m-judge", "odd-one-out", 96, 0, "fixed", ("dense", *REUSE))
FEW = 8  # heads


def looks(run: Run) -> tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(question, order) pairs, and by method, in their order: log mass [pairs, heads, slots], of all layers' heads, and
    scores [pairs, slots]."""
    judged: Any = run.judgements()
    table: Any = run.sql('SELECT * FROM mass WHERE query = ? ORDER BY method, question_id, "order"', [run.deciding])
    rows = {(r["method"], r["question_id"], tuple(r["order"])): r for r in table.to_dict("records")}
    scored = {
        (m, q, tuple(o)): s
        for m, q, o, s in zip(*(judged[c] for c in ("method", "question_id", "order", "scores")), strict=True)
    }
    pairs = sorted({key[1:] for key in scored})
    mass, logits = {}, {}
    for method in dict.fromkeys(judged["method"]):
        found = []
        for pair in pairs:
            m = slot_mass_of(rows[method, *pair])
            own = [m.names.index(f"candidate:{s + 1}") for s in range(m.slots)]
            found.append(np.log(np.maximum(m.mass[..., own], MASS_FLOOR)).reshape(-1, m.slots))
        mass[method], logits[method] = np.stack(found), np.stack([scored[method, *pair] for pair in pairs])
    return pairs, mass, logits


def by_heads(mass: dict[str, np.ndarray], right: np.ndarray, fit: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """By method, slot scores [pairs, slots] of the `count` heads that are most often right on the pairs of `fit`;
    right: [pairs, slots]. Equal heads in the order of layers."""
    usual = mass["dense"][fit].mean(0)
    picked = (mass["dense"][fit] - usual).argmax(-1)  # [pairs, heads]
    hits = np.take_along_axis(right[fit], picked, 1).mean(0)
    chosen = np.argsort(-hits, kind="stable")[:count]
    return {m: (x - usual)[:, chosen].mean(1) for m, x in mass.items()}


def readouts(
    questions: Sequence[str], mass: dict, logits: dict, right: np.ndarray, count: int
) -> Iterator[tuple[str, dict]]:
    """Name and, by method, slots picked [pairs], of each readout; what it is fitted to is the half of the questions
    that is not read. questions: [pairs]"""
    half = clusters(questions)[0] % 2 == 0
    kinds = {
        "logits": lambda fit: {m: x - logits["dense"][fit].mean(0) for m, x in logits.items()},
        f"{count} heads": lambda fit: by_heads(mass, right, fit, count),
        "all heads": lambda fit: by_heads(mass, right, fit, mass["dense"].shape[1]),
    }
    for name, scores in kinds.items():
        one, other = scores(~half), scores(half)
        yield name, {m: np.where(half, one[m].argmax(1), other[m].argmax(1)) for m in one}


def numbers(run: Run, count: int = FEW) -> pd.DataFrame:
    """A row a readout and method: JCR with the same readout's dense pick, chance, kappa, accuracy, each with its
    interval over questions; and pairs in which this readout alone keeps dense's pick, the logits alone, and exact p."""
    pairs, mass, logits = looks(run)
    shown = {k: v for k, v in contents(pairs, dict(run.asked)).items() if k not in ("orders", "lengths")}
    rows, kept = [], {}
    for name, slots in readouts([q for q, _ in pairs], mass, logits, shown["correct"], count):
        for method in ("dense", *(m for m in slots if m != "dense")):
            picks = Picks(slots["dense"], slots[method], **shown)
            found = against(picks)
            kept[name, method] = agreement(picks.dense, picks.method, picks.classes)
            alone, other = (int((a & ~b).sum()) for a, b in _both(kept[name, method], kept["logits", method]))
            row: dict[str, Any] = {"readout": name, "method": method, "questions": len(pairs)}
            for measure in ("jcr", "chance", "kappa", "accuracy"):
                value = getattr(found, measure)
                row |= {measure: value.value, f"{measure}_low": value.low, f"{measure}_high": value.high}
            row |= {"kept_alone": alone, "logits_alone": other}
            rows.append(row | {"p": binomtest(alone, alone + other).pvalue if alone + other else 1.0})
    return pd.DataFrame(rows)


def _both(a: np.ndarray, b: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return (a, b), (b, a)


def _p(row: Any) -> str:
    return "" if row["readout"] == "logits" or row["method"] == "dense" else f"{row['p']:.3g}"


TABLE: dict[str, kit.Cell] = {
    "readout": "readout",
    "method": "method",
    "JCR": lambda r: "" if r["method"] == "dense" else kit.ci("jcr")(r),
    "chance": "chance",
    "kappa": lambda r: "" if r["method"] == "dense" else kit.ci("kappa")(r),
    "right": kit.ci("accuracy"),
    "kept by it alone": "kept_alone",
    "by the logits alone": "logits_alone",
    "p": _p,
    "questions": "questions",
}


def main(given: Sequence[str] | None = None) -> None:
    """Figure and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--heads", type=int, default=FEW, help=f"how many heads are read (default: {FEW})")
    args = kit.arguments(__doc__, given, parser)
    run = kit.Held(kit.made("head-readout", SPEC))
    frame = numbers(run.run, args.heads)
    caption = (
        f"JCR and accuracy of verdicts read off the logits, off {args.heads} heads and off all; "
        f"{SPEC.model} on {SPEC.source} questions, heads chosen on the other half; 95 % intervals."
    )
    series = [kit.Series("jcr", "JCR"), kit.Series("accuracy", "right", "diamond")]
    fig = kit.forest(frame[frame["method"] != "dense"], series, panel="readout")
    kit.publish("head_readout", fig, kit.shown(frame, TABLE), args, [run], frame, caption)


if __name__ == "__main__":
    main()
