"""The influence graph of a plan: which candidate can change what the others hold, and which the decision."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import plotly.graph_objects as go

from kvattn.plots.theme import NEUTRAL, dress, ink_on, slot_colour


def influence_graph(names: Sequence[str], reaches: np.ndarray, decision: np.ndarray) -> go.Figure:
    """Arcs above: a candidate's text can change what a later candidate's tokens hold or, thin and dotted, only those of
    its header or separator. Arcs below: it can change the decision; a candidate that cannot has a hollow node.

    names:    segment names, as in an Influence
    reaches:  [segments, segments], reaches[a, b]: a's text can change what b's tokens hold
    decision: [segments], a's text can change the decision
    """
    slots = sorted({int(n.partition(":")[2]) for n in names if n.startswith("candidate:")})
    end = len(slots) + 1
    fig = dress(go.Figure(), height=300, width=620)
    own = {s: names.index(f"candidate:{s}") for s in slots}
    around = {s: [names.index(n) for r in ("header", "separator") if (n := f"{r}:{s}") in names] for s in slots}
    edges = 0
    for a, b in combinations(slots, 2):
        if bool(np.asarray(reaches)[own[a], own[b]]):
            edges += 1
            _arc(fig, a, b, 1, slot_colour(a), f"candidate {a} can change what candidate {b} holds")
        elif bool(np.asarray(reaches)[own[a], around[b]].any()):
            _arc(fig, a, b, 1, slot_colour(a), f"candidate {a} can change the header or separator of slot {b}", "dot")
    for a in slots:
        if bool(np.asarray(decision)[own[a]]):
            _arc(fig, a, end, -1, slot_colour(a), f"slot {a} can change the decision")
    for s in slots:
        colour, reached = slot_colour(s), bool(np.asarray(decision)[own[s]])
        _node(fig, s, f"{s}", colour, *(("circle", ink_on(colour)) if reached else ("circle-open", None)))
    _node(fig, end, "", NEUTRAL, "square", None)
    fig.add_annotation(text="decision", x=end, y=0, xshift=24, xanchor="left", showarrow=False)
    fig.add_annotation(text="slot", x=slots[0] if slots else 1, y=0, xshift=-24, xanchor="right", showarrow=False)
    if not edges and len(slots) > 1:
        text = "no candidate can change what another holds"
        fig.add_annotation(text=text, x=0.5, xref="paper", y=0.75, showarrow=False, font={"color": NEUTRAL})
    fig.update_layout(showlegend=False, margin={"l": 16, "r": 16, "t": 16, "b": 16})
    fig.update_xaxes(visible=False, range=[0.35, end + 1.3])
    fig.update_yaxes(visible=False, range=[-1.25, 1.25])
    return fig


def _arc(fig: go.Figure, a: float, b: float, side: int, colour: str, hover: str, dash: str = "solid") -> None:
    turn = np.linspace(0, np.pi, 40)
    height = 0.35 + 0.75 * abs(b - a) / max(3, abs(b - a) + 1)
    fig.add_scatter(
        x=(a + b) / 2 - (b - a) / 2 * np.cos(turn),
        y=side * height * np.sin(turn),
        mode="lines",
        line={"color": colour, "width": 2.5 if dash == "solid" else 1.2, "dash": dash},
        hovertemplate=f"{hover}<extra></extra>",
    )


def _node(fig: go.Figure, x: float, text: str, colour: str, symbol: str, ink: str | None) -> None:
    fig.add_scatter(
        x=[x],
        y=[0],
        mode="markers+text",
        text=[text],
        textposition="middle center",
        textfont={"size": 14, **({"color": ink} if ink else {})},
        marker={"size": 28, "color": colour, "symbol": symbol, "line": {"width": 2}},
        hoverinfo="skip",
    )
