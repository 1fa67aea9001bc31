"""The frame around all pages: navigation, and the run that a page is about."""

from __future__ import annotations

from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import streamlit as st
from PIL import Image
from streamlit.runtime.scriptrunner import StopException

from kvattn.errors import KvattnError
from kvattn_app import controls, show

PAGES = {
    "overview": ("Overview", ":material/dashboard:"),
    "live": ("Judge live", ":material/gavel:"),
    "heatmaps": ("Heatmaps", ":material/grid_on:"),
    "dilution": ("Dilution", ":material/water_drop:"),
    "shuffle": ("Shuffle", ":material/shuffle:"),
    "compare": ("Compare models", ":material/compare:"),
    "frontier": ("Frontier and gate", ":material/trending_up:"),
}
FIRST = "overview"
# Ours alone; nothing that anybody else wrote is ever put into HTML.
# A sentence and its definition stay on one line, in narrow columns too.
WITH_POPOVER = (
    ".stHorizontalBlock:has([data-testid=stCaptionContainer]):has(> [data-testid=stLayoutWrapper] > .stPopover)"
)
STYLE = (
    "<style>.stMainBlockContainer {padding: 2.5rem 2.5rem 4rem} "
    f"{WITH_POPOVER} {{flex-wrap: nowrap}} {WITH_POPOVER} > :first-child {{min-width: 0; flex: 1 1 0}} "
    # A figure that is squeezed onto a phone has its words on top of each other; it is scrolled instead.
    "@media (max-width: 640px) {[data-testid=stFullScreenFrame]:has(> .stPlotlyChart) {min-width: 600px} "
    ".stElementContainer:has(> * > .stPlotlyChart) {overflow: auto hidden}} "
    # Streamlit's own are fainter than 4.5:1.
    "[data-testid=stCaptionContainer] {color: inherit; opacity: 0.78} "
    "button[data-selected=true] {color: inherit !important}</style>"
)


@lru_cache(maxsize=1)
def favicon() -> Image.Image:
    """A small picture, so that the browser asks nobody else for one: four slots, fading."""
    picture = np.zeros((32, 32, 4), dtype=np.uint8)
    for slot, strength in enumerate((255, 190, 130, 80)):
        picture[4:28, 2 + 7 * slot : 8 + 7 * slot] = (0, 114, 178, strength)
    return Image.fromarray(picture)


def main() -> None:
    """Draws the app: the navigation, and the chosen page."""
    st.set_page_config(page_title="kvattn", page_icon=favicon(), layout="wide", initial_sidebar_state="auto")
    st.html(STYLE)
    st.navigation(pages()).run()


def pages() -> list[Any]:
    """All pages; a page finds the others in the session, to link to them."""
    st.session_state["pages"] = {
        name: st.Page(partial(draw, name, title), title=title, icon=icon, url_path=name, default=name == FIRST)
        for name, (title, icon) in PAGES.items()
    }
    return list(st.session_state["pages"].values())


def draw(name: str, title: str) -> None:
    """One page, its module read when it is first visited; what the user can mend is said in one line."""
    st.header(title, anchor=False)
    controls.gather()
    try:
        import_module(f"kvattn_app.pages.{name}").page()
    except KvattnError as error:
        show.trouble(error)
    except StopException:  # a page with nothing more to show; one that a click interrupts has no link yet
        controls.write_link()
        raise
    controls.write_link()
