"""The runs that the app may show: run folders under the folders it was given, addressed by name.

A name is looked up among those found; it is never made into a path, so nothing in a URL reaches the file system.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from kvattn import DEFAULT_JUDGE, models
from kvattn.errors import KvattnError
from kvattn.stats import ContentTest
from kvattn.stats.agreement import jcr
from kvattn.study.run_folder import Run, picks, read_manifest
from kvattn.study.run_folder.schema import TABLES

ENVIRONMENT = "KVATTN_APP"
DEEPEST = 3
LIVE = "app"  # the source of a run that a page judged


def settings() -> dict[str, Any]:
    """What the command line asked for: `folders` to read, `models` to judge with, their `dtype` and `device`."""
    try:
        given = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    except ValueError:
        given = {}
    return {
        "folders": [str(f) for f in given.get("folders", ["runs"])],
        "models": list(given.get("models", [])),
        "dtype": str(given.get("dtype", "float32")),
        "device": str(given.get("device", "cpu")),
    }


def model_of(manifest: dict[str, Any]) -> str:
    """The name by which a run's model is loaded, else its id."""
    model = manifest.get("model") or {}
    return str(model.get("name") or model.get("id"))


@st.cache_data(ttl=5, show_spinner=False)
def find(folders: tuple[str, ...]) -> dict[str, Path]:
    """Run folders by name, the youngest first, what was judged live last."""
    found: dict[str, tuple[tuple[bool, str], Path]] = {}
    for given in folders:
        root = Path(given).resolve()
        for path in _runs_in(root, root, DEEPEST):
            name = path.relative_to(root).as_posix()
            name = root.name if name == "." else name
            if name in found and found[name][1] != path:
                name = f"{root.name}/{name}"
            while name in found and found[name][1] != path:
                name += "'"
            manifest = read_manifest(path)
            studied = (manifest.get("data") or {}).get("source") != LIVE
            found[name] = ((studied, str(manifest.get("created", ""))), path)
    return {name: path for name, (_, path) in sorted(found.items(), key=lambda kv: kv[1][0], reverse=True)}


def _runs_in(folder: Path, root: Path, depth: int) -> list[Path]:
    with contextlib.suppress(KvattnError):
        read_manifest(folder)
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    out = []
    with contextlib.suppress(OSError):
        for child in sorted(folder.iterdir()):
            # A link may lead out of what was given.
            if child.is_dir() and not child.name.startswith(".") and child.resolve().is_relative_to(root):
                out += _runs_in(child, root, depth - 1)
    return out


def runs() -> dict[str, Path]:
    """All runs that may be shown."""
    return find(tuple(settings()["folders"]))


def telling(found: dict[str, Path]) -> str:
    """The run that a page opens with: of the largest model whose judge reads its candidates and loses some of its picks
    under naive reuse, the one with the most judgements; else the first."""
    return max(found, key=lambda name: _tells(found[name]), default="")


def _tells(path: Path) -> tuple[int, int]:
    """Parts of the model and judgements; zeros where the judge does not read, or loses nothing."""
    with contextlib.suppress(KvattnError):
        run = opened(path)
        test = ContentTest.stored(run.manifest)
        if test is not None and test.verdict == "reads":
            same = ask(run, jcr).query("method.str.startswith('naive')", engine="python")["jcr"]
            if len(same) and same.min() < 0.95:
                parts = (run.manifest.get("model") or {}).get("parameters")
                return parts if isinstance(parts, int) else 0, ask(run, picks.size)["judgements"]
    return 0, 0


@st.cache_resource(max_entries=16, show_spinner=False)
def _open(path: Path, state: tuple[int, ...]) -> Run:
    return Run(path)


def opened(path: Path) -> Run:
    """A run, opened anew when units came to it or left it."""
    return _open(path, _state(path))


def _state(path: Path) -> tuple[int, ...]:
    """When parts last came to a run or left it: the times of its tables' folders, of which there are few."""
    times = []
    for table in TABLES:
        try:
            times.append((path / table).stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


@st.cache_data(max_entries=256, show_spinner=False)
def reduce(state: str, _run: Run, _function: Callable[..., Any], name: str, args: tuple, kwargs: tuple) -> Any:
    """The result of a reduction, kept for the state of the run and the arguments."""
    return _function(_run, *args, **dict(kwargs))


def ask(run: Run, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(run, ...)`, cached by the state of the run."""
    name = f"{function.__module__}.{function.__qualname__}"
    out = reduce(run.state, run, function, name, args, tuple(sorted(kwargs.items())))
    return out.copy() if isinstance(out, pd.DataFrame) else out


def models_offered() -> list[str]:
    """Names of models that can judge at once: those asked for, prepared ones, and those that come with kvattn."""
    ready = [m.name for m in models.list_models() if m.prepared]
    return list(
        dict.fromkeys(
            [*settings()["models"], *sorted(ready, key=lambda n: (n != DEFAULT_JUDGE, n.startswith("organism")))]
        )
    )
