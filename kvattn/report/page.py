"""The HTML of a report: escaped text, tables, figures, and the page that holds them without a network.

Markup comes out of the templates beside this file alone (jinja2, with autoescape); every other string is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kvattn import text as words
from kvattn.plots.theme import method_style, template

# Control characters but tab and newline, and those that turn the writing direction.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

DASH = "–"
percent = partial(words.percent, none=DASH)
number = partial(words.number, none=DASH)


def interval(low: Any, high: Any, as_percent: bool = True) -> str:
    """The ends of an interval; a dash where it is unknown."""
    return words.between(low, high, 0 if as_percent else 2, as_percent, DASH)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("kvattn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    found.filters |= {"inert": inert, "colour": lambda name: method_style(name).colour}
    return found


@cache
def macros() -> Any:
    """The macros of templates/macros.html; each returns Markup."""
    return _environment().get_template("macros.html").module


def inert(value: object, limit: int | None = None) -> str:
    """Any text, cut to `limit` characters, its control and direction characters shown as dots."""
    shown = str(value)
    if limit is not None and len(shown) > limit:
        shown = shown[: max(1, limit - 1)] + "…"
    return _HIDDEN.sub("·", shown).encode("utf-8", "replace").decode()


def text(value: object, limit: int | None = None) -> Markup:
    """Any text, inert (`inert`), its direction kept to itself."""
    return macros().text(value, limit)


def element(name: str, *parts: str, kind: str = "", id: str = "") -> Markup:
    """An element around its parts; strings are escaped."""
    return macros().element(name, parts, kind, id)


def paragraph(*parts: str, kind: str = "") -> Markup:
    """A paragraph of the given class."""
    return element("p", *parts, kind=kind)


def method(name: str) -> Markup:
    """A method's name beside its colour."""
    return macros().method(name)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: Iterable[int] = (0,), kind: str = "") -> Markup:
    """A table. `words` are the columns that hold text and are set flush left."""
    return macros().table(heads, list(rows), set(words), kind)


Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]
"""A heading, and what a record shows under it."""

METHOD: Column = ("method", lambda r: method(r["method"]))


def records(rows: Iterable[Row], *columns: Column, words: Iterable[int] = (0,), kind: str = "") -> Markup:
    """A table with a row a record."""
    return table([head for head, _ in columns], [[cell(r) for _, cell in columns] for r in rows], words, kind)


def share(head: str, name: str, digits: int = 1) -> Column:
    """A field as a percentage."""
    return head, lambda r: percent(r[name], digits)


def amount(head: str, name: str, digits: int = 2) -> Column:
    """A field as a number."""
    return head, lambda r: number(r[name], digits)


def count(head: str, name: str) -> Column:
    """A field as it is."""
    return head, lambda r: str(r[name])


def ends(prefix: str = "", as_percent: bool = True) -> Column:
    """The ends of a 95 % interval, the fields `prefix`low and `prefix`high."""
    return "95%", lambda r: interval(r[f"{prefix}low"], r[f"{prefix}high"], as_percent)


def details(summary: str, *parts: str) -> Markup:
    """Something that opens on a click."""
    return macros().details(summary, parts)


class Section(NamedTuple):
    """A part of the page; `key` is its anchor."""

    key: str
    title: str
    parts: tuple[str, ...]


@dataclass
class Page:
    """Sections and figures, collected in order; `render` makes the page."""

    title: str
    sections: list[Section] = field(default_factory=list)
    figures: list[tuple[str, Markup]] = field(default_factory=list)

    def section(self, key: str, title: str, *parts: str) -> None:
        """Appends a section."""
        self.sections.append(Section(key, title, parts))

    def figure(self, fig: go.Figure, label: str, caption: str = "", half: bool = False) -> Markup:
        """A figure's place in the page; `label` is read out where it cannot be seen."""
        spec = json.loads(str(fig.to_json()))
        spec["layout"].pop("template", None)
        height = int(spec["layout"].get("height", 400))
        spec["layout"].pop("width", None)
        key = f"figure-{len(self.figures) + 1}"
        self.figures.append((key, _json(spec)))
        return macros().figure(key, label, height, caption, half)

    def render(self, lead: Markup) -> str:
        """The whole page. `lead` stands over the sections."""
        assets = files("kvattn.report")
        own = (assets / "report.js").read_text(encoding="utf-8")
        scripts = [get_plotlyjs().replace("</script", "<\\/script"), own.replace("</script", "<\\/script")]
        themes = {name: template(dark).to_plotly_json() for name, dark in (("light", False), ("dark", True))}
        return (
            _environment()
            .get_template("page.html")
            .render(
                policy=_policy(scripts),
                title=self.title,
                style=Markup((assets / "report.css").read_text(encoding="utf-8")),
                lead=lead,
                sections=self.sections,
                themes=_json(themes),
                figures=self.figures,
                plotly=Markup(scripts[0]),
                own=Markup(scripts[1]),
            )
        )


def _json(value: Any) -> Markup:
    """JSON for a script element, which model text in it must not close."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026"))


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which the page runs these scripts and no other, and asks no network."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def anchor(value: str) -> str:
    """A fragment name for any text."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", value)[:24].strip("-")
    return f"{slug}-{hashlib.sha256(value.encode('utf-8', 'replace')).hexdigest()[:8]}"
