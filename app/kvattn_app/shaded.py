"""The decision row over the actual prompt: its text, each token shaded by its share. HTML of our own making, in which
everything that a model or a person wrote is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvattn.plots.theme import ROLE_COLOURS

STRONGEST = 0.85


def prompt_html(tokens: Sequence[str], row: np.ndarray, segments: Sequence[Any]) -> str:
    """The prompt as HTML: a block a slot with its share, a span a token with its exact value on hover.

    tokens:   text of every prompt token
    row:      [tokens], shares
    segments: in prompt order, with role, slot, start and stop
    """
    values = np.asarray(row, dtype=float)
    # The square root spreads small values; the 99th percentile keeps one sink from bleaching all others.
    top = max(float(np.quantile(values, 0.99)), 1e-9)
    shade = np.sqrt(np.clip(values / top, 0, 1)) * STRONGEST
    parts: list[str] = []
    slot: int | None = None
    for s in segments:
        if s.slot != slot:
            parts.append("</div>" if slot is not None else "")
            if s.slot is not None:
                own = [x for x in segments if x.slot == s.slot and x.role == "candidate"]
                total = sum(float(values[x.start : x.stop].sum()) for x in own)
                parts.append(
                    '<div style="border-left:4px solid #0072B2;padding:2px 10px;margin:6px 0">'
                    f'<div style="font-size:12px;opacity:.75">slot {s.slot + 1}: {total:.2%} of the row</div>'
                )
            slot = s.slot
        colour = ROLE_COLOURS.get(s.role, "#7b8494")
        rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        for at in range(s.start, s.stop):
            parts.append(_span(tokens[at], rgb, float(shade[at]), f"token {at}, {s.name}: {values[at]:.6g}"))
    parts.append("</div>" if slot is not None else "")
    style = "font-family:ui-monospace,monospace;font-size:13px;line-height:1.7;white-space:pre-wrap;"
    return f'<div style="{style}overflow-wrap:anywhere;max-height:860px;overflow-y:auto">{"".join(parts)}</div>'


def _span(token: str, rgb: str, alpha: float, title: str) -> str:
    shown = "".join(c if c.isprintable() or c == "\n" else "·" for c in token)
    text = html.escape(shown).replace("\n", "⏎\n")
    return f'<span title="{html.escape(title, quote=True)}" style="background:rgba({rgb},{alpha:.3f})">{text}</span>'
