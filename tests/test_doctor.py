"""The doctor passes what is sound and fails what was tampered with."""

from __future__ import annotations

import pytest
import torch
from tiny import CONFIGS, engine

from kvattn.doctor import Doctor


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
