"""Judge live as it teaches: judged when it opens, problems worth seeing, stopped, in other numbers and templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import torch
from fake_run import Fake, write_fake_run
from kvattn_app import jobs, live_run, problems
from kvattn_app.pages import live as page
from streamlit.testing.v1 import AppTest
from test_app import _fresh, press, said, serve, tiny_model, visit  # noqa: F401

from kvattn.questions.templates import get_template

METHODS = ["dense", "naive"]


@pytest.fixture
def teaching(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """The tiny model, in the place of the judge that reads."""
    serve(monkeypatch, tmp_path, (tiny_model,))
    for module in (page, problems):
        monkeypatch.setattr(module, "DEFAULT_JUDGE", tiny_model)
    return tiny_model


def test_the_page_opens_judged_and_a_preset_is_judged_at_a_click(teaching: str) -> None:
    app = visit("live", model=teaching, **{"live-methods": METHODS})
    assert not app.exception
    first = problems.PRESETS["A flip"]
    assert app.session_state["live"].prompt == problems.embedded(first.source, first.seed, first.number, 4)
    assert app.pills(key="preset").value == "A flip"
    assert first.look in said(app)
    chosen = problems.PRESETS["Equal candidates"]
    app.pills(key="preset").set_value("Equal candidates").run()
    assert not app.exception
    assert app.session_state["live"].prompt == problems.embedded(chosen.source, chosen.seed, chosen.number, 4)
    assert app.query_params["number"] in (str(chosen.number), [str(chosen.number)])
    assert chosen.look in said(app)
    app.number_input(key="number").set_value(3).run()
    assert app.pills(key="preset").value is None


def test_another_model_is_not_judged_with_before_somebody_asks(teaching: str, monkeypatch) -> None:
    monkeypatch.setattr(page, "DEFAULT_JUDGE", "another")
    assert "Nothing was judged yet" in said(visit("live", model=teaching))


@pytest.mark.parametrize("after", [0, 1])
def test_a_stopped_judgement_keeps_what_is_done(after: int, teaching: str, monkeypatch) -> None:
    begun: list[jobs.Job] = []

    class Hasty(jobs.Job):
        def __init__(self, work: Any) -> None:
            begun.append(self)
            super().__init__(work)

        def _progress(self, what: str, done: int, total: int) -> None:
            self.stopping = done >= after  # as a click on Stop, while the method before runs
            super()._progress(what, done, total)

    monkeypatch.setattr(jobs, "Job", Hasty)
    app = visit("live", model=teaching, **{"live-methods": [*METHODS, "true-mask"]})
    assert not app.exception
    assert len(begun) == 1
    if after:
        assert app.session_state["live"].methods == ["dense"]
        assert "Stopped after 1 of 3 methods" in said(app)
    else:
        assert "live" not in app.session_state
        assert "Stopped before a method had judged" in said(app)
    app.run()
    assert len(begun) == 1  # nobody asked again


def test_what_goes_wrong_in_the_thread_is_said_on_the_page(teaching: str, monkeypatch) -> None:
    app = visit("live", model=teaching, **{"live-methods": ["naive:nonsense=1"]})
    assert not app.exception
    assert "has no parameter 'nonsense'" in said(app)


def test_numbers_are_chosen_on_the_page(teaching: str) -> None:
    app = visit("live", model=teaching, dtype="bfloat16", **{"live-methods": METHODS})
    assert not app.exception
    live = app.session_state["live"]
    assert (live.who.dtype, live.comparison.engine.model.dtype) == ("bfloat16", torch.bfloat16)
    assert json.loads(live.as_json())["dtype"] == "bfloat16"
    assert app.selectbox(key="device").options == live_run.devices()
    assert visit("live", model=teaching, device="cuda:99").selectbox(key="device").value == "cpu"


TEMPLATE = "name: short\nsystem: Judge.\ninstruction: 'Which one?'\n"


def test_a_template_is_dropped_in_and_stands_in_the_link(teaching: str) -> None:
    link = {"model": teaching, "live-methods": METHODS}
    app = visit("live", **link)
    app.file_uploader(key="template-upload").set_value(("mine.yaml", TEMPLATE.encode(), "text/yaml")).run()
    assert not app.exception
    assert "another one by now" in said(app)
    press(app, "Judge")
    judged = app.session_state["live"].prompt
    assert (judged.template.name, judged.template.system, judged.template.instruction) == (
        "short",
        "Judge.",
        "Which one?",
    )
    again = visit("live", **link, **{"template-file": app.query_params["template-file"]})
    assert again.session_state["live"].prompt == judged
    press(again, "Take the problem's own again")
    press(again, "Judge")
    assert again.session_state["live"].prompt.template == get_template("relational")
    wrong = visit("live", **link, **{"template-file": problems._squeeze("header: no label")})
    assert "{label}" in said(wrong)
    for nonsense in ("!!", problems._squeeze(["a", "list"])):
        assert not visit("live", **link, **{"template-file": nonsense}).exception


def test_a_flip_opens_live_and_slots_say_which_flips_are_listed(teaching: str, tmp_path: Path) -> None:
    def script() -> None:
        import streamlit as st
        from kvattn_app import shell

        shell.pages()
        st.navigation([st.session_state["pages"][name] for name in ("shuffle", "live")]).run()

    manifest = write_fake_run(tmp_path / "own", Fake(questions=9, orders=4, layers=1, heads=1)) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": {"name": teaching}}))
    app = AppTest.from_function(script, default_timeout=60)
    app.query_params.update(run="own", flow="naive")
    app.run()
    assert not app.exception
    every = app.dataframe[0].value
    start = str(every["dense_slot"].iloc[0])
    app.selectbox(key="flips-from").select(start).run()
    some = app.dataframe[0].value
    assert 0 < len(some) == (every["dense_slot"] == int(start)).sum() < len(every)
    assert app.query_params["flips-from"] in (start, [start])
    link = parse_qs(app.get("page_link")[0].proto.query_string)
    assert (link["from"], link["question"]) == (["own"], [some["question_id"].iloc[0]])
    assert (link["shown"], link["judged"]) == ([some["order"].iloc[0]], ["1"])
    assert link["live-methods"] == METHODS
    app = visit("live", **link)
    assert not app.exception
    assert (judged := app.session_state["live"]).prompt.id == some["question_id"].iloc[0]
    assert " ".join(str(i + 1) for i in judged.prompt.order) == some["order"].iloc[0]
