"""The prompt to look through, layer by layer and head by head: one page for the app and for notebooks.

All that it shows is in the page: no server, no network, and by its content policy no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from plotly.colors import hex_to_rgb

from kvattn.errors import KvattnError
from kvattn.files import write_atomically
from kvattn.plots.text import GAIN, LOSS, Panel, visible
from kvattn.plots.theme import GROUNDS, NEUTRAL, SLOT_COLOURS

HEIGHT = 660  # pixels that the page takes
_DARK = f":root {{--ink: #e6e9ef; --soft: #b3bac6; --line: #4b5360; --page: {GROUNDS[True]}; color-scheme: dark}}"
_SCHEMES = {None: f"@media(prefers-color-scheme: dark) {{{_DARK}}}", False: ":root {color-scheme: light}", True: _DARK}


@dataclass(frozen=True, repr=False)
class Explorer:
    """One prompt under several methods. A notebook shows it; `save` writes it.

    A slider goes through the layers, by itself if asked; a head is chosen from a list, from those that change most, or
    by a click on the map of changes; the first method, another one and their difference stand side by side.

    panels: the first is what others are compared with; rows are [layers, heads, tokens]
    layer, head: what is open at first; None is the mean over all

    Raises KvattnError for prompts of other tokens.
    """

    panels: tuple[Panel, ...]
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        first = self.panels[0]
        for p in self.panels:
            if list(p.tokens) != list(first.tokens):
                raise KvattnError(f"{p.title!r} has other tokens than {first.title!r}: they cannot be compared")
            if np.ndim(p.row) != 3:
                raise KvattnError(f"rows of shape {np.shape(p.row)}; an explorer takes [layers, heads, tokens]")

    def page(self, dark: bool | None = None) -> str:
        """A page of its own. dark: None as the reader's system."""
        first, here = self.panels[0], Path(__file__)
        layers, heads, _ = np.shape(first.row)
        slots = sorted((s for s in first.segments if s.role == "candidate"), key=lambda s: s.slot)
        data = {
            "layers": layers,
            "heads": heads,
            "tokens": ["\n".join(map(visible, t.split("\n"))) for t in first.tokens],
            "segments": [[s.start, s.stop] for s in slots],
            "panels": [self._said(p) for p in self.panels],
            "colours": [hex_to_rgb(c) for c in (*SLOT_COLOURS[:7], NEUTRAL)],
            "gain": hex_to_rgb(GAIN),
            "loss": hex_to_rgb(LOSS),
            "start": {
                "layer": -1 if self.layer is None else self.layer,
                "head": -1 if self.head is None else self.head,
            },
        }
        script = here.with_suffix(".js").read_text(encoding="utf-8")
        return Template(here.with_suffix(".html").read_text(encoding="utf-8")).substitute(
            hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            dark=_SCHEMES[dark],
            data=json.dumps(data).replace("<", "\\u003c"),
            script=script,
        )

    def __repr__(self) -> str:
        return f"Explorer of {'; '.join(p.title for p in self.panels)}"

    def _repr_html_(self) -> str:
        look = f"width:100%;height:{HEIGHT}px;border:0"
        frame = f'<iframe srcdoc="{escape(self.page())}" sandbox="allow-scripts" style="{look}" title="kvattn">'
        return f"{frame}A page to look through the prompt: run this cell to see it.</iframe>"

    def save(self, path: str | Path) -> Path:
        """Write the page. Raises KvattnError for another ending than .html."""
        path = Path(path)
        if path.suffix != ".html":
            raise KvattnError(f"{path}: this page is written as .html")
        write_atomically(path, self.page().encode())
        return path

    @staticmethod
    def _said(panel: Panel) -> dict[str, object]:
        name, rows = panel.title.split(":")[0], np.clip(np.asarray(panel.row, dtype=np.float64), 0, 1)
        packed = base64.b64encode(np.round(np.sqrt(rows) * 65535).astype("<u2").tobytes()).decode()
        return {"name": name, "title": panel.title, "rows": packed, "kept": np.asarray(panel.kept).tolist()}
