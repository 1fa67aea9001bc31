"""What a gate may look at: numbers of one judgement that cheap reuse passes and the candidates' texts give away.

Nothing here reads dense's decision, its attention or which candidate is right. The mass on the prompt's prefix, where
sinks mostly stand, is taken for sinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from kvattn.decision import Decision, SlotMass, margin, ties
from kvattn.errors import KvattnError
from kvattn.questions.orders import rotations
from kvattn.stats.frames import Question

BANDS = ("low", "middle", "high")


@dataclass(frozen=True)
class Recipe:
    """Which cheap passes a gate looks at.

    reuse:  label of the method whose decision is accepted or not
    probes: labels of further cheap methods, run only to be compared with it
    votes:  so many rotations of the display order under which the reuse pass is run again
    mass:   whether the slot mass of the reuse pass is looked at (it costs no token-layers, but has to be captured)
    deviation: whether kept keys and values are compared with a shallow fresh pass (`kvattn.study.gate.signals`)
    """

    reuse: str
    probes: tuple[str, ...] = ()
    votes: int = 0
    mass: bool = True
    deviation: bool = False

    @property
    def families(self) -> tuple[str, ...]:
        """The families of features, in the order of their columns; all of a family cost the same pass."""
        asked = {"mass": self.mass, **{f"probe[{p}]": True for p in self.probes}}
        asked |= {"votes": self.votes, "deviation": self.deviation}
        return ("decision", "texts", *(family for family, wanted in asked.items() if wanted))


@dataclass(frozen=True)
class Pass:
    """One cheap pass over one display order, as a gate sees it.

    choice:       index of the picked candidate, equal texts being the same one
    token_layers: what it computed, its own probes included
    whole:        whether it computed as much as dense does (a fallback of a learning method)
    """

    slot: int
    choice: int
    scores: np.ndarray
    coverage: float
    token_layers: int
    whole: bool = False
    mass: SlotMass | None = None


def pass_of(d: Decision, question: Question) -> Pass:
    """The pass behind a decision. Raises KvattnError for a written verdict, which scores no slots."""
    if d.slot is None or not np.isfinite(d.scores).all() or ties(d.readout):
        raise KvattnError(f"a gate needs a score for every slot; use label, yesno or score, not {d.readout}")
    return Pass(
        slot=d.slot,
        choice=int(question.content[d.order[d.slot]]),
        scores=np.asarray(d.scores, dtype=float),
        coverage=float(d.coverage),
        token_layers=d.cost.token_layers + d.cost.probe_token_layers,
        whole=d.cost.token_layers >= d.cost.tokens * d.cost.layers,
        mass=d.mass,
    )


def family_of(feature: str) -> str:
    """The family of a feature: the part of its name before the last dot."""
    return feature.rpartition(".")[0]


def further_rotations(order: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """The first `count` further cyclic rotations of a display order. Raises KvattnError where there are not so many."""
    if count >= (n := len(order)) > 0:
        raise KvattnError(f"{count} votes asked for, but {n} candidates have {n - 1} further rotations")
    return rotations(order)[1 : count + 1]


def features(
    question: Question,
    order: Sequence[int],
    reuse: Pass,
    probes: Mapping[str, Pass],
    votes: Sequence[Pass],
    deviation: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """All features of one judgement by name, "family.name"; NaN where one is not defined.

    probes: by label, other methods in the same order
    votes:  the reuse method in other orders
    deviation: what `kvattn.study.gate.signals.deviation` found, where it was measured
    """
    found = {"decision": _decision(reuse), "texts": _texts(question, order[reuse.slot])}
    if reuse.mass is not None:
        found["mass"] = _mass(reuse.mass, reuse.slot)
    found |= {f"probe[{name}]": _disagreement(reuse, other) for name, other in probes.items()}
    if votes:
        same, margins = zip(*((v.choice == reuse.choice, margin(v.scores)) for v in votes), strict=True)
        found["votes"] = {"same": float(np.mean(same)), "margin": float(np.mean(margins))}
    if deviation is not None:
        away = {kind: np.asarray(deviation[kind], dtype=float) for kind in ("keys", "values")}
        found["deviation"] = {
            f"{kind}_{what}": float(value)
            for kind, x in away.items()
            for what, value in (("mean", x.mean()), ("max", x.max()), ("chosen", x[reuse.slot]))
        }
    return {f"{family}.{name}": value for family, values in found.items() for name, value in values.items()}


def _decision(reuse: Pass) -> dict[str, float]:
    p = softmax(reuse.scores)
    n = len(p)
    return {
        "margin": margin(reuse.scores) if n > 1 else np.nan,
        "entropy": _entropy(p),
        "top": float(p.max()),
        "coverage": reuse.coverage,
        "slot": reuse.slot / max(1, n - 1),
    }


def _texts(question: Question, chosen: int) -> dict[str, float]:
    """Lengths, answers and words of the candidates, and how the chosen one (an index) stands among them."""
    n, lengths = question.n, np.maximum(question.lengths, 1.0)
    others = [i for i in range(n) if i != chosen]
    words = [frozenset(t.lower().split()) for t in question.texts]
    overlap = np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in words] for a in words])
    answers = question.answers
    stated = [a for a in answers if a is not None]
    mine = answers[chosen]
    return {
        "length": float(np.log(lengths.sum())),
        "spread": float(np.log(lengths.max() / lengths.min())),
        "chosen_length": float(np.log(lengths[chosen] / lengths.mean())),
        "answered": len(stated) / n,
        "answers": len(set(stated)) / n,
        "same_answer": float(np.mean([mine is not None and answers[i] == mine for i in others])) if others else np.nan,
        "overlap": float(overlap[np.triu_indices(n, 1)].mean()) if others else np.nan,
        "chosen_overlap": float(overlap[chosen, others].mean()) if others else np.nan,
    }


def _mass(row: SlotMass, slot: int) -> dict[str, float]:
    """Attention of the decision row in the lower, middle and upper third of the layers, mean over layers and heads.

    slots:     share of the row that falls on candidates
    chosen:    of that, the share of the chosen slot
    imbalance: 0 where the candidates' shares are equal, 1 where one has all (1 - entropy / its maximum)
    prefix:    share of the row on the prompt's prefix, where the first sink stands
    """
    slots = sum(name.startswith("candidate:") for name in row.names)
    places = [row.names.index(f"candidate:{s + 1}") for s in range(slots)]
    prefix = row.names.index("prefix")
    out: dict[str, float] = {}
    for band, layers in zip(BANDS, np.array_split(np.arange(len(row.mass)), len(BANDS)), strict=True):
        if not len(layers):
            out |= {f"{band}_{name}": np.nan for name in ("slots", "chosen", "imbalance", "prefix")}
            continue
        mean = row.mass[layers].astype(float).mean((0, 1))
        total = float(mean[places].sum())
        share = mean[places] / max(total, 1e-12)
        out[f"{band}_slots"] = total
        out[f"{band}_chosen"] = float(share[slot])
        out[f"{band}_imbalance"] = 1 - _entropy(share)
        out[f"{band}_prefix"] = float(mean[prefix])
    return out


def _disagreement(reuse: Pass, other: Pass) -> dict[str, float]:
    p, q = softmax(reuse.scores), softmax(other.scores)
    return {
        "agrees": float(reuse.choice == other.choice),
        "distance": float(jensenshannon(p, q, base=2) ** 2),
        "margin": margin(other.scores) if len(q) > 1 else np.nan,
        "support": float(q[reuse.slot]),
    }


def _entropy(p: np.ndarray) -> float:
    """Entropy over its maximum, 0 to 1; 0 for one slot."""
    return float(entropy(p, base=len(p))) if len(p) > 1 and p.sum() > 0 else 0.0
