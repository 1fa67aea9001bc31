"""Passes with a gradient, for training what a plan's computed tokens get."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.engine import parts
from kvattn.engine.cache import PromptCache
from kvattn.engine.engine import Engine
from kvattn.engine.passes import shape
from kvattn.engine.plan import KVPlan
from kvattn.engine.queries import Pass


def differentiable(engine: Engine, plans: Sequence[KVPlan]) -> list[Float[Tensor, "decisions vocabulary"]]:
    """Logits of plans on the engine's device, fp32, in the order given, with the gradient of what their adapters hold:
    what `Engine.execute` computes, by the same passes. Nothing is captured and no cache is kept."""
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(plans):
        groups.setdefault(shape(p, None, engine.layers, engine.chunk), []).append(i)
    out: dict[int, Tensor] = {}
    for members in groups.values():
        some = [plans[i] for i in members]
        with torch.no_grad():
            current = Pass(some, engine.geometry.windows, 0)
            cache = PromptCache(current, engine.geometry, engine.dtype, 0, held=True)
        calls = engine.passes.calls(current, engine.chunk)
        logits = parts.logits(engine.model, engine.passes.through(current, cache, calls))
        out.update(zip(members, logits, strict=True))
        engine.meter.add(sum(int((p.depth > 0).sum()) for p in some), sum(p.token_layers for p in some))
    return [out[i] for i in range(len(plans))]
