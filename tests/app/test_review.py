"""What a page says is what happened: numbers that agree, nothing left out in silence, nothing lost by a mistake."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_run import Fake, write_fake_run
from kvattn_app import controls, live_run, problems, show
from test_app import SMALL, _fresh, figures, live, press, runs, said, serve, tiny_model, visit  # noqa: F401
from tiny import plain_model, short_prompt, tokenizer

from kvattn.cli.app import serve as start
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.judge import readout as readouts
from kvattn.judge.judge import Judge
from kvattn.plots import by_depth
from kvattn.study.decisions_file import slot_mass
from kvattn.study.run_folder import Run, RunWriter
from kvattn.text import Enough


@pytest.mark.parametrize("readout", ["label", "yesno"])
def test_totals_over_the_text_are_those_of_the_deciding_tokens(readout: str) -> None:
    judge = Judge(Engine(plain_model("llama"), tokenizer("Yes", "No")), readouts.get(readout))
    found = judge.compare(short_prompt("What is 2+2?", ("two", "it's 5", "four!")), methods=["dense", "naive"])
    for d, panel, ran in zip(found.decisions, found.text().panels, found.runs, strict=True):
        layout = ran.plan.layout
        deciding = ran.rows().numpy()[: 3 if readout == "yesno" else 1]
        assert len(layout.deciding) == len(deciding)
        own = deciding.mean((0, 1, 2))
        wanted = {s.slot: own[s.start : s.stop].sum() for s in layout.segments if s.role == "candidate"}
        assert panel.slots() == pytest.approx(wanted, rel=1e-4)
        assert 0 < sum(panel.slots().values()) < 1
        if readout == "label":
            assert list(panel.slots().values()) == pytest.approx(slot_mass(d), rel=1e-3)


def test_a_slot_that_is_never_picked_counts_at_random(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "eight", replace(SMALL, candidates=8, signal=0.0, orders=1))
    assert Run(tmp_path / "eight").judgements()["slot"].nunique() < 8
    serve(monkeypatch, tmp_path)
    app = visit("shuffle")
    assert not app.exception
    lines = [t for f in figures(app) for t in f["data"] if t.get("name") == "at random"]
    assert lines
    for t in lines:
        y = t["y"]
        values = np.frombuffer(b64decode(y["bdata"]), y["dtype"]) if isinstance(y, dict) else y
        assert list(values) == [0.125] * 8


def test_compare_says_which_runs_a_figure_leaves_out_and_why(tmp_path: Path, monkeypatch) -> None:
    write_fake_run(tmp_path / "rows", SMALL)
    write_fake_run(tmp_path / "bare", replace(SMALL, rows=False))
    write_fake_run(tmp_path / "other", replace(SMALL, methods=("dense", "isolated")))
    serve(monkeypatch, tmp_path)
    words = said(visit("compare", runs=["rows", "bare", "other"], compared=["naive", "true-mask"])).replace("\\", "")
    assert "Not shown: other: has none of these methods" in words
    assert "Not shown: bare: no rows were captured" in words


def test_runs_keep_their_colours_whichever_are_drawn() -> None:
    table = pd.DataFrame({"run": ["b", "b", "c", "c"], "depth": [0.0, 1.0] * 2, "value": [0.1, 0.2, 0.3, 0.4]})

    def colours(part: pd.DataFrame) -> dict[str, str]:
        fig: Any = by_depth(part, known=["a", "b", "c"])
        return {t.name: t.line.color for t in fig.data if t.name}

    both = colours(table)
    assert both["b"] != both["c"]
    assert colours(table[::-1]) == both
    assert colours(table[table["run"] == "c"]) == {"c": both["c"]}


def test_what_is_chosen_is_framed_on_the_page_and_not_in_what_it_exports(runs: Path, monkeypatch) -> None:  # noqa: F811
    serve(monkeypatch, runs)
    taken: dict[str, Any] = {}
    monkeypatch.setattr(show, "exports", lambda key, fig, *_, **__: taken.update({key: fig}))
    app = visit("heatmaps", run="first", layer="1", head="1")
    assert not app.exception
    assert figures(app)[0]["layout"]["shapes"]
    exported = next(fig for key, fig in taken.items() if key.startswith("heatmap"))
    assert {t.type for t in exported.data} == {"heatmap"}
    assert not exported.layout.shapes


def test_a_model_that_is_none_is_refused_at_the_start(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a server was started"))
    with pytest.raises(KvattnError, match="no-such-model"):
        start([tmp_path], ["no-such-model"], browser=False)


def test_a_taken_name_is_said_beside_what_was_judged(live, tmp_path: Path) -> None:  # noqa: F811
    press(live, "Judge")
    live.text_input(key="save-name").input("kept").run()
    press(live, "Save")
    press(live, "Save")
    assert not live.exception
    assert "there is a run 'kept' already; choose another name" in said(live)
    assert "This cannot be shown" not in said(live)
    assert [b.proto.label for b in live.get("download_button") if b.proto.label == "Download as JSON"]


@pytest.mark.parametrize(("fake", "judged"), [(Fake(3, orders=1), 3), (Fake(9, candidates=1, orders=1), 9)])
def test_of_few_judgements_or_one_candidate_no_lock_is_claimed(
    fake: Fake, judged: int, tmp_path: Path, monkeypatch
) -> None:
    small = replace(fake, layers=2, heads=2, methods=("dense", "naive"))
    write_fake_run(tmp_path / "few", small)
    assert (Run(tmp_path / "few").judgements()["method"] == "naive").sum() == judged
    serve(monkeypatch, tmp_path)
    app = visit("overview")
    assert not app.exception
    words = said(app).replace("\\", "")
    assert "No method puts more than" not in words
    assert "Nearly all picks fall in one slot" not in words


def test_the_command_for_another_run_is_whole_and_of_the_same_questions(tmp_path: Path, monkeypatch) -> None:
    with RunWriter(tmp_path / "one", {**SMALL.manifest(), "data": {"source": "mine.jsonl", "questions": 9}}) as writer:
        for row, decisions in replace(SMALL, orders=1).units():
            writer.write_unit(row["question_id"], row, decisions)
    serve(monkeypatch, tmp_path)
    app = visit("shuffle")
    commands = {c.value for c in app.code if c.value.startswith("kvattn judge")}
    assert len(commands) == 1
    words = commands.pop().split()
    assert words[2:5] == ["mine.jsonl", "--model", "fake-judge"]
    assert words.count("--orders") == words.count("--run") == words.count("--methods") == 1
    assert words[words.index("--run") + 1] == f"{tmp_path / 'one'}-again"
    assert controls.again(Run(tmp_path / "one")).split() == words


def test_who_waits_for_another_judgement_is_told_and_can_stop() -> None:
    heard: list[str] = []

    def hear(what: str, done: int, total: int) -> None:
        heard.append(what)
        if len(heard) == 3:
            raise Enough

    with live_run._LOCK, pytest.raises(Enough):
        live_run.run(live_run.Who("nobody"), problems.EXAMPLE, ["dense"], hear)
    assert set(heard) == {"Waiting for another judgement, which has to end first"}
    assert not live_run._LOCK.locked()


def test_dense_beside_flips_is_said_to_be_of_all_judgements(runs: Path, monkeypatch) -> None:  # noqa: F811
    serve(monkeypatch, runs)
    app = visit("dilution", run="first", picked="flipped")
    assert not app.exception
    names = {t.get("name") for t in figures(app)[0]["data"]}
    assert "dense (all judgements)" in names
    assert "dense" not in names


def test_one_candidate_has_no_margin(tiny_model: str, runs: Path, monkeypatch) -> None:  # noqa: F811
    serve(monkeypatch, runs, (tiny_model,))
    app = visit("live", model=tiny_model, source="typed", candidates="1", judged="1", **{"live-methods": "naive"})
    assert not app.exception
    assert app.dataframe[0].value["margin"].isna().all()


FILE = [{"id": f"q{i}", "question": f"Which, {i}?", "candidates": [{"text": "4"}, {"text": "5"}]} for i in range(2)]


@pytest.mark.parametrize("how", ["dropped", "pasted"])
def test_a_file_comes_in_and_a_bad_one_is_refused_in_a_line_and_loses_nothing(
    how: str,
    tiny_model: str,  # noqa: F811
    runs: Path,  # noqa: F811
    monkeypatch,
) -> None:
    serve(monkeypatch, runs, (tiny_model,))
    link = {"model": tiny_model, "live-methods": ["dense", "naive"]}
    app = visit("live", source="file", **link)

    def send(text: str, key: str) -> None:
        if how == "dropped":
            app.file_uploader(key=key).set_value(
                (f"mine.{'yaml' if 'template' in key else 'json'}", text.encode(), "text/plain")
            )
        else:
            app.text_area(key=f"{key}-pasted").set_value(text)
        app.run()
        assert not app.exception

    send(json.dumps(FILE), "upload")
    app.number_input(key="number-in-file").set_value(1).run()
    send("name: short\ninstruction: 'Which one?'\n", "template-upload")
    press(app, "Judge")
    judged = app.session_state["live"].prompt
    assert (judged.question, judged.template.name) == ("Which, 1?", "short")
    again = visit("live", **link, **dict.fromkeys(("source",), "file"), problem=app.query_params["problem"])
    assert "Which, 1?" in [a.value for a in again.text_area]
    next(a for a in app.text_area if a.value == "4").input("44").run()
    send("name: long\ninstruction: 'Which one is it?'\n", "template-upload")
    assert "44" in [a.value for a in app.text_area]
    for text, key in (("{", "upload"), ('[{"question": 3}]', "upload"), ("header: no label", "template-upload")):
        send(text, key)
        assert "is not taken" in said(app)
        assert "This cannot be shown" not in said(app)
        assert {"Which, 1?", "44"} <= {a.value for a in app.text_area}
        assert app.session_state["live"].prompt == judged
    press(app, "Judge")
    last = app.session_state["live"].prompt
    assert last.template.name == "long"
    changed = (replace(judged.candidates[0], text="44"), judged.candidates[1])
    assert last == replace(judged, candidates=changed, template=last.template)
