"""A cache, what is claimed of it, and what the model itself computes of those tokens, beside the noise of rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvattn.engine.audit.bottom import distance, plain
from kvattn.engine.audit.verdict import Fault
from kvattn.engine.caches.memory import integers, layers_of, name_of
from kvattn.engine.engine import Engine
from kvattn.engine.plan import KVBlock, KVPlan, Visibility
from kvattn.errors import KvattnError
from kvattn.text import hash_of

MARGIN = 6  # over the noise that is measured; a cache of another kernel rounds otherwise once more
FLOORS = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 0.015}
ABOVE = 4  # layers above the first round several times before they come to keys and values
NULL_CHUNK = 37  # queries at a time of the null edit at least, so that every product has another shape


class Claims:
    """A cache under audit.

    keys, values: [layers, kv heads, rows, dim], as they are given, on the CPU
    ids, at:      [tokens], which tokens it claims to be of, and where their keys are claimed to stand
    spans:        by block, the tokens that are judged together
    claimed:      by block, the ids of what it was made behind
    here:         keys and values that the model computes of these tokens, in fp32
    noise, near:  [layers], what rounding makes, and how far a row may be off for it
    faults:       what was found
    """

    def __init__(self, engine: Engine, cache: Any, token_ids, positions, blocks, claimed) -> None:
        self.engine = engine
        if isinstance(cache, KVBlock):
            keys, values = cache.keys, cache.values
            own_ids, own_positions = cache.token_ids, cache.positions
            if cache.weights and engine.identity and hash_of(cache.weights) != hash_of(engine.identity):
                raise KvattnError(f"the cache says that {cache.weights} made it, the model is {engine.identity}")
        else:
            keys, values = layers_of(cache)
            own_ids = own_positions = None
        ids = own_ids if token_ids is None else integers(token_ids, "token_ids")
        if ids is None:
            raise KvattnError("say which tokens the cache is of: token_ids")
        at = own_positions if positions is None else integers(positions, "positions")
        if at is None or (positions is None and len(at) != len(ids)):
            at = torch.arange(len(ids))
        self.ids, self.at = ids, at
        self.keys, self.values = keys.detach().cpu(), values.detach().cpu()
        self._check()
        n = len(self.ids)
        self.spans = dict(blocks or {"cache": (0, n)})
        for name, (start, stop) in self.spans.items():
            if not 0 <= start < stop <= n:
                raise KvattnError(f"block {name!r}: tokens {start} to {stop}, the ids are {n}; give 0 <= start < stop")
        self.claimed = {k: [int(i) for i in v] for k, v in (claimed or {}).items()}
        if unknown := self.claimed.keys() - self.spans.keys():
            raise KvattnError(f"claimed prompts of {sorted(unknown)}, which are no blocks: {', '.join(self.spans)}")
        self.faults: list[Fault] = []

    def _check(self) -> None:
        g, shape, n = self.engine.geometry, tuple(self.keys.shape), len(self.ids)
        wants = (g.layers, g.kv_heads, shape[2] if len(shape) == 4 else 0, g.head_dim)
        if shape != wants or self.values.shape != self.keys.shape or not shape[2]:
            raise KvattnError(
                f"the cache has keys {list(shape)} and values {list(self.values.shape)}, the model has {g.layers} "
                f"layers, {g.kv_heads} kv heads, {g.head_dim} channels: it is another model's"
            )
        if not self.keys.dtype == self.values.dtype == self.engine.dtype:
            raise KvattnError(
                f"the cache is {name_of(self.keys.dtype)}, the model computes in {name_of(self.engine.dtype)}; load "
                f"it with dtype {name_of(self.keys.dtype)}, and what rounding makes is measured"
            )
        if len(self.at) != n or int(self.at.min()) < 0 or (g.max_tokens and int(self.at.max()) >= g.max_tokens):
            raise KvattnError(f"{len(self.at)} positions for {n} ids, within the context of {g.max_tokens}")
        if not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.engine.model.config.vocab_size:
            raise KvattnError("a token id is outside the model's vocabulary; check the ids")

    # -- references ----------------------------------------------------------------------------------------------------

    def dense(self, ids: Tensor, at: Tensor, null: bool = False) -> tuple[Tensor, Tensor]:
        """Keys and values that the model computes, on the CPU in fp32; with `null`, the same by other products."""
        layout = replace(plain(ids), positions=at)
        rule = Visibility(torch.ones(1, 1, dtype=torch.bool), causal=not null)
        depth = torch.full((len(ids),), self.engine.layers)
        with self._chunk(max(NULL_CHUNK, len(ids) // 4 + 1) if null else self.engine.chunk):
            plan = KVPlan.of(layout, self.engine.layers, depth, visibility=rule)
            keys, values = self.engine.execute([plan], keep_cache=True, logits=False)[0].cache()
        return keys.float().cpu(), values.float().cpu()

    @contextmanager
    def _chunk(self, size: int) -> Iterator[None]:
        was, self.engine.chunk = self.engine.chunk, size
        try:
            yield
        finally:
            self.engine.chunk = was

    def measure(self) -> None:
        """What the model computes here, and what rounding alone makes of it."""
        self.here = self.dense(self.ids, self.at)
        other = self.dense(self.ids, self.at, null=True)
        self.noise = torch.stack([distance(a, b) for a, b in zip(other, self.here, strict=True)]).amax(0).amax(1)
        floor = FLOORS[self.engine.dtype]
        least = torch.full_like(self.noise, ABOVE * floor)
        least[0] = floor
        self.near = torch.maximum(MARGIN * self.noise, least)

    def say(self, kind: str, start: int, stop: int, line: str, layers: Sequence[int] = ()) -> None:
        """Note a fault of tokens [start, stop)."""
        self.faults.append(Fault(kind, int(start), int(stop), line, tuple(layers)))
