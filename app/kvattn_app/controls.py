"""Widgets that several pages share. Each has a parameter of its own in the URL, so that a link restores the view, and
keeps its value while another page is open.

A page's parameters are gathered while it is drawn and written once at its end: one entry of the browser's history for
each change. What stands in the URL and was not written by the page is a link or the back button, and wins."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from kvattn.questions.labels import is_floor
from kvattn.report import headline
from kvattn.stats.picks import Scope
from kvattn.study.run_folder import Run, mass, picks
from kvattn_app import library, show

MAKE_A_RUN = "kvattn judge synthetic --run runs/mine --heldout 8 --orders latin --methods dense,null-edit,naive"
MOST_METHODS = 6  # more are hard to tell apart in one figure; they can be chosen
VIEWS = {"raw": "Of the row", "among": "Among slots", "per_token": "Per token"}
SINKS = {"kept": "Sinks in", "out": "Sinks out"}


def sinks(opened: Run, query: str) -> Any:
    """Whether mass on sink tokens counts: "kept" or "out"; no choice where nobody looked for sinks."""
    if library.ask(opened, mass.sink_shares, query):
        return named("Sinks", SINKS, "sinks")
    st.caption("Sinks in: which tokens are sinks is unknown, since nobody looked for them.")
    return "kept"


def run() -> tuple[str, Path]:
    """The chosen run: name and folder. Stops the page where there is none."""
    found = library.runs()
    if not found:
        folders = ", ".join(library.settings()["folders"])
        show.empty("There are no runs here yet. This command judges a few problems and makes one:", MAKE_A_RUN)
        st.caption("Looked in:")
        show.verbatim(folders)
        st.stop()
    asked = st.query_params.get("run")
    with st.sidebar:
        name = choose("Run", list(found), "run", list(found).index(library.telling(found)))
    if asked is not None and asked not in found:
        st.warning("There is no such run here; another is shown. The link asks for:", icon=":material/warning:")
        show.verbatim(asked)
    return name, found[name]


def opened() -> Run:
    """The chosen run, with finished questions. Stops the page where there are none."""
    _, path = run()
    found = library.opened(path)
    if not library.ask(found, picks.size)["judgements"]:
        show.empty("This run has no finished question yet. The command that began it continues it.")
        st.stop()
    return found


def again(opened: Run) -> str:
    """The command that judges the run's questions anew in several orders, with a null edit, and with its rows."""
    manifest = opened.manifest
    data, held = manifest.get("data") or {}, (manifest.get("heldout") or {}).get("questions") or 0
    known = [m for m in library.ask(opened, picks.methods) if m != "dense"] or ["null-edit", "naive"]
    methods = ",".join(m.replace(",", "+") for m in ["dense", *known])
    source = str(data.get("source") or "FILE")
    words = [
        "kvattn",
        "judge",
        source,
        "--model",
        library.model_of(manifest),
        "--readout",
        str(manifest.get("readout")),
    ]
    words += ["--template", "TEMPLATE"] if "@" in str(manifest.get("template")) else []
    words += ["--limit", str(data.get("questions", 0) + held), "--heldout", str(held), "--orders", "latin"]
    return shlex.join([*words, "--methods", methods, "--run", f"{opened.folder}-again"])


def query(opened: Run) -> str:
    """The query token whose rows are shown. Stops the page where no rows were captured."""
    found = library.ask(opened, Run.queries)
    if not found:
        show.empty(
            "This run holds no decision rows: it was judged with capture: false, or is a copy made with --no-rows. "
            "This command makes a run that has them:",
            again(opened),
        )
        st.stop()
    if len(found) == 1:
        return found[0]
    help_ = (
        "last_prompt emits the first token of the answer; at_choice is the mean over the branches that ask about each "
        "slot, at_choice:K the branch of slot K"
    )
    return choose("Query token", found, "query", help=help_)


def methods(opened: Run, others: bool = False) -> list[str]:
    """Some of the run's methods, in the manifest's order. `others`: without dense."""
    known = [m for m in library.ask(opened, picks.methods) if not (others and m == "dense")]
    default = known
    if len(known) > MOST_METHODS:
        default = [m for m in known if not is_floor(m)][:MOST_METHODS]
    label = "Methods beside dense" if others else "Methods"
    chosen = choose_some(label, known, default, "others" if others else "methods")
    return [m for m in known if m in chosen]


def telling(names: Sequence[str]) -> int:
    """Which of some methods a page opens with."""
    told = headline.telling(names)
    return list(names).index(told) if told else 0


