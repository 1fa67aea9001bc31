"""Figures of slot mass: heatmaps over layers and heads, and dilution over slots and layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.theme import (
    DIVERGING,
    NEUTRAL,
    SEQUENTIAL,
    dress,
    inert,
    method_style,
    panels,
    ribbon,
    whiskers,
)
from kvattn.stats.slot_views import Sinks, View, view_name

# log mass changes are drawn as factors; these are the ticks that read well.
_FACTORS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 3.0, 5.0, 10.0, 20.0, 100.0, 1000.0)


def slot_mass_heatmap(mass: np.ndarray, title: str = "", change: bool = False, limit: float | None = None) -> go.Figure:
    """Slot mass of one slot and method, heads down and layers across.

    mass:   [layers, heads], shares of the row; with `change`, differences of natural log mass (0: as in dense)
    title:  shown as it is, inert
    limit:  end of the colour scale, for scales shared between figures
    """
    frame = pd.DataFrame(
        {
            "method": "",
            "slot": 1,
            "layer": np.repeat(np.arange(mass.shape[0]), mass.shape[1]),
            "head": np.tile(np.arange(mass.shape[1]), mass.shape[0]),
            "value": np.asarray(mass, dtype=float).ravel(),
        }
    )
    fig = slot_mass_grid(frame, change=change, limit=limit, title=inert(title) if title else "")
    fig.update_layout(height=max(260, 130 + 18 * mass.shape[1]), width=700)
    return fig


def slot_mass_grid(
    values: pd.DataFrame,
    methods: Sequence[str] | None = None,
    change: bool = False,
    limit: float | None = None,
    title: str = "",
    unit: str = "share of the row",
) -> go.Figure:
    """Small multiples over methods (down) and slots (across), each heads by layers, with one colour scale.

    values:  columns method, slot (from 1), layer, head, value; missing cells stay empty
    methods: which, and in which order (default: as they come)
    change:  values are differences of natural log mass: a diverging scale centred at 0, read as factors
    """
    table: Any = values
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    slots = sorted(int(s) for s in table["slot"].unique())
    layers, heads = int(table["layer"].max()) + 1, int(table["head"].max()) + 1
    cell, gap = int(np.clip(heads * 11, 80, 240)), 26
    headings = [f"slot {s}" for s in slots] if len(slots) > 1 or len(methods) > 1 else []
    inner = len(methods) * cell + (len(methods) - 1) * gap
    fig = panels(
        rows=len(methods),
        columns=len(slots),
        vertical_spacing=gap / inner if len(methods) > 1 else 0,
        horizontal_spacing=0.014,
        column_titles=headings or None,
    )
    cells = {
        key: part.pivot(index="head", columns="layer", values="value")
        .reindex(index=range(heads), columns=range(layers))
        .to_numpy()
        for key, part in table.groupby(["method", "slot"])
    }
    for r, method in enumerate(methods, 1):
        for c, slot in enumerate(slots, 1):
            z = cells.get((method, slot))
            z = np.full((heads, layers), np.nan) if z is None else z
            value = "factor %{customdata:.3g}" if change else "%{z:.4g}"
            fig.add_trace(
                go.Heatmap(
                    z=np.round(z, 5),
                    customdata=np.round(np.exp(z), 4) if change else None,
                    coloraxis="coloraxis",
                    hoverongaps=False,
                    hovertemplate=f"{inert(method)}, slot {slot}<br>"
                    f"layer %{{x}}, head %{{y}}<br>{value}<extra></extra>",
                ),
                row=r,
                col=c,
            )
        fig.add_annotation(
            text=inert(method, 40),
            xref="paper",
            yref=f"y{(r - 1) * len(slots) + 1 if r > 1 else ''} domain",
            x=0,
            y=1,
            xanchor="left",
            yanchor="bottom",
            yshift=1,
            showarrow=False,
            font={"size": 12},
        )
    fig.for_each_annotation(lambda a: a.update(font={"size": 13}, yshift=17) if a.text in headings else None)
    dress(fig, title, height=inner + 130, width=max(420, 60 + 260 * len(slots)))
    fig.update_layout(
        coloraxis=_change_scale(table["value"], limit) if change else _mass_scale(table["value"], limit, unit),
        margin={"t": 84 if title else 52, "b": 46, "l": 52},
    )
    fig.update_xaxes(showgrid=False, showline=False, ticks="", nticks=6)
    fig.update_yaxes(showgrid=False, showline=False, ticks="", nticks=4, autorange="reversed")
    for c in range(1, len(slots) + 1):
        fig.update_xaxes(title_text="layer", row=len(methods), col=c)
    fig.update_yaxes(title_text="head", col=1)
    return fig


def _mass_scale(values: Any, limit: float | None, unit: str) -> dict:
    # The 99.5th percentile: one head that looks at nothing else must not bleach all others.
    top = limit if limit is not None else float(np.nanquantile(values, 0.995)) if values.notna().any() else 1.0
    return {
        "colorscale": SEQUENTIAL,
        "cmin": 0,
        "cmax": top or 1.0,
        "colorbar": {
            "title": {"text": unit, "side": "right", "font": {"size": 13}},
            "thickness": 12,
            "outlinewidth": 0,
            "len": 1,
            "y": 0.5,
        },
    }


def _apart(factors: Sequence[float], least: float) -> list[float]:
    """The factors, from 1 outwards, whose logarithms stand at least so far apart that their names do not overlap."""
    kept = [1.0]
    for side in (1, -1):
        last = 0.0
        for f in sorted((f for f in factors if np.log(f) * side > 0), key=lambda f: abs(np.log(f))):
            if abs(np.log(f)) - last >= least:
                kept.append(f)
                last = abs(np.log(f))
    return sorted(kept)


def _change_scale(values: Any, limit: float | None) -> dict:
    end = limit if limit is not None else float(np.nanquantile(values.abs(), 0.99)) if values.notna().any() else 0.0
    end = max(end, 0.05)
    ticks = _apart([f for f in _FACTORS if abs(np.log(f)) <= end * 1.001], end / 7)
    ticks = ticks if len(ticks) > 2 else [float(np.exp(-end)), 1.0, float(np.exp(end))]
    return {
        "colorscale": DIVERGING,
        "cmin": -end,
        "cmax": end,
        "cmid": 0,
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "len": 1,
            "y": 0.5,
            "title": {"text": "slot mass over dense's", "side": "right", "font": {"size": 13}},
            "tickvals": [float(np.log(f)) for f in ticks],
            "ticktext": [f"×{f:.2g}" for f in ticks],
        },
    }


def factor_axis(values: Any) -> dict[str, Any]:
    """Layout of a logarithmic axis of factors: ticks that read well, as many as have room.

    values: all factors that are drawn, bounds of intervals included
    """
    logs = np.abs(np.log(np.asarray(values, dtype=float)))
    ticks = _apart(_FACTORS, float(np.nanmax(logs, initial=0.2)) / 7)
    return {"type": "log", "tickvals": ticks, "ticktext": [f"×{f:.2g}" for f in ticks]}


def dilution_by_slot(
    values: pd.DataFrame,
    view: View = "raw",
    sinks: Sinks = "kept",
    methods: Sequence[str] | None = None,
    change: bool = False,
) -> go.Figure:
    """How much of the decision row falls on each slot, a line a method, with intervals.

    values: columns method, slot (from 1), value, and low, high for the intervals
    change: values are differences of natural log mass, drawn as factors on dense's mass
    """
    table: Any = values
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    slots = sorted(int(s) for s in table["slot"].unique())
    fig = dress(go.Figure(), height=400)
    if change:
        table = table.assign(**{c: np.exp(table[c]) for c in ("value", "low", "high") if c in table})
    spread = 0.05 * (np.arange(len(methods)) - (len(methods) - 1) / 2)
    for shift, method in zip(spread, methods, strict=True):
        part = table[table["method"] == method].sort_values("slot")
        style = method_style(method)
        fig.add_trace(
            go.Scatter(
                x=part["slot"] + shift,
                y=part["value"],
                name=inert(method),
                mode="lines+markers",
                line={"color": style.colour, "dash": style.dash, "width": 2},
                marker={"symbol": style.symbol, "size": 9},
                error_y=whiskers(part, "value"),
                customdata=part["slot"],
                hovertemplate=f"{inert(method)}, slot %{{customdata}}<br>%{{y:.4g}}<extra></extra>",
            )
        )
    if slots and (change or view == "among"):
        fig.add_hline(y=1 if change else 1 / len(slots), line={"color": NEUTRAL, "dash": "dot", "width": 1})
    fig.update_xaxes(title_text="slot", tickvals=slots)
    if change:
        text = "slot mass over dense's" + (", sinks taken out" if sinks == "out" else "")
        drawn = table[[c for c in ("value", "low", "high") if c in table]]
        fig.update_yaxes(title_text=text, **factor_axis(drawn))
    else:
        fig.update_yaxes(title_text=view_name(view, sinks), rangemode="tozero", exponentformat="none")
    return fig


def dilution_by_layer(
    values: pd.DataFrame, view: View = "raw", sinks: Sinks = "kept", methods: Sequence[str] | None = None
) -> go.Figure:
    """How much of the decision row falls on each slot at every layer: one panel a slot, a line a method.

    values: columns method, slot (from 1), layer, value, and low, high for bands
    """
    table: Any = values
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    slots = sorted(int(s) for s in table["slot"].unique())
    columns = min(4, max(1, len(slots)))
    rows = -(-len(slots) // columns) or 1
    fig = panels(
        rows=rows,
        columns=columns,
        horizontal_spacing=0.02,
        vertical_spacing=0.14 / rows,
        subplot_titles=[f"slot {s}" for s in slots],
    )
    for method in methods:
        style = method_style(method)
        for i, slot in enumerate(slots):
            part = table[(table["method"] == method) & (table["slot"] == slot)].sort_values("layer")
            if "low" in part and part["low"].notna().any():
                band = ribbon(part["layer"], part["low"], part["high"], style.colour, method)
                fig.add_trace(band, row=i // columns + 1, col=i % columns + 1)
            fig.add_trace(
                go.Scatter(
                    x=part["layer"],
                    y=part["value"].round(6),
                    name=inert(method),
                    legendgroup=method,
                    showlegend=i == 0,
                    mode="lines",
                    line={"color": style.colour, "dash": style.dash, "width": 2},
                    hovertemplate=f"{inert(method)}, slot {slot}<br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                row=i // columns + 1,
                col=i % columns + 1,
            )
    dress(fig, height=90 + 250 * rows, width=1100)
    fig.update_layout(margin_t=40)
    fig.update_xaxes(title_text="layer", row=rows)
    fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(title_text=view_name(view, sinks), col=1)
    return fig


def dilution_panels(
    values: pd.DataFrame,
    panel: str,
    view: View = "raw",
    sinks: Sinks = "kept",
    methods: Sequence[str] | None = None,
    names: dict[Any, str] | None = None,
) -> go.Figure:
    """How much of the decision row falls on each slot, a panel for each value of the column `panel`.

    values: columns method, slot (from 1), value, `panel`, and low, high for the intervals
    names:  what a panel is called, by value; shown inert
    """
    table: Any = values
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    shown = sorted(table[panel].unique())
    slots = sorted(int(s) for s in table["slot"].unique())
    columns = min(4, max(1, len(shown)))
    rows = -(-len(shown) // columns) or 1
    titles = [inert((names or {}).get(v, f"{panel} {v}"), 40) for v in shown]
    fig = panels(rows, columns, horizontal_spacing=0.02, vertical_spacing=0.22 / rows, subplot_titles=titles)
    for method in methods:
        style = method_style(method)
        for i, value in enumerate(shown):
            part = table[(table["method"] == method) & (table[panel] == value)].sort_values("slot")
            fig.add_trace(
                go.Scatter(
                    x=part["slot"],
                    y=part["value"],
                    name=inert(method),
                    legendgroup=method,
                    showlegend=i == 0,
                    mode="lines+markers",
                    line={"color": style.colour, "dash": style.dash, "width": 2},
                    marker={"symbol": style.symbol, "size": 7},
                    error_y=whiskers(part, "value"),
                    hovertemplate=f"{inert(method)}, {titles[i]}<br>slot %{{x}}: %{{y:.4g}}<extra></extra>",
                ),
                row=i // columns + 1,
                col=i % columns + 1,
            )
    dress(fig, height=90 + 220 * rows, width=1100)
    fig.update_layout(margin_t=40)
    fig.update_xaxes(title_text="slot", row=rows)
    fig.update_xaxes(tickvals=slots)
    # One panel with two questions has an interval that would flatten all others: it leaves the figure.
    top = float(table["value"].max()) * 1.5
    top = min(top, float(table["high"].max()) * 1.05) if "high" in table and table["high"].notna().any() else top
    fig.update_yaxes(range=[0, top] if top > 0 else None)
    fig.update_yaxes(title_text=view_name(view, sinks).replace(", ", ",<br>"), col=1)
    return fig
