"""What the engine needs to know of a model: measured on the model, not read from a list."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvattn.engine import parts
from kvattn.engine.rotary import Rotary
from kvattn.engine.survey import survey
from kvattn.errors import KvattnError


@dataclass(frozen=True)
class Geometry:
    """What the engine needs to know of a model.

    rotary:  how keys turn
    windows: sliding window of every layer, None for full attention
    sinks:   whether attention gives a share to no token, so that rows sum to less than one
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


def geometry(model) -> Geometry:
    """The model's geometry. Raises KvattnError, with what was measured, for one whose cache cannot be cut and moved."""
    seen = survey(model, _context(parts.config(model)))
    return Geometry(
        layers=len(parts.layers(model)),
        heads=seen.heads,
        kv_heads=seen.kv_heads,
        head_dim=seen.head_dim,
        rotary=seen.rotary,
        windows=seen.windows,
        sinks=seen.sinks,
        max_tokens=seen.context,
        devices=seen.devices,
    )


def _context(config) -> int | None:
    """Tokens of the longest prompt; under YaRN what it stretches to, where the configuration says from what."""
    said, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    if said is not None and said < 1:
        raise KvattnError(f"its configuration says a context of {said} tokens (max_position_embeddings); correct it")
    if said and rope.get("rope_type") == "yarn":
        return max(said, int((rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)))
    return said
