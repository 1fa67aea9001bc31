"""The prompt itself, token by token, shaded by what the deciding token attends to: the same text under several methods.

An SVG without script, link or font of its own, light or dark as the page is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import numpy as np

from kvattn.errors import KvattnError
from kvattn.files import write_atomically
from kvattn.plots.theme import NEUTRAL, slot_colour

_EM, _LINE, _HEAD = 7.2, 18, 30  # pixels a column of text, a line, a panel's heading
_HIDDEN = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_STYLE = """.kvattn text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#20242c;white-space:pre}
.kvattn .h{font-weight:600}.kvattn .n{fill:#4b5360}.kvattn .p{fill:#fff}@media(prefers-color-scheme:dark){
.kvattn text{fill:#e6e9ef}.kvattn .n{fill:#b3bac6}.kvattn .p{fill:#12161d}}"""


@dataclass(frozen=True)
class Panel:
    """The prompt under one method.

    title:    what stands above it
    tokens:   [tokens], their texts
    row:      [tokens], each one's share of the deciding token's attention
    segments: in prompt order, with attributes role, slot (from 0, or None), start and stop, as in a PromptLayout
    kept:     [tokens], whether its keys and values are reused
    """

    title: str
    tokens: Sequence[str]
    row: np.ndarray
    segments: Sequence[Any]
    kept: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.row) == len(self.kept):
            raise KvattnError(
                f"{len(self.tokens)} tokens, a row of {len(self.row)} and {len(self.kept)} marks of reuse"
            )


@dataclass(frozen=True)
class ShadedText:
    """The same prompt under one method or several. A notebook shows it; `save` writes it.

    A token's colour is the stronger, the more of the deciding token's attention it has: full from the 98th percentile
    of the candidates' tokens in all panels together on, so that panels compare. Candidates have their slot's colour,
    what is reused is underlined.
    """

    panels: tuple[Panel, ...]

    @property
    def full(self) -> float:
        """The share of the row at which the shade is full."""
        shares = [p.row[s.start : s.stop] for p in self.panels for s in p.segments if s.role == "candidate"]
        return max(float(np.quantile(np.concatenate(shares), 0.98)) if shares else 0.0, 1e-12)

    def svg(self) -> str:
        """The picture: two panels side by side, others one below the other."""
        pair = len(self.panels) == 2
        columns = 62 if pair else 100
        parts: list[str] = []
        x = y = height = 0.0
        for panel in self.panels:
            y = self._panel(panel, x, 0.0 if pair else y, columns, parts)
            x, height = x + pair * (columns * _EM + 24), max(height, y)
        width = max(x, columns * _EM + 16)
        note = f"Stronger: more of the deciding token's attention, full at {self.full:.1%}. Underlined: reused."
        parts.append(f'<text class="n" x="8" y="{height + 14:g}">{escape(note)}</text>')
        size = f'viewBox="0 0 {width:g} {height + 24:g}" width="{width:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="kvattn" {size} role="img"><style>{_STYLE}</style>'
            f'<rect class="p" width="100%" height="100%"/>{"".join(parts)}</svg>'
        )

    _repr_html_ = svg

    def save(self, path: str | Path) -> Path:
        """Write the picture as `.svg`, or as a page of its own, `.html`. Raises KvattnError for another ending."""
        path = Path(path)
        if path.suffix not in (".svg", ".html"):
            raise KvattnError(f"{path}: shaded text is written as .svg or .html")
        page = "<!doctype html><meta charset=utf-8><meta name=color-scheme content='light dark'>"
        write_atomically(path, f"{'' if path.suffix == '.svg' else page}{self.svg()}\n".encode())
        return path

    def _panel(self, panel: Panel, left: float, y: float, columns: int, parts: list[str]) -> float:
        parts.append(f'<text class="h" x="{left + 8:g}" y="{y + 20:g}">{escape(_visible(panel.title))}</text>')
        y += _HEAD
        slots = np.full(len(panel.tokens), -1)
        for s in panel.segments:
            if s.role == "candidate":
                slots[s.start : s.stop] = s.slot
        column = 0
        for token, share, slot, kept in zip(panel.tokens, panel.row, slots, panel.kept, strict=True):
            colour = slot_colour(int(slot) + 1) if slot >= 0 else NEUTRAL
            opacity = (0.55 if slot >= 0 else 0.4) * min(float(share) / self.full, 1.0)
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
                        parts.append(box + f'fill="{colour}" fill-opacity="{opacity:.2f}"/>')
                    if kept:
                        parts.append(
                            f'<path d="M{x:.1f} {y + 15:g}h{width:.1f}" stroke="{colour}" stroke-width="1.5"/>'
                        )
                    where = f'class="{"c" if slot >= 0 else "n"}" x="{x:.1f}" y="{y + 11:g}" textLength="{width:.1f}"'
                    parts.append(f"<text {where}>{escape(_visible(piece))}</text>")
                    column += _width(piece)
        return y + _LINE + 10


def _visible(text: str) -> str:
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
