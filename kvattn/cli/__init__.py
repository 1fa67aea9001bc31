"""The command line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kvattn.errors import KvattnError
from kvattn.files import read_json

MOST = 1_000_000  # questions that a command may ask for
MOST_SEED = 2**32 - 1


def page(path: Path) -> Path:
    """Where an HTML page is written. Raises KvattnError for another ending: it would replace what is no page."""
    if path.suffix not in (".html", ".htm"):
        raise KvattnError(f"--out {path}: a page is HTML; give a name that ends in .html")
    return path


def refuse_input(out: Path, *read: str | Path) -> None:
    """Raises KvattnError where what is written would take the place of what is read."""
    for given in map(Path, read):
        if out.exists() and given.exists() and out.samefile(given):
            raise KvattnError(f"--out {out} is what is read; give another name")


def without(left_out: Collection[str], kept: int, what: str = "answered") -> str:
    """What was left out, for people; empty where nothing was."""
    if not left_out:
        return ""
    of = f"{len(left_out)} of {len(left_out) + kept} questions"
    return f"left out, since they cannot be {what}: {of}: {', '.join(left_out)}"


def json_of(path: Path, kind: str) -> Path:
    """Where JSON of a format, named KIND-NUMBER within, is written. Raises KvattnError where the file holds another."""
    try:
        held = read_json(path)
    except FileNotFoundError:
        return path
    except (OSError, ValueError):
        held = None
    named = held.get("format") if isinstance(held, dict) else None
    if not (isinstance(named, str) and named.rpartition("-")[0] == kind):
        raise KvattnError(f"{path} exists and is no {kind.replace('-', ' ')}; it would be lost: name another file")
    return path
