"""One head: its mass by slot over all questions, and its row over a prompt."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.plots.row import segment_row
from kvattn.study.run_folder import Run, mass, picks
from kvattn_app import controls, jobs, library, show, words


def chosen(opened: Run) -> tuple[int, int]:
    """The layer and head that are open: what the widgets that `draw` makes are going to say."""
    layers, heads = library.ask(opened, mass.shape)
    layer, head = (controls.number_held(n, c, _default(n, c)) for n, c in (("layer", layers), ("head", heads)))
    return layer, head


def _default(name: str, count: int) -> int:
    return count // 2 if name == "layer" else 0


def draw(opened: Run, query: str, method: str, layer: int, head: int, sinks: Any) -> None:
    """The section about one head."""
    layers, heads = library.ask(opened, mass.shape)
    st.subheader(f"Layer {layer}, head {head}", anchor=False)
    row = st.columns([1, 1, 2, 1])
    for at, (name, count) in enumerate((("layer", layers), ("head", heads))):
        with row[at]:
            controls.number(name.capitalize(), name, count, _default(name, count))
    question, order = _judgement(opened, row[2:])
    left, right = st.columns(2)
    with left:
        _by_slot(opened, query, layer, head, sinks)
    with right:
        _row(opened, query, method, question, order, layer, head)
    _anew(opened, question, order, method, layer, head)


def _by_slot(opened: Run, query: str, layer: int, head: int, sinks: Any) -> None:
    where = f"layer = {int(layer)} AND head = {int(head)}"
    values = library.ask(opened, mass.with_intervals, query, ("method",), "raw", sinks, where)
    show.explain("Its mass by slot over all questions; 95 % intervals.", words.SLOT_MASS)
    names = library.ask(opened, picks.methods)
    fig = plots.dilution_by_slot(values, "raw", sinks, names)
    plots.legend_below(fig, 400)
    show.figure(fig, f"head-{layer}-{head}-by-slot", values)


def _judgement(opened: Run, columns: Any) -> tuple[str, tuple[int, ...]]:
    """The question and the order whose row is drawn."""
    questions = library.ask(opened, picks.question_ids)
    with columns[0]:
        question = controls.choose("Question", questions, "question")
    judged = library.ask(opened, picks.orders_of, question)
    names = {" ".join(str(i + 1) for i in order): order for order in judged}
    with columns[1]:
        order = controls.choose("Order", list(names), "order", help="The candidate (from 1) shown in each slot")
    return question, tuple(names[order])


def _row(opened: Run, query: str, method: str, question: str, order: tuple[int, ...], layer: int, head: int) -> None:
    """The stored row over the chosen prompt."""
    found = library.ask(opened, Run.slot_mass, question, order, method, query)
    show.explain(
        "Its row over one prompt: a bar's area is its segment's share.",
        "A bar is as wide as its segment has tokens and as high as the segment's mean share per token. The paler part "
        "falls on sink tokens, where anybody looked for them. "
        "Rows of single tokens are not kept in run folders; *Judge live* shows them.",
    )
    if found is None:
        show.empty("No row was captured for this judgement.")
    else:
        sink = None if found.sink is None else found.sink[layer, head]
        fig = segment_row(found.names, found.lengths, found.mass[layer, head], sink)
        fig.update_layout(height=400)
        show.figure(fig, f"head-{layer}-{head}-row", mass.row_table(found, layer, head))


def _anew(opened: Run, question: str, order: tuple[int, ...], method: str, layer: int, head: int) -> None:
    """Row by token and block matrix, which a run does not keep: judged again with the run's model, if it is here."""
    st.markdown("**Row by token, and block matrix**")
    show.explain(
        "A run keeps no token rows and no block matrices: the question is judged again to see them.",
        "The same model, readout, order and method; texts are tokenised anew, so ids that an agent generated may "
        "differ. A row of the block matrix is the mean over a segment's computed tokens of where their attention goes.",
    )
    manifest = opened.manifest
    model = library.model_of(manifest)
    if model not in library.models_offered():
        show.empty("The model of this run is not prepared on this machine; kvattn models prepare fetches it:")
        show.verbatim(model)
        return
    what = (opened.state, question, order, method)
    if st.button("Judge this question again", icon=":material/gavel:"):
        from kvattn.study.run_folder.schema import prompt_of
        from kvattn_app import live_run

        row = library.ask(opened, picks.question, question)
        prompt = prompt_of(row, manifest)
        prompt = prompt.ordered(order[: prompt.n])
        methods = list(dict.fromkeys(["dense", method]))
        how = library.settings()
        who = live_run.Who(model, str(manifest.get("readout")), how["dtype"], how["device"])
        jobs.start("head-job", lambda progress: (what, live_run.run(who, prompt, methods, progress)))
    if jobs.running("head-job"):
        st.session_state["head-live"] = jobs.wait("head-job")
    held, live = st.session_state.get("head-live") or (None, None)
    if held != what or live is None or method not in live.methods:
        return
    from kvattn_app import live_views

    tokens, shown = live.comparison.tokens(method), live.rows[method][layer, head]
    fig = plots.decision_row(tokens, shown, live.plan(method).layout.segments)
    data = pd.DataFrame({"token": tokens, "share": shown})
    show.figure(fig, f"head-{layer}-{head}-tokens", data)
    live_views.matrix(live, method, layer, head, f"head-{layer}-{head}-blocks")
