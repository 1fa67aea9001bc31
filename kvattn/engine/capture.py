"""Attention of chosen query tokens, read while the model runs: cost O(layers x heads x tokens), never tokens squared.

kvattn registers one attention function with transformers. It computes the output with SDPA and, for the wanted queries
alone, also the softmax row. Masks come from the plan, never from transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from kvattn.engine import parts
from kvattn.engine.devices import Everywhere, stacked
from kvattn.engine.kernel import Scoring
from kvattn.errors import KvattnError

if TYPE_CHECKING:
    from kvattn.engine.plan import KVPlan

NAME = "kvattn"
RUNNING: ContextVar[Any] = ContextVar("kvattn", default=None)  # the pass that attention is to serve
QUERIES_AT_ONCE = 64  # bounds the memory of rows that are reduced to segments anyway


@dataclass(frozen=True)
class Wanted:
    """What to capture in one execution.

    queries: prompt indices of the query tokens; None: the layout's decision tokens
    rows:    keep the token rows [layers, heads, queries, tokens]
    received: keep what each token gets from the queries of each segment, summed as they come
    norms:   also the length of (attention x V x W_O) by segment
    kv:      keep key and value norms [layers, kv heads, tokens] (sink detection needs them)
    sinks:   [layers, tokens], the tokens whose mass is reported apart, where they are known beforehand
    find_sinks: report the mass on sinks apart, which are found here (`sink_tokens`), on the mean row of so many of the
             first queries
    residual: keep the residual stream of the queries, before the first layer and after each
    moved:   keep what attention brings from each segment (attention x V x W_O), [hidden] for every head
    query_states: keep the queries' own vectors, rotated, as attention has them
    """

    queries: tuple[int, ...] | None = None
    rows: bool = False
    received: bool = False
    norms: bool = False
    kv: bool = False
    sinks: Bool[Tensor, "layers tokens"] | None = None
    find_sinks: int = 0
    residual: bool = False
    moved: bool = False
    query_states: bool = False

    def check(self, plan: KVPlan, layers: int) -> None:
        """Raises KvattnError unless there is a query, and each is a token that the plan computes through `layers`."""
        if not (plan.layout.decisions if self.queries is None else self.queries):
            raise KvattnError("no query to capture; name some, or leave queries out for the decision tokens")
        for q in self.queries or ():
            if not 0 <= q < len(plan.layout):
                raise KvattnError(f"query {q} is no token of this prompt of {len(plan.layout)} tokens")
            if plan.depth[q] < layers:
                name = plan.layout.segments[int(plan.layout.segment_of[q])].name
                raise KvattnError(f"token {q} ({name}) is kept, so it attends to nothing; capture a computed token")


@dataclass(frozen=True)
class Captured:
    """What was captured, fp32 on the CPU.

    queries: prompt indices
    mass, sink: [queries, layers, heads, segments]; sink is the part of mass that falls on sink tokens, None where
             nobody looked for sinks
    sinks:   [layers, tokens], the sink tokens given or found, or None
    norm:    [queries, layers, heads, segments] or None
    rows:    [queries, layers, heads, tokens] or None
    received: [layers, segments, tokens], attention summed over each segment's queries, mean over heads, or None
    key_norm, value_norm: [layers, kv heads, tokens] or None
    residual: [queries, layers + 1, hidden] or None
    moved:   [queries, layers, heads, segments, hidden] or None
    query_states: [queries, layers, heads, dim] or None
    """

    queries: tuple[int, ...]
    mass: Float[Tensor, "queries layers heads segments"]
    sink: Float[Tensor, "queries layers heads segments"] | None = None
    sinks: Bool[Tensor, "layers tokens"] | None = None
    norm: Float[Tensor, "queries layers heads segments"] | None = None
    rows: Float[Tensor, "queries layers heads tokens"] | None = None
    received: Float[Tensor, "layers segments tokens"] | None = None
    key_norm: Float[Tensor, "layers kv_heads tokens"] | None = None
    value_norm: Float[Tensor, "layers kv_heads tokens"] | None = None
    residual: Float[Tensor, "queries stages hidden"] | None = None
    moved: Float[Tensor, "queries layers heads segments hidden"] | None = None
    query_states: Float[Tensor, "queries layers heads dim"] | None = None

    def row(self, query: int) -> Float[Tensor, "layers heads tokens"]:
        """The token row of one query (a prompt index)."""
        if self.rows is None:
            raise KvattnError("token rows were not kept; ask for them (rows=True)")
        return self.rows[self.queries.index(query)]


class Recorder:
    """Collects rows during the chunks and layers of one batched execution, whose plans want the same kinds of rows."""

    def __init__(self, wanted: list[Wanted], current, layers: int) -> None:
        self.wanted, self.current, self.layers = wanted[0], current, layers
        self.queries = torch.tensor(
            [
                list(w.queries if w.queries is not None else p.layout.decisions)
                for w, p in zip(wanted, current.plans, strict=True)
            ]
        )  # on the CPU, as all that steers a pass
        member = F.one_hot(current.segment.own, len(current.plans[0].layout.segments)).float()
        self.member = Everywhere(member)  # [batch, key, segment]
        sinks = [w.sinks for w in wanted if w.sinks is not None]
        self.sinks = Everywhere(self._padded(torch.stack(sinks).cpu())) if sinks else None  # [batch, layer, key]
        self._parts: list[list[tuple[Tensor, dict[str, Tensor]]]] = [[] for _ in range(layers)]
        self._norms: dict[int, tuple[Tensor, Tensor]] = {}
        self._received: dict[int, Tensor] = {}  # by layer, [batch, segment, key]
        self._residual: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers + 1)]
        self._standing: Tensor | None = None
        self._places: list[tuple[Tensor, Everywhere]] = []

    def _padded(self, by_token: Tensor) -> Tensor:
        """[..., prompt tokens] as wide as the cache, which may have room to decode."""
        return F.pad(by_token, (0, self.member.own.shape[1] - by_token.shape[-1]))

    def record(self, layer: int, module, query: Tensor, key: Tensor, value: Tensor, how: Scoring) -> None:
        """Called by the attention function; keeps what was asked for of the queries present in this call."""
        if self.wanted.kv or self.wanted.find_sinks:
            self._norms[layer] = (key.float().norm(dim=-1), value.float().norm(dim=-1))
        for part, place in self._present():
            self._parts[layer].append((part, self._some(layer, module, query, key, value, how, place)))

    def record_residual(self, stage: int, hidden: Tensor) -> None:
        """Called with the residual stream before layer `stage` (after the last layer: stage = layers)."""
        for part, places in self._present():
            place = places.on(hidden.device)
            batch = torch.arange(len(place), device=place.device)[:, None]
            self._residual[stage].append((part, hidden[batch, place].float()))

    def _present(self) -> list[tuple[Tensor, Everywhere]]:
        """Of the wanted queries that are among the current ones, some at a time: which they are, on the CPU, and their
        places there [batch, wanted]. Found once wherever a pass stands."""
        at = self.current.at
        if self._standing is not at:
            place = torch.searchsorted(at.contiguous(), self.queries).clamp(max=at.shape[1] - 1)
            here = torch.gather(at, 1, place) == self.queries
            if not bool((here == here[:1]).all()):
                raise RuntimeError("a captured query must fall into the same call for the whole batch")
            some = here[0].nonzero()[:, 0].split(QUERIES_AT_ONCE)
            self._standing = at
            self._places = [(part, Everywhere(place[:, part])) for part in some if len(part)]
        return self._places

    def _some(self, layer, module, query, key, value, how: Scoring, places: Everywhere) -> dict[str, Tensor]:
        """By kind, [batch, head, query, ...] of the queries at `places` [batch, query]."""
        place, kv = places.on(key.device), key.shape[1]
        batch = torch.arange(len(place), device=place.device)[:, None]
        rule = self.current.rule(layer, places, query.dtype, query.device)
        asked = query.transpose(1, 2)[batch, place].transpose(1, 2)
        row = how.weights(asked, key, rule)
        every = self.member.on(key.device)
        member = every[:, : key.shape[2]]
        out = {"mass": row @ member[:, None]}
        if self.sinks is not None:
            out["sink"] = self._on_sinks(layer, row)
        if self.wanted.rows or self.wanted.find_sinks:
            out["rows"] = self._padded(row)
        if self.wanted.query_states:
            out["query_states"] = asked.float()
        if self.wanted.received:
            asking = every[batch, self.current.index.on(key.device)[batch, place]]
            pairs = "batch query segment, batch head query key -> batch segment key"
            received = self._padded(einsum(asking, row, pairs)) / row.shape[1]
            self._received[layer] = self._received.get(layer, 0) + received
        if self.wanted.norms or self.wanted.moved:
            grouped = rearrange(row, "batch (kv group) query key -> batch kv group query key", kv=kv)
            sums = "batch kv group query key, batch key segment, batch kv key dim -> batch kv group query segment dim"
            moved = einsum(grouped, member, value.float(), sums).flatten(1, 2)
            w = rearrange(
                parts.output_matrix(module).to(key.device), "hidden (head dim) -> hidden head dim", head=row.shape[1]
            )
            if self.wanted.norms:
                gram = einsum(w, w, "hidden head d, hidden head e -> head d e")  # |Wv|^2 = v' W'W v, without hidden
                squares = "batch head query segment d, head d e, batch head query segment e -> batch head query segment"
                out["norm"] = einsum(moved, gram, moved, squares).clamp_min(0).sqrt()
            if self.wanted.moved:
                each = "batch head query segment dim, hidden head dim -> batch head query segment hidden"
                out["moved"] = einsum(moved, w, each)
        return out

    def _on_sinks(self, layer: int, row: Tensor) -> Tensor:
        """The part of rows [batch, head, query, key] that falls on sink tokens, by segment."""
        assert self.sinks is not None
        member, sinks = self.member.on(row.device), self.sinks.on(row.device)
        return row @ (member * sinks[:, layer, :, None])[:, None, : row.shape[-1]]

    def _find_sinks(self, layers: list[dict[str, Tensor]]) -> None:
        tokens = len(self.current.plans[0].layout)
        rows = stacked([layer["rows"][:, :, : self.wanted.find_sinks, :tokens].mean(2) for layer in layers], 1)
        norms = stacked([self._norms[i][1] for i in range(self.layers)], 1)
        self.sinks = Everywhere(self._padded(sink_tokens(rows, norms)))
        for i, layer in enumerate(layers):
            layer["sink"] = self._on_sinks(i, layer["rows"])

    def finish(self) -> list[Captured]:
        """One Captured a plan. Raises RuntimeError unless every layer gave one row for every query."""
        count, layers = self.queries.shape[1], []
        for layer, calls in enumerate(self._parts):
            which = torch.cat([part for part, _ in calls]) if calls else torch.empty(0, dtype=torch.long)
            if sorted(which.tolist()) != list(range(count)):
                raise RuntimeError(f"layer {layer} gave rows for {len(which)} of {count} captured queries")
            order = which.argsort()
            layers.append({kind: torch.cat([got[kind] for _, got in calls], 2)[:, :, order] for kind in calls[0][1]})
        if self.wanted.find_sinks:
            self._find_sinks(layers)
        return [self._captured(b, layers) for b in range(len(self.queries))]

    def _captured(self, b: int, layers: list[dict[str, Tensor]]) -> Captured:
        def rows(kind: str) -> Tensor:
            each = stacked([layer[kind][b] for layer in layers])
            return rearrange(each, "layer head query ... -> query layer head ...").cpu()

        def norms(which: int) -> Tensor:
            return stacked([self._norms[i][which][b] for i in range(self.layers)]).cpu()

        def stages() -> Tensor:
            each = []
            for calls in self._residual:
                which = torch.cat([w for w, _ in calls])
                each.append(torch.cat([x[b] for _, x in calls])[which.argsort()])
            return stacked(each, 1).cpu()

        w, tokens = self.wanted, len(self.current.plans[b].layout)
        return Captured(
            queries=tuple(self.queries[b].tolist()),
            mass=rows("mass"),
            sink=None if self.sinks is None else rows("sink"),
            sinks=None if self.sinks is None else self.sinks.own[b, :, :tokens].cpu(),
            norm=rows("norm") if w.norms else None,
            rows=rows("rows") if w.rows else None,
            received=stacked([self._received[i][b, :, :tokens] for i in range(self.layers)]).cpu()
            if w.received
            else None,
            key_norm=norms(0) if w.kv else None,
            value_norm=norms(1) if w.kv else None,
            residual=stages() if w.residual else None,
            moved=rows("moved") if w.moved else None,
            query_states=rows("query_states") if w.query_states else None,
        )


def sink_tokens(
    rows: Float[Tensor, "*layers heads tokens"],
    value_norm: Float[Tensor, "*layers kv_heads tokens"],
    mass: float = 0.02,
    small: float = 0.5,
) -> Bool[Tensor, "*layers tokens"]:
    """Sinks by layer: tokens that get at least `mass` of the decision row (mean over heads) although their value
    vectors are shorter than `small` times the layer's median (mean over heads). Found anywhere in the
    prompt: block starts and delimiters too, not token 0 alone (Xiao et al. 2309.17453; Gu et al. 2410.10781)."""
    taken = rows.mean(-2)
    length = value_norm.mean(-2)[..., : taken.shape[-1]]
    return (taken >= mass) & (length <= small * length.median(-1, keepdim=True).values)


@contextmanager
def running(current) -> Iterator[None]:
    """Attention under kvattn's names serves `current` until the block ends."""
    token = RUNNING.set(current)
    try:
        yield
    finally:
        RUNNING.reset(token)


def attention(module, query, key, value, attention_mask, scaling=None, s_aux=None, softcap=None, **_):
    """The attention function registered with transformers under the name "kvattn". The survey of the model saw what
    else it is given, and that it does not matter."""
    current = RUNNING.get()
    if current is None:
        raise KvattnError(
            "this model belongs to a kvattn engine; call the engine, or give the model back with release()"
        )
    how = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    out = current.attend(module.layer_idx, how, query, key, value)
    if current.recorder is not None:
        current.recorder.record(module.layer_idx, module, query, key, value, how)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention function known to transformers. No mask function goes with it, so none is ever built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