def scope(opened: Run, columns: Sequence[Any]) -> Scope:
    """Which choices and questions count."""
    size = library.ask(opened, picks.size)
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
    """One of some options, in a list that shows them as plain text."""
    options = list(options)
    first = options[min(index, len(options) - 1)]
    return _linked(st.selectbox, label, options, key=key, default=first, read=_one_of(options), **more)


def choose_some(label: str, options: Sequence[str], default: Sequence[str], key: str, **more: Any) -> list[str]:
    """Any of some options, `default` where none is chosen."""
    known = None if more.get("accept_new_options") else options

    def read(texts: list[str]) -> list[str] | None:
        return [x for x in texts if known is None or x in known] or None

    return _linked(st.multiselect, label, list(options), key=key, default=list(default), read=read, write=list, **more)


def named(label: str, options: dict[str, str], key: str, **more: Any) -> str:
    """One of some values with names of our own."""
    look = {"format_func": options.__getitem__, "required": True, **more}
    first = next(iter(options))
    return _linked(st.segmented_control, label, list(options), key=key, default=first, read=_one_of(options), **look)


def number(label: str, key: str, count: int, default: int = 0, least: int = 0, **more: Any) -> int:
    """A whole number from `least` to count - 1."""
    read = partial(_whole, least=least, count=count)
    return _linked(st.number_input, label, least, count - 1, key=key, default=default, read=read, step=1, **more)


def number_held(key: str, count: int, default: int = 0) -> int:
    """What `number` is going to return, for what stands above it on the page."""
    return _held(key, default, partial(_whole, least=0, count=count))


def line(label: str, key: str, default: str, **more: Any) -> str:
    """A line of text."""
    return _linked(st.text_input, label, key=key, default=default, read=lambda texts: texts[-1], **more)


def switch(label: str, key: str) -> bool:
    """A switch that is off at first."""
    words = {True: ["on"], False: ["off"]}
    return _linked(st.toggle, label, key=key, default=False, read=lambda t: t[-1] == "on", write=words.__getitem__)


def _text(value: Any) -> list[str]:
    return [str(value)]


def gather() -> None:
    """Begins a page: nothing is to stand in the URL yet."""
    st.session_state["link"] = {}


def link(key: str, texts: list[str]) -> None:
    """Has a parameter stand in the URL, and comes back to it when the page is opened again."""
    st.session_state["link"][key] = texts
    st.session_state.setdefault("kept", {})[key] = texts


def linked(key: str) -> list[str]:
    """What a parameter says: that of a link or of the back button, else what this session kept."""
    texts = st.query_params.get_all(key)
    return texts if is_foreign(key) else st.session_state.get("kept", {}).get(key, texts)


def write_link() -> None:
    """Ends a page: its parameters are put into the URL, if they are other ones."""
    new = {key: texts for key, texts in st.session_state["link"].items() if texts}
    if {key: st.query_params.get_all(key) for key in st.query_params} != new:
        st.query_params.from_dict(new)
    st.session_state["written"] = new


def is_foreign(key: str) -> bool:
    """Whether a parameter comes from a link or the back button."""
    texts = st.query_params.get_all(key)
    return bool(texts) and texts != st.session_state.get("written", {}).get(key)


def _held(key: str, default: Any, read: Callable[[list[str]], Any], write: Callable[[Any], list[str]] = _text) -> Any:
    """What a link says, else what a widget holds, else what it held when its page was left, else `default`; `read`
    returns None for what is no value of it."""
    own = [write(st.session_state[key])] if key in st.session_state else []
    texts = [linked(key), *own] if is_foreign(key) else [*own, linked(key)]
    return next((value for t in texts if t and (value := read(t)) is not None), default)


def _linked(
    widget: Callable[..., Any],
    *args: Any,
    key: str,
    default: Any,
    read: Callable[[list[str]], Any],
    write: Callable[[Any], list[str]] = _text,
    **more: Any,
) -> Any:
    """The value of a widget that starts from the URL: `write` makes a parameter's texts of a value, `read` a value of
    texts.

    The value stands in the URL always, also where it is the default: what is the default may change, a link must not.
    (Streamlit's own bind="query-params" takes defaults out of the URL.)
    """
    value = _held(key, default, read, write)
    st.session_state[key] = value  # each time, so that a page that the browser went back to shows it, too
    widget(*args, key=key, **more)
    link(key, write(value))
    return value


def _one_of(options: Collection[str]) -> Callable[[list[str]], str | None]:
    return lambda texts: texts[-1] if texts[-1] in options else None


def _whole(texts: list[str], least: int, count: int) -> int | None:
    try:
        return min(max(int(texts[-1]), least), count - 1)
    except ValueError:
        return None
