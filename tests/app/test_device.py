"""`kvattn app --dtype --device`: what the command says is what the live page loads its judges with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from kvattn_app import library, live_run
from wcag import contrast

from kvattn.cli.app import ENVIRONMENT, OPTIONS, environment


@dataclass
class Loaded:
    readout: Any = None


@pytest.mark.parametrize("how", [("float32", "cpu"), ("bfloat16", "cuda:1")])
def test_judges_are_loaded_as_the_command_says(how, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, environment([tmp_path], ["some-model"], *how)[ENVIRONMENT])
    asked = []
    monkeypatch.setattr(live_run, "load", lambda name, **given: asked.append((name, given)) or Loaded())
    monkeypatch.setattr(library, "models_offered", lambda: ["some-model"])
    first = live_run.dtypes()[0], live_run.devices()[0]  # what the page opens with
    assert first == how
    live_run._loaded.cache_clear()
    found = [live_run.judge(live_run.Who("some-model", readout, *first)) for readout in ("label", "yesno")]
    live_run._loaded.cache_clear()
    assert asked == [("some-model", {"dtype": how[0], "device": how[1]})]  # once for both
    assert [judge.readout.name for judge in found] == ["label", "yesno"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_white_words_are_read_on_the_colour_of_buttons_and_chips(scheme: str) -> None:
    assert contrast("#ffffff", OPTIONS[f"theme.{scheme}.primaryColor"]) >= 4.5
