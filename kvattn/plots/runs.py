"""Figures across runs, and of consistency against cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.forest import forest
from kvattn.plots.picks import FADED
from kvattn.plots.scales import as_factors, factor_axis
from kvattn.plots.theme import (
    ALARM,
    NEUTRAL,
    curve,
    dress,
    inert,
    legend_below,
    method_style,
    multiples,
    not_meaningful,
    percent_axis,
    series_style,
    slot_axis,
    whiskers,
)


def consistency_of_runs(table: pd.DataFrame, meaningless: Sequence[str] = ()) -> go.Figure:
    """JCR of each run's methods, a row a run, with intervals and chance marks.

    table:       columns run, method, jcr, low, high, chance
    meaningless: runs whose judge failed the content test: drawn grey
    """
    known: Any = table
    runs, methods = (list(dict.fromkeys(known[c])) for c in ("run", "method"))
    names = {r: f"{r} (not meaningful)" if r in meaningless else r for r in runs}
    styles = [method_style(m) for m in known["method"]]
    marks = known.assign(
        row=known["run"].map(names),
        series=known["method"],
        value=known["jcr"],
        symbol=[s.symbol for s in styles],
        colour=[FADED if r in meaningless else s.colour for r, s in zip(known["run"], styles, strict=True)],
        legend=[s.colour for s in styles],
    )
    fig = forest(marks, marks.assign(value=known["chance"]), size=11)
    dress(fig, height=150 + (22 + 16 * len(methods)) * len(runs), width=900)
    fig.update_xaxes(**percent_axis("JCR: same candidate as dense, same order", 1.02))
    return legend_below(fig)


def by_depth(
    values: pd.DataFrame, change: bool = False, unit: str = "share of the row", known: Iterable[str] = ()
) -> go.Figure:
    """Slot mass over relative depth, a line a run: models of different depth on one axis.

    values: columns run, depth (0: first layer, 1: last), value, and low, high for bands
    change: values are differences of natural log mass, drawn as factors
    known:  all runs that there are: a run keeps its colour whichever of them are drawn
    """
    table: Any = values
    if change:
        table = as_factors(table)
    fig = dress(go.Figure(), height=420, width=900)
    names = sorted({*map(str, table["run"]), *known})
    for run, part in table.groupby("run", sort=False):
        part, style = part.sort_values("depth"), series_style(names.index(str(run)))
        hover = "<br>depth %{x:.2f}: %{y:.4g}"
        curve(fig, part, "depth", "value", run, style, hover, band=True, customdata=part.get("layer"))
    fig.update_xaxes(title_text="relative depth (0: first layer, 1: last)", range=[-0.02, 1.02])
    if change:
        fig.add_hline(y=1, line={"color": NEUTRAL, "dash": "dot", "width": 1})
        fig.update_yaxes(title_text="slot mass over dense's", **factor_axis(table))
    else:
        fig.update_yaxes(title_text=unit, rangemode="tozero")
    return legend_below(fig)


def mass_of_slots(values: pd.DataFrame) -> go.Figure:
    """Slot mass over dense's by slot, a panel a run, a line a method: what reuse does to attention, model by model.

    values: columns run, method, slot, factor, factor_low, factor_high
    """
    names = {f"factor{end}": column for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))}
    table: Any = values.dropna(subset=["factor"]).rename(columns=names)
    runs, methods = (list(dict.fromkeys(table[c])) for c in ("run", "method"))
    fig, places = multiples([inert(r, 40) for r in runs], 0.3)
    for (run, method), part in table.groupby(["run", "method"], sort=False):
        style, aside = method_style(str(method)), (methods.index(method) - (len(methods) - 1) / 2) * 0.08
        at, first = places[runs.index(run)], run == table.loc[table["method"] == method, "run"].iloc[0]
        hover, more = "<br>slot %{customdata}: ×%{y:.2f}", {"customdata": part["slot"], "showlegend": first}
        curve(fig, part, "slot", "value", method, style, hover, shift=aside, where=at, **more)
    rows = -(-len(runs) // 4)
    dress(fig, height=130 + 270 * rows, width=900)
    fig.add_hline(y=1, line={"color": NEUTRAL, "dash": "dot", "width": 1})
    fig.update_annotations(font_size=13)
    fig.update_xaxes(title_text="slot", **slot_axis(sorted(table["slot"].unique()), 5))
    fig.update_yaxes(**factor_axis(table)).update_yaxes(title_text="slot mass over dense's", col=1)
    return fig.update_layout(legend={"orientation": "h", "y": -0.25 / rows})


def frontier(table: pd.DataFrame, meaningless: str | None = None) -> go.Figure:
    """Consistency against cost: up and left is better; the line joins methods that no other beats in both.

    table: columns method, share (of dense's token-layers), jcr, low, high, and chance if known; dense at 1 and 1
    """
    rows: Any = table.sort_values(["share", "jcr"], ascending=[True, False])
    fig = dress(go.Figure(), height=460, width=900)
    best = rows[rows["jcr"] > rows["jcr"].cummax().shift(fill_value=-1.0)]
    fig.add_scatter(
        x=best["share"],
        y=best["jcr"],
        mode="lines",
        line={"color": NEUTRAL, "dash": "dot", "width": 1.5, "shape": "hv"},
        name="frontier",
        hoverinfo="skip",
    )
    for method, part in rows.groupby("method", sort=False):
        style = method_style(str(method))
        colour = FADED if meaningless else style.colour
        fig.add_scatter(
            x=part["share"],
            y=part["jcr"],
            name=inert(method, 44),
            mode="markers",
            marker={"symbol": style.symbol, "size": 13, "color": colour, "line": {"width": 2, "color": colour}},
            error_y=whiskers(part, "jcr", color=colour),
            hovertemplate=f"{inert(method)}<br>%{{x:.1%}} of dense's token-layers<br>JCR %{{y:.1%}}<extra></extra>",
        )
    chance = rows.dropna(subset=["chance"]) if "chance" in rows else rows[:0]
    if len(chance):
        fig.add_scatter(
            x=chance["share"],
            y=chance["chance"],
            mode="markers",
            name="by chance",
            marker={"symbol": "line-ew", "size": 16, "line": {"width": 2.5, "color": FADED if meaningless else ALARM}},
            customdata=[inert(m) for m in chance["method"]],
            hovertemplate="%{customdata} by chance: %{y:.1%}<extra></extra>",
        )
    fig.update_xaxes(**percent_axis("token-layers computed, of dense's", max(1.05, float(rows["share"].max()) * 1.05)))
    fig.update_yaxes(**percent_axis("JCR: same candidate as dense", 1.04))
    return not_meaningful(fig, meaningless)
