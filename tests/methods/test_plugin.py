"""A method from another package, found through its entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_methods import plan_of, prompt
from tiny import engine

from kvattn import methods
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.questions import synthetic
from kvattn.study.estimate import of_study
from kvattn.study.gate.examples import learners as learned_online
from kvattn.study.run_folder import Run
from kvattn.study.study import Pools, Study

MODULE = '''
from dataclasses import dataclass
from kvattn.methods.selective import Selective, _edges

@dataclass(frozen=True)
class Middle(Selective):
    """The middle of each candidate."""

    width: float = 1.0
    name = "middle"
    source = "a third party"

    def score(self, layout, blocks, engine, stale):
        return -(_edges(layout, last=True) - 5).abs(), 0
'''


def roomy_judge():
    judge = Judge(engine("llama"))
    judge.engine.compiler.max_tokens = None
    return judge


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution as pip leaves it: a module, and metadata that names the entry point."""
    (tmp_path / "thirdparty.py").write_text(MODULE)
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kvattn.methods]\nmiddle = thirdparty:Middle\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield info
    sys.modules.pop("thirdparty", None)


def test_a_third_party_method_is_found_parsed_and_run(installed):
    method = methods.get("middle:budget=0.5,width=2")
    assert method.label == "middle(budget=0.5,width=2.0)"
    judge = roomy_judge()
    layout, _, plan = plan_of(judge, method, prompt())
    for s in layout.each("candidate"):
        assert int((plan.depth[s.start : s.stop] > 0).sum()) == round(0.5 * s.length)
    assert judge.engine.execute([plan])[0].logits is not None


def test_a_plugin_cannot_take_a_name_that_exists(installed):
    (installed / "entry_points.txt").write_text("[kvattn.methods]\nnaive = thirdparty:Middle\n")
    with pytest.raises(KvattnError, match="collides"):
        methods.registry()


LEARNER = '''
import json
from dataclasses import dataclass, field
from kvattn.methods.base import Method
from kvattn.engine.plan import keep

@dataclass(frozen=True)
class Counting(Method):
    """Keeps every candidate, and counts the judgements it saw."""

    seen: list = field(default_factory=list, compare=False)
    name = "counting"
    learns = True

    def plan(self, layout, blocks, engine):
        return keep(layout, engine.layers, [(s, blocks.execution(c)) for s, c in layout.shown()])

    def observe(self, layout, blocks, execution):
        assert execution.keys is not None
        self.seen.append(blocks.prompt.id)

@dataclass(frozen=True)
class Remembering(Counting):
    """The same, and it remembers."""

    name = "remembering"

    def save(self, folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(self.seen))

    def restore(self, folder, name):
        self.seen[:] = json.loads((folder / f"{name}.json").read_text())
'''


@pytest.fixture
def learners(installed, tmp_path):
    (tmp_path / "thirdparty.py").write_text(LEARNER)
    (installed / "entry_points.txt").write_text(
        "[kvattn.methods]\ncounting = thirdparty:Counting\nremembering = thirdparty:Remembering\n"
    )


def test_a_third_party_method_that_learns_fills_a_run_folder_and_goes_on(learners, tmp_path):
    judge, method, prompts = roomy_judge(), methods.get("remembering"), synthetic(3, candidates=2)
    study = Study(judge, prompts[:2], ["dense", method])
    study.run(tmp_path / "run")
    assert method.seen == [p.id for p in prompts[:2]]
    assert learned_online(Run(tmp_path / "run"), ["dense", "remembering"]) == [
        "remembering"
    ]  # no gate can vouch for it
    again = methods.get("remembering")
    Pools(tmp_path / "run" / "pools", [again]).resume(prompts[:2], [True, True])
    assert again.seen == method.seen
    assert of_study(Study(judge, prompts, ["dense", methods.get("counting")])).questions == 3


def test_a_method_that_cannot_restore_says_so_when_a_run_goes_on(learners, tmp_path):
    judge, prompts = roomy_judge(), synthetic(2, candidates=2)
    study = Study(judge, prompts, ["dense", methods.get("counting")])
    study.run(tmp_path / "run")
    with pytest.raises(KvattnError, match=r"counting.*cannot restore.*begin a new run folder"):
        Pools(tmp_path / "run" / "pools", [methods.get("counting")]).resume(prompts, [True, False])


def test_submodules_are_there_on_a_fresh_import():
    code = "import kvattn; print(kvattn.methods.get('naive-linked').label, kvattn.stats.jcr, kvattn.explain.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("naive-linked <function jcr")
    assert done.stdout.endswith(" explain\n")
