"""Work that a page waits for. It goes on in a thread of its own while people click elsewhere, and can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import streamlit as st

from kvattn.text import Enough, Progress
from kvattn_app import show


class Job:
    """Work that has begun; its result or its error stands here when it has ended."""

    def __init__(self, work: Callable[[Progress], Any]) -> None:
        self.said, self.share, self.stopping = "Loading the model", 0.0, False
        self.result: Any = None
        self.error: Exception | None = None
        self.thread = Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[Progress], Any]) -> None:
        try:
            self.result = work(self._progress)
        except Exception as error:  # raised again on the page that waits
            self.error = error

    def _progress(self, what: str, done: int, total: int) -> None:
        if self.stopping:
            raise Enough
        self.said, self.share = show.plain(what, 100), done / total

    def stop(self) -> None:
        """Ends the work at the next place where it says how far it is; what is done is kept."""
        self.stopping = True


def start(key: str, work: Callable[[Progress], Any]) -> None:
    """Begins work under a name, in the place of what goes on under it."""
    if (running := st.session_state.get(key)) is not None:
        running.stop()
    st.session_state[key] = Job(work)


def running(key: str) -> bool:
    """Whether something was begun under this name and not waited for to its end."""
    return key in st.session_state


def wait(key: str) -> Any:
    """The result of what was begun under a name, None if nothing was or nothing came of it; shows how far it is until
    then. Raises what the work raised."""
    if not running(key):
        return None
    job: Job = st.session_state[key]
    place = st.empty()
    with place.container(horizontal=True, vertical_alignment="bottom"):
        bar = st.progress(0.0, job.said, width="stretch")
        st.button("Stop", icon=":material/stop_circle:", on_click=job.stop, disabled=job.stopping, key=f"stop-{key}")
        while job.thread.is_alive():
            # A click ends this script here; the next one waits on.
            bar.progress(job.share, "Stopping after this method" if job.stopping else job.said)
            time.sleep(0.1)
    place.empty()
    del st.session_state[key]
    if job.error is not None and not isinstance(job.error, Enough):
        raise job.error
    return job.result
