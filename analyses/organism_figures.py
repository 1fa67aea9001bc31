"""Draw what `analyses/organism.py` measured: `python analyses/organism_figures.py figures/organism`."""

from __future__ import annotations

import argparse
from pathlib import Path
from shutil import move
from tempfile import TemporaryDirectory

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvattn.plots import method_style, save
from kvattn.plots.theme import DIVERGING, NEUTRAL, SLOT_COLOURS, template

WAYS = {
    "last tokens of every candidate": "circle",
    "random tokens of every candidate": "diamond",
    "whole candidates, first slots first": "square",
    "whole candidates, last slots first": "triangle-up",
}
CUTS = ("cut at this layer alone", "open at this layer alone", "cut from this layer on", "cut up to this layer")


def _panels(names: list[str], **options) -> go.Figure:
    fig = make_subplots(rows=1, cols=len(names), subplot_titles=names, horizontal_spacing=0.09, **options)
    return fig.update_layout(template=template(), paper_bgcolor="white", plot_bgcolor="white", margin={"t": 70})


def _baseline(fig: go.Figure, at: float, column: int) -> None:
    """The best constant answer, drawn in every panel."""
    fig.add_hline(y=at, line={"dash": "dot", "color": NEUTRAL}, row=1, col=column)  # type: ignore[arg-type]
    fig.add_annotation(
        text="best constant answer", x=0.99, xref="x domain", y=at, yanchor="bottom", xanchor="right",
        showarrow=False, font={"size": 10, "color": NEUTRAL}, row=1, col=column,
    )  # fmt: skip


def _errors(part: pd.DataFrame, name: str) -> dict:
    up, down = part[f"{name}_high"] - part[name], part[name] - part[f"{name}_low"]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.2, "width": 3}


def methods(table: pd.DataFrame) -> go.Figure:
    """Accuracy and agreement with dense, by method."""
    names = list(table.organism.unique())
    fig = _panels(names, shared_yaxes=True)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name]
        for key, symbol in (("jcr", "circle"), ("accuracy", "diamond-open")):
            fig.add_scatter(
                x=part.method, y=part[key], mode="markers", name=key.upper() if key == "jcr" else key,
                error_y=_errors(part, key), showlegend=i == 1, row=1, col=i,
                marker={"symbol": symbol, "size": 10, "color": [method_style(m).colour for m in part.method]},
            )  # fmt: skip
        _baseline(fig, float(part.jcr_constant.iloc[0]), i)
    fig.update_yaxes(range=[0, 1.03], title_text="share of problems", col=1)
    return fig.update_layout(title="Agreement with dense (JCR) and accuracy", height=460, width=420 * len(names) + 100)


def recomputed(table: pd.DataFrame) -> go.Figure:
    """JCR as more candidate tokens are recomputed."""
    names = list(table.organism.unique())
    fig = _panels(names, shared_yaxes=True)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name]
        for j, (way, symbol) in enumerate(WAYS.items()):
            p = part[part.way == way]
            fig.add_scatter(
                x=p.recomputed, y=p.jcr, name=way, error_y=_errors(p, "jcr"), showlegend=i == 1, row=1, col=i,
                line={"color": SLOT_COLOURS[j]}, marker={"symbol": symbol, "size": 8},
            )  # fmt: skip
        _baseline(fig, float(part.jcr_constant.iloc[0]), i)
    fig.update_yaxes(range=[0, 1.03], title_text="JCR", col=1).update_xaxes(
        title_text="share of candidate tokens recomputed"
    )
    return fig.update_layout(title="Naive reuse, recomputing more", height=480, width=420 * len(names) + 100)


