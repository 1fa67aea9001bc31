"""The command line."""

from __future__ import annotations

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
