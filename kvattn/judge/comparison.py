"""One question under several methods, with everything that was captured: what `judge.compare` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch

from kvattn.decision import Decision, summary
from kvattn.engine.compiler import token_texts
from kvattn.engine.execution import Execution
from kvattn.errors import KvattnError, unknown
from kvattn.plots import comparison
from kvattn.plots.text import Panel, ShadedText
from kvattn.questions.prompt import JudgePrompt


@dataclass(frozen=True)
class Comparison:
    """One question under several methods.

    tokenizer: the judge's
    decisions: one a method, dense first where it was asked for
    row:  by method, the decision row [layers, heads, tokens]
    kv:   by method, (keys, values), each [layers, kv heads, tokens, dim]
    """

    tokenizer: Any
    prompt: JudgePrompt
    decisions: list[Decision]
    runs: list[Execution]

    @property
    def row(self) -> dict[str, torch.Tensor]:
        """By method, the decision row [layers, heads, tokens]: the mean over branches, where every slot has one."""
        runs = zip(self.decisions, self.runs, strict=True)
        return {d.method: r.rows()[: len(r.plan.layout.decisions)].mean(0) for d, r in runs}

    @property
    def kv(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """By method, the judge's cache: keys and values [layers, kv heads, tokens, dim]."""
        return {d.method: r.cache() for d, r in zip(self.decisions, self.runs, strict=True)}

    def tokens(self, method: str = "dense") -> list[str]:
        """The prompt's tokens as text, one a position of the row."""
        run = self.runs[[d.method for d in self.decisions].index(method)]
        return token_texts(self.tokenizer, run.plan.layout.token_ids.tolist())

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
                    for i in range(len(d.scores))
                }
            rows.append(row)
        return pd.DataFrame(rows)

    def text(
        self, *methods: str, difference: bool = False, layer: int | None = None, head: int | None = None
    ) -> ShadedText:
        """The prompt as each of the methods (default: all) sees it, token by token, shaded by the decision row; a
        notebook shows it, `.save("prompt.svg")` writes it.

        difference: a further panel, the last method's row less the first's
        layer:      of this layer alone, else the mean over all
        head:       of this head alone, else the mean over all

        Raises KvattnError for a method, layer or head that is not there, and for a difference of methods whose prompts
        have other tokens (null edits).
        """
        known = [d.method for d in self.decisions]
        panels = []
        for method in methods or known:
            if method not in known:
                raise unknown("method of this comparison", method, known)
            d, run = self.decisions[known.index(method)], self.runs[known.index(method)]
            kept = (run.plan.depth < run.plan.layers).numpy()
            row = _of(_of(self.row[method], head, "head", 1), layer, "layer", 0).numpy()
            panels.append(Panel(self._said(d), self.tokens(method), row, run.plan.layout.segments, kept))
        if difference:
            panels.append(panels[-1].less(panels[0]))
        return ShadedText(tuple(panels))

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
        return self.table().to_html(index=False, border=0, na_rep="") + self.text(*shown).svg()

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
