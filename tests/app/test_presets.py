"""The problems that Judge live calls worth seeing, judged by the judge that they are for."""

from __future__ import annotations

import sys

import pytest
from conftest import CHECKOUT

from kvattn import DEFAULT_JUDGE
from kvattn.judge.judge import load

sys.path.insert(0, str(CHECKOUT / "app"))
from kvattn_app import problems


@pytest.mark.usefixtures("smollm2")
def test_presets_show_what_they_are_named_for() -> None:
    judge = load(DEFAULT_JUDGE, trusted=True)

    def flips(name: str, method: str) -> bool:
        p = problems.PRESETS[name]
        prompt = problems.embedded(p.source, p.seed, p.number, p.candidates)
        dense, other = judge.judge(prompt, ["dense", method], capture=False)
        return not prompt.same_content(dense.choice, other.choice)

    assert flips("A flip", "naive")
    assert not flips("A pick that holds", "naive")
    equal = problems.PRESETS["Equal candidates"]
    texts = [c.text for c in problems.embedded(equal.source, equal.seed, equal.number, equal.candidates).candidates]
    assert len(set(texts)) == len(texts) - 1
