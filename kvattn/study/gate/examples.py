"""What a gate learns from: the judgements of a run as features, with the label that dense gives and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from kvattn.decision import SlotMass
from kvattn.errors import KvattnError
from kvattn.stats.frames import Question
from kvattn.stats.picks import paired
from kvattn.study.gate import signals
from kvattn.study.gate.features import Pass, Recipe, family_of, features, further_rotations
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.schema import slot_mass_of


@dataclass(frozen=True)
class Examples:
    """One row per (question, order): all that a gate may see, whether reuse was safe, and costs in token-layers.

    x:        [rows, features], by name
    safe:     [rows], the reuse method picks dense's candidate (equal texts are the same one)
    question: [rows], ids
    reuse, extra, dense: [rows], token-layers of the reuse pass, of the other passes that are looked at, and of dense
    settled:  [rows], whether one of those passes was itself a dense pass, so that dense need not be run again
    right, dense_right: [rows], 1 right, 0 wrong, NaN unknown
    """

    recipe: Recipe
    x: pd.DataFrame
    safe: np.ndarray
    question: np.ndarray
    reuse: np.ndarray
    extra: np.ndarray
    dense: np.ndarray
    settled: np.ndarray
    right: np.ndarray
    dense_right: np.ndarray
    costs: Mapping[str, float]

    def __len__(self) -> int:
        return len(self.safe)

    @property
    def questions(self) -> int:
        """Number of questions."""
        return len(np.unique(self.question))

    def take(self, rows: np.ndarray) -> Examples:
        """Some of the rows (indices or a mask)."""
        taken = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, x=self.x.iloc[rows].reset_index(drop=True), **taken)

    def columns(self, family: str, without: bool = False) -> Any:
        """The features of one family, or all `without` it."""
        return self.x.loc[:, [(family_of(str(c)) == family) is not without for c in self.x.columns]]

    def cost(self, accepted: np.ndarray) -> np.ndarray:
        """[rows], token-layers with the gate, over dense's: the looked-at passes, and dense where it is fallen back to
        and was not run among them."""
        return (self.reuse + self.extra + np.where(accepted | self.settled, 0, self.dense)) / self.dense


@dataclass(frozen=True)
class Ceiling:
    """What no gate can beat, not even one that sees dense: the most it may accept, and the least that it costs.

    flips: share of rows in which reuse picks otherwise than dense; accepted: at most so many rows, of which a share of
    `risk` flips; passes: what is computed of every row, over dense; cost: at least so much of always-dense
    """

    flips: float
    risk: float
    accepted: float
    passes: float
    cost: float

    @property
    def sentence(self) -> str:
        """The ceiling, in one line."""
        return (
            f"no gate can accept more than {self.accepted:.1%} ({self.flips:.1%} flip, {self.risk:.3g} of the accepted "
            f"may) or cost less than {self.cost:.2f} of dense ({self.passes:.2f} for the passes that it looks at)"
        )


def ceiling(examples: Examples, risk: float) -> Ceiling:
    """The ceiling of a gate that may be wrong in a share of `risk` of what it accepts: all safe rows and as many others
    as that allows, (1 - flips) / (1 - risk) of all; what it does not accept costs dense's pass where none was made."""
    flips = float((~examples.safe).mean())
    accepted = min(1.0, (1 - flips) / (1 - risk))
    passes = float(((examples.reuse + examples.extra) / examples.dense).mean())
    left = max(0.0, float((~examples.settled.astype(bool)).mean()) - accepted)
    return Ceiling(flips, risk, accepted, passes, passes + left)


