"""What came out of running a plan, and the live cache to decode further tokens with."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from kvattn.decision import Cost
from kvattn.engine.cache import Pass, PromptCache
from kvattn.engine.capture import Captured
from kvattn.engine.layout import Segment
from kvattn.engine.plan import KVBlock, KVPlan
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
