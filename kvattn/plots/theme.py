"""One look for all figures: a fixed style for every method family, colour scales, fonts, and text made inert.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any colour vision can tell apart;
dashes, markers and hatches repeat the distinction, so that figures also work in grey. Backgrounds are transparent and
greys are middling, so that a figure stands on a light or a dark page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from kvattn.questions.labels import name_of

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH = 900
NEUTRAL = "#7b8494"
ALARM = "#c2183c"
GROUNDS = {False: "#ffffff", True: "#171614"}  # of a light page, and of a dark one of the app
TEXT, MARK = 4.5, 3.0  # the least contrasts with the ground that WCAG 2.2 asks for

# Dark is much, light is little, evenly in lightness.
SEQUENTIAL = [[0.0, "#f4f7fb"], [0.25, "#bdd7ee"], [0.5, "#6aaed6"], [0.75, "#2271b5"], [1.0, "#08306b"]]
# Losses end darker than gains, so that the sign survives a grey print.
DIVERGING = [[0.0, "#053061"], [0.25, "#4a8fc2"], [0.5, "#f5f5f2"], [0.75, "#f2b36b"], [1.0, "#d9761a"]]

# The same on a dark page: what is little sinks into the background.
SEQUENTIAL_DARK = [[0.0, "#161b24"], [0.25, "#123c69"], [0.5, "#2271b5"], [0.75, "#6aaed6"], [1.0, "#e3f0fa"]]
DIVERGING_DARK = [[0.0, "#7cc0f5"], [0.25, "#2f6f9f"], [0.5, "#1c212a"], [0.75, "#b0712c"], [1.0, "#ffc27a"]]

# Paul Tol's muted scheme (personal.sron.nl/~pault): no slot and no method has one of these.
SERIES_COLOURS = ("#332288", "#CC6677", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
SLOT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#9a8f00", "#7b8494")
# Lines that are no methods', such as runs and gates.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "hexagon")
ROLE_COLOURS = {
    "prefix": "#a3abb8",
    "question": "#56B4E9",
    "header": "#E69F00",
    "candidate": "#0072B2",
    "link": "#2f8f9d",
    "separator": "#c4b27a",
    "suffix": "#009E73",
    "branch": "#CC79A7",
}


@dataclass(frozen=True)
class MethodStyle:
    """How a method is drawn everywhere: `colour`, line `dash`, marker `symbol`, bar hatch `pattern`."""

    colour: str
    dash: str
    symbol: str
    pattern: str


# One colour a family; within a family, the first variant is plain and the others change dash, marker and hatch.
_FAMILIES: dict[str, MethodStyle] = {
    "dense": MethodStyle(NEUTRAL, "solid", "circle", ""),
    "null-edit": MethodStyle("#b0a07a", "dot", "circle-open", "."),
    "true-mask": MethodStyle("#0072B2", "solid", "square", "/"),
    "isolated": MethodStyle("#56B4E9", "dash", "diamond", "\\"),
    "naive": MethodStyle("#a63603", "solid", "triangle-up", "x"),
    "naive-linked": MethodStyle("#D55E00", "dash", "triangle-up-open", "x"),
    "pointwise": MethodStyle("#3f4a5a", "dot", "cross-open", "."),
    "slot-offset": MethodStyle("#6a3d9a", "dash", "square-open", "/"),
    "foreign-kv": MethodStyle("#CC79A7", "dot", "x", "-"),
    "mismatched-order": MethodStyle("#8f5a80", "dashdot", "cross", "|"),
    "kvcomm": MethodStyle("#009E73", "solid", "star", "+"),
    "pal-kv": MethodStyle("#4f7d1f", "dash", "star-diamond", "+"),
    "slot-aligned": MethodStyle("#8ab34a", "dot", "star-square", "+"),
    # Policies of selective recomputation share the warm colours that no other family has.
    "last-k": MethodStyle("#E69F00", "solid", "triangle-right", "/"),
    "first-k": MethodStyle("#b07800", "dash", "triangle-left", "\\"),
    "kv-deviation": MethodStyle("#9a8f00", "dashdot", "hexagon", "."),
    "query-attention": MethodStyle("#c2a200", "longdash", "hexagram", "-"),
    "a3": MethodStyle("#a86f32", "dot", "star-diamond-open", "/"),
    "cacheclip": MethodStyle("#8a6d1f", "dash", "hexagon2", "\\"),
    "sam-kv": MethodStyle("#bf8f3a", "dashdot", "star-triangle-up", "."),
    "cross-candidate": MethodStyle("#7d5a00", "solid", "star-triangle-down", "x"),
    "tail": MethodStyle("#c46a00", "longdash", "triangle-se", "+"),
    "links": MethodStyle("#2f8f9d", "solid", "triangle-sw", "/"),
    "repaired": MethodStyle("#1b5e20", "solid", "star-square-open", "+"),
    "sinks": MethodStyle("#d9b44a", "dot", "triangle-down", "|"),
    "oracle": MethodStyle("#5f4b1a", "dash", "diamond-tall", "+"),
    "random": MethodStyle("#9aa0a8", "dot", "triangle-ne", "."),
    "hybrid": MethodStyle("#7a5195", "dash", "pentagon", "\\"),
    "progressive": MethodStyle("#a05195", "dashdot", "octagon", "/"),
    "agents": MethodStyle("#7f3b3b", "dash", "star-triangle-down-open", "x"),
    "mapped": MethodStyle("#a34a4a", "dot", "star-diamond-open-dot", "\\"),
    "low-rank-patch": MethodStyle("#3d5a9e", "dashdot", "diamond-wide", "-"),
}
_VARIANTS = (("longdash", "-open"), ("dashdot", "-dot"), ("longdashdot", "-open-dot"))
_OTHERS = ("#9a8f00", "#7a5195", "#5a7d2a", "#a05195")


def method_style(name: str) -> MethodStyle:
    """The style of a method, by its family: "isolated(labelled=False)" is drawn in isolated's colour with another dash.

    The same name always gives the same style, whatever else is in the figure.
    """
    if name in _FAMILIES:
        return _FAMILIES[name]
    own = name_of(name)
    families = sorted(_FAMILIES, key=len, reverse=True)
    known = next((f for f in families if own == f or own.startswith(f"{f}-")), None)
    code = sum(ord(c) * (i + 1) for i, c in enumerate(name))
    if known is None:
        return MethodStyle(_OTHERS[code % len(_OTHERS)], "dash", "hourglass", "|")
    base = _FAMILIES[known]
    dash, suffix = _VARIANTS[code % len(_VARIANTS)]
    lighter = _mixed(base.colour, "#ebebeb", 0.3)
    return MethodStyle(lighter, dash, re.sub(r"-open|-dot", "", base.symbol) + suffix, base.pattern or "/")


def series_style(i: int) -> MethodStyle:
    """The look of the i-th line among those that are no methods', such as runs and gates."""
    return MethodStyle(SERIES_COLOURS[i % len(SERIES_COLOURS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)], "")


