"""Judging from a page: the models that are offered, one problem under several methods, and the result kept as a run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from kvattn import methods as zoo
from kvattn.decision import Decision, summary
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge, load
from kvattn.questions.prompt import JudgePrompt
from kvattn.study import run_folder
from kvattn.study.decisions_file import record, slot_mass
from kvattn_app import library

READOUTS = ("label", "yesno")
_LOCK = threading.Lock()  # one model call at a time: a judge's capture is no matter for two threads


@dataclass
class Live:
    """One problem under several methods, with everything that pages draw.

    tokens, segments, rows: by method, the prompt's tokens, its segments, and the decision row [layers, heads, tokens]
    influence:              by method, (segment names, reaches, decision, what it says in words)
    plans:                  by method, its KVPlan
    matrices:               by method, its block matrix [layers, heads, segments, segments], as they are asked for
    """

    model: str
    readout: str
    prompt: JudgePrompt
    decisions: list[Decision]
    tokens: dict[str, list[str]]
    segments: dict[str, Sequence[Any]]
    rows: dict[str, np.ndarray]
    influence: dict[str, tuple[tuple[str, ...], np.ndarray, np.ndarray, str]]
    plans: dict[str, Any] = field(repr=False, default_factory=dict)
    matrices: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, dense first."""
        return [d.method for d in self.decisions]

    def heads(self) -> pd.DataFrame:
        """Slot mass: method, slot (from 1), layer, head, value."""
        parts = []
        for d in self.decisions:
            if d.mass is None:
                continue
            for slot in range(1, len(d.order) + 1):
                cells = d.mass.mass[:, :, d.mass.names.index(f"candidate:{slot}")]
                layer, head = (x.ravel() for x in np.indices(cells.shape))
                columns = {"method": d.method, "slot": slot, "layer": layer, "head": head, "value": cells.ravel()}
                parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """A row a method: choice, slot, correct, margin, coverage, cost, distribution over slots."""
        spread = [{f"slot {i + 1}": float(p) for i, p in enumerate(d.distribution)} for d in self.decisions]
        rows = [summary(d) | slots for d, slots in zip(self.decisions, spread, strict=True)]
        return pd.DataFrame(rows).rename(columns={"correct": "right"})

    def as_json(self) -> str:
        """The problem and the decisions as JSON."""
        p = self.prompt
        problem = {
            "id": p.id,
            "question": p.question,
            "template": p.template.id,
            "order": list(p.order),
            "regime": p.regime,
            "candidates": [{"id": c.id, "text": c.text, "agent": c.agent, "correct": c.correct} for c in p.candidates],
        }
        found = {"model": self.model, "readout": self.readout, "problem": problem}
        return json.dumps({**found, "decisions": [record(d) for d in self.decisions]}, ensure_ascii=True, indent=1)


@st.cache_resource(max_entries=2, show_spinner="Loading the model")
def judge(model: str, readout: str) -> Judge:
    """A loaded judge. Raises KvattnError for a model that was not offered."""
    if model not in library.models_offered():
        raise KvattnError(f"model {model!r} is not offered here; start the app with --model NAME")
    return load(model, readout=readout)


def _judge_of(model: str, readout: str, prompt: JudgePrompt) -> Judge:
    """The judge, told how the prompt's candidates were made."""
    return replace(judge(model, readout), regime=prompt.regime or "parallel")


def run(
    model: str,
    readout: str,
    prompt: JudgePrompt,
    methods: Sequence[str],
    progress: Callable[[str, int, int], None],
) -> Live:
    """Judges one prompt in its own order."""
    from kvattn.engine.capture import Wanted
    from kvattn.engine.compiler import token_texts
    from kvattn.engine.influence import explain

    chosen = zoo.parse(list(methods))
    the_judge = _judge_of(model, readout, prompt)
    runs: list[Any] = []
    if _LOCK.locked():
        progress("another judgement, which has to end first", 0, 1)
    with _LOCK:
        decisions = the_judge.judge(prompt, chosen, wanted=Wanted(rows=True), keep=runs, progress=progress)
    tokenizer = the_judge.engine.tokenizer
    live = Live(model, readout, prompt, decisions, {}, {}, {}, {})
    for d, r in zip(decisions, runs, strict=True):
        layout = r.plan.layout
        live.tokens[d.method] = token_texts(tokenizer, layout.token_ids.tolist())
        live.segments[d.method] = layout.segments
        live.rows[d.method] = r.rows()[: len(layout.decisions)].mean(0).numpy()  # as in `slot_masses`
        graph = explain(r.plan, the_judge.engine.geometry.windows)
        live.influence[d.method] = (graph.names, graph.reaches.numpy(), graph.decision.numpy(), str(graph))
        live.plans[d.method] = r.plan
    return live


def matrix(live: Live, method: str, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One head's block matrix [segments, segments] under a method, that of a head which attends evenly to all that it
    may see in this layer, and the segments' names. A method's matrices are computed once."""
    from kvattn.engine.readings import block_matrix, computed_queries, uniform_matrix

    engine = judge(live.model, live.readout).engine
    plan = live.plans[method]
    if method not in live.matrices:
        with _LOCK:
            execution = engine.execute([plan], computed_queries(plan), logits=False)[0]
        assert execution.captured is not None
        live.matrices[method] = block_matrix(execution.captured, plan.layout).numpy()
    even = uniform_matrix(plan, layer, engine.geometry.windows[layer], head).numpy()
    return live.matrices[method][layer, head], even, plan.layout.names


def moved(before: Live, after: Live) -> pd.DataFrame | None:
    """What changed between two displays of the same candidates: by method, both picks and each candidate's mass (mean
    over layers and heads) before and after. None where anything but the order differs: the problem, the model, or the
    readout."""
    judges = {(x.model, x.readout) for x in (before, after)}
    if len(judges) > 1 or before.prompt.ordered(after.prompt.order) != after.prompt:
        return None
    old = {d.method: d for d in before.decisions}
    rows = []
    for d in after.decisions:
        if d.method not in old:
            continue
        o = old[d.method]
        row: dict[str, Any] = {"method": d.method, "pick before": o.choice, "pick now": d.choice}
        row["moved"] = not after.prompt.same_content(o.choice, d.choice)
        was, now = slot_mass(o), slot_mass(d)
        for i, c in enumerate(after.prompt.candidates):
            if was is not None and now is not None:
                row[f"{c.id} before"] = was[o.order.index(i)]
                row[f"{c.id} now"] = now[d.order.index(i)]
        rows.append(row)
    return pd.DataFrame(rows)


def save(live: Live, name: str) -> Path:
    """Writes what was judged as a run folder into the first folder that the app was given. Returns the folder.

    Raises KvattnError for a name that is no plain name, or is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}", name):
        raise KvattnError("a run's name is made of letters, digits, - and _")
    root = Path(library.settings()["folders"][0])
    if (root / "manifest.json").exists():
        raise KvattnError(f"{root} is itself a run; start the app with the folder above it to save runs beside it")
    if (root / name).exists():
        raise KvattnError(f"there is a run {name!r} already; choose another name")
    from kvattn.study.study import Study

    the_judge = _judge_of(live.model, live.readout, live.prompt)
    study = Study(the_judge, [live.prompt], live.methods, "fixed", source=library.LIVE)
    lengths = [len(the_judge.engine.compiler.candidate_ids(live.prompt, k)) for k in range(live.prompt.n)]
    with run_folder.RunWriter(root / name, study.manifest()) as writer:
        writer.write_unit(live.prompt.id, run_folder.question_row(live.prompt, lengths), live.decisions)
    library.find.clear()
    return root / name
