"""Figures of what was picked: slots, consistency with dense, the ladder, shuffling, and where picks move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.forest import forest
from kvattn.plots.theme import (
    ALARM,
    NEUTRAL,
    bar_marker,
    caption,
    clear,
    curve,
    dress,
    inert,
    method_style,
    multiples,
    not_meaningful,
    percent_axis,
    slot_axis,
    slot_colour,
    whiskers,
)
from kvattn.text import missing

FADED = "#a9b0bb"


def slot_histogram(picks: pd.DataFrame, methods: Sequence[str] | None = None, base: str = "dense") -> go.Figure:
    """How often each slot is picked: one panel a method, `base`'s shares as marks in every panel.

    picks: columns method, slot (from 1, all that there are), share, uniform (the share of picks at random), and `count`
           if known
    """
    methods = list(dict.fromkeys(picks["method"])) if methods is None else list(methods)
    slots = sorted(int(s) for s in picks["slot"].unique())
    fig, places = multiples([inert(m, 34) for m in methods], gap=0.28)
    shares, counts, uniform = (_by_slot(picks, column, slots) for column in ("share", "count", "uniform"))
    others = [m for m in methods if m != base]
    for method, where in zip(methods, places, strict=True):
        n = counts.get(method)
        count = "" if n is None else " (%{customdata:.0f})"
        fig.add_bar(
            x=slots,
            y=shares.get(method, [0] * len(slots)),
            customdata=n,
            marker=bar_marker(method_style(method)),
            width=0.7,
            showlegend=False,
            hovertemplate=f"{inert(method)}, slot %{{x}}<br>%{{y:.1%}}{count}<extra></extra>",
            **where,
        )
        if base in shares and method != base:
            fig.add_scatter(
                x=slots,
                y=shares[base],
                mode="markers",
                name=f"{inert(base)}'s share",
                marker={"symbol": "line-ew", "size": 4, "line": {"width": 3, "color": NEUTRAL}},
                error_x={"type": "constant", "value": 0.45, "width": 0, "thickness": 3, "color": NEUTRAL},
                showlegend=method == others[0],
                hovertemplate=f"{inert(base)}, slot %{{x}}<br>%{{y:.1%}}<extra></extra>",
                **where,
            )
        fig.add_scatter(
            x=slots,
            y=uniform.get(method),
            mode="lines",
            name="at random",
            line={"color": NEUTRAL, "dash": "dot", "width": 1, "shape": "hvh"},
            showlegend=False,
            hovertemplate="at random, slot %{x}<br>%{y:.1%}<extra></extra>",
            **where,
        )
    dress(fig, height=80 + 205 * max((p["row"] for p in places), default=1), width=1000)
    legend = {"orientation": "h", "y": 0.99, "yref": "container", "yanchor": "top", "x": 1, "xanchor": "right"}
    legend["itemsizing"] = "constant"
    fig.update_layout(margin_t=70, legend=legend, showlegend=True)
    fig.update_xaxes(**slot_axis(slots))
    for where in places[-4:]:  # the lowest panel of each column
        fig.update_xaxes(title_text="slot", showticklabels=True, **where)
    fig.update_yaxes(tickformat=".0%", range=[0, 1])
    fig.update_yaxes(title_text="share of picks", col=1)
    return fig


def _by_slot(picks: pd.DataFrame, column: str, slots: Sequence[int]) -> dict[str, list[float]]:
    """By method, the column's value in every slot, 0 where there is none; nothing where there is no such column."""
    if column not in picks:
        return {}
    table: Any = picks.pivot_table(index="slot", columns="method", values=column)
    return {str(m): table[m].reindex(slots).fillna(0).tolist() for m in table}


