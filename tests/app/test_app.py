"""Every page of the app: with nothing to show, with a run, with a damaged run, and with text that wants to be more."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT
from fake_run import HOSTILE, Fake, write_fake_run
from streamlit.testing.v1 import AppTest

from kvattn import stats
from kvattn.judge.judge import load
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import of_entries
from kvattn.questions.templates import get_template
from kvattn.report.findings import LOCKED
from kvattn.study.run_folder import Run, RunWriter, picks, side_by_side
from kvattn.study.run_folder.schema import prompt_of, question_row
from kvattn.study.study import Study

sys.path.insert(0, str(CHECKOUT / "app"))
from kvattn_app import library, live_run, problems, show

SMALL = Fake(questions=9, orders=4, layers=3, heads=2, methods=("dense", "true-mask", "naive", "null-edit"))
RUN_PAGES = ("heatmaps", "dilution", "shuffle", "frontier", "overview")
PAGES = (*RUN_PAGES, "compare")


def script(name: str) -> None:
    """One page in the app's frame."""
    from kvattn_app import shell

    shell.draw(name, name)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path_factory.getbasetemp() / "app-cache"))
    # Every AppTest.run reads the metadata of all installed packages in search of components; no page has any.
    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", list)
    library.find.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app-runs")
    write_fake_run(folder / "first", SMALL)
    write_fake_run(folder / "blind", replace(SMALL, signal=0.0, seed=5))
    return folder


def serve(monkeypatch: pytest.MonkeyPatch, folder: Path, models: tuple[str, ...] = ()) -> None:
    monkeypatch.setenv(library.ENVIRONMENT, json.dumps({"folders": [str(folder)], "models": models}))
    library.find.clear()


def visit(name: str, **query: Any) -> AppTest:
    app = AppTest.from_function(script, kwargs={"name": name}, default_timeout=60)
    app.query_params.update(query)
    return app.run()


def said(app: AppTest) -> str:
    """All words on a page, markdown as it is written."""
    kinds = ("header", "subheader", "markdown", "caption", "code", "info", "warning", "error", "success")
    return "\n".join(str(e.value) for kind in kinds for e in app.get(kind))


def area(app: AppTest, label: str) -> Any:
    """The field of that label."""
    return next(a for a in app.text_area if a.label == label)


def figures(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(e.proto.spec) for e in app.get("plotly_chart")]


@pytest.mark.parametrize("name", PAGES)
def test_without_runs_a_page_names_the_command_that_makes_one(name: str, tmp_path: Path, monkeypatch) -> None:
    serve(monkeypatch, tmp_path)
    app = visit(name)
    assert not app.exception
    assert not figures(app)
    assert "kvattn judge" in said(app) or "kvattn demo" in said(app)


@pytest.mark.parametrize("name", PAGES)
def test_a_run_without_a_finished_question(name: str, tmp_path: Path, monkeypatch) -> None:
    with RunWriter(tmp_path / "begun", SMALL.manifest()):
        pass
    serve(monkeypatch, tmp_path)
    app = visit(name)
    assert not app.exception
    assert not figures(app)
    assert "finished" in said(app)


