"""Models beside each other: consistency and slot mass of several runs, by relative depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.errors import KvattnError
from kvattn.report import headline
from kvattn.stats.agreement import jcr
from kvattn.stats.picks import Scope
from kvattn.study.run_folder import Run, mass, picks, side_by_side
from kvattn_app import controls, library, show, words

FIRST = 4
NUMBERS = {
    "jcr": "JCR",
    "low": "JCR low",
    "high": "JCR high",
    "chance": "chance",
    "pairs": "pairs",
    "kappa": "kappa",
    "kappa_low": "kappa low",
    "kappa_high": "kappa high",
    "score": "score",
    "score_low": "score low",
    "score_high": "score high",
    "accuracy": "accuracy",
    "accuracy_low": "acc. low",
    "accuracy_high": "acc. high",
    "random": "at random",
    "judgements": "judgements",
    "token_layers": "token-layers",
}
WHAT = {"change": "Change against dense", "raw": "Share of the row", "per_token": "Per token"}


def page() -> None:
    """The page."""
    found = library.runs()
    if not found:
        show.empty("There are no runs to compare yet. This command makes three, of two kinds of judge:", "kvattn demo")
        return
    chosen = controls.choose_some("Runs", list(found), _first(found), "runs")
    opened = _open({name: found[name] for name in chosen if name in found})
    if not opened:
        show.empty("Choose one run or more that has finished questions.")
        return
    row = st.columns([2, 9])
    calibrated = all(library.ask(d, picks.size)["calibrated"] for d in opened.values())
    with row[0]:
        kind = controls.choose("Choices", ["raw", "calibrated"] if calibrated else ["raw"], "choices")
    scope = Scope(kind == "calibrated")
    names = list(dict.fromkeys(m for d in opened.values() for m in library.ask(d, picks.methods)))
    others = [m for m in names if m != "dense"]
    if not others:
        show.empty("These runs have dense alone; there is nothing to compare it with.")
        return
    with row[1]:
        common = [m for m in others if all(m in library.ask(d, picks.methods) for d in opened.values())]
        told = [headline.telling(library.ask(d, picks.methods)) for d in opened.values()]
        told = common or list(dict.fromkeys(m for m in told if m)) or others
        default = [m for m in told if not m.startswith("null-edit")][:4] or others
        shown = controls.choose_some("Methods", others, default, "compared")
    _consistency(opened, scope, shown)
    _slots(opened, shown)
    _depth(opened, others)
    _table(opened, scope, shown)
    _bands(opened, shown)


def _first(found: dict[str, Path]) -> list[str]:
    """The runs that the page opens with: the one that all pages open with, then the youngest."""
    return list(dict.fromkeys([library.telling(found), *found]))[:FIRST]


def _open(found: dict[str, Path]) -> dict[str, Run]:
    out = {}
    for name, path in found.items():
        try:
            run = library.opened(path)
            judged = library.ask(run, picks.size)["judgements"]
            library.ask(run, mass.shape)
        except KvattnError as error:
            st.warning("One of these runs cannot be read and is left out:", icon=":material/warning:")
            show.verbatim(error)
            continue
        if judged:
            out[name] = run
    return out


def _consistency(opened: dict[str, Run], scope: Scope, shown: list[str]) -> None:
    st.subheader("Consistency", anchor=False)
    show.explain("How often each method picks dense's candidate, run by run; red marks are chance.", words.JCR)
    parts = [library.ask(d, jcr, scope=scope).assign(run=name) for name, d in opened.items()]
    table: Any = pd.concat(parts, ignore_index=True)
    table = table[table["method"].isin(shown)]
    if table.empty:
        show.empty("None of the chosen runs has one of the chosen methods.")
        return
    _missing(opened, table["run"], "has none of these methods")
    told = headline.telling(shown, table)
    show.headline(headline.runs(table, told) if told else "")
    bad = [name for name, d in opened.items() if picks.meaningless(d, scope.calibrated)]
    show.figure(plots.consistency_of_runs(table, bad), "consistency-of-runs", table)


def _missing(opened: dict[str, Run], shown: Any, why: str) -> None:
    """Says which of the chosen runs a figure leaves out."""
    if out := [name for name in opened if name not in set(shown)]:
        st.caption(f"Not shown: {show.plain(', '.join(out), 400)}: {why}.")


def _slots(opened: dict[str, Run], shown: list[str]) -> None:
    st.subheader("Slot mass, model by model", anchor=False)
    show.explain(
        "What each slot gets of the deciding token's attention under a method, over what dense gives it; whiskers are "
        "95 % intervals, the dotted line is dense.",
        f"{words.SLOT_MASS}\n\n{words.CHANGE}",
    )
    tables = {name: library.ask(run, side_by_side.by_slot) for name, run in opened.items()}
    table: Any = pd.concat([t.assign(run=name) for name, t in tables.items()], ignore_index=True)
    table = table[table["method"].isin(["dense", *shown])]
    if table["factor"].isna().all():
        show.empty("None of the chosen runs has this: no rows were captured.")
        return
    _missing(opened, table["run"], "no rows were captured")
    show.figure(plots.mass_of_slots(table), "mass-of-slots", table)
    table = table[["run", *(c for c in table.columns if c != "run")]]
    with st.expander("The numbers, and how far the runs are apart"):
        show.table(table)
        first, *rest = [name for name, t in tables.items() if len(t)]
        parts = [side_by_side.apart(tables[first], tables[name]).assign(run=first, over=name) for name in rest]
        if parts:
            st.caption(
                f"Factors of {show.plain(first, 80)} over those of the others: 1 is no difference between models."
            )
            found = pd.concat(parts, ignore_index=True)
            show.table(found[found["method"].isin(shown)])
        show.exports("compare-slots", None, table)


def _depth(opened: dict[str, Run], others: list[str]) -> None:
    st.subheader("Slot mass by relative depth", anchor=False)
    row = st.columns([3, 2, 5])
    with row[0]:
        names = ["dense", *others]
        method = controls.choose("Method", names, "depth-method", index=controls.telling(names))
    slots = max(max(library.ask(d, picks.size)["n"]) for d in opened.values())
    with row[1]:
        slot = controls.choose("Slot", ["last", *(str(s) for s in range(1, slots + 1))], "depth-slot")
    with row[2]:
        view: Any = controls.named("Shown", WHAT, "depth-view")
    show.explain(
        "What a slot gets at each layer, models of different depth on one axis; bands are 95 % intervals.",
        f"{words.SLOT_MASS}\n\n{words.CHANGE}\n\nRelative depth: 0 is the first layer, 1 the last.",
    )
    parts = []
    for name, run in opened.items():
        table: Any = library.ask(run, side_by_side.by_layer, view)
        last = max(library.ask(run, picks.size)["n"])
        table = table[(table["method"] == method) & (table["slot"] == (last if slot == "last" else int(slot)))]
        if len(table):
            parts.append(table.assign(run=name))
    values: Any = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if values.empty or values["value"].isna().all():
        show.empty("None of the chosen runs has this: no rows were captured, or dense was asked to differ from itself.")
        return
    _missing(opened, values["run"], "no rows were captured, or it lacks this method or slot")
    unit = "share of the row per token" if view == "per_token" else "share of the row"
    fig = plots.by_depth(values, view == "change", unit, library.runs())
    show.figure(fig, show.short_key("depth", method, slot, view), values)


def _table(opened: dict[str, Run], scope: Scope, shown: list[str]) -> None:
    st.subheader("Numbers", anchor=False)
    show.explain(
        "Consistency, accuracy and cost, with intervals. The command `kvattn compare` prints the same numbers.",
        words.COST,
    )
    table = pd.concat([_numbers(name, d, scope) for name, d in opened.items()], ignore_index=True)
    table = table[table["method"].isin(["dense", *shown])]
    shares = [n for n in NUMBERS.values() if not n.startswith(("kappa", "score", "judgements", "pairs"))]
    show.table(table, column_config=show.share_columns(shares))
    show.exports("compare", None, table)


def _numbers(name: str, run: Run, scope: Scope) -> pd.DataFrame:
    table: Any = library.ask(run, side_by_side.numbers, scope).rename(columns=NUMBERS)
    table.insert(0, "run", name)
    table.insert(2, "model", library.ask(run, side_by_side.judge_facts, scope)["model"])
    return table[["run", "method", "model", *NUMBERS.values()]]


def _bands(opened: dict[str, Run], shown: list[str]) -> None:
    parts = [library.ask(d, side_by_side.by_band).assign(run=name) for name, d in opened.items()]
    parts = [p for p in parts if len(p)]
    if not parts:
        return
    table: Any = pd.concat(parts, ignore_index=True)
    table = table[table["method"].isin(shown)]
    table = table[["run", *(c for c in table.columns if c != "run")]]
    with st.expander("Change of slot mass by quarter of the depth"):
        show.explain("Slot mass under a method as a factor of dense's; ×0.5 is half.", words.CHANGE)
        show.table(table)
        show.exports("compare-depth", None, table)
