"""A method from another package, found through its entry point."""

from __future__ import annotations

import sys

import pytest
from test_methods import plan_of, prompt
from tiny import engine

from kvattn import methods
from kvattn.errors import KvattnError
from kvattn.judge import Judge

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
    judge = Judge(engine("llama"))
    judge.engine.compiler.max_tokens = None
    layout, _, plan = plan_of(judge, method, prompt())
    for s in layout.each("candidate"):
        assert int((plan.depth[s.start : s.stop] > 0).sum()) == round(0.5 * s.length)
    assert judge.engine.execute([plan])[0].logits is not None


def test_a_plugin_cannot_take_a_name_that_exists(installed):
    (installed / "entry_points.txt").write_text("[kvattn.methods]\nnaive = thirdparty:Middle\n")
    with pytest.raises(KvattnError, match="collides"):
        methods.registry()
