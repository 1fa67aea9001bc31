"""What a gate learns from: the judgements of a run as features, with the label that dense gives and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from kvattn.decision import SlotMass
from kvattn.errors import KvattnError
from kvattn.stats.frames import Question
from kvattn.stats.picks import paired
from kvattn.study.gate import signals
from kvattn.study.gate.features import Pass, Recipe, family_of, features, further_rotations, same_names
from kvattn.study.run_folder import Run
from kvattn.study.run_folder.schema import slot_mass_of

Key = tuple[str, tuple[int, ...], str]  # question, order, method


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
        index = np.arange(len(self))[rows]
        arrays = ("safe", "question", "reuse", "extra", "dense", "settled", "right", "dense_right")
        taken: dict[str, Any] = {name: getattr(self, name)[index] for name in arrays}
        return Examples(recipe=self.recipe, x=self.x.iloc[index].reset_index(drop=True), costs=self.costs, **taken)

    def without(self, family: str) -> pd.DataFrame:
        """The features without one family."""
        return self._columns([c for c in self.x.columns if family_of(c) != family])

    def only(self, family: str) -> pd.DataFrame:
        """The features of one family."""
        return self._columns([c for c in self.x.columns if family_of(c) == family])

    def _columns(self, names: list[str]) -> pd.DataFrame:
        table: Any = self.x
        return table[names]

    def cost(self, accepted: np.ndarray) -> np.ndarray:
        """[rows], token-layers with the gate, over dense's: the looked-at passes, and dense where it is fallen back to
        and was not run among them."""
        return (self.reuse + self.extra + np.where(accepted | self.settled, 0, self.dense)) / self.dense


def read_examples(run: Run, recipe: Recipe) -> Examples:
    """The examples of a run. Raises KvattnError for a method that was not run or is no cheap pass, for orders that
    votes lack, and for slot mass that was not stored."""
    questions = run.asked
    judgements: Any = run.judgements()
    _check_methods(judgements, recipe)
    frame: Any = paired(judgements, run.questions())
    frame = frame[frame["method"] == recipe.reuse]
    rows = _rows(judgements)
    masses = _masses(run, recipe) if recipe.mass else {}
    measured = signals.read(run, recipe.reuse) if recipe.deviation else {}
    passes: dict[tuple[str, tuple[int, ...], str], Pass] = {}

    def seen(q: str, order: tuple[int, ...], method: str) -> Pass:
        key = (q, order, method)
        if key not in passes:
            if key not in rows:
                raise KvattnError(
                    f"{run.folder}: {method!r} did not judge question {q!r} in order {list(order)}; votes need all "
                    "rotations of an order (kvattn judge --orders rotations)"
                )
            passes[key] = _pass(rows[key], questions[q], masses.get((q, order)) if method == recipe.reuse else None)
        return passes[key]

    made, costs = [], []
    for q, order in zip(frame["question_id"], frame["order"], strict=True):
        reuse = seen(q, order, recipe.reuse)
        probes = {p: seen(q, order, p) for p in recipe.probes}
        votes = [seen(q, o, recipe.reuse) for o in further_rotations(order, recipe.votes)]
        away = measured.get((q, order))
        if recipe.deviation and away is None:
            raise KvattnError(f"{run.folder}: no signals of question {q!r} in order {list(order)}; measure them again")
        made.append(features(questions[q], order, reuse, probes, votes, away))
        dense = rows[q, order, "dense"]["token_layers"]
        costs.append((reuse, probes, votes, dense, 0 if away is None else away["token_layers"]))
    x = pd.DataFrame(made, columns=same_names(made), dtype=float)
    dense = np.array([c[3] for c in costs], dtype=float)
    by_family = {f"probe[{p}]": np.array([c[1][p].token_layers for c in costs], dtype=float) for p in recipe.probes}
    if recipe.votes:
        by_family["votes"] = np.array([sum(v.token_layers for v in c[2]) for c in costs], dtype=float)
    if recipe.deviation:
        by_family["deviation"] = np.array([c[4] for c in costs], dtype=float)
    reuse = np.array([c[0].token_layers for c in costs], dtype=float)
    dense_correct: Any = frame["correct_ref"]
    return Examples(
        recipe=recipe,
        x=x,
        safe=frame["agree"].to_numpy(dtype=bool),
        question=frame["question_id"].to_numpy(dtype=object),
        reuse=reuse,
        extra=sum(by_family.values(), np.zeros(len(frame))),
        dense=dense,
        settled=np.array([c[0].whole or any(p.whole for p in c[1].values()) for c in costs], dtype=bool),
        right=frame["correct"].to_numpy(dtype=float),
        dense_right=dense_correct.to_numpy(dtype=float),
        costs={f: float((by_family[f] / dense).mean()) if f in by_family else 0.0 for f in recipe.families}
        | {"reuse": float((reuse / dense).mean())},
    )


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


def _rows(judgements: Any) -> dict[Key, dict[str, Any]]:
    columns = ["question_id", "order", "method", "slot", "scores", "coverage"]
    columns += ["token_layers", "probe_token_layers", "tokens", "layers"]
    found = judgements[columns].to_dict("records")
    return {(r["question_id"], tuple(int(i) for i in r["order"]), r["method"]): r for r in found}


def _pass(row: Mapping[str, Any], question: Question, mass: SlotMass | None) -> Pass:
    order, slot = [int(i) for i in row["order"]], int(row["slot"])
    return Pass(
        slot=slot,
        choice=int(question.content[order[slot]]),
        scores=np.asarray(row["scores"], dtype=float),
        coverage=float(row["coverage"]),
        token_layers=int(row["token_layers"]) + int(row["probe_token_layers"]),
        whole=int(row["token_layers"]) >= int(row["tokens"]) * int(row["layers"]),
        mass=mass,
    )


def _masses(run: Run, recipe: Recipe) -> dict[tuple[str, tuple[int, ...]], SlotMass]:
    table: Any = run.mass(method=recipe.reuse, query="last_prompt")
    if table.empty:
        raise KvattnError(f"{run.folder} holds no slot mass of {recipe.reuse!r}; fit without it (--no-mass)")
    out = {}
    for row in table.to_dict("records"):
        # The stored sink mass is dense's doing: it is left behind here.
        out[row["question_id"], tuple(map(int, row["order"]))] = replace(slot_mass_of(row), sink=None, norm=None)
    return out


def has_mass(run: Run, method: str) -> bool:
    """Whether the run stores slot mass of a method."""
    found = run.sql("SELECT count(*) AS n FROM slots WHERE method = ? AND query = 'last_prompt'", [method])
    return int(found["n"].iloc[0]) > 0


def learners(run: Run, names: Sequence[str]) -> list[str]:
    """Those of the methods that learn from question to question in this run."""
    entries = [m for m in run.manifest.get("methods", []) if isinstance(m, dict)]
    # Runs of before say it by the parameter of the methods that learned then.
    online = {str(m.get("name")) for m in entries if (m.get("parameters") or {}).get("pool") == "online"}
    return [n for n in names if n in online or n in run.manifest.get("learners", [])]
