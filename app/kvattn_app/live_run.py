"""Judging from a page: the models that are offered, one problem under several methods, and the result kept as a run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kvattn.decision import Decision, summary
from kvattn.engine.influence import Influence
from kvattn.engine.plan import KVPlan
from kvattn.errors import KvattnError, unknown
from kvattn.judge import readout as readouts
from kvattn.judge.comparison import Comparison
from kvattn.judge.judge import Judge, load
from kvattn.models.pretrained import DTYPES
from kvattn.plots.text import ShadedText
from kvattn.questions.prompt import JudgePrompt
from kvattn.study import run_folder
from kvattn.study.decisions_file import record, slot_mass
from kvattn.text import Progress
from kvattn_app import library

READOUTS = ("label", "pairwise", "yesno", "score")
MOST_PERMUTED = 4  # candidates, all of whose orders are judged
_LOCK = threading.Lock()  # one model call at a time: a judge's capture is no matter for two threads


@dataclass(frozen=True)
class Who:
    """Who judges: a model, how it is loaded, and what it is asked."""

    model: str
    readout: str = "label"
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Live:
    """One problem under several methods, and what pages draw of it beside what `Comparison` holds.

    asked:    how many methods were asked for; fewer are here where somebody stopped it
    matrices: by method, its block matrix [layers, heads, segments, segments], as they are asked for
    tables:   by method, what was computed of its heads
    """

    who: Who
    comparison: Comparison
    asked: int
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def prompt(self) -> JudgePrompt:
        """What was judged."""
        return self.comparison.prompt

    @property
    def decisions(self) -> list[Decision]:
        """One a method, dense first."""
        return self.comparison.decisions

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, dense first."""
        return self.comparison.methods

    def plan(self, method: str) -> KVPlan:
        """How a method built the cache."""
        return self.comparison.plan(method)

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """By method, the decision row [layers, heads, tokens]."""
        return {method: row.numpy() for method, row in self.comparison.row.items()}

    def influence(self, method: str) -> Influence:
        """Which segment's text can change what, under a method's plan."""
        return self.comparison.influence(method)

    def heads(self) -> pd.DataFrame:
        """Slot mass: method, slot (from 1), layer, head, value."""
        parts = []
        for d in self.decisions:
            if d.mass is None:
                continue
            for slot in range(1, d.mass.slots + 1):
                cells = d.mass.mass[:, :, d.mass.names.index(f"candidate:{slot}")]
                layer, head = (x.ravel() for x in np.indices(cells.shape))
                columns = {"method": d.method, "slot": slot, "layer": layer, "head": head, "value": cells.ravel()}
                parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """A row a method: choice, slot, correct, margin, coverage, cost, distribution over slots."""
        spread = [{f"slot {i + 1}": float(p) for i, p in enumerate(d.distribution)} for d in self.decisions]
        rows = [summary(d) | slots for d, slots in zip(self.decisions, spread, strict=True)]
        out = pd.DataFrame(rows).rename(columns={"correct": "right"})
        out.insert(1, "against dense", ["", *("FLIP" if self.flips(d) else "same" for d in self.decisions[1:])])
        return out

    def flips(self, d: Decision) -> bool:
        """Whether a decision picks another text than dense."""
        return not self.prompt.same_content(self.decisions[0].choice, d.choice)

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
        found = {**asdict(self.who), "problem": problem}
        return json.dumps({**found, "decisions": [record(d) for d in self.decisions]}, ensure_ascii=True, indent=1)


def devices() -> list[str]:
    """Where a model can be loaded here: what the command line said first."""
    cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return list(dict.fromkeys([library.settings()["device"], "cpu", *cards, *apple]))


def dtypes() -> list[str]:
    """In which numbers a model can be loaded: what the command line said first."""
    return list(dict.fromkeys([library.settings()["dtype"], *DTYPES]))


@lru_cache(maxsize=2)
def _loaded(model: str, dtype: str, device: str) -> Judge:
    return load(model, dtype=dtype, device=device)


def judge(who: Who) -> Judge:
    """A judge, loaded once. Raises KvattnError for a model or a device that was not offered."""
    if who.model not in library.models_offered():
        raise KvattnError(f"model {who.model!r} is not offered here; start the app with --model NAME")
    if who.device not in devices():
        raise unknown("device", who.device, devices())
    return replace(_loaded(who.model, who.dtype, who.device), readout=readouts.get(who.readout))


