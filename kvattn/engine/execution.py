"""What came out of running a plan, and the live cache to decode further tokens with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kvattn.decision import Cost
from kvattn.engine.cache import PromptCache
from kvattn.engine.caches.memory import dynamic
from kvattn.engine.capture import Captured
from kvattn.engine.layout import Segment
from kvattn.engine.plan import KVBlock, KVPlan
from kvattn.engine.queries import Pass
from kvattn.errors import KvattnError


@dataclass
class Execution:
    """What came out of one plan.

    logits:   [decisions, vocabulary] fp32 on the CPU, or None where none were asked for
    captured: the wanted rows, or None
    keys, values: [layers, kv heads, tokens, dim] in prompt order, or None unless the cache was kept
    """

    plan: KVPlan
    cost: Cost
    logits: Float[Tensor, "decisions vocabulary"] | None = None
    captured: Captured | None = None
    keys: Float[Tensor, "layers heads tokens dim"] | None = None
    values: Float[Tensor, "layers heads tokens dim"] | None = None
    state: Continuation | None = field(default=None, repr=False)

    def cache(self) -> tuple[Float[Tensor, "layers heads tokens dim"], Float[Tensor, "layers heads tokens dim"]]:
        """Keys and values. Raises KvattnError unless the cache was kept."""
        if self.keys is None or self.values is None:
            raise KvattnError("the cache of this execution was not kept; execute with keep_cache=True")
        return self.keys, self.values

    def past_key_values(self, config: Any = None) -> DynamicCache:
        """The cache of all tokens but the last as one of transformers, which the plain model continues exactly:
        `model.generate(token_ids[None], past_key_values=...)` computes the last token and goes on from there.

        config: the model's, for layers with a sliding window that drop what they cannot see any more

        Raises KvattnError where transformers would make other masks or positions than the plan has."""
        plan, n = self.plan, len(self.plan.layout)
        if plan.reach is not None:
            raise KvattnError("transformers cannot continue this plan: an adapter acts on its tokens; decode here")
        rule = plan.visibility.allowed[..., int(plan.layout.segment_of[-1]), :]
        if not (torch.equal(plan.positions, torch.arange(n)) and plan.layout.decisions == (n - 1,) and rule.all()):
            raise KvattnError(
                "transformers cannot continue this plan: its positions are not 0, 1, 2, ..., or its last token does "
                "not see all others; use the readout label or generate, and a method without shared positions"
            )
        keys, values = self.cache()
        return dynamic(keys[:, :, : n - 1], values[:, :, : n - 1], config)

    def rows(self) -> Float[Tensor, "queries layers heads tokens"]:
        """Token rows of the captured queries. Raises KvattnError unless they were kept."""
        if self.captured is None or self.captured.rows is None:
            raise KvattnError("token rows were not kept; ask for them with Wanted(rows=True)")
        return self.captured.rows

    def block(self, segment: Segment, seen: frozenset[str] = frozenset(), source: str = "") -> KVBlock:
        """The KV of one segment, as a block."""
        return self.span(segment.start, segment.stop, seen, source)

    def span(self, start: int, stop: int, seen: frozenset[str] = frozenset(), source: str = "") -> KVBlock:
        """The KV of tokens [start, stop), as a block."""
        keys, values = self.cache()
        return KVBlock(
            keys=keys[:, :, start:stop].clone(),
            values=values[:, :, start:stop].clone(),
            token_ids=self.plan.layout.token_ids[start:stop],
            positions=self.plan.positions[start:stop],
            seen=seen,
            source=source,
        )


@dataclass
class Continuation:
    """The live cache of one execution, to decode further tokens with."""

    cache: PromptCache
    current: Pass
    used: int  # tokens decoded after the prompt
    room: int
