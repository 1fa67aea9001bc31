"""The precision that a device multiplies faster in."""

from __future__ import annotations

from itertools import accumulate, chain, repeat

import pytest
import torch

from kvattn.models import fastest


@pytest.fixture(autouse=True)
def forgotten():
    fastest.fastest.cache_clear()
    yield
    fastest.fastest.cache_clear()


@pytest.mark.parametrize(
    ("single", "half", "chosen"), [(7.0, 1.0, "bfloat16"), (1.1, 1.0, "float32"), (1.0, 4.0, "float32")]
)
def test_it_is_what_was_measured(monkeypatch, single, half, chosen):
    steps = chain.from_iterable(repeat((0.0, single / 1e3, 0.0, half / 1e3)))  # before and after, in either
    clock = accumulate(steps)
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: next(clock))
    taken, said = fastest.fastest(torch.device("cpu"))
    assert taken == chosen
    took = f"{single:.1f} ms in float32 and {half:.1f} ms in bfloat16"
    assert said == f"{chosen}: 256 x 256 matrices take {took} on cpu"


def test_an_engine_of_auto_says_what_was_taken(tmp_path, monkeypatch):
    from tiny import save

    from kvattn.models import load_pretrained

    monkeypatch.setattr("kvattn.models.pretrained.fastest", lambda device: ("bfloat16", f"bfloat16: told, on {device}"))
    model, _, info = load_pretrained(save(tmp_path), dtype="auto")
    assert model.dtype == torch.bfloat16
    assert (info.dtype, info.precision) == ("bfloat16", "bfloat16: told, on cpu")
