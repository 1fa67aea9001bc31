"""The block matrix: what the tokens of each segment attend to, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvattn.plots.scales import mass_scale
from kvattn.plots.theme import NEUTRAL, dress, inert


def block_matrix(matrix: np.ndarray, names: Sequence[str], expected: np.ndarray | None = None) -> go.Figure:
    """Rows are the segments whose tokens look, columns those looked at; a row sums to one.

    matrix:   [segments, segments]; rows of NaN (kept tokens, which look at nothing) are marked
    names:    of the segments
    expected: the same for a head that attends evenly to all it may see, drawn beside it
    """
    import pandas as pd

    kept: np.ndarray = np.all(np.isnan(np.asarray(matrix, dtype=float)), axis=1)
    empty: np.ndarray = np.zeros_like(kept) if expected is None else np.all(np.isnan(expected), axis=1)
    panels = [("this head", matrix)]
    if expected is not None:
        panels.append(("even attention", np.where(kept[:, None], np.nan, expected)))
    fig = make_subplots(1, len(panels), subplot_titles=[p[0] for p in panels], horizontal_spacing=0.16)
    labels = [inert(n, 24) for n in names]
    at = list(range(len(names)))
    for c, (_, values) in enumerate(panels, 1):
        z = np.round(np.asarray(values, dtype=float), 5)
        fig.add_trace(
            go.Heatmap(
                z=z,
                coloraxis="coloraxis",
                hoverongaps=False,
                customdata=[[f"{a} to {b}" for b in labels] for a in labels],
                hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
            ),
            row=1,
            col=c,
        )
        for row in np.flatnonzero(kept):
            fig.add_annotation(
                text="no tokens" if empty[row] else "kept: no queries",
                x=(len(names) - 1) / 2,
                y=int(row),
                showarrow=False,
                font={"size": 10, "color": NEUTRAL},
                row=1,
                col=c,
            )
    size = 110 + 26 * len(names)
    dress(fig, height=max(360, size), width=min(1100, 120 + 34 * len(names) * len(panels)))
    values: Any = pd.Series(np.concatenate([np.ravel(v) for _, v in panels]).astype(float))
    fig.update_layout(coloraxis=mass_scale(values, None, "share of the row"), margin={"t": 50, "b": 90, "l": 100})
    fig.update_xaxes(tickvals=at, ticktext=labels, tickangle=-45, showgrid=False, ticks="")
    fig.update_yaxes(tickvals=at, ticktext=labels, autorange="reversed", showgrid=False, ticks="")
    fig.update_yaxes(title_text="tokens of", col=1)
    return fig
