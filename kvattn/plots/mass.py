"""Figures of slot mass: heatmaps over layers and heads, and dilution over slots and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.scales import as_factors, change_scale, factor_axis, mass_scale
from kvattn.plots.theme import (
    NEUTRAL,
    curve,
    dress,
    inert,
    method_style,
    multiples,
    panels,
    series_style,
    slot_axis,
    slot_colour,
)
from kvattn.stats.slot_views import Sinks, View, view_name


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
    many = len(slots) > 8  # too many for more than a number over each
    headings = [f"{s}" if many and i else f"slot {s}" for i, s in enumerate(slots)]
    headings = headings if len(slots) > 1 or len(methods) > 1 else []
    inner = len(methods) * cell + (len(methods) - 1) * gap
    fig = panels(
        rows=len(methods),
        columns=len(slots),
        vertical_spacing=gap / inner if len(methods) > 1 else 0,
        horizontal_spacing=0.014,
        column_titles=headings or None,
    )
    fig.update_annotations(font={"size": 13}, yshift=17)
    cells = {
        key: part.pivot(index="head", columns="layer", values="value")
        for key, part in table.groupby(["method", "slot"])
    }
    for r, method in enumerate(methods, 1):
        for c, slot in enumerate(slots, 1):
            part = cells.get((method, slot), pd.DataFrame()).reindex(index=range(heads), columns=range(layers))
            panel = _heads_by_layers(part.to_numpy(dtype=float), f"{inert(method)}, slot {slot}", change)
            fig.add_trace(panel, row=r, col=c)
        first = f"y{(r - 1) * len(slots) + 1 if r > 1 else ''} domain"  # its name stands over its left end
        place = {"xref": "paper", "yref": first, "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "yshift": 1}
        fig.add_annotation(text=inert(method, 40), showarrow=False, font={"size": 12}, **place)
    dress(fig, title, height=inner + 130, width=max(420, 60 + 260 * len(slots)))
    fig.update_layout(
        coloraxis=change_scale(table["value"], limit) if change else mass_scale(table["value"], limit, unit),
        margin={"t": 84 if title else 52, "b": 46, "l": 52},
    )
    fig.update_xaxes(showgrid=False, showline=False, ticks="", nticks=3 if many else 6, tickangle=0)
    fig.update_yaxes(showgrid=False, showline=False, ticks="", nticks=4, autorange="reversed")
    fig.update_xaxes(title_text="layer", row=len(methods), col=len(slots) // 2 if many else None)
    fig.update_yaxes(title_text="head", col=1)
    return fig


def _heads_by_layers(z: np.ndarray, name: str, change: bool) -> go.Heatmap:
    """One panel of [heads, layers]; `name` is trusted text."""
    value = "factor %{customdata:.3g}" if change else "%{z:.4g}"
    return go.Heatmap(
        z=np.round(z, 5),
        customdata=np.round(np.exp(z), 4) if change else None,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"{name}<br>layer %{{x}}, head %{{y}}<br>{value}<extra></extra>",
    )


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
        table = as_factors(table)
    spread = 0.05 * (np.arange(len(methods)) - (len(methods) - 1) / 2)
    for shift, method in zip(spread, methods, strict=True):
        part = table[table["method"] == method].sort_values("slot")
        hover = ", slot %{customdata}<br>%{y:.4g}"
        curve(fig, part, "slot", "value", method, method_style(method), hover, shift, customdata=part["slot"])
    if slots and (change or view == "among"):
        fig.add_hline(y=1 if change else 1 / len(slots), line={"color": NEUTRAL, "dash": "dot", "width": 1})
    fig.update_xaxes(title_text="slot", **slot_axis(slots))
    if change:
        text = "slot mass over dense's" + (", sinks taken out" if sinks == "out" else "")
        fig.update_yaxes(title_text=text, **factor_axis(table))
    else:
        fig.update_yaxes(title_text=view_name(view, sinks), rangemode="tozero", exponentformat="none")
    return fig


def dilution_panels(
    values: pd.DataFrame,
    panel: str,
    view: View = "raw",
    sinks: Sinks = "kept",
    methods: Sequence[str] | None = None,
    names: dict[Any, str] | None = None,
    over: Literal["slot", "layer"] = "slot",
) -> go.Figure:
    """How much of the decision row falls on each slot, a panel for each value of the column `panel`, a line a method:
    over slots with marks and whiskers, over layers with bands.

    values: columns method, slot (from 1), value, `panel`, and low, high for the intervals; a column layer to draw over
            layers, `panel` then being "slot"
    names:  what a panel is called, by value; shown inert
    """
    table: Any = values
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    few = over == "slot"
    titles = {v: inert((names or {}).get(v, f"{panel} {v}"), 40) for v in sorted(table[panel].unique())}
    fig, places = multiples(list(titles.values()), gap=0.22 if few else 0.14)
    for method in methods:
        for i, ((value, title), where) in enumerate(zip(titles.items(), places, strict=True)):
            part = table[(table["method"] == method) & (table[panel] == value)].sort_values(over)
            hover, mode = f", {title}<br>{over} %{{x}}: %{{y:.4g}}", "lines+markers" if few else "lines"
            look = {"where": where, "showlegend": i == 0, "mode": mode, "y": part["value"].round(6)}
            curve(fig, part, over, "value", method, method_style(method), hover, band=not few, **look)
    rows = max((p["row"] for p in places), default=1)
    dress(fig, height=90 + (220 if few else 250) * rows, width=1100)
    fig.update_layout(margin_t=40)
    fig.update_xaxes(title_text=over, row=rows)
    name = view_name(view, sinks)
    if few:
        fig.update_xaxes(**slot_axis(sorted(int(s) for s in table["slot"].unique()), 5))
        # One panel with two questions has an interval that would flatten all others: it leaves the figure.
        top = float(table["value"].max()) * 1.5
        top = min(top, float(table["high"].max()) * 1.05) if "high" in table and table["high"].notna().any() else top
        fig.update_yaxes(range=[0, top] if top > 0 else None)
        name = name.replace(", ", ",<br>")
    else:
        fig.update_yaxes(rangemode="tozero")
    fig.update_yaxes(title_text=name, col=1)
    return fig


def slots_by_layer(values: pd.DataFrame, name: str, shares: bool = False) -> go.Figure:
    """A panel for each value of the column `panel` (shown inert), a line a slot over the layers.

    values: columns panel, layer, slot (from 1), value
    name:   of the values, trusted; shares: they are shares, drawn as per cent
    """
    table: Any = values
    titles = list(dict.fromkeys(table["panel"]))
    fig, places = multiples([inert(t, 40) for t in titles], gap=0.2)
    for i, (title, where) in enumerate(zip(titles, places, strict=True)):
        for slot, part in table[table["panel"] == title].groupby("slot"):
            style = replace(series_style(slot - 1), colour=slot_colour(slot))
            hover = f", {inert(title, 40)}<br>layer %{{x}}: %{{y:.4g}}"
            look = {"where": where, "showlegend": i == 0, "mode": "lines", "y": part["value"].round(6)}
            curve(fig, part, "layer", "value", f"slot {slot}", style, hover, **look)
    rows = max((p["row"] for p in places), default=1)
    dress(fig, height=90 + 250 * rows, width=1100)
    fig.update_layout(margin_t=40)
    fig.update_xaxes(range=[-0.5, float(table["layer"].max()) + 0.5])
    fig.update_xaxes(title_text="layer", row=rows)
    top = 1.0 if shares else float(table["value"].max())
    fig.update_yaxes(range=[0, 1.03 * top], tickformat=".0%" if shares else None)
    fig.update_yaxes(title_text=name, col=1)
    return fig
