"""Forest plots: a line a row, marks with intervals, and strokes for what they are read against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.theme import ALARM, NEUTRAL, inert, panels, whiskers


def forest(
    marks: pd.DataFrame,
    ticks: pd.DataFrame | None = None,
    rows: Sequence[str] = (),
    tick_label: str = "by chance",
    tick_colour: str = ALARM,
    size: int = 9,
) -> go.Figure:
    """A panel for every value of the column `panel`, a line for every row; the marks of a row's series stand side by
    side. The caller gives axes their range and the figure its look.

    marks:       columns row, series, value, and any of panel, low, high (of the whiskers), colour, symbol, legend (the
                 series' colour there; by default that of its first mark)
    ticks:       columns row, value, and any of panel, and series: beside that series' marks, else across the row
    rows:        those that come first, from the top; the others follow as they first appear
    tick_colour: of the ticks
    size:        of a mark
    """
    table: Any = _complete(marks, panel="", colour=NEUTRAL, symbol="circle")
    table = _complete(table, legend=table["colour"])
    strokes: Any = None if ticks is None else _complete(ticks, panel="", series=None).dropna(subset=["value"])
    names, series = (list(dict.fromkeys(table[c])) for c in ("panel", "series"))
    present = list(dict.fromkeys(table["row"]))
    rows = [r for r in rows if r in present] + [r for r in present if r not in rows]
    at = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    step = min(0.22, 0.56 / max(1, len(series) - 1))
    shift = {s: step * ((len(series) - 1) / 2 - k) for k, s in enumerate(series)}
    titles = [inert(n) for n in names] if any(names) else None
    fig = panels(1, max(1, len(names)), subplot_titles=titles, horizontal_spacing=0.03, shared_xaxes=False)
    for col, name in enumerate(names, 1):
        where: dict[str, Any] = {"row": 1, "col": col}
        for s in series:
            part = table[(table["panel"] == name) & (table["series"] == s) & table["value"].notna()]
            fig.add_scatter(
                x=part["value"],
                y=part["row"].map(at).astype(float) + shift[s],  # no text, where there are none
                name=inert(s, 44),
                legendgroup=s,
                showlegend=False,
                mode="markers",
                marker={"symbol": part["symbol"], "size": size, "color": part["colour"]},
                error_x=whiskers(part, "value", width=2, color=NEUTRAL),
                customdata=[inert(r) for r in part["row"]],
                hovertemplate=f"%{{customdata}}<br>{inert(s)}: %{{x:.3f}}<extra></extra>",
                **where,
            )
        if strokes is not None and len(strokes):
            part = strokes[strokes["panel"] == name]
            fig.add_scatter(
                x=part["value"],
                y=part["row"].map(at).astype(float) + part["series"].map(shift).fillna(0.0),
                name=inert(tick_label),
                legendgroup="tick",
                showlegend=col == 1,
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 14, "color": tick_colour, "line": {"width": 2}},
                customdata=[inert(r) for r in part["row"]],
                hovertemplate=f"%{{customdata}}<br>{inert(tick_label)}: %{{x:.3f}}<extra></extra>",
                **where,
            )
    for s in series:  # a mark of its own, since those of the series may have many colours
        first = table[table["series"] == s].iloc[0]
        mark = {"symbol": first["symbol"], "size": size, "color": first["legend"]}
        fig.add_scatter(x=[None], y=[None], name=inert(s, 44), legendgroup=s, mode="markers", marker=mark)
    labels = [inert(r, 44) for r in rows]
    fig.update_yaxes(tickvals=list(at.values()), ticktext=labels, range=[-0.6, len(rows) - 0.4], ticks="")
    return fig


def _complete(table: pd.DataFrame, **defaults: Any) -> pd.DataFrame:
    return table.assign(**{k: v for k, v in defaults.items() if k not in table.columns})
