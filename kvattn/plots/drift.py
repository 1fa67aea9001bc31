"""What an audit measured: a map of token x layer, how far keys or values are from what they should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from kvattn.errors import KvattnError
from kvattn.plots.theme import ALARM, NEUTRAL, caption, dress, inert

FAR = 2.0  # decades beside the bound that the colours span


def drift_map(
    drift: np.ndarray,
    bound: np.ndarray,
    tokens: Sequence[str],
    blocks: Mapping[str, tuple[int, int]],
    moved: np.ndarray | None = None,
) -> go.Figure:
    """A square a token and layer: blue where the distance is one that rounding explains, red where it is not.

    drift:  [layers, tokens], the distance over the norm of what it is held against
    bound:  [layers], how far rounding takes it
    tokens: their texts
    blocks: by name, tokens [start, stop), marked above
    moved:  [tokens], places that each key was turned too far, shown on hovering
    """
    layers, count = drift.shape
    if len(tokens) != count or len(bound) != layers:
        raise KvattnError(
            f"a map of {layers} layers and {count} tokens, with {len(tokens)} texts and {len(bound)} bounds; it needs "
            "one a token and one a layer"
        )
    over = np.asarray(drift, dtype=float) / np.maximum(np.asarray(bound, dtype=float), 1e-12)[:, None]
    z = np.clip(np.log10(np.maximum(over, 1e-12)), -FAR, FAR)
    off = np.zeros(count, dtype=int) if moved is None else np.asarray(moved)
    words = [inert(repr(t), 40) + (f", key {abs(m)} {'late' if m > 0 else 'early'}" if m else "")
             for t, m in zip(tokens, off.tolist(), strict=True)]  # fmt: skip
    fig = dress(go.Figure(), height=150 + 12 * max(layers, 8), width=1100)
    fig.add_trace(
        go.Heatmap(
            z=np.round(z, 3),
            zmin=-FAR,
            zmax=FAR,
            colorscale=[[0, "#2166ac"], [0.499, "#d1e5f0"], [0.501, "#fddbc7"], [1, "#b2182b"]],
            colorbar={
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": [-FAR, 0, FAR],
                "ticktext": ["a hundredth", "what rounding explains", "a hundredfold"],
            },
            customdata=np.stack([np.broadcast_to(np.array(words, dtype=object), over.shape), drift], -1),
            hovertemplate="%{customdata[0]}<br>token %{x}, layer %{y}<br>%{customdata[1]:.2e} off<extra></extra>",
        )
    )
    for name, (start, stop) in blocks.items():
        fig.add_vline(x=stop - 0.5, line={"color": NEUTRAL, "width": 1})
        fig.add_annotation(
            x=(start + stop - 1) / 2, y=1.02, yref="paper", yanchor="bottom", text=inert(name, 24), showarrow=False
        )
    for at in np.flatnonzero(off):
        fig.add_annotation(
            x=int(at), y=-0.02, yref="paper", yanchor="top", text="▴", showarrow=False, font={"color": ALARM, "size": 9}
        )
    if off.any():
        caption(fig, "▴ key turned to another position", x=0, y=-0.3)
    fig.update_xaxes(title_text="token", showgrid=False, range=[-0.5, count - 0.5])
    fig.update_yaxes(title_text="layer", showgrid=False)
    return fig