def layers(table: pd.DataFrame) -> go.Figure:
    """JCR with the edges between candidates cut at some layers."""
    names = list(table.organism.unique())
    fig = _panels(names, shared_yaxes=True)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name]
        for j, way in enumerate(CUTS):
            p = part[part.way == way]
            fig.add_scatter(
                x=p.layer, y=p.jcr, name=way, error_y=_errors(p, "jcr"), showlegend=i == 1, row=1, col=i,
                line={"color": SLOT_COLOURS[j]}, marker={"size": 8},
            )  # fmt: skip
        _baseline(fig, float(part.jcr_constant.iloc[0]), i)
    fig.update_yaxes(range=[0, 1.03], title_text="JCR", col=1).update_xaxes(title_text="layer", dtick=1)
    return fig.update_layout(title="Edges between candidates cut by layer", height=480, width=420 * len(names) + 100)


def cuts(table: pd.DataFrame) -> go.Figure:
    """JCR with the edges between candidates cut at one head."""
    names = list(table.organism.unique())
    fig = _panels(names)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name]
        grid = part.pivot(index="layer", columns="head", values="jcr")
        fig.add_heatmap(
            z=grid.values, x=grid.columns, y=grid.index, zmin=0, zmax=1, coloraxis="coloraxis", row=1, col=i,
            text=grid.round(2).astype(str).values, texttemplate="%{text}",
        )  # fmt: skip
        fig.layout.annotations[i - 1].text += f" (best constant answer: {part.jcr_constant.iloc[0]:.2f})"
    fig.update_xaxes(title_text="head", dtick=1).update_yaxes(title_text="layer", dtick=1)
    fig.update_layout(coloraxis={"colorscale": "Blues", "cmin": 0, "cmax": 1, "colorbar": {"title": "JCR"}})
    return fig.update_layout(title="Edges between candidates cut at one head", height=440, width=400 * len(names) + 100)


def mass(table: pd.DataFrame) -> go.Figure:
    """Slot mass of the decision row under naive reuse less under dense, mean over heads, by layer."""
    names = list(table.organism.unique())
    fig = _panels(names)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name].groupby(["method", "layer", "segment"], sort=False).mass.mean()
        change = (part["naive-linked"] - part["dense"]).unstack("segment")
        change = change[list(dict.fromkeys(table.segment))]
        fig.add_heatmap(
            z=change.values, x=change.columns, y=change.index, coloraxis="coloraxis", row=1, col=i,
            text=change.round(2).astype(str).values, texttemplate="%{text}", textfont={"size": 9},
        )  # fmt: skip
    fig.update_yaxes(title_text="layer", dtick=1)
    fig.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -0.5, "cmax": 0.5, "colorbar": {"title": "change"}})
    return fig.update_layout(
        title="Decision row: mass under naive-linked less mass under dense", height=440, width=480 * len(names) + 100
    )


def drift(table: pd.DataFrame) -> go.Figure:
    """How far stale KV is from dense's, by layer and slot."""
    names = list(table.organism.unique())
    fig = _panels(names, shared_yaxes=True)
    for i, name in enumerate(names, 1):
        part = table[table.organism == name]
        for (kind, slot), p in part.groupby(["kind", "slot"]):
            fig.add_scatter(
                x=p.layer, y=p.drift, name=f"{kind}, slot {slot}", showlegend=i == 1, row=1, col=i,
                line={"color": SLOT_COLOURS[slot - 1], "dash": "solid" if kind == "keys" else "dash"},
            )  # fmt: skip
    fig.update_yaxes(title_text="|stale - dense| / |dense|", rangemode="tozero", col=1).update_xaxes(
        title_text="layer", dtick=1
    )
    return fig.update_layout(title="KV drift of kept candidates", height=460, width=420 * len(names) + 100)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the organisms' figures from their tables.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("figures/organism"))
    folder = parser.parse_args().folder
    for draw in (methods, recomputed, layers, cuts, mass, drift):
        with TemporaryDirectory() as scratch:  # the interactive pages and their script stay out of the repository
            _, trouble = save(
                draw(pd.read_csv(folder / f"{draw.__name__}.csv")), Path(scratch) / draw.__name__, ("svg",)
            )
            if trouble:
                raise SystemExit(trouble)
            move(Path(scratch) / f"{draw.__name__}.svg", folder / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
