"""One problem judged here and now under several methods, side by side."""

from __future__ import annotations

import contextlib
from functools import partial

import streamlit as st

from kvattn import DEFAULT_JUDGE
from kvattn import methods as zoo
from kvattn.errors import KvattnError
from kvattn.questions.prompt import JudgePrompt
from kvattn_app import controls, jobs, library, live_run, live_views, problems, show
from kvattn_app.live_run import Live, Who

DEFAULT = ("dense", "naive", "naive-linked", "true-mask")
PREPARE = "kvattn models prepare"


def page() -> None:
    """The page."""
    offered = library.models_offered()
    if not offered:
        show.empty("No model is prepared yet. This command fetches a small one:", PREPARE)
        return
    presets = st.container()
    row = st.columns([3, 2, 7])
    with row[0]:
        model = controls.choose("Model", offered, "model")
    with row[1]:
        readout = controls.choose("Readout", live_run.READOUTS, "readout")
    with row[2]:
        specs = _methods()
    problem = problems.choose(model)
    if DEFAULT_JUDGE in offered:
        with presets:
            problems.presets()
    verdict = st.container()
    prompt = _edit(problem, model)
    with verdict:
        live = _judge(model, readout, specs, prompt)
    if live is None:
        return
    live_views.result(live, st.session_state.get("live-before"))
    _keep(live)


def _methods() -> list[str]:
    known = [name for name, cls in zoo.registry().items() if not cls().needs_warming and name != "pointwise"]
    chosen = controls.choose_some(
        "Methods",
        known,
        DEFAULT,
        "live-methods",
        accept_new_options=True,
        help="Parameters can be typed: naive-linked:headers=isolated. What learns from other questions needs a run.",
    )
    return list(dict.fromkeys(["dense", *chosen]))


def _edit(prompt: JudgePrompt, model: str) -> JudgePrompt:
    """The problem as edited in the widgets, in the order that they say."""
    identity = show.short_key("edit", prompt.id, str(hash((prompt.question, prompt.candidates))))
    linked = problems.unpack("".join(controls.linked("edited")), prompt.n)
    if st.session_state.get("edit-identity") not in (None, identity):
        linked = None  # another problem was chosen: what was edited belongs to the old one
        st.session_state["shown"] = _order_text(prompt.order)
    st.session_state["edit-identity"] = identity
    own = problems.Edited(prompt.question, tuple(c.text for c in prompt.candidates))
    start = linked or own
    with st.expander("Question and candidates", expanded=True):
        question = st.text_area("Question", start.question, key=f"{identity}-question", height=80)
        order = _order(prompt)
        texts: dict[int, str] = {}
        columns = st.columns(min(prompt.n, 4))
        for slot, i in enumerate(order):
            c = prompt.candidates[i]
            with columns[slot % len(columns)]:
                texts[i] = st.text_area(
                    f"Slot {slot + 1}: candidate {i + 1}", start.texts[i], key=f"{identity}-{i}", height=170
                )
                graded = c.correct if (question, texts[i]) == (prompt.question, c.text) else None
                mark = {True: " (right)", False: " (wrong)", None: ""}[graded]
                st.caption(f"{show.plain(c.id, 30)}{mark}")
    edited = problems.Edited(question, tuple(texts[i] for i in range(prompt.n)))
    packed = "" if edited == own else problems.pack(edited)
    if packed is None:
        st.caption("These texts are too long for a link; save what was judged as a run to come back to it.")
    controls.link("edited", [packed] if packed else [])
    return problems.apply(prompt, edited).ordered(order)


def _order(prompt: JudgePrompt) -> tuple[int, ...]:
    """The display order: a line of numbers, and a button that swaps two slots."""
    row = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
    with row[0]:
        help_ = "Numbers from 1, e.g. 2 1 3 4"
        text = controls.line("Order: the candidate in each slot", "shown", _order_text(prompt.order), help=help_)
    order = _parse_order(text, prompt)
    slots = [str(s + 1) for s in range(prompt.n)]
    a = row[1].selectbox("Swap slot", slots, key="swap-a")
    b = row[2].selectbox("with slot", slots, index=len(slots) - 1, key="swap-b")
    row[3].button("Swap", icon=":material/swap_horiz:", on_click=_swap, args=(order, int(a), int(b)), width="stretch")
    return order


def _parse_order(text: str | None, prompt: JudgePrompt) -> tuple[int, ...]:
    with contextlib.suppress(ValueError):
        order = tuple(int(x) - 1 for x in (text or "").replace(",", " ").split())
        if sorted(order) == list(range(prompt.n)):
            return order
    st.caption(f"The order has to name the candidates 1 to {prompt.n} once each; the problem's own is used.")
    return prompt.order


def _order_text(order: tuple[int, ...]) -> str:
    return " ".join(str(i + 1) for i in order)


def _swap(order: tuple[int, ...], a: int, b: int) -> None:
    new = list(order)
    new[a - 1], new[b - 1] = new[b - 1], new[a - 1]
    st.session_state["shown"] = _order_text(tuple(new))
    st.session_state["live-again"] = True


def _judge(model: str, readout: str, specs: list[str], prompt: JudgePrompt) -> Live | None:
    """What was judged last, and what came of it in a line. Judges when the button is pressed, when candidates were
    swapped or a preset was chosen, when a link says so, and when the page is opened with the judge that reads."""
    with st.container(horizontal=True):
        pressed = st.button("Judge", type="primary", icon=":material/gavel:")
        with st.popover("How the model is loaded", type="tertiary"):
            dtype = controls.choose("In numbers", live_run.dtypes(), "dtype")
            device = controls.choose("On", live_run.devices(), "device")
    who = Who(model, readout, dtype, device)
    again = st.session_state.pop("live-again", False)
    live: Live | None = st.session_state.get("live")
    first = live is None and not st.session_state.get("live-opened") and who.model == DEFAULT_JUDGE
    linked = controls.is_foreign("judged") and (live is None or (live.who, live.prompt) != (who, prompt))
    st.session_state["live-opened"] = True
    if pressed or again or ((first or linked) and not jobs.running("live-job")):
        jobs.start("live-job", partial(live_run.run, who, prompt, specs))
    if jobs.running("live-job"):
        if (found := jobs.wait("live-job")) is not None:
            st.session_state["live-before"] = live
            st.session_state["live"] = live = found
        else:
            st.caption("Stopped before a method had judged.")
    if live is None:
        show.empty("Nothing was judged yet: choose a problem, edit it if you like, and press Judge.")
        return None
    controls.link("judged", ["1"])
    live_views.verdicts(live)
    if len(live.methods) < live.asked:
        st.caption(f"Stopped after {len(live.methods)} of {live.asked} methods.")
    if (live.who, live.prompt) != (who, prompt):
        st.caption("Shown is what was judged last; the problem is another one by now. Press Judge to renew it.")
    return live


def _keep(live: Live) -> None:
    st.subheader("Keep it", anchor=False)
    row = st.columns([3, 2, 5], vertical_alignment="bottom")
    name = row[0].text_input("Save as a run named", f"live-{show.short_key(live.prompt.id)[:40]}", key="save-name")
    if row[1].button("Save", icon=":material/save:", width="stretch"):
        try:
            path = live_run.save(live, name or "")
        except KvattnError as error:
            show.trouble(error, "Not saved.")
        else:
            st.success("Saved. It can be chosen in the sidebar of the other pages, under this name:")
            show.verbatim(path.name)
    with row[2]:
        show.download("Download as JSON", live.as_json(), "judgement.json", "live-json")
