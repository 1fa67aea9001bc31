"""Two judges whose runs are set beside each other, one of a shape that no list of names ever had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT
from streamlit.testing.v1 import AppTest
from tiny import SHORT, save
from typer.testing import CliRunner

import kvattn
from kvattn.cli.main import app
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

sys.path.insert(0, str(CHECKOUT / "app"))
from kvattn_app import library

SHAPES = ("llama", "mixtral")  # one that has long been there, and one with experts
BANDS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shapes")
    asked = [
        JudgePrompt(f"Sum {i}?", tuple(Candidate(f"c{k}", f"It is {i + k}.") for k in range(3)), SHORT, id=f"q{i}")
        for i in range(3)
    ]
    for shape in SHAPES:
        judge = kvattn.load(save(home / "models" / shape, shape))
        Study(judge, asked, ["dense", "naive", "true-mask"], "rotations").run(home / "runs" / shape)
    return home / "runs"


def test_the_command_compares_the_slot_mass_that_both_runs_hold(runs: Path) -> None:
    both = [str(runs / shape) for shape in SHAPES]
    done = CliRunner().invoke(app, ["compare", *both, "--json"])
    assert done.exit_code == 0, done.output
    mass = json.loads(done.stdout)["mass"]
    assert {row["run"] for row in mass} == {*SHAPES}
    for shape in SHAPES:
        run = Run(runs / shape)
        sums = np.zeros((2, 2, BANDS, 3))  # [method, method or dense, band, slot], four layers in four bands
        judged = run.judgements()
        for m, method in enumerate(("naive", "true-mask")):
            for row in judged[judged["method"] == method].to_dict("records"):
                for d, name in enumerate((method, "dense")):
                    held = run.slot_mass(row["question_id"], row["order"], name)
                    assert held is not None
                    slots = [held.names.index(f"candidate:{k}") for k in (1, 2, 3)]
                    sums[m, d] += held.mass[:, :, slots].sum(1)
        own = [row for row in mass if row["run"] == shape]
        assert len(own) == 2 * BANDS * 3
        for row in own:
            m, band = ("naive", "true-mask").index(row["method"]), round(row["from_depth"] * BANDS)
            factor = sums[m, 0, band, row["slot"] - 1] / sums[m, 1, band, row["slot"] - 1]
            assert row["factor"] == pytest.approx(factor, rel=1e-4)


def test_the_page_draws_both(runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def script() -> None:
        from kvattn_app import shell

        shell.draw("compare", "compare")

    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path))
    monkeypatch.setenv(library.ENVIRONMENT, json.dumps({"folders": [str(runs)], "models": []}))
    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", list)
    library.find.clear()
    page = AppTest.from_function(script, default_timeout=60).run()
    assert not page.exception
    drawn = [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]
    lines = [{t["name"] for t in figure["data"] if "lines+markers" in t.get("mode", "")} for figure in drawn]
    assert {*SHAPES} in lines  # slot mass by depth, a line a run
    panels = [{a["text"] for a in figure["layout"].get("annotations", ())} for figure in drawn]
    assert any({*SHAPES} <= titles for titles in panels), panels  # slot mass by slot, a panel a run