def slot_colour(slot: int) -> str:
    """The colour of a slot (counted from 1)."""
    return SLOT_COLOURS[(slot - 1) % len(SLOT_COLOURS)]


def _mixed(colour: str, other: str, share: float) -> str:
    """The colour with that much of another."""
    both = zip(hex_to_rgb(colour), hex_to_rgb(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in both)


def contrast(colour: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""

    def light(c: str) -> float:
        shares = (v / 255 for v in hex_to_rgb(c))
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05

    low, high = sorted((light(colour), light(other)))
    return high / low


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, colour))


@cache
def legible(colour: str, ground: str, least: float) -> str:
    """The colour, as much darker or lighter as it has to be for that contrast with the ground."""
    shades = (colour, *(_mixed(colour, ink_on(ground), share / 50) for share in range(1, 51)))
    return next(shade for shade in shades if contrast(shade, ground) >= least)


def inert(text: object, limit: int | None = None) -> str:
    """Text that Plotly shows as it is: no tag, link, entity, TeX, template field, control character.

    limit: the number of characters after which the rest becomes an ellipsis
    """
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: max(1, limit - 1)] + "…"
    shown = re.sub(r"[\u202a-\u202e\u2066-\u2069\u200e\u200f]", "", shown)
    shown = "".join(c if c.isprintable() else ("⏎" if c == "\n" else "·") for c in shown)
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;"), ("%", "&#37;")):
        shown = shown.replace(plain, entity)
    return shown