@pytest.mark.parametrize(("name", "least"), [("heatmaps", 3), ("dilution", 4), ("shuffle", 4), ("frontier", 1)])
def test_a_real_run_is_drawn(name: str, least: int, runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = visit(name, run="first")
    assert not app.exception
    assert len(figures(app)) == least
    assert all(f["data"] for f in figures(app))


def test_a_null_edit_that_lacks_an_order_is_said_and_the_rest_is_shown(tmp_path: Path, monkeypatch) -> None:
    manifest = {**SMALL.manifest(), "content_test": SMALL.content_tests()}
    with RunWriter(tmp_path / "lacking", manifest) as writer:
        for question, decisions in SMALL.units():
            short = [d for d in decisions if d.method != "null-edit" or d.order != decisions[0].order]
            writer.write_unit(question["question_id"], question, short)
    serve(monkeypatch, tmp_path)
    app = visit("overview")
    assert not app.exception
    words = said(app).replace("\\", "")
    assert "This cannot be shown" not in words
    assert "lost content is not told: 'null-edit' did not judge question" in words
    assert "naive picks the same candidate as dense in" in words
    assert len(figures(app)) == 3  # threads, slots, ladder


def test_runs_say_what_their_numbers_may_be_taken_for(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = visit("overview", run="first")
    assert not app.exception
    assert "9 questions with 4 candidates, up to 4 orders each, 144 judgements" in said(app).replace("\\", "")
    assert ": it reads." in said(app).replace("\\", "")
    blind = said(visit("overview", run="blind")).replace("\\", "")
    assert "it does not read." in blind
    assert "no consistency to lose" in blind


def test_a_meaningless_consistency_is_called_that(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    frontier, shuffle = (visit(name, run="blind") for name in ("frontier", "shuffle"))
    assert all("not meaningful" in json.dumps(figures(app)).lower() for app in (frontier, shuffle))
    assert "Not meaningful" in said(shuffle)
    assert "not meaningful" not in json.dumps(figures(visit("frontier", run="first"))).lower()


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part, cut short, of a run that is alone in its folder."""
    folder = write_fake_run(tmp_path_factory.mktemp("app-bad") / "bad", SMALL)
    part = sorted((folder / "picks").glob("part-*"))[2]
    part.write_bytes(part.read_bytes()[:-7])
    return part


@pytest.mark.parametrize("name", PAGES)
def test_a_damaged_run_is_named_in_one_line(name: str, bad: Path, monkeypatch) -> None:
    serve(monkeypatch, bad.parents[2])
    app = visit(name)
    assert not app.exception
    assert not figures(app)
    assert f"{bad.name} is damaged" in said(app)
    assert "delete" in said(app)
    assert Run(bad.parents[1]).check()


def test_compare_goes_on_without_a_damaged_run(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "good", SMALL)
    part = next((write_fake_run(tmp_path / "bad", SMALL) / "sums").glob("part-*"))
    part.unlink()
    serve(monkeypatch, tmp_path)
    app = visit("compare")
    assert not app.exception
    assert "lacks its part" in said(app)
    assert len(figures(app)) == 3


def test_compare_draws_models_of_different_depth_on_one_axis(tmp_path: Path, monkeypatch) -> None:
    for name, layers in (("shallow", 3), ("deep", 7)):
        write_fake_run(tmp_path / name, replace(SMALL, layers=layers))
    serve(monkeypatch, tmp_path)
    app = visit("compare")
    slots, depth = figures(app)[1:3]
    assert {a["text"] for a in slots["layout"]["annotations"]} >= {"shallow", "deep"}
    assert {t["name"] for t in slots["data"]} >= {"true-mask", "naive"}
    lines = {t["name"]: t["x"] for t in depth["data"] if "lines+markers" in t.get("mode", "")}
    assert {k: len(v.get("bdata", v)) > 0 for k, v in lines.items()} == {"shallow": True, "deep": True}
    shown = app.dataframe
    assert set(shown[0].value["run"]) == {"shallow", "deep"}
    assert set(shown[1].value["over"]) < {"shallow", "deep"}
    table = shown[2].value
    assert set(table["run"]) == {"shallow", "deep"}
    numbers = side_by_side.Comparison(side_by_side.open_runs([tmp_path / "deep"])).consistency.set_index("method")
    deep = table[table["run"] == "deep"].set_index("method")
    for label, name in (("JCR", "jcr"), ("kappa", "kappa"), ("acc. low", "accuracy_low"), ("at random", "random")):
        pd.testing.assert_series_equal(deep[label], numbers.loc[deep.index, name], check_names=False)
    assert set(shown[3].value["to_depth"]) == {0.25, 0.5, 0.75, 1.0}


def test_compare_draws_what_there_is_where_a_run_holds_no_rows(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "rows", SMALL)
    write_fake_run(tmp_path / "bare", replace(SMALL, rows=False))
    serve(monkeypatch, tmp_path)
    app = visit("compare")
    assert not app.exception
    assert len(figures(app)) == 3
    assert {t["name"] for t in figures(app)[2]["data"] if "lines+markers" in t.get("mode", "")} == {"rows"}
    alone = visit("compare", runs="bare")
    assert not alone.exception
    assert "no rows were captured" in said(alone)
    for name in ("heatmaps", "dilution"):
        app = visit(name, run="bare")
        assert not app.exception
        assert "kvattn judge" in said(app)


def test_methods_that_are_locked_to_a_slot_are_named_together(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "locked", replace(SMALL, signal=0.0, orders=1, questions=40))
    serve(monkeypatch, tmp_path)
    app = visit("overview")
    found = [m.value for m in app.markdown if "picks fall in one slot" in m.value]
    assert len(found) == 1
    shares = Run(tmp_path / "locked").judgements().groupby("method")["slot"].agg(lambda s: s.value_counts(True).max())
    named = found[0].replace("\\", "")
    assert {m for m in SMALL.methods if f"{m} (slot" in named} == set(shares[shares > LOCKED].index)


def test_a_page_opens_with_no_more_methods_than_can_be_told_apart(tmp_path: Path, monkeypatch) -> None:
    many = ("dense", "null-edit", "true-mask", "isolated", "isolated(labelled=False)", "naive", "foreign-kv", "kvcomm")
    write_fake_run(tmp_path / "many", replace(SMALL, methods=many))
    serve(monkeypatch, tmp_path)
    app = visit("shuffle")
    assert app.multiselect(key="others").value == list(many[2:])
    assert app.selectbox(key="flow").value == "naive"
    asked = visit("shuffle", others=list(many[1:]))
    assert asked.multiselect(key="others").value == list(many[1:])


def test_a_link_opens_the_flip_that_it_names(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    first = visit("shuffle", run="first", flow="naive")
    rows = first.dataframe[0].value
    assert len(rows) > 2
    name = f"{rows['question_id'].iloc[2]}, order {rows['order'].iloc[2]}"
    app = visit("shuffle", run="first", flow="naive", flip=name)
    assert not app.exception
    assert app.query_params["flip"] in (name, [name])
    assert first.query_params["flip"] != app.query_params["flip"]
    assert not visit("shuffle", run="first", flow="naive", flip="../../etc").exception


def test_a_link_restores_the_view(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    asked = {"run": "first", "method": "true-mask", "base": "dense", "slot": "2", "layer": "1", "head": "1"}
    app = visit("heatmaps", **asked)
    assert not app.exception
    assert app.selectbox(key="method").value == "true-mask"
    assert "Layer 1, head 1" in said(app)
    for key, value in asked.items():
        assert app.query_params[key] in (value, [value])
    app.selectbox(key="slot").select("3").run()
    assert app.query_params["slot"] in ("3", ["3"])
    assert "slot 3" in json.dumps(figures(app)[0])
    again = visit("heatmaps", **{k: v[0] if isinstance(v, list) else v for k, v in app.query_params.items()})
    assert figures(again)[0] == figures(app)[0]


def walk(name: str) -> None:
    """The page that the session says, in the app's frame: what a click in the menu does."""
    import streamlit as st
    from kvattn_app import shell

    shell.draw(st.session_state.get("page", name), "page")


def turn(app: AppTest, name: str, **query: Any) -> None:
    """To another page by the menu, which empties the URL; or by an address."""
    app.session_state["page"] = name
    app.query_params.clear()
    app.query_params.update(query)
    app.run()
    assert not app.exception


def test_run_method_and_view_outlive_a_change_of_page(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = AppTest.from_function(walk, kwargs={"name": "heatmaps"}, default_timeout=60).run()
    app.selectbox(key="run").select("blind").run()
    app.selectbox(key="method").select("true-mask").run()
    app.number_input(key="layer").set_value(2).run()
    for page in ("shuffle", "frontier", "overview", "dilution"):
        turn(app, page)
        assert app.selectbox(key="run").value == "blind"
        assert app.query_params["run"] in ("blind", ["blind"])
    turn(app, "heatmaps")
    assert (app.selectbox(key="method").value, app.number_input(key="layer").value) == ("true-mask", 2)
    turn(app, "shuffle", run="first")  # a link, or the back button
    assert app.selectbox(key="run").value == "first"
    turn(app, "heatmaps")
    assert app.selectbox(key="run").value == "first"


def test_a_link_to_a_run_that_is_not_here_says_so(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = visit("shuffle", run="nope", method="zzz")
    assert not app.exception
    assert "no such run here" in said(app)
    assert "nope" in [c.value for c in app.code]
    assert "no such run" not in said(visit("shuffle", run="first"))


def test_a_page_opens_with_the_run_that_reads_and_flips(runs: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("first", "blind"):
        (tmp_path / name).symlink_to(runs / name)
    write_fake_run(tmp_path / "later", replace(SMALL, signal=0.0, seed=9))
    found = {name: tmp_path / name for name in ("later", "blind", "first")}
    assert library.telling(found) == "first"
    assert library.telling({name: found[name] for name in ("later", "blind")}) == "later"
    assert library.telling({}) == ""


def test_a_manifest_of_odd_values_takes_no_page_down(runs: Path, tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "odd", SMALL)
    file = tmp_path / "odd" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": {"parameters": "many"}}))
    library.find.clear()
    assert library.telling(library.find((str(tmp_path),))) == "odd"


def test_a_click_looks_at_no_part_and_a_new_part_is_seen(tmp_path: Path, monkeypatch) -> None:
    units = list(SMALL.units())
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        writer.write_unit(units[0][0]["question_id"], *units[0])
    first = library.opened(tmp_path / "run")
    looked: list[str] = []
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: looked.append(path.name) or real(path, **more))
    assert library.opened(tmp_path / "run") is first
    assert 0 < len(looked) <= 8
    monkeypatch.undo()
    with RunWriter(tmp_path / "run", SMALL.manifest()) as writer:
        writer.write_unit(units[1][0]["question_id"], *units[1])
    second = library.opened(tmp_path / "run")
    assert len(picks.question_ids(second)) == 2


HOSTILE_QUERIES = ("../../etc", "/etc/passwd", "first/../../x", "<script>alert(1)</script>", "a" * 5000, "\x00", "")


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs as small as runs come, for pages of which the drawing is not the point."""
    folder = tmp_path_factory.mktemp("app-least")
    for name in ("first", "second"):
        write_fake_run(folder / name, Fake(questions=2, orders=2, layers=1, heads=1, methods=("dense", "naive")))
    return folder


@pytest.mark.parametrize("value", HOSTILE_QUERIES)
def test_no_name_from_a_url_reaches_the_file_system(value: str, least: Path, monkeypatch) -> None:
    serve(monkeypatch, least)
    opened: list[str] = []
    real = library.opened
    monkeypatch.setattr(library, "opened", lambda path: opened.append(str(path)) or real(path))
    for name in ("overview", "heatmaps", "compare"):
        app = visit(name, run=value, runs=value, method=value, question=value, order=value, layer=value, choices=value)
        assert not app.exception
        assert value == "" or value not in "".join(opened)
    assert set(opened) <= {str(least / "first"), str(least / "second")}
    assert opened


def test_links_that_lead_out_of_the_folder_are_not_followed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(runs / "first")
    assert library.find((str(tmp_path / "inside"),)) == {}
    assert list(library.find((str(runs / "first"),))) == ["first"]
    both = library.find((str(runs), str(runs / "first")))
    assert len(both) == 2


NASTY = ("dense", "<img src=x onerror=alert(1)>", "**bold** $x^2$ [a](http://example.invalid)", "null-edit")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app-nasty")
    write_fake_run(folder / "hostile *run* <b>", replace(SMALL, hostile=True, methods=NASTY))
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_stays_text(name: str, nasty: Path, monkeypatch) -> None:
    serve(monkeypatch, nasty)
    app = visit(name)
    assert not app.exception
    for element in (*app.markdown, *app.caption, *app.info, *app.warning, *app.error, *app.success, *app.subheader):
        assert not element.proto.allow_html if hasattr(element.proto, "allow_html") else True
        for text in (*HOSTILE, *NASTY[1:3]):
            assert text not in element.value
    html = [e.proto.body for e in app.get("html")]
    assert all("<img" not in h and "<script" not in h for h in html)
    for figure in figures(app):
        shown = json.dumps([figure["layout"], [t.get("name", "") for t in figure["data"]]])
        assert "<img" not in shown
        assert "<script" not in shown


def test_labels_and_spreadsheets_take_nothing_for_markup() -> None:
    import pandas as pd

    assert show.plain("**a** $b$ <c> [d](e) `f`\n#g") == (r"\*\*a\*\* \$b\$ \<c\> \[d\]\(e\) \`f\` \#g")
    csv = show.to_csv(pd.DataFrame({"text": ["=cmd()", "fine", "@x", "-1"], "n": [-1, 2, 3, 4]})).decode()
    assert csv.splitlines()[1:] == ["'=cmd(),-1", "fine,2", "'@x,3", "'-1,4"]


def test_what_was_typed_travels_in_the_link() -> None:
    edited = problems.Edited("Why?", ("<b>", "ü\n$x$", ""))
    packed = problems.pack(edited)
    assert packed is not None
    assert problems.unpack(packed, 3) == edited
    assert problems.unpack(packed, 2) is None
    for nonsense in ("", "!!", packed[: len(packed) // 2], "A" * 30_000, "eJw="):
        assert problems.unpack(nonsense, 3) is None
    noise = "".join(chr(c) for c in np.random.default_rng(0).integers(33, 50_000, 20_000))
    assert problems.pack(problems.Edited(noise, ("a",))) is None


def test_of_an_edited_question_nothing_is_known() -> None:
    prompt = replace(problems.EXAMPLE, answer="12", verdict="c1")
    same = problems.Edited(prompt.question, tuple(c.text for c in prompt.candidates))
    assert problems.apply(prompt, same) == prompt
    one = problems.apply(prompt, replace(same, texts=("What?", *same.texts[1:])))
    assert [c.correct for c in one.candidates] == [None, False, False, True]
    assert (one.answer, one.verdict) == ("12", None)
    other = problems.apply(prompt, replace(same, question="A pen costs 9 dollars. How much do 4 pens cost?"))
    assert [c.text for c in other.candidates] == list(same.texts)
    assert {c.correct for c in other.candidates} == {None}
    assert (other.answer, other.verdict) == (None, None)


# The live page, with a tiny random model.


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny import save

    return save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def live(tiny_model: str, runs: Path, tmp_path: Path, monkeypatch) -> AppTest:
    serve(monkeypatch, tmp_path, (tiny_model,))
    return visit("live", model=tiny_model, source="synthetic")


def test_live_without_a_model(tmp_path: Path, monkeypatch) -> None:
    serve(monkeypatch, tmp_path)
    monkeypatch.setattr(library, "models_offered", list)
    app = visit("live")
    assert not app.exception
    assert "kvattn models prepare" in said(app)


def test_live_judges_swaps_and_keeps(live: AppTest, tmp_path: Path) -> None:
    assert not live.exception
    assert "Nothing was judged yet" in said(live)
    press(live, "Judge")
    assert not live.exception
    table = live.dataframe[0].value
    assert list(table["method"]) == ["dense", "naive", "naive-linked", "true-mask"]
    assert len(figures(live)) == 5
    assert "What moved" not in said(live)
    press(live, "Swap")
    assert live.session_state["shown"] == "4 2 3 1"
    assert "What moved" in said(live)
    moved = live.dataframe[1].value
    assert {"pick before", "pick now", "moved"} <= set(moved.columns)
    live.text_input(key="save-name").input("kept").run()
    press(live, "Save")
    assert not live.exception
    run = Run(tmp_path / "kept")
    assert sorted(run.judgements()["method"]) == ["dense", "naive", "naive-linked", "true-mask"]
    assert list(run.judgements()["order"].iloc[0]) == [3, 1, 2, 0]
    assert run.check() == []


def test_edits_order_and_result_outlive_a_change_of_page(tiny_model: str, runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs, (tiny_model,))
    app = AppTest.from_function(walk, kwargs={"name": "live"}, default_timeout=60)
    app.query_params.update(model=tiny_model, source="synthetic", number="2")
    app.run()
    area(app, "Slot 1: candidate 1").input("Edited: 12").run()
    press(app, "Swap")
    press(app, "Judge")
    kept = app.session_state["live"].prompt
    assert kept.candidates[0].text == "Edited: 12"
    turn(app, "overview")
    turn(app, "live")
    assert app.number_input(key="number").value == 2
    assert [a.value for a in app.text_area if a.value == "Edited: 12"]
    assert app.text_input(key="shown").value == "4 2 3 1"
    assert "another one by now" not in said(app)
    assert app.session_state["live"].prompt == kept


def test_what_learned_nothing_is_said_to_have_reused_nothing(live: AppTest) -> None:
    live.multiselect(key="live-methods").set_value(["naive", "kvcomm"]).run()
    press(live, "Judge")
    table = live.dataframe[0].value.set_index("method")
    assert table["candidates kept"].to_dict() == {"dense": 0.0, "naive": 1.0, "kvcomm": 0.0}
    assert "kvcomm learned nothing before" in said(live).replace("\\", "")


def test_a_runs_live_question_is_the_last_of_the_runs(live: AppTest, runs: Path, tmp_path: Path) -> None:
    press(live, "Judge")
    live.text_input(key="save-name").input("by-hand").run()
    press(live, "Save")
    write_fake_run(tmp_path / "study", SMALL)
    library.find.clear()
    assert list(library.find((str(tmp_path),))) == ["study", "by-hand"]


def test_a_run_is_saved_under_a_plain_name_only(live: AppTest, tmp_path: Path) -> None:
    press(live, "Judge")
    for name in ("../out", "a/b", "", ".hidden", "x" * 99):
        live.text_input(key="save-name").input(name)
        press(live, "Save")
        assert not live.exception
        assert live.text_input(key="save-name").value == name
        assert "letters, digits" in said(live), name
        assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_edited_texts_are_judged_and_stay_inert(live: AppTest) -> None:
    area(live, "Slot 1: candidate 1").input("<script>alert(1)</script> $x^2$ **b**").run()
    assert live.query_params["edited"]
    press(live, "Judge")
    assert not live.exception
    html = "".join(e.proto.body for e in live.get("html"))
    assert "<script" not in html
    assert live.session_state["live"].prompt.candidates[0].text.startswith("<script>")
    assert live.session_state["live"].prompt.candidates[0].correct is None
    link = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in live.query_params.items()}
    again = visit("live", **link)
    assert not again.exception
    assert again.session_state["live"].prompt == live.session_state["live"].prompt


def test_an_edited_question_loses_its_marks(live: AppTest) -> None:
    def marks() -> list[str]:
        return [c.value for c in live.caption if c.value.endswith((" (right)", " (wrong)"))]

    assert len(marks()) == 4
    area(live, "Slot 1: candidate 1").input("Another answer").run()
    assert len(marks()) == 3
    area(live, "Question").input("Another question?").run()
    assert marks() == []
    press(live, "Judge")
    assert "right" not in live.dataframe[0].value or live.dataframe[0].value["right"].isna().all()
    assert {c.correct for c in live.session_state["live"].prompt.candidates} == {None}


@pytest.mark.parametrize("shape", ["mistral-window", "gemma3", "qwen2-window"])
def test_even_attention_knows_the_windows_of_each_layer(shape: str, monkeypatch) -> None:
    from tiny import long_judge

    even_judge = long_judge(shape)
    for layer in even_judge.engine.model.get_decoder().layers:
        layer.self_attn.q_proj.weight.data.zero_()  # such heads attend evenly to all they may see
        if layer.self_attn.q_proj.bias is not None:
            layer.self_attn.q_proj.bias.data.zero_()
    monkeypatch.setattr(live_run, "judge", lambda who: even_judge)
    live = live_run.run(live_run.Who(shape), problems.EXAMPLE, ["dense", "true-mask"], lambda *_: None)
    for method in live.methods:
        for layer in range(4):
            own, even, _ = live_run.matrix(live, method, layer, 1)
            np.testing.assert_allclose(own, even, atol=1e-5, err_msg=f"{method}, layer {layer}")


def test_only_the_order_may_differ_where_it_is_said_what_a_swap_moved(monkeypatch) -> None:
    from tiny import long_judge

    tiny = long_judge("llama")
    monkeypatch.setattr(live_run, "judge", lambda who: tiny)
    before = live_run.run(live_run.Who("llama"), problems.EXAMPLE, ["dense", "naive"], lambda *_: None)
    after = live_run.run(
        live_run.Who("llama"), problems.EXAMPLE.ordered((3, 1, 2, 0)), ["dense", "naive"], lambda *_: None
    )
    moved = live_run.moved(before, after)
    assert moved is not None
    assert list(moved["method"]) == ["dense", "naive"]
    for change in (
        {"who": live_run.Who("llama", "yesno")},
        {"who": live_run.Who("another")},
        {"who": live_run.Who("llama", dtype="bfloat16")},
        {"comparison": replace(before.comparison, prompt=replace(before.prompt, template=get_template("code")))},
        {"comparison": replace(before.comparison, prompt=replace(before.prompt, question="Why?"))},
    ):
        assert live_run.moved(replace(before, **change), after) is None, change


def test_every_order_of_a_problem_is_judged_as_it_is_alone(monkeypatch) -> None:
    from tiny import long_judge

    tiny = long_judge("llama")
    monkeypatch.setattr(live_run, "judge", lambda who: tiny)
    live = live_run.run(live_run.Who("llama"), problems.EXAMPLE, ["dense", "true-mask"], lambda *_: None)
    table = live_run.orders(live, lambda *_: None)
    assert len(table) == 24
    assert list(table.columns) == ["order", "dense", "true-mask"]
    for at in (0, 5, 23):
        order = [int(i) - 1 for i in table["order"][at].split()]
        for d in tiny.judge(problems.EXAMPLE, ["dense", "true-mask"], [order], capture=False):
            assert table[d.method][at] == f"candidate {order[d.slot] + 1} (slot {d.slot + 1})"


def test_the_heads_of_a_live_judgement_are_those_of_the_comparison(tiny_model: str, runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs, (tiny_model,))
    link = {"source": "typed", "judged": "1", "live-methods": ["dense", "naive"], "heads": "one", "row-layer": "2"}
    app = visit("live", model=tiny_model, **link)
    assert not app.exception
    found = app.session_state["live"].comparison.heads("naive")
    shown = next(d.value for d in app.dataframe if "Head" in d.value)
    assert list(shown["Head"]) == list(found["where"])
    assert shown["Attention, naive"].to_numpy() == pytest.approx(found["mass"].to_numpy())
    assert shown["Change"].abs().is_monotonic_decreasing
    assert "When cut" not in shown
    words = said(app).replace("\\", "")
    assert "The logit lens has dense settle on slot" in words
    app.toggle(key="cut").set_value(True).run()
    shown = next(d.value for d in app.dataframe if "Head" in d.value)
    assert shown["When cut"].notna().sum() == 10
    for kind, heads in (("play", None), ("text", "top"), ("bars", "layer")):
        app.session_state["drawn"], app.session_state["heads"] = kind, heads or "one"
        app.run()
        assert not app.exception, kind


def test_heads_of_a_run_are_ranked_by_how_far_their_attention_changes(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = visit("heatmaps", run="first", method="naive", base="dense", slot="2")
    assert not app.exception
    ranked = app.dataframe[0].value
    assert len(ranked) == SMALL.layers * SMALL.heads
    assert set(ranked["Slot"]) == {2}
    assert ranked["Change"].abs().is_monotonic_decreasing
    assert ranked["Change"].to_numpy() == pytest.approx(
        (ranked["Attention, naive"] - ranked["Attention, dense"]).to_numpy()
    )


@pytest.mark.parametrize("regime", ["parallel", "progressive"])
def test_a_runs_question_is_judged_again_under_the_runs_regime(monkeypatch, regime) -> None:
    from tiny import long_judge

    tiny = long_judge("llama")
    monkeypatch.setattr(live_run, "judge", lambda who: tiny)
    example = replace(problems.EXAMPLE, regime=regime)
    prompt = prompt_of(question_row(example), {"template": "math", "regime": regime})
    assert prompt == example
    live = live_run.run(live_run.Who("llama"), prompt, ["naive"], lambda *_: None)
    assert json.loads(live.as_json())["problem"]["regime"] == regime


def test_an_order_that_is_none_is_said(live: AppTest) -> None:
    live.text_input(key="shown").input("1 1 9").run()
    assert "once each" in said(live)


def test_a_bad_method_is_said_in_one_line(live: AppTest, tiny_model: str) -> None:
    app = visit("live", model=tiny_model, **{"live-methods": ["dense", "naive:nonsense=1"]})
    press(app, "Judge")
    assert not app.exception
    assert "has no parameter 'nonsense'" in said(app)


def test_a_head_is_judged_again_for_its_tokens(tiny_model: str, tmp_path: Path, monkeypatch) -> None:
    from kvattn.judge.judge import load as load_judge
    from kvattn.questions import load
    from kvattn.study.study import Study

    Study(load_judge(tiny_model), load("synthetic", limit=2), ["dense", "naive"]).run(tmp_path / "real")
    serve(monkeypatch, tmp_path, (tiny_model,))
    app = visit("heatmaps", layer="2", head="1")
    assert len(figures(app)) == 3
    press(app, "Judge this question again")
    assert not app.exception
    assert len(figures(app)) == 5
    assert "kept: no queries" in json.dumps(figures(app)[4])


def test_the_entry_script_draws_the_first_page(runs: Path, monkeypatch) -> None:
    serve(monkeypatch, runs)
    app = AppTest.from_file(str(CHECKOUT / "app" / "main.py"), default_timeout=60).run()
    assert not app.exception
    assert app.header[0].value == "Overview"


def press(app: AppTest, label: str) -> None:
    """Presses a button, and sends what was typed before with it."""
    next(b for b in app.button if b.label == label).click().run()


def test_a_gates_report_is_shown_where_there_is_one(tmp_path: Path, monkeypatch) -> None:
    from kvattn.report import gate as page
    from kvattn.study.gate import Promise, Recipe
    from kvattn.study.gate.evaluate import evaluate

    folder = write_fake_run(tmp_path / "gated", replace(SMALL, questions=24))
    serve(monkeypatch, tmp_path)
    assert f"kvattn gate report {folder}" in said(visit("frontier", run="gated"))
    found = evaluate(Run(folder), Recipe("naive"), ["logistic", "threshold"], Promise(0.3, 0.8), resamples=20)
    _, data = page.write(found, folder)
    app = visit("frontier", run="gated")
    assert not app.exception
    assert len(figures(app)) == 3
    assert list(app.dataframe[-1].value["gate"]) == ["logistic", "threshold"]
    shown = said(app).replace("\\", "")
    assert page.verdict(found)[1] in shown
    data.write_text(data.read_text().replace('"curve"', '"curse"'))
    app = visit("frontier", run="gated")
    assert not app.exception
    assert len(figures(app)) == 1
    assert "is damaged" in said(app)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of written verdicts, a third of which name nobody."""
    folder = tmp_path_factory.mktemp("written")
    made = replace(SMALL, calibrated=False)
    with RunWriter(folder / "written", {**made.manifest(), "readout": "generate"}) as writer:
        for i, (row, decisions) in enumerate(made.units()):
            some = [
                replace(d, readout="generate", rule="format", output="Selected agent id: 1", calibrated=None)
                if (i + k) % 3
                else replace(d, readout="generate", output="hm", slot=None, choice=None, scores=d.scores * np.nan,
                             correct=False, calibrated=None)
                for k, d in enumerate(decisions)
            ]  # fmt: skip
            plain = {"slot_calibrated": None, "choice_calibrated": None, "correct_calibrated": None, "coverage": np.nan}
            writer.write_unit(row["question_id"], row, [replace(d, **plain) for d in some])
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_written_verdicts_that_name_nobody_are_no_trouble(monkeypatch, written: Path, name: str) -> None:
    serve(monkeypatch, written)
    app = visit(name)
    assert not app.exception
    assert not app.error
    assert figures(app) or name == "overview"
    assert not re.search(r"\bnan\b", said(app), re.IGNORECASE)
    if name in ("compare", "frontier", "overview"):
        jcr: Any = stats.jcr(Run(written / "written")).set_index("method")
        assert 0 < jcr["jcr"].min() < 1
        table = next(t.value for t in app.dataframe if "JCR" in t.value).set_index("method")
        others = [m for m in table.index if m != "dense"]
        assert others
        np.testing.assert_allclose(table.loc[others, "JCR"].astype(float), jcr.loc[others, "jcr"])


def test_unknown_sinks_are_not_offered_to_be_taken_out(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "blind", Fake(questions=3, orders=2, layers=2, heads=2, sinks=False, methods=("naive",)))
    serve(monkeypatch, tmp_path)
    for name in ("dilution", "heatmaps"):
        app = visit(name, run="blind", sinks="out")
        assert not app.exception
        assert "unknown, since nobody looked for them" in said(app)
        assert figures(app)


def test_a_runs_question_is_judged_again_in_the_words_of_its_own_template(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "Q: {{question}}\nA: {{candidate.1}}\nB: {{candidate.2}}\nA or B?"
    template = of_entries(
        {"name": "own", "messages": [{"role": "user", "content": asked}], "labels": ["A", "B"]}, "here"
    )
    made = (Candidate("a", "4"), Candidate("b", "no <|turn|>"))
    Study(load(tiny_model), [JudgePrompt("2+2?", made, template)], ["dense", "null-edit"]).run(
        tmp_path / "runs" / "mine"
    )
    serve(monkeypatch, tmp_path / "runs", (tiny_model,))
    app = visit("live", model=tiny_model, source="run", **{"from": "mine", "live-methods": "null-edit"})
    assert not app.exception
    press(app, "Judge")
    assert not app.exception
    judged = app.session_state["live"]
    assert judged.prompt.template == template
    assert [d.method for d in judged.decisions] == ["dense", "null-edit"]
