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
from kvattn.plots import comparison
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

    def plot(self) -> go.Figure:
        """A plotly figure: slot distribution and slot mass of every method."""
        return comparison(self.decisions)
