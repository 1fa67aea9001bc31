"""Files of a run folder: names of parts, what is committed, what is damaged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kvattn.study.run_folder.schema import TABLES, content_hash
from kvattn.study.run_folder.summary import SUMMARIES

_PART = re.compile(r"part-(?P<key>.+-[0-9a-f]{12})-(?P<hash>[0-9a-f]{16})\.parquet")


def parts_of(folder: Path, table: str) -> dict[str, list[Path]]:
    """Parts of a table by file key, in the order of their names; other files are not looked at."""
    found: dict[str, list[Path]] = {}
    there = folder / table
    for name in sorted(os.listdir(there)) if there.is_dir() else ():
        match = _PART.fullmatch(name)
        if match:
            found.setdefault(match["key"], []).append(there / name)
    return found


def committed(folder: Path) -> dict[str, dict[str, Path]]:
    """For each table, the part of every committed unit. A missing part is left out here and named by `damage`."""
    units = parts_of(folder, "judgements")
    return {
        table: {key: paths[0] for key, paths in parts_of(folder, table).items() if key in units} for table in TABLES
    }


def damage(folder: Path, tables: Iterable[str], parts: Mapping[str, Mapping[str, Path]] | None = None) -> list[str]:
    """One line per missing or damaged part of the committed units; summaries may be missing, being made anew then."""
    parts = parts or committed(folder)
    found: list[str] = []
    for table in tables:
        for key, mark in parts["judgements"].items():
            path = parts[table].get(key)
            if path is None and table in SUMMARIES:
                continue
            problem = f"{folder / table} lacks its part of unit {key}" if path is None else _problem(path)
            if problem:
                found.append(f"{problem}; delete {mark} and run again to judge its question anew")
    return found


def _problem(path: Path) -> str | None:
    match = _PART.fullmatch(path.name)
    try:
        if match is not None and content_hash(path.read_bytes()) == match["hash"]:
            return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return f"{path} is damaged: its content does not match the hash in its name"
