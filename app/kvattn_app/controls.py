"""Widgets that several pages share. Each has a parameter of its own in the URL, so that a link restores the view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from kvattn import run_picks
from kvattn.stats.picks import Scope
from kvattn.store import Run
from kvattn_app import library, show

MAKE_A_RUN = "kvattn judge synthetic --run runs/mine --heldout 8 --orders latin --methods dense,naive,true-mask"
MOST_METHODS = 6  # more are hard to tell apart in one figure; they can be chosen
VIEWS = {"raw": "Of the row", "among": "Among slots", "per_token": "Per token"}
SINKS = {"kept": "Sinks in", "out": "Sinks out"}


def run() -> tuple[str, Path]:
    """The chosen run: name and folder. Stops the page where there is none."""
    found = library.runs()
    if not found:
        folders = ", ".join(library.settings()["folders"])
        show.empty("There are no runs here yet. This command judges a few problems and makes one:", MAKE_A_RUN)
        st.caption("Looked in:")
        show.verbatim(folders)
        st.stop()
    with st.sidebar:
        name = choose("Run", list(found), "run")
    return name, found[name]


def opened() -> Run:
    """The chosen run, with finished questions. Stops the page where there are none."""
    _, path = run()
    found = library.opened(path)
    if not library.ask(found, run_picks.size)["judgements"]:
        show.empty("This run has no finished question yet. Its own command continues it, e.g.:", MAKE_A_RUN)
        st.stop()
    return found


def query(opened: Run) -> str:
    """The query token whose rows are shown. Stops the page where no rows were captured."""
    found = library.ask(opened, Run.queries)
    if not found:
        show.empty(
            "This run holds no decision rows: it was judged with capture: false, or is a copy made with --no-rows. "
            "This command makes a run that has them:",
            MAKE_A_RUN,
        )
        st.stop()
    if len(found) == 1:
        return found[0]
    help_ = "last_prompt emits the first token of the answer; at_choice:K asks about slot K alone"
    return choose("Query token", found, "query", help=help_)


def methods(opened: Run, others: bool = False) -> list[str]:
    """Some of the run's methods, in the manifest's order. `others`: without dense."""
    known = [m for m in library.ask(opened, run_picks.methods) if not (others and m == "dense")]
    default = known
    if len(known) > MOST_METHODS:
        default = [m for m in known if not m.startswith("null-edit")][:MOST_METHODS]
    label = "Methods beside dense" if others else "Methods"
    chosen = choose_some(label, known, default, "others" if others else "methods")
    return [m for m in known if m in chosen]


def telling(names: Sequence[str]) -> int:
    """Which of some methods a page opens with: naive, where it is among them."""
    return next((i for i, name in enumerate(names) if name == "naive"), min(1, len(names) - 1))


def scope(opened: Run, columns: Sequence[Any]) -> Scope:
    """Which choices and questions count."""
    size = library.ask(opened, run_picks.size)
    with columns[0]:
        kinds = ["raw", "calibrated"] if size["calibrated"] else ["raw"]
        kind = choose("Choices", kinds, "choices", help="Calibrated: less one prior by slot, made from dense")
    with columns[1]:
        options = ["all questions"]
        options += ["right and wrong candidates"] if 0 < size["mixed"] < size["questions"] else []
        options += [f"{n} candidates" for n in size["n"]] if len(size["n"]) > 1 else []
        which = choose("Questions", options, "questions")
    n = int(which.split()[0]) if which.endswith("candidates") and which[0].isdigit() else None
    return Scope(kind == "calibrated", which.startswith("right"), n)


def choose(label: str, options: Sequence[str], key: str, index: int = 0, **more: Any) -> str:
    """One of some options, in a list that shows them as plain text.

    Its value stands in the URL always, also where it is the first: what comes first may change, a link must not.
    """
    options = list(options)
    first = options[min(index, len(options) - 1)]
    if st.session_state.get(key, st.query_params.get(key)) not in options:
        st.session_state[key] = first
    elif key not in st.session_state:
        st.session_state[key] = st.query_params[key]
    found = st.selectbox(label, options, key=key, **more)
    _to_url(key, [found])
    return found if found in options else first


def choose_some(label: str, options: Sequence[str], default: Sequence[str], key: str, **more: Any) -> list[str]:
    """Any of some options, `default` where none is chosen; in the URL as `choose`."""
    if key not in st.session_state:
        linked = st.query_params.get_all(key)
        new = bool(more.get("accept_new_options"))
        st.session_state[key] = [x for x in linked if new or x in options] or list(default)
    elif not more.get("accept_new_options"):
        st.session_state[key] = [x for x in st.session_state[key] if x in options] or list(default)
    found = st.multiselect(label, list(options), key=key, **more) or list(default)
    _to_url(key, found)
    return found


def _to_url(key: str, values: Sequence[str]) -> None:
    if st.query_params.get_all(key) != list(values):
        st.query_params[key] = list(values)


def named(label: str, options: dict[str, str], key: str, **more: Any) -> str:
    """One of some values with names of our own."""
    first = next(iter(options))
    if st.session_state.get(key, st.query_params.get(key)) not in options:
        st.session_state[key] = first
    elif key not in st.session_state:
        st.session_state[key] = st.query_params[key]
    name = options.__getitem__
    found = st.segmented_control(label, list(options), format_func=name, key=key, required=True, **more)
    _to_url(key, [found or first])
    return found if found in options else first


def number(label: str, key: str, count: int, default: int = 0, least: int = 0, **more: Any) -> int:
    """A whole number from `least` to count - 1."""
    value = st.session_state.get(key, st.query_params.get(key, default))
    try:
        wanted = int(value)
    except (TypeError, ValueError):
        wanted = default
    st.session_state[key] = min(max(wanted, least), count - 1)
    found = int(st.number_input(label, least, count - 1, step=1, key=key, **more))
    _to_url(key, [str(found)])
    return found


def line(label: str, key: str, default: str, **more: Any) -> str:
    """A line of text."""
    if key not in st.session_state:
        st.session_state[key] = st.query_params.get(key, default)
    found = st.text_input(label, key=key, **more) or ""
    _to_url(key, [found])
    return found


def switch(label: str, key: str) -> bool:
    """A switch that is off at first."""
    if key not in st.session_state:
        st.session_state[key] = st.query_params.get(key) == "on"
    found = st.toggle(label, key=key)
    _to_url(key, ["on" if found else "off"])
    return found
