"""Where picks move, from dense's slots to a method's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from kvattn import plots
from kvattn.stats.picks import Scope
from kvattn.stats.slots import flow, slot_histogram
from kvattn.study.run_folder import Run
from kvattn_app import library, show

HEIGHT = 340


def moves(opened: Run, scope: Scope, method: str, pick: Callable[[bool, int], None] | None = None) -> bool:
    """Threads from slot to slot beside the share of each slot; False, and nothing drawn, where nothing was judged.

    pick: told of a bar that was clicked: whether it is one of dense's, and its slot
    """
    counts: Any = library.ask(opened, flow, method, scope)
    if counts.empty:
        return False
    left, right = st.columns([2, 3])
    with left:
        show.explain(
            "From dense's slot (left) to the method's (right).",
            "Every judgement is a thread; those that stay level keep their slot. Colours are dense's slots.",
        )
        show.figure(plots.flow(counts, method).update_layout(height=HEIGHT), show.short_key("flow", method), counts)
    with right:
        show.explain(
            "How often each slot is picked. Marks: dense; dotted: at random."
            + (" A click on a bar keeps the flips from it (dense's) or to it." if pick else ""),
            "Shares of all judgements of the method. A judge that reads its candidates picks each slot about as often "
            "as the right candidates stand there, whatever the order.",
        )
        picks: Any = library.ask(opened, slot_histogram, scope=scope)
        picks = picks.assign(slot=picks["slot"] + 1)
        fig = plots.slot_histogram(picks[picks["method"].isin(["dense", method])], ["dense", method])
        fig.update_layout(height=HEIGHT)
        if pick is None:
            show.figure(fig, show.short_key("slots", method), picks)
        else:
            show.picked(fig, show.short_key("slots", method), picks, lambda p: pick(_of_dense(fig, p), int(p["x"])))
    return True


def _of_dense(fig: Any, point: dict[str, Any]) -> bool:
    """Whether a clicked point stands in the first panel."""
    return fig.data[point["curve_number"]].xaxis in (None, "x")