def read_examples(run: Run, recipe: Recipe) -> Examples:
    """The examples of a run. Raises KvattnError for a method that was not run or is no cheap pass, for orders that
    votes lack, and for slot mass that was not stored."""
    questions, judgements = run.asked, run.judgements()
    _check_methods(judgements, recipe)
    frame: Any = paired(judgements, run.questions())
    frame = frame[frame["method"] == recipe.reuse]
    rows = {(r["question_id"], tuple(map(int, r["order"])), r["method"]): r for r in judgements.to_dict("records")}
    masses = _masses(run, recipe) if recipe.mass else {}
    measured = signals.read(run, recipe.reuse) if recipe.deviation else {}

    @cache
    def seen(q: str, order: tuple[int, ...], method: str) -> Pass:
        if (q, order, method) not in rows:
            raise KvattnError(
                f"{run.folder}: {method!r} did not judge question {q!r} in order {list(order)}; votes need all "
                "rotations of an order (kvattn judge --orders rotations)"
            )
        mass = masses.get((q, order)) if method == recipe.reuse else None
        return _pass(rows[q, order, method], questions[q], mass)

    table, costs = [], []
    for q, order in zip(frame["question_id"], frame["order"], strict=True):
        reuse = seen(q, order, recipe.reuse)
        probes = {p: seen(q, order, p) for p in recipe.probes}
        votes = [seen(q, o, recipe.reuse) for o in further_rotations(order, recipe.votes)]
        away = measured.get((q, order))
        if recipe.deviation and away is None:
            raise KvattnError(f"{run.folder}: no signals of question {q!r} in order {list(order)}; measure them again")
        table.append(features(questions[q], order, reuse, probes, votes, away))
        if table[-1].keys() != table[0].keys():
            raise KvattnError("judgements of one run have different features; was slot mass captured for some only?")
        paid = {f"probe[{p}]": other.token_layers for p, other in probes.items()}
        paid |= {"votes": sum(v.token_layers for v in votes), "deviation": away["token_layers"] if away else 0}
        whole = reuse.whole or any(p.whole for p in probes.values())
        dense = rows[q, order, "dense"]["token_layers"]
        costs.append({**paid, "reuse": reuse.token_layers, "dense": dense, "whole": whole})
    cost: Any = pd.DataFrame(costs, columns=[*_further(recipe), "reuse", "dense", "whole"])
    dense = cost["dense"].to_numpy(dtype=float)
    share = {f: float((cost[f] / dense).mean()) if f in cost else 0.0 for f in (*recipe.families, "reuse")}
    return Examples(
        recipe=recipe,
        x=pd.DataFrame(table, dtype=float),
        safe=frame["agree"].to_numpy(dtype=bool),
        question=frame["question_id"].to_numpy(dtype=object),
        reuse=cost["reuse"].to_numpy(dtype=float),
        extra=cost[_further(recipe)].sum(axis=1).to_numpy(dtype=float),
        dense=dense,
        settled=cost["whole"].to_numpy(dtype=bool),
        right=frame["correct"].to_numpy(dtype=float),
        dense_right=frame["correct_ref"].to_numpy(dtype=float),
        costs=share,
    )


def _further(recipe: Recipe) -> list[str]:
    """The families that cost passes of their own."""
    return [f for f in recipe.families if f not in ("decision", "texts", "mass")]


def _check_methods(judgements: Any, recipe: Recipe) -> None:
    ran = sorted(judgements["method"].unique())
    for name in (recipe.reuse, *recipe.probes):
        part = judgements[judgements["method"] == name]
        if part.empty:
            raise KvattnError(f"the run has no method {name!r}; it has {', '.join(ran)}")
        if (part["token_layers"] + part["probe_token_layers"] >= part["tokens"] * part["layers"]).all():
            raise KvattnError(f"{name!r} is no cheap pass: it computes as much as dense does; take another method")
    twice = [p for p in recipe.probes if p == recipe.reuse or recipe.probes.count(p) > 1]
    if twice:
        raise KvattnError(f"{twice[0]!r} is given twice; a probe is compared with the reuse pass, so it is another one")


def _pass(row: Mapping[str, Any], question: Question, mass: SlotMass | None) -> Pass:
    slot = int(row["slot"])
    return Pass(
        slot=slot,
        choice=int(question.content[int(row["order"][slot])]),
        scores=np.asarray(row["scores"], dtype=float),
        coverage=float(row["coverage"]),
        token_layers=int(row["token_layers"]) + int(row["probe_token_layers"]),
        whole=int(row["token_layers"]) >= int(row["tokens"]) * int(row["layers"]),
        mass=mass,
    )


def _masses(run: Run, recipe: Recipe) -> dict[tuple[str, tuple[int, ...]], SlotMass]:
    table: Any = run.mass(method=recipe.reuse, query=run.deciding)
    if table.empty:
        raise KvattnError(f"{run.folder} holds no slot mass of {recipe.reuse!r}; fit without it (--no-mass)")
    out = {}
    for row in table.to_dict("records"):
        # Gates look at mass alone.
        out[row["question_id"], tuple(map(int, row["order"]))] = replace(slot_mass_of(row), sink=None, norm=None)
    return out


def has_mass(run: Run, method: str) -> bool:
    """Whether the run stores slot mass of a method."""
    found = run.sql("SELECT count(*) AS n FROM slots WHERE method = ? AND query = ?", [method, run.deciding])
    return int(found["n"].iloc[0]) > 0


def learners(run: Run, names: Sequence[str]) -> list[str]:
    """Those of the methods that learn from question to question in this run."""
    entries = [m for m in run.manifest.get("methods", []) if isinstance(m, dict)]
    # Runs of before say it by the parameter of the methods that learned then.
    online = {str(m.get("name")) for m in entries if (m.get("parameters") or {}).get("pool") == "online"}
    return [n for n in names if n in online or n in run.manifest.get("learners", [])]