def template(dark: bool = False) -> go.layout.Template:
    """The Plotly template of all figures, for a light or a dark page."""
    ink, faint, line = ("#e6e9ef", "#2b313b", "#6b7482") if dark else ("#20242c", "#e3e7ed", "#9aa3b0")
    axis = {
        "gridcolor": faint,
        "linecolor": line,
        "zerolinecolor": line,
        "tickcolor": line,
        "automargin": True,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "title": {"standoff": 8, "font": {"size": 13}},
        "zeroline": False,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left", "yref": "container"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)", "borderwidth": 0},
            "hoverlabel": {
                "font": {"family": FONT, "size": 13, "color": ink},
                "bgcolor": "#1b2028" if dark else "#ffffff",
                "bordercolor": line,
                "align": "left",
            },
            "colorway": list(SLOT_COLOURS),
            "margin": {"l": 60, "r": 24, "t": 56, "b": 48},
            "annotationdefaults": {"font": {"color": ink, "size": 12}},
            "coloraxis": {"colorbar": {"outlinewidth": 0, "ticks": "outside", "ticklen": 4, "thickness": 12}},
        }
    )


def dress(fig: go.Figure, title: str = "", height: int = 380, width: int = WIDTH, **layout: Any) -> go.Figure:
    """The same figure in the common look."""
    fig.update_layout(template=template(), height=height, width=width, **layout)
    if title:
        fig.update_layout(title_text=title)
    else:
        fig.update_layout(margin_t=28)
    return fig


def legend_below(fig: go.Figure, height: int | None = None) -> go.Figure:
    """The same figure with its legend below the title of the axis, whatever the height (default: its own)."""
    height = height or fig.layout.height
    look = {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "top", "y": -54 / max(height - 128, 60)}
    return fig.update_layout(height=height, legend=look)


def on_page(fig: go.Figure, dark: bool) -> go.Figure:
    """A copy of a figure for a light or a dark page."""
    out = on_ground(fig, dark).update_layout(template=template(dark))
    layout: Any = out.layout
    scale = layout.coloraxis.colorscale
    if dark and scale is not None:
        stops = [list(stop) for stop in scale]
        for light, other in ((SEQUENTIAL, SEQUENTIAL_DARK), (DIVERGING, DIVERGING_DARK)):
            if stops == light:
                out.update_layout(coloraxis_colorscale=other)
    return out


def on_ground(fig: go.Figure, dark: bool = False) -> go.Figure:
    """A copy of a figure whose marks and words are all seen on a light or a dark ground."""
    return go.Figure(_seen(fig.to_plotly_json(), GROUNDS[dark], MARK))


def _seen(part: Any, ground: str, least: float) -> Any:
    """A part of a figure's JSON with legible colours; those of words on marks and of scales are left as they are."""
    if isinstance(part, list | tuple) and part and isinstance(part[0], Mapping):
        return [_seen(p, ground, least) for p in part]
    if not isinstance(part, Mapping):
        return part
    out = {}
    for key, value in part.items():
        if key == "color" and isinstance(value, str):
            out[key] = legible(value, ground, least) if re.fullmatch("#[0-9a-fA-F]{6}", value) else value
        elif key == "color" and value is not None and np.asarray(value).dtype.kind in "OU":
            out[key] = [_seen({key: v}, ground, least)[key] for v in value]
        else:
            known = key in ("template", "textfont")
            out[key] = value if known else _seen(value, ground, TEXT if key.endswith("font") else least)
    return out


def panels(rows: int, columns: int, **options: Any) -> go.Figure:
    """An empty grid of panels that all share their axes; `options` as plotly's make_subplots takes them."""
    shared: dict[str, Any] = {"shared_xaxes": "all", "shared_yaxes": "all", **options}
    return make_subplots(rows=rows, cols=columns, **shared)


