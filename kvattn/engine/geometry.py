"""What the engine needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvattn.engine.rotary import Rotary


@dataclass(frozen=True)
class Geometry:
    """What was measured of a model (`survey`).

    rotary:  how keys turn
    heads, kv_heads, head_dim: of every layer
    windows: sliding window of every layer, None for full attention
    sinks:   whether attention gives a share to no token, so that rows sum to less than one
    max_tokens: of the longest prompt that `rotary` and `windows` hold for
    devices: where every layer runs
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary
    windows: tuple[int | None, ...]
    sinks: bool
    max_tokens: int | None
    devices: tuple[torch.device, ...]
