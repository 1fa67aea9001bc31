"""Where picks move, from dense's slots to a method's."""

from __future__ import annotations

from typing import Any

import streamlit as st

from kvattn import plots
from kvattn.stats.picks import Scope
from kvattn.stats.slots import flow, slot_histogram
from kvattn.study.run_folder import Run
from kvattn_app import library, show

HEIGHT = 340


def moves(opened: Run, scope: Scope, method: str) -> bool:
    """Threads from slot to slot beside the share of each slot; False, and nothing drawn, where nothing was judged."""
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
            "How often each slot is picked. Marks: dense; dotted: at random.",
            "Shares of all judgements of the method. A judge that reads its candidates picks each slot about as often "
            "as the right candidates stand there, whatever the order.",
        )
        picks: Any = library.ask(opened, slot_histogram, scope=scope)
        picks = picks.assign(slot=picks["slot"] + 1)
        fig = plots.slot_histogram(picks[picks["method"].isin(["dense", method])], ["dense", method])
        show.figure(fig.update_layout(height=HEIGHT), show.short_key("slots", method), picks)
    return True