def multiples(titles: Sequence[str], gap: float) -> tuple[go.Figure, list[dict[str, Any]]]:
    """An empty panel for each title (trusted text), at most four side by side, and the `row` and `col` of each.

    gap: between rows of panels, as a share of the height over the number of rows
    """
    columns = min(4, len(titles)) or 1
    rows = -(-len(titles) // columns) or 1
    fig = panels(rows, columns, horizontal_spacing=0.02, vertical_spacing=gap / rows, subplot_titles=list(titles))
    return fig, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def bar_marker(style: MethodStyle, colour: str | None = None) -> dict[str, Any]:
    """Marker of a bar: the method's colour (or another), and its hatch laid over."""
    hatch = {"shape": style.pattern, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.6)", "size": 7}
    return {"color": colour or style.colour, "pattern": {**hatch, "solidity": 0.2}, "line": {"width": 0}}


def whiskers(table: Any, value: str, thickness: float = 1.2, width: int = 3, **look: Any) -> dict[str, Any] | None:
    """Error bars from the columns low and high around `value`; None where the table has none."""
    if not {"low", "high"} <= set(table.columns) or table["low"].isna().all():
        return None
    up, down = table["high"] - table[value], table[value] - table["low"]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": thickness, "width": width, **look}


def percent_axis(title: str, top: float | None = 1.0) -> dict[str, Any]:
    """Layout of an axis that shows shares as per cent, from 0 to `top` (None: as the data need)."""
    axis: dict[str, Any] = {"title_text": title, "tickformat": ".0%", "rangemode": "tozero"}
    if top is not None:
        axis["range"] = [0, top]
    return axis


def slot_axis(slots: Sequence[int], most: int = 8) -> dict[str, Any]:
    """Layout of an axis of slots: a tick each, or at even distances as many as have room."""
    return {"tickvals": list(slots)[:: -(-len(slots) // most) or 1], "tickangle": 0}


def clear(colour: str, share: float) -> str:
    """The colour, that much of it opaque."""
    return f"rgba({','.join(map(str, hex_to_rgb(colour)))},{share})"


def ribbon(x: Any, low: Any, high: Any, colour: str, group: str = "") -> go.Scatter:
    """A band between two curves, without hover and legend."""
    return go.Scatter(
        x=[*x, *list(x)[::-1]],
        y=[*high, *list(low)[::-1]],
        fill="toself",
        fillcolor=clear(colour, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group or None,
    )


def curve(
    fig: go.Figure,
    part: Any,
    over: str,
    column: str,
    name: object,
    style: MethodStyle,
    hover: str,
    shift: float = 0.0,
    band: bool = False,
    whisker: str | None = None,
    where: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Draws a column of a table over another, with the columns low and high, where it has them, as whiskers or
    as a `band`. `name` is shown inert, in the legend and before `hover`.

    shift: of the marks to the right, so that those of several lines stand beside each other
    whisker: their colour; where: the panel; options: of the trace
    """
    panel = dict(where or {})
    if band and "low" in part and part["low"].notna().any():
        fig.add_trace(ribbon(part[over], part["low"], part["high"], style.colour, str(name)), **panel)
    look: dict[str, Any] = {"mode": "lines+markers", "legendgroup": str(name), "name": inert(name, 44)}
    look |= {"x": part[over] + shift if shift else part[over], "y": part[column]}
    look["line"] = {"color": style.colour, "dash": style.dash, "width": 2}
    look["marker"] = {"symbol": style.symbol, "size": 7 if panel or band else 9}
    if not band:
        look["error_y"] = whiskers(part, column, color=whisker)
    look["hovertemplate"] = f"{inert(name)}{hover}<extra></extra>"
    fig.add_trace({"type": "scatter", **look, **options}, **panel)  # a dict is checked once, a trace twice


def caption(fig: go.Figure, text: str, **where: Any) -> None:
    """Small print in a figure; `text` is trusted."""
    fig.add_annotation(**{"text": text, "showarrow": False, "font": {"size": 11, "color": NEUTRAL}, **where})


def not_meaningful(fig: go.Figure, reason: str | None, margin: int = 60, shift: int = 8) -> go.Figure:
    """The figure with a line over it that says why its numbers mean nothing; as it was without a reason."""
    if reason:
        fig.update_layout(margin_t=margin)
        where = {"x": 0, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        text = f"not meaningful: {inert(reason, 120)}"
        caption(fig, text, yshift=shift, font={"size": 13, "color": ALARM}, **where)
    return fig
