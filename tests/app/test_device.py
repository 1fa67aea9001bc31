"""`kvattn app --dtype --device`: what the command says is what the live page loads its judges with."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("streamlit")

from kvattn_app import library, live_run

from kvattn.cli.app import ENVIRONMENT, environment


@pytest.mark.parametrize("how", [("float32", "cpu"), ("bfloat16", "cuda:1")])
def test_judges_are_loaded_as_the_command_says(how, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, environment([tmp_path], ["some-model"], *how)[ENVIRONMENT])
    asked = []
    monkeypatch.setattr(live_run, "load", lambda name, **given: asked.append((name, given)))
    monkeypatch.setattr(library, "models_offered", lambda: ["some-model"])
    live_run.judge.clear()
    live_run.judge("some-model", "label")
    live_run.judge.clear()
    assert asked == [("some-model", {"readout": "label", "dtype": how[0], "device": how[1]})]
