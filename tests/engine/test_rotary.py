"""Keys turned a few layers at a time are those turned at once, bit for bit, and those of plain complex numbers."""

from __future__ import annotations

import pytest
import torch

from kvattn.engine import rotary
from kvattn.engine.rotary import Rotary


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("alike", [True, False])
def test_turned(interleaved, start, alike, monkeypatch):
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(5, 2, 7, 20, generator=g)
    table = torch.rand(1 if alike else 5, 8, generator=g).expand(5, -1)
    made = Rotary(table, interleaved, start)
    before, after = torch.arange(7), torch.arange(7) * 3 + 11
    whole = made.turn(keys, before, after)
    monkeypatch.setattr(rotary, "AT_ONCE", 1)
    assert torch.equal(made.turn(keys, before, after), whole)
    part = keys[..., start : start + 16].double()
    pairs = part.unflatten(-1, (8, 2)) if interleaved else part.unflatten(-1, (2, 8)).transpose(-1, -2)
    angle = torch.einsum("t,lp->ltp", (after - before).double(), table.double())[:, None]
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(1).double(), angle))
    flat = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
    assert torch.allclose(whole[..., start : start + 16].double(), flat, atol=1e-5)
    rest = made.still(20)
    assert torch.equal(whole[..., rest], keys[..., rest])
