"""Cells that can be clicked: a heatmap takes no selection, invisible markers over its cells do."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go


def clickable(fig: go.Figure, mark: tuple[int, int] | None = None) -> go.Figure:
    """A copy of a heatmap figure (layers across, heads down) in which cells can be selected.

    A selected point's customdata is [panel, layer, head], panels counted from 0 in the order of the heatmaps.

    mark: (layer, head), framed in every panel
    """
    out = go.Figure(fig)
    heatmaps: Any = [t for t in out.data if isinstance(t, go.Heatmap)]
    layout: Any = out.layout
    for panel, trace in enumerate(heatmaps):
        z = np.asarray(trace.z)
        heads, layers = z.shape
        head, layer = (a.ravel() for a in np.indices((heads, layers)))
        out.add_scatter(
            x=layer,
            y=head,
            xaxis=trace.xaxis,
            yaxis=trace.yaxis,
            mode="markers",
            marker={"symbol": "square", "size": 9, "opacity": 0, "color": "#ffffff"},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            customdata=[[panel, int(x), int(y)] for x, y in zip(layer, head, strict=True)],
            text=_hover(trace, z),
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
        trace.hoverinfo, trace.hovertemplate = "skip", None
        if mark is not None and 0 <= mark[0] < layers and 0 <= mark[1] < heads:
            frame = {"x0": mark[0] - 0.5, "x1": mark[0] + 0.5, "y0": mark[1] - 0.5, "y1": mark[1] + 0.5}
            refs = {"xref": trace.xaxis or "x", "yref": trace.yaxis or "y"}
            out.add_shape(type="rect", line={"color": "#d6006c", "width": 2}, **frame, **refs)
        # Markers would widen the axes; cells are to fill them.
        axes = [(trace.xaxis or "x").replace("x", "xaxis"), (trace.yaxis or "y").replace("y", "yaxis")]
        layout[axes[0]].range, layout[axes[1]].range = [-0.5, layers - 0.5], [heads - 0.5, -0.5]
        layout[axes[1]].autorange = None
    layout.clickmode = "event+select"
    layout.dragmode = False
    layout.hoverdistance = -1  # a click anywhere in a cell is one on its marker
    return out


def _hover(trace: Any, z: np.ndarray) -> list[str]:
    """The heatmap's own hover text, cell by cell."""
    head = str(trace.hovertemplate).split("<br>", 1)[0]
    factors = None if trace.customdata is None else np.asarray(trace.customdata)
    lines = []
    for h, layer in np.ndindex(*z.shape):
        value = f"{z[h, layer]:.4g}" if factors is None else f"factor {factors[h, layer]:.3g}"
        lines.append(f"{head}<br>layer {layer}, head {h}<br>{value}")
    return lines
