"""Figures of single judgements: the decision row over the prompt, and methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.plots.theme import NEUTRAL, ROLE_COLOURS, bar_marker, caption, dress, inert, method_style, slot_axis


def decision_row(
    tokens: Sequence[str],
    row: np.ndarray,
    segments: Sequence[Any],
    title: str = "",
    scale: Literal["log", "linear"] = "log",
) -> go.Figure:
    """Attention of the deciding token over the prompt, a bar a token, the slots bracketed above.

    tokens:   text of every prompt token
    row:      [tokens], or [layers, heads, tokens], which is averaged over layers and heads
    segments: in prompt order, with attributes name, role, slot (from 0, or None), start and stop, as in a PromptLayout
    scale:    of the vertical axis; hovering shows exact values either way
    """
    values = np.asarray(row, dtype=float)
    values = values.mean(axis=tuple(range(values.ndim - 1)))
    if len(tokens) != len(values):
        raise KvattnError(f"{len(tokens)} tokens and a row of {len(values)}; both must be of the same prompt")
    fig = dress(go.Figure(), inert(title) if title else "", height=400, width=1100)
    shown: set[str] = set()
    for s in segments:
        if s.stop <= s.start:
            continue
        at = np.arange(s.start, s.stop)
        fig.add_trace(
            go.Bar(
                x=at,
                y=values[s.start : s.stop],
                name=s.role,
                legendgroup=s.role,
                showlegend=s.role not in shown,
                marker={"color": ROLE_COLOURS.get(s.role, NEUTRAL), "line": {"width": 0}},
                customdata=[inert(t, 60) for t in tokens[s.start : s.stop]],
                hovertemplate=f"%{{customdata}}<br>token %{{x}}, {inert(s.name)}<br>%{{y:.8g}}<extra></extra>",
            )
        )
        shown.add(s.role)
    for slot in sorted({s.slot for s in segments if s.slot is not None}):
        for s in (s for s in segments if s.slot == slot and s.role == "candidate"):
            _bracket(fig, s.start, s.stop, slot + 1, values[s.start : s.stop].sum())
    fig.update_layout(bargap=0, margin_t=118 if title else 94, legend={"orientation": "h", "y": -0.18})
    fig.update_xaxes(title_text="token", range=[-1, len(tokens)], showgrid=False)
    fig.update_yaxes(title_text="share of the row", type=scale)
    if scale == "log":
        low = max(float(values[values > 0].min()) if (values > 0).any() else 1e-6, 1e-8)
        fig.update_yaxes(range=[np.log10(low) - 0.1, np.log10(max(values.max(), low * 10)) + 0.1], exponentformat="e")
    return fig


def segment_row(names: Sequence[str], lengths: Sequence[int], mass: np.ndarray, sink: np.ndarray | None) -> go.Figure:
    """One head's row by segment: a bar as wide as the segment has tokens and as high as its mean share per token, the
    part on sink tokens paler.

    mass, sink: [segments], shares of the row; sink is None where nobody looked for sinks, and nothing is paler
    """
    starts = np.cumsum([0, *lengths])
    sink = np.zeros_like(mass) if sink is None else sink
    fig = dress(go.Figure(), height=360, width=900)
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not lengths[i]:
            continue
        role = name.partition(":")[0]
        free = float(max(mass[i] - sink[i], 0.0))
        hover = f"{inert(name)}, {lengths[i]} tokens<br>{mass[i]:.4g} of the row"
        hover += f"<br>{sink[i]:.4g} on sinks" if sink[i] > 0 else ""
        for value, base, opacity in ((free, 0.0, 1.0), (float(sink[i]), free, 0.45)):
            fig.add_bar(
                x=[starts[i] + lengths[i] / 2],
                y=[value / lengths[i]],
                base=[base / lengths[i]],
                width=[max(lengths[i], 0.5)],
                name=role,
                legendgroup=role,
                showlegend=role not in seen,
                marker={"color": ROLE_COLOURS.get(role, NEUTRAL), "opacity": opacity, "line": {"width": 0}},
                hovertemplate=f"{hover}<extra></extra>",
            )
            seen.add(role)
        if role == "candidate":
            _bracket(fig, int(starts[i]), int(starts[i + 1]), int(name.partition(":")[2]), mass[i])
    fig.update_layout(barmode="overlay", bargap=0, margin_t=86, legend={"orientation": "h", "y": -0.22})
    fig.update_xaxes(title_text="token", range=[0, int(starts[-1])], showgrid=False)
    fig.update_yaxes(title_text="share of the row per token", rangemode="tozero")
    return fig


def _bracket(fig: go.Figure, start: int, stop: int, slot: int, share: float) -> None:
    """The slot's tokens marked above; every other one's words stand higher, out of the way of their neighbours'."""
    a, b, y = start - 0.4, stop - 0.6, 1.03
    path = f"M {a} {y - 0.02} L {a} {y} L {b} {y} L {b} {y - 0.02}"
    fig.add_shape(type="path", path=path, xref="x", yref="paper", line={"color": NEUTRAL, "width": 1.5})
    where = {"x": (a + b) / 2, "y": y, "xref": "x", "yref": "paper", "yanchor": "bottom", "yshift": 26 * (1 - slot % 2)}
    caption(fig, f"slot {slot}<br>{share:.1%}", font={"size": 11}, **where)


def comparison(decisions: Sequence[Decision]) -> go.Figure:
    """One question under several methods: the distribution over slots and, where it was captured, slot mass.

    Slot mass is the mean over layers and heads of what falls on each candidate's own tokens.
    """
    if not decisions:
        raise KvattnError("no decisions to draw")
    with_mass = [d for d in decisions if d.mass is not None]
    columns = 2 if with_mass else 1
    titles = ["distribution over slots (readout)", "slot mass (mean over layers and heads)"][:columns]
    fig = make_subplots(rows=1, cols=columns, subplot_titles=titles, horizontal_spacing=0.1)
    slots = list(range(1, len(decisions[0].scores) + 1))
    for d in decisions:
        look: Any = {"name": inert(d.method), "legendgroup": d.method, "marker": bar_marker(method_style(d.method))}
        order = [f"candidate {i + 1}" for i in d.order]
        hover = f"{inert(d.method)}, slot %{{x}} (%{{customdata}})<br>%{{y:.4g}}<extra></extra>"
        fig.add_bar(x=slots, y=d.distribution, customdata=order, hovertemplate=hover, row=1, col=1, **look)
        if d.mass is not None:
            means = dict(zip(d.mass.names, d.mass.mass.mean((0, 1)).tolist(), strict=True))
            y = [means.get(f"candidate:{s}") for s in slots]
            fig.add_bar(x=slots, y=y, customdata=order, hovertemplate=hover, showlegend=False, row=1, col=2, **look)
    dress(fig, height=400, width=1000)
    fig.update_layout(margin_t=48, bargap=0.25, legend={"orientation": "h", "y": -0.2})
    fig.update_xaxes(title_text="slot", **slot_axis(slots))
    fig.update_yaxes(rangemode="tozero", tickformat=".0%")
    return fig
