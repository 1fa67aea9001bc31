"""The doctor passes what is sound and fails what was tampered with."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, engine

from kvattn.engine.doctor import Doctor
from kvattn.errors import KvattnError


def test_a_tampered_rope_fails():
    eng = engine("llama")
    rope = eng.model.model.rotary_emb
    rope.inv_freq.mul_(1.01)  # after the engine read the frequencies: cached keys would be moved wrongly
    found = {f.name: f.passed for f in Doctor(eng).examine()}
    assert not found["a moved block equals the block made there"]
    assert found["everything recomputed equals the plain forward"]


@pytest.mark.parametrize("shape", CONFIGS)
def test_every_supported_shape_passes(shape):
    failed = [str(f) for f in Doctor(engine(shape)).examine() if not f.passed]
    assert not failed


def test_a_cache_that_leaks_fails():
    eng = engine("llama")
    attention = eng.model.model.layers[1].self_attn
    plain = attention.forward

    def leaky(hidden_states, **kwargs):  # every token also reads the first one's state, whatever the mask says
        hidden_states = hidden_states + 0.1 * hidden_states.mean(1, keepdim=True)
        return plain(hidden_states=hidden_states, **kwargs)

    attention.forward = leaky
    with torch.inference_mode():
        found = {f.name: f.passed for f in Doctor(eng).examine()}
    assert not found["what the plan cannot reach does not change"]


def test_a_check_that_raises_is_a_failed_finding_and_the_others_go_on(monkeypatch):
    def refused(*_):
        raise KvattnError("TransformerLens cannot wrap Llama: no adapter")

    monkeypatch.setattr("kvattn.engine.lens.check", refused)
    monkeypatch.setattr(Doctor, "moved_block", lambda _: 1 / 0)
    found = {f.name: f for f in Doctor(engine("llama")).examine()}
    failed = {name: f.error for name, f in found.items() if not f.passed}
    assert len(found) == 13
    assert failed == {
        "a moved block equals the block made there": "division by zero",
        "the TransformerLens bridge gives the same row": "TransformerLens cannot wrap Llama: no adapter",
        "the TransformerLens bridge gives the same logits": "TransformerLens cannot wrap Llama: no adapter",
    }
    assert str(found["a moved block equals the block made there"]).startswith("FAIL a moved block")


def test_one_plan_of_a_batch_that_gives_nan_fails(monkeypatch):
    errors = iter([0.0, float("nan"), 0.0])
    monkeypatch.setattr(Doctor, "_error", lambda *_: next(errors))
    assert torch.isnan(torch.tensor(Doctor(engine("llama")).half_kept(1024, 3)))
