"""Runs of schema 1: what they called naive recomputes the template, and is called naive-linked since; what they called
naive(template=kept,question=kept) is naive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

READ = (1, 2)

# One after the other, in Python and in SQL alike. No method of schema 1 has a name that begins with "naive-".
_RENAMED = (
    ("naive", "naive-linked"),
    ("naive-linked(template=kept,question=kept)", "naive"),
    ("naive-linked(template=kept)", "naive(question=recomputed)"),
)


def label(old: str) -> str:
    """A label of schema 1 as it is written now."""
    for before, after in _RENAMED:
        old = old.replace(before, after)
    return old


def relation(source: str, manifest: Mapping[str, Any]) -> str:
    """A DuckDB relation with a column `method`, of the run with this manifest, as it is read now."""
    if manifest.get("schema") != 1:
        return source
    method = "method"
    for before, after in _RENAMED:
        method = f"replace({method}, '{before}', '{after}')"
    return f"(SELECT * REPLACE ({method} AS method) FROM {source})"


def manifest(stored: dict[str, Any]) -> dict[str, Any]:
    """A manifest as it is read now: `schema` stays, the methods' names and bases are today's."""
    if stored.get("schema") != 1:
        return stored

    def renamed(m: dict[str, Any]) -> dict[str, Any]:
        was, p = m.get("name", ""), m.get("parameters", {})
        now = label(was)
        if was.startswith("naive"):
            takes = ("question",) if not now.startswith("naive-linked") else ("headers", "question", "prefix")
            m = {**m, "class": "Naive" if len(takes) == 1 else "NaiveLinked"}
            p = {k: v for k, v in p.items() if k in takes}
        return {**m, "name": now, "parameters": {k: label(v) if isinstance(v, str) else v for k, v in p.items()}}

    return {**stored, **({"methods": [renamed(m) for m in stored["methods"]]} if stored.get("methods") else {})}
