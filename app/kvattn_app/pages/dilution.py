"""Mass by slot and method, by layer, and by order."""

from __future__ import annotations

from typing import Any

import streamlit as st

from kvattn import plots
from kvattn.report import headline
from kvattn.study.run_folder import Run, mass, picks
from kvattn_app import controls, library, show, words

PICKED = {"all": "All", "flipped": "Flips", "kept": "Same pick as dense"}
MOST_PANELS = 8


def page() -> None:
    """The page."""
    opened = controls.opened()
    query = controls.query(opened)
    row = st.columns([4, 3, 5])
    with row[0]:
        view: Any = controls.named("View", controls.VIEWS, "view")
    with row[1]:
        sinks = controls.sinks(opened, query)
    with row[2]:
        picked: Any = controls.named("Judgements", PICKED, "picked", help="Dense stands for all its judgements")
    names = controls.methods(opened)
    changes: Any = library.ask(opened, mass.with_intervals, query, ("method",), "change", sinks)
    told = headline.telling(names)
    show.headline(headline.dilution(changes, told) if told else "")
    _by_slot(opened, query, view, sinks, picked, names, changes)
    _by_layer(opened, query, view, sinks, names)
    _by_order(opened, query, view, sinks, picked, names)


def _by_slot(opened: Run, query: str, view: Any, sinks: Any, picked: Any, names: list[str], changes: Any) -> None:
    st.subheader("By slot", anchor=False)
    show.explain(
        "How much of the decision row falls on each slot (left), and how that changed against dense (right); "
        "95 % intervals over questions.",
        f"{words.SLOT_MASS}\n\n{words.CHANGE} The change is over all judgements.",
    )
    whole = "dense" if picked == "all" else "dense (all judgements)"
    left, right = st.columns(2)
    values: Any = library.ask(opened, mass.by_slot, query, view, sinks, picked)
    values = values[values["method"].isin(names)].replace({"method": {"dense": whole}})
    names = [whole if m == "dense" else m for m in names]
    changes = changes[changes["method"].isin(names)].dropna(subset=["value"])
    with left:
        fig = plots.dilution_by_slot(values, view, sinks, [m for m in names if m in set(values["method"])])
        plots.legend_below(fig, 420)
        show.figure(fig, f"dilution-{view}-{sinks}-{picked}", values)
    with right:
        if changes.empty:
            show.empty("No method here has pairs with dense; choose one beside dense.")
            return
        fig = plots.dilution_by_slot(changes, view, sinks, [m for m in names if m in set(changes["method"])], True)
        plots.legend_below(fig, 420)
        show.figure(fig, f"dilution-change-{sinks}", changes)


def _by_layer(opened: Run, query: str, view: Any, sinks: Any, names: list[str]) -> None:
    st.subheader("By layer", anchor=False)
    show.explain(
        "The same at every layer, over all judgements; bands are 95 % intervals over groups of questions.",
        f"{words.SLOT_MASS}\n\nIntervals: delete-a-group jackknife, the value without each group of questions.",
    )
    values: Any = library.ask(opened, mass.with_intervals, query, ("method", "layer"), view, sinks)
    values = values[values["method"].isin(names)]
    fig = plots.dilution_panels(values, "slot", view, sinks, names, over="layer")
    plots.legend_below(fig)
    show.figure(fig, f"dilution-by-layer-{view}-{sinks}", values)


def _by_order(opened: Run, query: str, view: Any, sinks: Any, picked: Any, names: list[str]) -> None:
    st.subheader("By order", anchor=False)
    orders = library.ask(opened, picks.all_orders, MOST_PANELS + 1)
    exact = len(orders) <= MOST_PANELS
    panel = "order" if exact else "distance"
    values: Any = library.ask(opened, mass.by_slot, query, view, sinks, picked, (panel,))
    values = values[values["method"].isin(names)]
    if exact:
        values = values.assign(order=[tuple(map(int, o)) for o in values["order"]])
        titles = {order: f"order {_short(' '.join(str(i + 1) for i in order))}" for order in orders}
        sentence = "A panel for each display order: the candidate (from 1) in slots 1, 2, ..."
    else:
        titles = {d: f"distance {d}" for d in values["distance"].unique()}
        values = values[values["distance"].isin(sorted(titles)[:: -(-len(titles) // MOST_PANELS)])]
        sentence = "A panel for each distance of the display order from the candidates' own."
    show.explain(sentence, f"{words.SLOT_MASS}\n\n**distance**: {words.DEFINITIONS['distance']}")
    fig = plots.dilution_panels(values, panel, view, sinks, names, titles)
    plots.legend_below(fig)
    show.figure(fig, f"dilution-by-order-{view}-{sinks}-{picked}", values)


def _short(order: str) -> str:
    """The first candidates of an order, as many as have room above a panel."""
    return order if len(order) <= 12 else f"{order[:10].rsplit(' ', 1)[0]} …"
