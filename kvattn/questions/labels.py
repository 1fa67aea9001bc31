"""How methods are written: `name`, or a name with parameters, in brackets as labels have it, `last-k(budget=0.3)`, or
after a colon, `last-k:budget=0.3`. A value may be a method in its turn: `last-k(base=isolated(labelled=False))`."""

from __future__ import annotations

import re

from kvattn.errors import KvattnError

DENSE = "dense"
NULL_EDIT = "null-edit"


def name_of(label: str) -> str:
    """A method's name without its parameters: "last-k" for "last-k(budget=0.3)"."""
    return re.split(r"[(:]", label, maxsplit=1)[0].strip()


def is_floor(label: str) -> bool:
    """Whether a method shows dense's own noise: dense after an edit that changes no meaning."""
    return name_of(label) == NULL_EDIT


def split(text: str) -> list[str]:
    """The pieces between those commas that stand in no brackets, stripped; empty ones are left out. Raises KvattnError
    for brackets that do not pair."""
    pieces, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if depth < 0:
            break
        if c == "," and not depth:
            pieces.append("")
        else:
            pieces[-1] += c
    if depth:
        raise KvattnError(
            f"the brackets of {text!r} do not pair; write methods as last-k:base=isolated(labelled=false)"
        )
    return [p.strip() for p in pieces if p.strip()]


def read(label: str) -> tuple[str, list[str]]:
    """The name and the "key=value" pieces of a method in either form. Raises KvattnError for text after the bracket."""
    form = re.fullmatch(r"([^:(]*)(?::(.*)|\((.*)\))?", label.strip(), re.DOTALL)
    if form is None:
        raise KvattnError(f"{label!r} is no method; write name, name:key=value or name(key=value)")
    return form[1].strip(), split(form[2] or form[3] or "")
