"""Figures of a gate: risk against coverage, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn.plots.theme import ALARM, NEUTRAL, SLOT_COLOURS, curve, dress, percent_axis, ribbon, series_style

Curve = Sequence[Mapping[str, Any]]


def risk_coverage(curves: Mapping[str, Curve], promised: float | None = None) -> go.Figure:
    """Flips among the accepted decisions against the share that is accepted, the safest first: low is better.

    curves:   by gate, points with coverage, risk, risk_low, risk_high, random_risk; the band is drawn for the first
    promised: the risk that a guarantee was asked for
    """
    fig = dress(go.Figure(), height=420, width=900)
    first = next(iter(curves.values()), [])
    if first:
        x, low, high = ([p[k] for p in first] for k in ("coverage", "risk_low", "risk_high"))
        fig.add_trace(ribbon(x, low, high, SLOT_COLOURS[0], next(iter(curves))))
    _draw(fig, curves, "coverage", "risk", "accepts %{x:.0%}, of those %{y:.1%} flips")
    if first:
        fig.add_hline(
            y=first[0]["random_risk"],
            line={"color": NEUTRAL, "dash": "dot", "width": 1.5},
            annotation={"text": "random gate", "font": {"color": NEUTRAL}},
        )
    if promised is not None:
        fig.add_hline(
            y=promised,
            line={"color": ALARM, "dash": "dash", "width": 1.5},
            annotation={"text": "asked for", "font": {"color": ALARM}},
            annotation_position="top left",
        )
    fig.update_xaxes(**percent_axis("accepted reuse decisions, of all", 1.02))
    most = max([p["risk_high"] or p["risk"] for c in curves.values() for p in c] or [1.0])
    fig.update_yaxes(**percent_axis("flips among the accepted", min(1.02, most * 1.1 + 0.02)))
    return fig


def gate_cost(curves: Mapping[str, Curve]) -> go.Figure:
    """JCR of the gated judge against its cost: up and left is better; right of 100 % always-dense is cheaper.

    curves: by gate, points with cost (over dense's token-layers), jcr, random_jcr; the random gate is that of the first
    """
    fig = dress(go.Figure(), height=420, width=900)
    first = next(iter(curves.values()), [])
    fig.add_scatter(
        x=[p["cost"] for p in first],
        y=[p["random_jcr"] for p in first],
        name="random gate, same passes",
        mode="lines",
        line={"color": NEUTRAL, "dash": "dot", "width": 1.5},
        hoverinfo="skip",
    )
    _draw(fig, curves, "cost", "jcr", "%{x:.0%} of dense's token-layers<br>JCR %{y:.1%}")
    fig.add_vline(x=1, line={"color": ALARM, "dash": "dash", "width": 1.5})
    most = max([p["cost"] for c in curves.values() for p in c] or [1.0])
    fig.update_xaxes(**percent_axis("token-layers, of dense's, all passes counted", max(1.05, most * 1.05)))
    fig.update_yaxes(**percent_axis("same pick as dense, fallbacks included", 1.02))
    return fig


def _draw(fig: go.Figure, curves: Mapping[str, Curve], x: str, y: str, hover: str) -> None:
    """A line a gate through its points' `x` and `y`."""
    for i, (name, points) in enumerate(curves.items()):
        table = pd.DataFrame([{"x": p[x], "y": p[y]} for p in points], columns=["x", "y"], dtype=float)
        curve(fig, table, "x", "y", name, series_style(i), f"<br>{hover}", marker={"size": 5})
    fig.update_layout(legend={"orientation": "h", "y": -0.22})
