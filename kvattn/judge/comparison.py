"""One question under several methods, with everything that was captured: what `judge.compare` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy.special import softmax

from kvattn.decision import Decision, summary
from kvattn.engine.capture import Wanted
from kvattn.engine.compiler import token_texts
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.influence import Influence, explain
from kvattn.engine.plan import KVPlan
from kvattn.errors import KvattnError, unknown
from kvattn.judge import inside
from kvattn.judge.inside import Inside
from kvattn.plots import comparison
from kvattn.plots.explorer import Explorer
from kvattn.plots.text import Panel, ShadedText
from kvattn.questions.prompt import JudgePrompt


@dataclass(frozen=True)
class Comparison:
    """One question under several methods.

    engine:    the judge's
    decisions: one a method, dense first where it was asked for
    row:  by method, the decision row [layers, heads, tokens]
    kv:   by method, (keys, values), each [layers, kv heads, tokens, dim]
    """

    engine: Engine
    prompt: JudgePrompt
    decisions: list[Decision]
    runs: list[Execution]
    _looked: dict[str, Inside] = field(default_factory=dict, repr=False, compare=False)
    _rows: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def row(self) -> dict[str, torch.Tensor]:
        """By method, the decision row [layers, heads, tokens]: the mean over branches, where every slot has one."""
        runs = zip(self.decisions, self.runs, strict=True)
        return {d.method: r.rows()[: len(r.plan.layout.deciding)].mean(0) for d, r in runs}

    @property
    def kv(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By method, the judge's cache: keys and values [layers, kv heads, tokens, dim]."""
        return {d.method: r.cache() for d, r in zip(self.decisions, self.runs, strict=True)}

    def tokens(self, method: str = "dense") -> list[str]:
        """The prompt's tokens as text, one a position of the row."""
        return token_texts(self.engine.tokenizer, self.plan(method).layout.token_ids.tolist())

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, dense first where it was asked for."""
        return [d.method for d in self.decisions]

    def plan(self, method: str) -> KVPlan:
        """How a method built the cache. Raises KvattnError for a method that is not there."""
        return self.runs[self._at(method)].plan

    def _at(self, method: str) -> int:
        if method not in self.methods:
            raise unknown("method of this comparison", method, self.methods)
        return self.methods.index(method)

    def table(self) -> pd.DataFrame:
        """A pandas DataFrame, one row a method: choice, slot, distribution over slots, coverage, share of dense's
        token-layers, slot mass."""
        rows = []
        for d in self.decisions:
            row = {k: round(v, 3) if isinstance(v, float) else v for k, v in summary(d).items()}
            row |= {f"p{i + 1}": round(float(p), 3) for i, p in enumerate(d.distribution)}
            if d.mass is not None:
                means = d.mass.mass.mean((0, 1))
                row |= {
                    f"mass{i + 1}": round(float(means[d.mass.names.index(f"candidate:{i + 1}")]), 4)
                    for i in range(d.mass.slots)
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def text(
        self,
        *methods: str,
        difference: bool = False,
        layer: int | None = None,
        head: int | None = None,
        heads: Sequence[tuple[int, int]] = (),
        token: int | None = None,
    ) -> ShadedText:
        """The prompt as each of the methods (default: all) sees it, token by token, shaded by the decision row; a
        notebook shows it, `.save("prompt.svg")` writes it.

        difference: a further panel, the last method's row less the first's
        layer:      of this layer alone, else the mean over all
        head:       of this head alone, else the mean over all
        heads:      the mean over these (layer, head), such as the first of `.heads()`, in the place of layer and head
        token:      the row of this token of the prompt (from 0), which the methods have to compute, else of the one
                    that decides

        Raises KvattnError for a method, layer, head or token that is not there, and for a difference of methods whose
        prompts have other tokens (null edits).
        """
        panels = []
        for method in methods or self.methods:
            row = self._row(method, token)
            if heads:
                row = torch.stack([_of(_of(row, h, "head", 1), x, "layer", 0) for x, h in heads]).mean(0)
            else:
                row = _of(_of(row, head, "head", 1), layer, "layer", 0)
            panels.append(self._panel(method, row))
        if difference:
            panels.append(panels[-1].less(panels[0]))
        return ShadedText(tuple(panels))

    def _panel(self, method: str, row: torch.Tensor) -> Panel:
        plan = self.plan(method)
        kept = (plan.depth < plan.layers).numpy()
        said = self._said(self.decisions[self._at(method)])
        return Panel(said, self.tokens(method), row.numpy(), plan.layout.segments, kept)

    def _row(self, method: str, token: int | None = None) -> torch.Tensor:
        """A token's row [layers, heads, tokens], computed when it is first asked for."""
        if token is None or (plan := self.plan(method)).layout.decisions == (token,):
            self._at(method)
            return self.row[method]
        if (method, token) not in self._rows:
            run = self.engine.execute([plan], Wanted(queries=(token,), rows=True), logits=False)[0]
            self._rows[method, token] = run.rows()[0]
        return self._rows[method, token]

    def heads(self, method: str | None = None, base: str = "dense", cut: int = 0) -> pd.DataFrame:
        """What each head does under a method (default: the first that picks another slot than `base`), beside `base`:
        a pandas DataFrame with a row a head, those first whose attention to a candidate changes most.

        where, layer, head: which head, counted from 0
        slot:      the slot (from 1) whose candidate gains or loses most of the head's attention
        mass_base, mass, change: the deciding token's attention to that candidate, and how far it changes: shares of the
                   row
        norm_base, norm: length of what the head moves from that candidate (attention x V x W_O)
        written_base, written: what the head writes straight into the score of the method's pick, less that of base's
                   pick (of the runner-up, where both pick one slot), in nats; NaN where heads do not write one by one
        cut:       what that lead loses or gains when the head brings the deciding token nothing, for the first `cut`
                   heads, one at a time; NaN for others

        Raises KvattnError for a method that is not there, one candidate alone, and written verdicts.
        """
        method = method or self._telling(base)
        slots = self._between(base, method)
        return inside.heads(self.engine, self._look(base), self._look(method), slots, cut)

    def lens(self, *methods: str) -> pd.DataFrame:
        """In which layer picks come about: the logit lens at the deciding token under the methods (default: all), a
        pandas DataFrame: method, layer (0: before the first), slot (from 1), score, probability over slots, and whether
        the slot is ahead."""
        parts = []
        for method in methods or self.methods:
            scores = self._look(method).scores
            layer, slot = (x.ravel() for x in np.indices(scores.shape))
            columns = {"layer": layer, "slot": slot + 1, "score": scores.ravel()}
            columns |= {"probability": softmax(scores, 1).ravel()}
            columns |= {"ahead": (scores == scores.max(1, keepdims=True)).ravel()}
            parts.append(pd.DataFrame({"method": method, **columns}))
        return pd.concat(parts, ignore_index=True)

    def drift(self, method: str | None = None, base: str = "dense") -> pd.DataFrame:
        """How far a method's keys and values of the candidates are from `base`'s, layer by layer: a pandas DataFrame:
        layer (from 0), slot (from 1), keys, values, as shares of base's norm. Raises KvattnError for prompts with other
        tokens."""
        return inside.drift(self._look(base), self._look(method or self._telling(base)))

    def influence(self, method: str | None = None) -> Influence:
        """Which segment's text can change what, under a method's plan; exact for any weights. It prints in words."""
        return explain(self.plan(method or self._telling(self.methods[0])), self.engine.geometry.windows)

    def explore(self, *methods: str, base: str = "dense") -> Explorer:
        """The prompt under `base`, under a method and in their difference, to look through layer by layer and head by
        head: a notebook shows it, `.save("page.html")` writes it. Methods: default all others of the same tokens."""
        self._at(base)
        chosen = methods or tuple(m for m in self.methods if m != base and self.tokens(m) == self.tokens(base))
        return Explorer(tuple(self._panel(m, self._row(m)) for m in dict.fromkeys((base, *chosen))))

    def _look(self, method: str) -> Inside:
        if method not in self._looked:
            self._looked[method] = inside.look(self.engine, self.plan(method))
        return self._looked[method]

    def _telling(self, base: str) -> str:
        """The first method that picks another slot than `base`, else the first other one."""
        first, *rest = sorted(self.decisions, key=lambda d: d.method != base)
        if first.method != base or not rest:
            raise KvattnError(f"nothing to compare: this comparison has {', '.join(self.methods)}")
        return next((d for d in rest if d.slot != first.slot), rest[0]).method

    def _between(self, base: str, method: str) -> tuple[int, int]:
        """Slots from 0: base's pick, and the method's or, where it is the same, the method's runner-up."""
        before, after = self.decisions[self._at(base)], self.decisions[self._at(method)]
        if len(after.scores) < 2 or before.slot is None or after.slot is None:
            raise KvattnError("heads are compared between two slots: there is one candidate, or no pick")
        ranked = [int(s) for s in np.argsort(-after.scores, kind="stable") if s != before.slot]
        return before.slot, after.slot if after.slot != before.slot else ranked[0]

    def _said(self, d: Decision) -> str:
        """What a method decides, in words."""
        if d.slot is None:
            return f"{d.method}: picks none"
        first = self.decisions[0]
        sure = f" (p {d.distribution[d.slot]:.2f})" if len(d.distribution) else ""
        flipped = first.method == "dense" and first.slot not in (None, d.slot)
        return f"{d.method}: picks {d.slot + 1}{sure}" + (f", dense {int(first.slot or 0) + 1}" if flipped else "")

    def __repr__(self) -> str:
        return "\n".join([f"Comparison of {len(self.decisions)} methods", *map(self._said, self.decisions)])

    def _repr_html_(self) -> str:
        """Choices, and the prompt under the first method and the first that picks otherwise."""
        first, *rest = self.decisions
        other = next((d for d in rest if d.slot != first.slot), rest[0] if rest else first)
        shown = dict.fromkeys([first.method, other.method])
        return self.table().to_html(index=False, border=0, na_rep="") + self.text(*shown)._repr_html_()

    def plot(self) -> go.Figure:
        """A plotly figure: slot distribution and slot mass of every method."""
        return comparison(self.decisions)


def _of(row: torch.Tensor, index: int | None, what: str, dim: int) -> torch.Tensor:
    """One entry of a dimension, or the mean over it."""
    if index is None:
        return row.mean(dim)
    if not 0 <= index < row.shape[dim]:
        raise KvattnError(f"there is no {what} {index}: the judge has {what}s 0 to {row.shape[dim] - 1}")
    return row.select(dim, index)