def jcr_bars(
    table: pd.DataFrame, floor: tuple[float, float] | None = None, meaningless: str | None = None
) -> go.Figure:
    """Judge consistency rate by method, with intervals and chance marks.

    table:       columns method, jcr, low, high, chance (NaN where unknown), in display order from the top
    floor:       (low, high) of the JCR that dense reaches against itself under an edit that changes no meaning
    meaningless: why a JCR says nothing about this judge; everything is then drawn grey with the reason
    """
    rows: Any = table.reset_index(drop=True)
    styles = [method_style(m) for m in rows["method"]]
    colours = [FADED if meaningless else s.colour for s in styles]
    symbols = [s.symbol for s in styles]
    marks = rows.assign(row=rows["method"], series="JCR", value=rows["jcr"], colour=colours, symbol=symbols)
    ticks = marks.assign(value=rows["chance"]) if "chance" in rows else None
    label = "by chance, from how often each slot is picked"
    fig = forest(marks, ticks, tick_label=label, tick_colour=FADED if meaningless else ALARM)
    dress(fig, height=110 + 40 * len(rows) + (26 if meaningless else 0), width=900)
    if floor is not None:
        fig.add_vrect(x0=floor[0], x1=floor[1], fillcolor=NEUTRAL, opacity=0.18, line_width=0, layer="below")
        text = "floor: dense under a null edit"
        caption(fig, text, x=floor[1], y=1, yref="paper", xanchor="right", yanchor="bottom")
    for y, jcr, style, colour in zip(range(len(rows))[::-1], rows["jcr"], styles, colours, strict=True):
        look = {**bar_marker(style, colour), "opacity": 0.5}
        fig.add_bar(x=[jcr], y=[y], orientation="h", width=0.6, marker=look, hoverinfo="skip", showlegend=False)
    fig.update_traces(showlegend=False, selector={"legendgroup": "JCR"})
    fig.update_xaxes(**percent_axis("JCR: same candidate as dense, same order", 1.005))
    fig.update_yaxes(showgrid=False)
    fig.update_layout(margin_t=44, legend={"orientation": "h", "y": 1, "x": 0, "xanchor": "left", "yanchor": "bottom"})
    return not_meaningful(fig, meaningless, margin=76, shift=26)


def ladder(
    table: pd.DataFrame,
    rungs: Sequence[str],
    null: str | None = "foreign-kv",
    steps: Mapping[str, str] | None = None,
    meaningless: str | None = None,
) -> go.Figure:
    """JCR rung by rung, from the noise floor down to naive reuse: what each single change costs.

    table: columns method, jcr, low, high
    rungs: methods in order, each one change away from the one before; absent ones are left out
    null:  a method drawn as a level that says nothing is being measured, where it is in the table
    steps: by method, the change that leads to it
    """
    by_method: Any = table.set_index("method")
    shown = [m for m in rungs if m in by_method.index]
    rows = by_method.loc[shown]
    at = list(range(len(shown)))
    styles = [method_style(m) for m in shown]
    fig = dress(go.Figure(), height=430, width=900)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=rows["jcr"],
            mode="lines+markers+text",
            text=[f"{v:.0%}" for v in rows["jcr"]],
            textposition="top right",
            line={"color": NEUTRAL, "width": 1.5, "shape": "hvh"},
            marker={
                "color": [FADED if meaningless else s.colour for s in styles],
                "symbol": [s.symbol for s in styles],
                "size": 13,
                "line": {"width": 2, "color": [FADED if meaningless else s.colour for s in styles]},
            },
            error_y=whiskers(rows, "jcr", 1.4, 5, color=NEUTRAL),
            customdata=[inert(m) for m in shown],
            hovertemplate="%{customdata}<br>JCR %{y:.1%}<extra></extra>",
            cliponaxis=False,
            showlegend=False,
        )
    )
    for i, method in enumerate(shown):
        if i and steps and method in steps:
            caption(fig, inert(steps[method]), x=i - 0.5, y=0.02, xanchor="center", yanchor="bottom")
    level = by_method["jcr"].get(null)
    if null is not None and not missing(level):  # where it has no pair with dense there is no level
        style = method_style(null)
        fig.add_hline(y=level, line={"color": FADED if meaningless else style.colour, "dash": style.dash, "width": 2})
        text = f"{inert(null)} {level:.0%}: the candidates are not there to be read"
        caption(fig, text, x=0, xref="paper", y=level, xanchor="left", yanchor="bottom")
    names = [inert(m, 44).replace("(", "<br>(") for m in shown]
    fig.update_xaxes(tickvals=at, ticktext=names, range=[-0.35, len(shown) - 0.55], showgrid=False)
    fig.update_yaxes(**percent_axis("JCR", 1.08))
    return not_meaningful(fig, meaningless, margin=76, shift=26)


