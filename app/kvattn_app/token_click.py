"""Shaded text whose tokens can be clicked: a frame in which no script runs, and our own beside it that hears clicks."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from kvattn.plots.text import ShadedText
from kvattn_app import show

HTML = '<iframe sandbox="allow-same-origin" title="the prompt, shaded" style="width:100%;border:0"></iframe>'
SCRIPT = """export default ({parentElement, data, setTriggerValue}) => {
  const frame = parentElement.querySelector("iframe");
  frame.onload = () => {
    frame.contentDocument.documentElement.style.cursor = "pointer";
    frame.contentDocument.onclick = click => {
      const token = click.target.closest("[data-token]");
      if (token) setTriggerValue("token", Number(token.dataset.token));
    };
  };
  frame.height = data.height;
  if (frame.srcdoc !== data.page) frame.srcdoc = data.page;
};"""
_clickable = st.components.v2.component("kvattn_text", html=HTML, js=SCRIPT)


def text(shaded: ShadedText, key: str, pick: Callable[[int], None]) -> None:
    """The text; `pick` is told of a token (from 0) that is clicked."""

    def clicked() -> None:
        if (token := st.session_state[key].get("token")) is not None:
            pick(int(token))

    data = {"page": shaded.page(show.dark()), "height": shaded.height}
    _clickable(key=key, data=data, on_token_change=clicked, height="content")