def _judge_of(who: Who, prompt: JudgePrompt) -> Judge:
    """The judge, told how the prompt's candidates were made."""
    return replace(judge(who), regime=prompt.regime or "parallel")


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """Waits until nobody else judges, and says so, so that waiting can be stopped."""
    while not _LOCK.acquire(timeout=0.2):
        progress("Waiting for another judgement, which has to end first", 0, 1)
    try:
        yield
    finally:
        _LOCK.release()


def run(who: Who, prompt: JudgePrompt, methods: Sequence[str], progress: Progress) -> Live:
    """Judges one prompt in its own order."""

    def said(method: str, i: int, n: int) -> None:
        progress(f"Judging with {method}, {i + 1} of {n}", i, n)

    with _alone(progress):
        the_judge = _judge_of(who, prompt)
        found = the_judge.compare(prompt, methods=list(methods), keep_cache=False, progress=said)
    return Live(who, found, len(set(methods)))


def orders(live: Live, progress: Progress) -> pd.DataFrame:
    """What the methods pick of a problem in every order of up to four candidates, in every rotation of more: order, and
    a column a method with the candidate (from 1), the slot after it."""
    n = live.prompt.n
    asked = list(permutations(range(n))) if n <= MOST_PERMUTED else [(*range(k, n), *range(k)) for k in range(n)]
    the_judge = _judge_of(live.who, live.prompt)

    def said(method: str, i: int, n: int) -> None:
        progress(f"Judging {len(asked)} orders with {method}, {i + 1} of {n}", i, n)

    with _alone(progress):
        found = the_judge.judge(live.prompt, live.methods, asked, capture=False, progress=said)
    rows = []
    for k, order in enumerate(asked):
        row = {"order": " ".join(str(i + 1) for i in order)}
        for m, method in enumerate(live.methods[: len(found) // len(asked)]):
            d = found[m * len(asked) + k]
            row[method] = "none" if d.slot is None else f"candidate {order[d.slot] + 1} (slot {d.slot + 1})"
        rows.append(row)
    return pd.DataFrame(rows)


def matrix(live: Live, method: str, layer: int, head: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """One head's block matrix [segments, segments] under a method, that of a head which attends evenly to all that it
    may see in this layer, and the segments' names. A method's matrices are computed once."""
    from kvattn.engine.readings import block_matrix, computed_queries, uniform_matrix

    engine = live.comparison.engine
    plan = live.plan(method)
    if method not in live.matrices:
        with _LOCK:
            execution = engine.execute([plan], computed_queries(plan), logits=False)[0]
        assert execution.captured is not None
        live.matrices[method] = block_matrix(execution.captured, plan.layout).numpy()
    even = uniform_matrix(plan, layer, engine.geometry.windows[layer], head).numpy()
    return live.matrices[method][layer, head], even, plan.layout.names


def heads(live: Live, method: str, cut: int = 0) -> pd.DataFrame:
    """`Comparison.heads` of a method beside dense, the first `cut` cut; computed once."""
    found = live.tables.get(method)
    if found is None or (cut and "cut" not in found):
        with _LOCK:
            found = live.tables[method] = live.comparison.heads(method, live.methods[0], cut)
    return found if cut else found.drop(columns="cut", errors="ignore")


def layers(live: Live, method: str) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """`Comparison.lens`, and `Comparison.drift` of a method from dense; None where it has none to speak of."""
    base = live.methods[0]
    with _LOCK:
        read = live.comparison.lens(*dict.fromkeys((base, method)))
        same = method != base and live.comparison.tokens(method) == live.comparison.tokens(base)
        return read, live.comparison.drift(method, base) if same else None


def text(live: Live, methods: Sequence[str], **how: Any) -> ShadedText:
    """`Comparison.text`."""
    with _LOCK:
        return live.comparison.text(*methods, **how)


def moved(before: Live, after: Live) -> pd.DataFrame | None:
    """What changed between two displays of the same candidates: by method, both picks and each candidate's mass (mean
    over layers and heads) before and after. None where anything but the order differs: the problem, the model, or the
    readout."""
    if before.who != after.who or before.prompt.ordered(after.prompt.order) != after.prompt:
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

    the_judge = _judge_of(live.who, live.prompt)
    study = Study(the_judge, [live.prompt], live.methods, "fixed", source=library.LIVE)
    lengths = [len(the_judge.engine.compiler.candidate_ids(live.prompt, k)) for k in range(live.prompt.n)]
    with run_folder.RunWriter(root / name, study.manifest()) as writer:
        writer.write_unit(
            live.prompt.id, run_folder.question_row(live.prompt, lengths, live.who.readout), live.decisions
        )
    library.find.clear()
    return root / name
