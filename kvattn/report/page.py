"""The HTML of a report: escaped text, tables, figures, and the page that holds them without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from kvattn.plots.theme import method_style, template

# Control characters but tab and newline, and those that turn the writing direction.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into the page as it is. Everything else is escaped."""

    text: str

    def __add__(self, other: Html) -> Html:
        return Html(self.text + other.text)


def text(value: object, limit: int | None = None) -> Html:
    """Any text, inert: escaped, control and direction characters shown as dots, its direction kept to itself."""
    shown = str(value)
    if limit is not None and len(shown) > limit:
        shown = shown[: max(1, limit - 1)] + "…"
    shown = _HIDDEN.sub("·", shown).encode("utf-8", "replace").decode()
    return Html(f"<bdi>{html.escape(shown)}</bdi>")


def tag(name: str, *children: Html | str, **attributes: str) -> Html:
    """An element. Strings among the children are escaped; attribute names may end in _ (class_)."""
    written = "".join(f' {k.rstrip("_").replace("_", "-")}="{html.escape(v)}"' for k, v in attributes.items())
    inner = "".join(c.text if isinstance(c, Html) else html.escape(c) for c in children)
    return Html(f"<{name}{written}>{inner}</{name}>")


def join(parts: Iterable[Html]) -> Html:
    """The parts one after the other."""
    return Html("".join(p.text for p in parts))


def paragraph(*children: Html | str, kind: str = "") -> Html:
    """A paragraph of the given class."""
    return tag("p", *children, **({"class_": kind} if kind else {}))


def method(name: str) -> Html:
    """A method's name beside its colour."""
    swatch = tag("span", class_="swatch", style=f"background:{method_style(name).colour}")
    return tag("span", swatch, text(name, 60), class_="method")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent; a dash where it is unknown."""
    return "–" if missing(value) else f"{100 * float(value):.{digits}f}%"  # type: ignore[arg-type]


def number(value: float | None, digits: int = 2) -> str:
    """A number; a dash where it is unknown."""
    return "–" if missing(value) else f"{float(value):.{digits}f}"  # type: ignore[arg-type]


def interval(low: float | None, high: float | None, as_percent: bool = True) -> str:
    """The ends of an interval; a dash where it is unknown."""
    if missing(low) or missing(high):
        return "–"
    if as_percent:
        return f"{100 * float(low):.0f} to {100 * float(high):.0f}%"  # type: ignore[arg-type]
    return f"{float(low):.2f} to {float(high):.2f}"  # type: ignore[arg-type]


def missing(value: Any) -> bool:
    """Whether a cell is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value != value


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Html | str]], words: Sequence[int] = (0,), kind: str = ""
) -> Html:
    """A table. `words` are the columns that hold text and are set flush left."""
    align = ["words" if i in words else "figures" for i in range(len(heads))]
    head = tag("tr", *(tag("th", h, class_=a, scope="col") for h, a in zip(heads, align, strict=True)))
    body = join(tag("tr", *(tag("td", cell, class_=a) for cell, a in zip(row, align, strict=True))) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", body), class_=kind), class_="scroll")


def details(summary: str, *children: Html) -> Html:
    """Something that opens on a click."""
    return tag("details", tag("summary", summary), *children)


@dataclass
class Page:
    """Sections and figures, collected in order; `render` makes the page."""

    title: str
    sections: list[tuple[str, str, Html]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def section(self, key: str, title: str, *children: Html) -> None:
        """Appends a section; `key` is its anchor."""
        self.sections.append((key, title, join(children)))

    def figure(self, fig: go.Figure, label: str, caption: Html | str = "", half: bool = False) -> Html:
        """A figure's place in the page; `label` is read out where it cannot be seen."""
        spec = json.loads(str(fig.to_json()))
        spec["layout"].pop("template", None)
        height = int(spec["layout"].get("height", 400))
        spec["layout"].pop("width", None)
        # Model text in the data must not close the script element.
        data = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
        key = f"figure-{len(self.figures) + 1}"
        self.figures.append(f'<script type="application/json" data-for="{key}">{data}</script>')
        plot = tag("div", id=key, class_="plot", role="img", aria_label=label, style=f"height:{height}px")
        below = tag("figcaption", caption) if caption else Html("")
        return tag("figure", plot, below, class_="half" if half else "whole")

    def render(self, lead: Html, foot: Html) -> str:
        """The whole page. `lead` stands over the sections, `foot` under them."""
        assets = files("kvattn.report")
        style = (assets / "report.css").read_text(encoding="utf-8")
        own = (assets / "report.js").read_text(encoding="utf-8")
        scripts = [get_plotlyjs().replace("</script", "<\\/script"), own.replace("</script", "<\\/script")]
        nav = join(tag("a", title, href=f"#{key}") for key, title, _ in self.sections)
        body = join(tag("section", tag("h2", title), content, id=key) for key, title, content in self.sections)
        themes = {name: template(dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
        return Template((assets / "report.html").read_text(encoding="utf-8")).substitute(
            policy=html.escape(_policy(scripts)),
            title=html.escape(self.title),
            style=style,
            nav=nav.text,
            lead=lead.text,
            body=body.text,
            foot=foot.text,
            themes=json.dumps(themes, separators=(",", ":")).replace("<", "\\u003c"),
            figures="\n".join(self.figures),
            plotly=scripts[0],
            own=scripts[1],
        )


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which the page runs these scripts and no other, and asks no network."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def anchor(value: str) -> str:
    """A fragment name for any text."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", value)[:24].strip("-")
    return f"{slug}-{hashlib.sha256(value.encode('utf-8', 'replace')).hexdigest()[:8]}"