def shuffle(table: pd.DataFrame, methods: Sequence[str] | None = None, meaningless: str | None = None) -> go.Figure:
    """JCR by how far the display order is from the candidates' own order.

    table: columns method, distance, jcr, low, high, pairs (the number of judgements)
    """
    rows: Any = table
    methods = list(dict.fromkeys(table["method"])) if methods is None else list(methods)
    fig = dress(go.Figure(), height=400, width=900)
    distances = np.sort(rows["distance"].unique())
    step = float(np.diff(distances).min()) if len(distances) > 1 else 1.0
    spread = 0.06 * step * (np.arange(len(methods)) - (len(methods) - 1) / 2)
    for shift, method in zip(spread, methods, strict=True):
        part = rows[rows["method"] == method].sort_values("distance")
        style = method_style(method)
        style = replace(style, colour=FADED if meaningless else style.colour)
        hover = "<br>distance %{customdata[0]:.3g}: JCR %{y:.1%} of %{customdata[1]:.0f} judgements"
        seen = part[["distance", "pairs"]]
        curve(
            fig, part, "distance", "jcr", method, style, hover, shift, whisker=clear(style.colour, 0.4), customdata=seen
        )
    fig.update_xaxes(title_text="pairs of candidates shown in the other order than their own", tickvals=distances)
    fig.update_yaxes(**percent_axis("JCR", 1.05))
    return not_meaningful(fig, meaningless, margin=76, shift=26)


def flow(pairs: pd.DataFrame, method: str, base: str = "dense") -> go.Figure:
    """Where picks move: from the slot that `base` picks to the slot that `method` picks.

    pairs: columns base_slot, slot (from 1), count
    """
    slots = sorted({*map(int, pairs["base_slot"]), *map(int, pairs["slot"])})
    place = {s: i for i, s in enumerate(slots)}
    # Slots stand in their order on both sides, each as far down as the picks before it reach.
    at: list[float] = []
    labels: list[str] = []  # none at a sliver, which the threads would cross
    table: Any = pairs
    for side in ("base_slot", "slot"):
        share = table.groupby(side)["count"].sum().reindex(slots, fill_value=0) / max(1, table["count"].sum())
        at += [float(v) for v in (share.cumsum() - share / 2).clip(0.001, 0.999)]
        labels += [f"slot {slot}" if part >= 0.08 else "" for slot, part in share.items()]
    fig = go.Figure(
        go.Sankey(
            arrangement="snap",
            textfont={"shadow": "none"},
            node={
                "label": labels,
                "customdata": slots * 2,
                "x": [0.001] * len(slots) + [0.999] * len(slots),
                "y": at,
                "color": [slot_colour(s) for s in slots] * 2,
                "pad": 14,
                "thickness": 16,
                "line": {"width": 0},
                "hovertemplate": "slot %{customdata}: %{value}<extra></extra>",
            },
            link={
                "source": [place[int(s)] for s in pairs["base_slot"]],
                "target": [len(slots) + place[int(s)] for s in pairs["slot"]],
                "value": pairs["count"],
                "color": [clear(slot_colour(int(s)), 0.4) for s in pairs["base_slot"]],
                "hovertemplate": f"{inert(base)} slot %{{source.customdata}}, {inert(method)} slot "
                "%{target.customdata}: %{value}<extra></extra>",
            },
        )
    )
    dress(fig, height=120 + 55 * len(slots), width=520)
    for x, name, anchor in ((0, base, "left"), (1, method, "right")):
        where = {"x": x, "y": 1, "xref": "paper", "yref": "paper", "xanchor": anchor, "yanchor": "bottom", "yshift": 14}
        fig.add_annotation(text=inert(name, 34), showarrow=False, **where)
    fig.update_layout(margin_t=48)
    return fig
