"""The prompt itself, token by token, shaded by what the deciding token attends to: the same text under several methods.

An SVG without script, link or font of its own, light or dark as the page is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from kvattn.errors import KvattnError
from kvattn.files import write_atomically
from kvattn.plots.theme import DIVERGING, GROUNDS, NEUTRAL, slot_colour

_EM, _LINE, _HEAD = 7.2, 18, 50  # pixels a column of text, a line, a panel's heading
_COLUMNS = {1: 100, 2: 62, 3: 42}  # of text, by the number of panels side by side
GAIN, LOSS = DIVERGING[-1][1], DIVERGING[1][1]
_HIDDEN = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LIGHT = """.kvattn text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#20242c;white-space:pre}
.kvattn .h{font-weight:600}.kvattn .n{fill:#4b5360}.kvattn .p{fill:#fff}"""
_DARK = f".kvattn text{{fill:#e6e9ef}}.kvattn .n{{fill:#b3bac6}}.kvattn .p{{fill:{GROUNDS[True]}}}"
_STYLES = {None: f"{_LIGHT}@media(prefers-color-scheme:dark){{{_DARK}}}", False: _LIGHT, True: _LIGHT + _DARK}
# Every text is escaped; should one not be, nothing in it runs or is fetched.
_PAGE = """<!doctype html><meta charset=utf-8><meta name=color-scheme content='light dark'><style>body{margin:0}</style>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'">"""


@dataclass(frozen=True)
class Panel:
    """The prompt under one method.

    title:    what stands above it
    tokens:   [tokens], their texts
    row:      [tokens], each one's share of the deciding token's attention; of `less`, the difference of two; of an
              Explorer [layers, heads, tokens]
    segments: in prompt order, with attributes role, slot (from 0, or None), start and stop, as in a PromptLayout
    kept:     [tokens], whether its keys and values are reused
    """

    title: str
    tokens: Sequence[str]
    row: np.ndarray
    segments: Sequence[Any]
    kept: np.ndarray
    signed: bool = False

    def less(self, other: Panel) -> Panel:
        """This panel less another of the same prompt. Raises KvattnError where their tokens differ."""
        if list(self.tokens) != list(other.tokens):
            raise KvattnError(f"{self.title!r} and {other.title!r} have other tokens: no difference to show")
        names = (p.title.split(":")[0] for p in (self, other))
        return replace(self, title=" less ".join(names), row=self.row - other.row, signed=True)

    def slots(self) -> dict[int, float]:
        """By slot (from 0), what falls on its candidate's tokens."""
        found: dict[int, float] = {}
        for s in self.segments:
            if s.role == "candidate":
                found[s.slot] = found.get(s.slot, 0.0) + float(self.row[s.start : s.stop].sum())
        return found

    def __post_init__(self) -> None:
        if not len(self.tokens) == np.shape(self.row)[-1] == len(self.kept):
            raise KvattnError(
                f"{len(self.tokens)} tokens, a row of {np.shape(self.row)[-1]} and {len(self.kept)} marks of reuse"
            )


@dataclass(frozen=True, repr=False)
class ShadedText:
    """The same prompt under one method or several. A notebook shows it; `save` writes it.

    A token's colour is the stronger, the more of the deciding token's attention it has: full from the 98th percentile
    of the candidates' tokens in all panels together on, so that panels compare. Candidates have their slot's colour;
    of a difference, orange is more and blue less. What is reused is underlined. The exact share shows on hover, where
    the picture is opened by itself.
    """

    panels: tuple[Panel, ...]

    def full(self, signed: bool = False) -> float:
        """The share of the row, or the difference of two, at which the shade is full."""
        of = [p for p in self.panels if p.signed == signed]
        shares = [np.abs(p.row[s.start : s.stop]) for p in of for s in p.segments if s.role == "candidate"]
        return max(float(np.quantile(np.concatenate(shares), 0.98)) if shares else 0.0, 1e-12)

    def svg(self, dark: bool | None = None) -> str:
        """The picture: up to three panels side by side, more one below the other. dark: None as the reader's system."""
        parts, width, height = self._drawn
        size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" style="max-width:100%;height:auto"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="kvattn" {size} role="img"><style>{_STYLES[dark]}</style>'
            f'<rect class="p" width="100%" height="100%"/>{"".join(parts)}</svg>'
        )

    @property
    def height(self) -> int:
        """Of the picture at its own size, in pixels."""
        return int(self._drawn[2]) + 1

    @cached_property
    def _drawn(self) -> tuple[list[str], float, float]:
        beside = len(self.panels) in _COLUMNS
        columns = _COLUMNS[len(self.panels) if beside else 1]
        parts: list[str] = []
        x = y = height = 0.0
        for panel in self.panels:
            y = self._panel(panel, x, 0.0 if beside else y, columns, parts)
            x, height = x + beside * (columns * _EM + 24), max(height, y)
        note = f"Stronger: more of the deciding token's attention, full at {self.full():.1%}. Underlined: reused."
        parts.append(f'<text class="n" x="8" y="{height + 14:g}">{escape(note)}</text>')
        return parts, max(x, columns * _EM + 16), height + 24

    def __repr__(self) -> str:
        return f"ShadedText of {'; '.join(p.title for p in self.panels)}"

    def _repr_html_(self) -> str:
        """An image: unlike an SVG's elements it is shown by notebooks that were not run here, too."""
        drawn = base64.b64encode(self.svg().encode()).decode()
        said = escape(visible("; ".join(p.title for p in self.panels)))
        return f'<img src="data:image/svg+xml;base64,{drawn}" alt="{said}" style="max-width:100%">'

    def page(self, dark: bool | None = None) -> str:
        """The picture as an HTML page of its own, in which no script can run."""
        return f"{_PAGE}{self.svg(dark)}\n"

    def save(self, path: str | Path) -> Path:
        """Write the picture as `.svg`, or as a page of its own, `.html`. Raises KvattnError for another ending."""
        path = Path(path)
        if path.suffix not in (".svg", ".html"):
            raise KvattnError(f"{path}: shaded text is written as .svg or .html")
        write_atomically(path, (f"{self.svg()}\n" if path.suffix == ".svg" else self.page()).encode())
        return path

    def _panel(self, panel: Panel, left: float, y: float, columns: int, parts: list[str]) -> float:
        parts.append(f'<text class="h" x="{left + 8:g}" y="{y + 20:g}">{escape(visible(panel.title))}</text>')
        said = " ".join(f"{share:{'+' if panel.signed else ''}.1%}" for _, share in sorted(panel.slots().items()))
        if said:
            parts.append(f'<text class="n" x="{left + 8:g}" y="{y + 38:g}">slots: {said}</text>')
        y, full = y + _HEAD, self.full(panel.signed)
        slots = np.full(len(panel.tokens), -1)
        for s in panel.segments:
            if s.role == "candidate":
                slots[s.start : s.stop] = s.slot
        column = 0
        for at, (token, share, slot, kept) in enumerate(zip(panel.tokens, panel.row, slots, panel.kept, strict=True)):
            colour = slot_colour(int(slot) + 1) if slot >= 0 else NEUTRAL
            shade = (GAIN if share > 0 else LOSS) if panel.signed else colour
            opacity = (0.55 if slot >= 0 else 0.4) * min(abs(float(share)) / full, 1.0)
            title = f"<title>token {at}: {share:.3g}</title>"
            for i, line in enumerate(token.split("\n")):
                if i or columns - column < _width(line) <= columns:
                    column, y = 0, y + _LINE
                while line:
                    piece, line = _fitting(line, columns - column)
                    if not piece:
                        column, y = 0, y + _LINE
                        continue
                    x, width = left + 8 + column * _EM, _width(piece) * _EM
                    if opacity > 0.01:
                        box = f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{_LINE - 3}" rx="2" '
                        parts.append(box + f'fill="{shade}" fill-opacity="{opacity:.2f}"/>')
                    if kept:
                        parts.append(
                            f'<path d="M{x:.1f} {y + 15:g}h{width:.1f}" stroke="{colour}" stroke-width="1.5"/>'
                        )
                    where = f'class="{"c" if slot >= 0 else "n"}" x="{x:.1f}" y="{y + 11:g}" textLength="{width:.1f}"'
                    parts.append(f'<text data-token="{at}" {where}>{escape(visible(piece))}{title}</text>')
                    column += _width(piece)
        return y + _LINE + 10


def visible(text: str) -> str:
    """Text without control characters and marks that turn the direction of writing."""
    return "".join("" if c in _HIDDEN else c if c.isprintable() else "·" for c in text)


def _width(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fitting(text: str, columns: int) -> tuple[str, str]:
    """The longest start of the text that fits, at least one character on an empty line, and the rest."""
    end = 0
    while end < len(text) and _width(text[: end + 1]) <= columns:
        end += 1
    return text[:end], text[end:]
