"""What the order of display does: consistency by distance, where picks move, flips one by one, mass against place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from kvattn import plots
from kvattn.report import headline
from kvattn.stats.agreement import by_permutation_distance
from kvattn.stats.picks import Scope
from kvattn.stats.slots import position_bias
from kvattn.study.run_folder import Run, mass
from kvattn.study.run_folder import picks as run_picks
from kvattn_app import controls, library, pick_views, show, words

FLIPS = 500
ANY = "any"


def page() -> None:
    """The page."""
    opened = controls.opened()
    scope = controls.scope(opened, st.columns([2, 3, 6]))
    others = controls.methods(opened, others=True)
    if not others:
        show.empty("This run has dense alone; give it a method to compare with, e.g.:", controls.again(opened))
        return
    why = run_picks.meaningless(opened, scope.calibrated)
    if why:
        st.warning(f"Not meaningful: {why}.", icon=":material/warning:")
    show.headline(headline.shuffling(library.ask(opened, position_bias, scope=scope), headline.telling(others)))
    _flow(opened, scope, others)
    _by_distance(opened, scope, others, why)
    _place(opened, others)


def _by_distance(opened: Run, scope: Scope, others: list[str], why: str | None) -> None:
    st.subheader("Consistency by distance", anchor=False)
    show.explain(
        "How often a method picks dense's candidate, by how far the display order is from the candidates' own.",
        words.DISTANCE,
    )
    table: Any = library.ask(opened, by_permutation_distance, scope=scope)
    table = table[table["method"].isin(others)]
    if table.empty:
        show.empty("No judgement is left with this choice of questions.")
        return
    if table["distance"].nunique() < 2:
        show.empty(
            "All judgements show orders equally far from the candidates' own, so there is no curve. "
            "Several orders come with:",
            controls.again(opened),
        )
        show.table(
            table,
            column_config=show.share_columns(("jcr", "low", "high")),
        )
        return
    show.figure(plots.shuffle(table, others, why), "jcr-by-distance", table)


def _flow(opened: Run, scope: Scope, others: list[str]) -> None:
    st.subheader("Where picks move", anchor=False)
    method = controls.choose("Method", others, "flow", index=controls.telling(others))
    if not pick_views.moves(opened, scope, method, _brush):
        show.empty("No judgement is left with this choice of questions.")
        return
    st.subheader("Flips", anchor=False)
    _flips(opened, scope, method)


def _brush(dense: bool, slot: int) -> None:
    """Keeps the flips that leave a slot of dense's, or that go to a slot; the second click on it keeps all again."""
    key = "flips-from" if dense else "flips-to"
    st.session_state[key] = ANY if st.session_state.get(key) == str(slot) else str(slot)


def _flips(opened: Run, scope: Scope, method: str) -> None:
    slots = [ANY, *map(str, range(1, max(library.ask(opened, run_picks.size)["n"]) + 1))]
    row = st.columns([2, 2, 8])
    with row[0]:
        start = controls.choose("From dense's slot", slots, "flips-from")
    with row[1]:
        end = controls.choose("To slot", slots, "flips-to")
    ends = {k: int(v) for k, v in (("dense_slot", start), ("slot", end)) if v != ANY}
    table: Any = library.ask(opened, run_picks.flips, method, scope, FLIPS, **ends)
    show.explain("Flips, the most surprising first; choose a row to read the candidates.", words.SURPRISE)
    if table.empty and ends:
        show.empty("No flip goes this way.")
        return
    if table.empty:
        st.success("This method never picks another candidate than dense.", icon=":material/check:")
        return
    shown = table.assign(order=[" ".join(str(int(i) + 1) for i in order) for order in table["order"]])
    names = [f"{q}, order {order}" for q, order in zip(shown["question_id"], shown["order"], strict=True)]
    linked = st.session_state.setdefault(show.short_key("flip", method), "".join(controls.linked("flip")))
    columns = ["question_id", "order", "dense_slot", "slot", "dense_correct", "correct", "surprise", "margin_ref"]
    chosen = show.table(
        shown[columns],
        height=min(300, 38 + 35 * len(shown)),
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": [names.index(linked)]}} if linked in names else None,
        key=show.short_key("flips", method, start, end),
        column_config={
            "question_id": "question",
            "dense_slot": "dense's slot",
            "slot": "its slot",
            "dense_correct": "dense right",
            "correct": "right",
            "surprise": st.column_config.NumberColumn("surprise, bits", format="%.2f"),
            "margin_ref": st.column_config.NumberColumn("dense's margin", format="%.2f"),
        },
    )
    with st.popover("Download", icon=":material/download:"):
        show.download("CSV", lambda: show.to_csv(shown[columns]), "flips.csv", "flips")
    rows: Any = chosen["selection"]["rows"]
    at = rows[0] if rows else 0
    controls.link("flip", [names[at]])
    _flip(opened, table.iloc[at], method)


def _live(opened: Run, flip: Any, method: str) -> None:
    """The way to this flip on the live page, where its model is here."""
    model = library.model_of(opened.manifest)
    if model not in library.models_offered():
        st.caption(f"The model is not prepared here, so it cannot be judged live: {show.plain(model)}")
        return
    link = {"source": "run", "from": "".join(controls.linked("run")), "question": flip["question_id"], "model": model}
    link |= {"shown": " ".join(str(int(i) + 1) for i in flip["order"]), "readout": opened.manifest.get("readout")}
    link |= {"live-methods": ["dense", method], "judged": "1"}
    st.page_link(
        st.session_state["pages"]["live"], label="Open in Judge live", icon=":material/gavel:", query_params=link
    )


def _flip(opened: Run, flip: Any, method: str) -> None:
    question = library.ask(opened, run_picks.question, str(flip["question_id"]))
    _live(opened, flip, method)
    with st.expander("The question and its candidates, in the order shown", expanded=False):
        show.verbatim(question["question"])
        for slot, candidate in enumerate(flip["order"], 1):
            i = int(candidate)
            marks = []
            corrects = question["corrects"] or []
            if i < len(corrects) and corrects[i] is not None:
                marks.append("right" if corrects[i] else "wrong")
            for who, column in (("dense's pick", "dense_slot"), ("the method's pick", "slot")):
                marks += [who] if pd.notna(flip[column]) and slot == flip[column] else []
            st.caption(f"Slot {slot}, candidate {i + 1}" + (f": {', '.join(marks)}" if marks else ""))
            show.verbatim(question["texts"][i])


def _place(opened: Run, others: list[str]) -> None:
    st.subheader("Mass against place, candidate held fixed", anchor=False)
    show.explain("Does the same candidate get more attention in some slots than in others?", words.PLACE)
    names = library.ask(opened, Run.queries)
    if not names:
        show.empty("No decision rows were captured in this run.")
        return
    table: Any = library.ask(opened, mass.by_place, names[0])
    shown = ["dense", *others]
    table = table[table["method"].isin(shown)]
    if table.empty:
        show.empty("Every candidate was shown in one slot alone. Several orders come with:", controls.again(opened))
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = table.assign(**{c: np.log(table[c].clip(lower=1e-3)) for c in ("value", "low", "high")})
    fig = plots.dilution_by_slot(logs, methods=[m for m in shown if m in set(table["method"])], change=True)
    fig.update_yaxes(title_text="mass over the candidate's own mean")
    show.figure(fig, "mass-by-place", table)
