"""Attention of chosen query tokens, read while the model runs: cost O(layers x heads x tokens), never tokens squared.

kvattn registers one attention function with transformers. It computes the output with SDPA and, for the wanted queries
alone, also the softmax row. Masks come from the plan, never from transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kvattn.errors import KvattnError

if TYPE_CHECKING:
    from kvattn.plan import KVPlan

NAME = "kvattn"
QUERIES_AT_ONCE = 64  # bounds the memory of rows that are reduced to segments anyway
_HARMLESS = {"position_ids", "use_cache", "cache_position", "is_causal", "output_attentions", "output_hidden_states"}


@dataclass(frozen=True)
class Wanted:
    """What to capture in one execution.

    queries: prompt indices of the query tokens; None: the layout's decision tokens
    rows:    keep the token rows [layers, heads, queries, tokens]
    norms:   also the length of (attention x V x W_O) by segment
    kv:      keep key and value norms [layers, kv heads, tokens] (sink detection needs them)
    sinks:   [layers, tokens], the tokens whose mass is reported apart
    residual: keep the residual stream of the queries, before the first layer and after each
    moved:   keep what attention brings from each segment (attention x V x W_O), [hidden] for every head
    """

    queries: tuple[int, ...] | None = None
    rows: bool = False
    norms: bool = False
    kv: bool = False
    sinks: Bool[Tensor, "layers tokens"] | None = None
    residual: bool = False
    moved: bool = False

    def check(self, plan: KVPlan, layers: int) -> None:
        """Raises KvattnError unless every query is a token that the plan computes through `layers` layers."""
        if self.queries == ():
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
    mass, sink: [queries, layers, heads, segments]; sink is the part of mass that falls on sink tokens
    norm:    [queries, layers, heads, segments] or None
    rows:    [queries, layers, heads, tokens] or None
    key_norm, value_norm: [layers, kv heads, tokens] or None
    residual: [queries, layers + 1, hidden] or None
    moved:   [queries, layers, heads, segments, hidden] or None
    """

    queries: tuple[int, ...]
    mass: Float[Tensor, "queries layers heads segments"]
    sink: Float[Tensor, "queries layers heads segments"]
    norm: Float[Tensor, "queries layers heads segments"] | None = None
    rows: Float[Tensor, "queries layers heads tokens"] | None = None
    key_norm: Float[Tensor, "layers kv_heads tokens"] | None = None
    value_norm: Float[Tensor, "layers kv_heads tokens"] | None = None
    residual: Float[Tensor, "queries stages hidden"] | None = None
    moved: Float[Tensor, "queries layers heads segments hidden"] | None = None

    def row(self, query: int) -> Float[Tensor, "layers heads tokens"]:
        """The token row of one query (a prompt index)."""
        if self.rows is None:
            raise KvattnError("token rows were not kept; ask for them (rows=True)")
        return self.rows[self.queries.index(query)]


class Recorder:
    """Collects rows during the chunks and layers of one batched execution."""

    def __init__(self, wanted: list[Wanted], current, layers: int) -> None:
        self.wanted, self.current, self.layers = wanted, current, layers
        plans = current.plans
        self.queries = torch.tensor(
            [
                list(w.queries if w.queries is not None else p.layout.decisions)
                for w, p in zip(wanted, plans, strict=True)
            ],
            device=current.device,
        )
        names = max(int(current.segment.max()) + 1, *(len(p.layout.segments) for p in plans))
        self.member = F.one_hot(current.segment, names).float()  # [batch, tokens, segments]
        kinds = ("rows", "norms", "kv", "residual", "moved")
        self.rows, self.norms, self.kv, self.residual, self.moved = (any(getattr(w, k) for w in wanted) for k in kinds)
        self.sinks = None
        if any(w.sinks is not None for w in wanted):
            total = current.segment.shape[1]
            self.sinks = torch.zeros(len(plans), layers, total, device=current.device)
            for b, w in enumerate(wanted):
                if w.sinks is not None:
                    self.sinks[b, :, : w.sinks.shape[1]] = w.sinks.to(current.device, torch.float32)
        self._out: list[list[tuple[Tensor, dict[str, Tensor]]]] = [[] for _ in range(layers)]
        self._norms: dict[int, tuple[Tensor, Tensor]] = {}
        self._residual: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers + 1)]

    def record(self, layer: int, module, query: Tensor, key: Tensor, value: Tensor, mask, scaling: float) -> None:
        """Called by the attention function; keeps what was asked for of the queries present in this call."""
        index = self.current.index
        if self.kv:
            self._norms[layer] = (key.float().norm(dim=-1), value.float().norm(dim=-1))
        if self.queries.shape[1] == 0:
            return
        place, which = self._present(index)
        for part in which.split(QUERIES_AT_ONCE):
            got = self._some(layer, module, query, key, value, mask, scaling, place[:, part])
            self._out[layer].append((part, got))

    def record_residual(self, stage: int, hidden: Tensor) -> None:
        """Called with the residual stream before layer `stage` (after the last layer: stage = layers)."""
        place, which = self._present(self.current.index)
        batch = torch.arange(len(place), device=place.device)[:, None]
        self._residual[stage].append((which, hidden[batch, place[:, which]].float()))

    def _present(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Place of every wanted query among the current ones [batch, wanted], and which of them are there."""
        place = torch.searchsorted(index.contiguous(), self.queries).clamp(max=index.shape[1] - 1)
        here = torch.gather(index, 1, place) == self.queries
        if not bool((here == here[:1]).all()):
            raise RuntimeError("a captured query must fall into the same call for the whole batch")
        return place, here[0].nonzero()[:, 0]

    def _some(self, layer, module, query, key, value, mask, scaling, place) -> dict[str, Tensor]:
        batch = torch.arange(len(place), device=place.device)[:, None]
        q = query.transpose(1, 2)[batch, place].float()  # [b, q, heads, dim]
        groups = q.shape[2] // key.shape[1]
        q = q.unflatten(2, (key.shape[1], groups))
        scores = torch.einsum("bqkgd,bknd->bkgqn", q, key.float()).flatten(1, 2) * scaling
        if mask is not None:
            rule = mask.expand(len(place), -1, -1, -1).transpose(1, 2)[batch, place]  # [b, q, heads or 1, keys]
            scores = scores + rule.transpose(1, 2).float()
        elif query.shape[2] > 1:
            keys = torch.arange(key.shape[2], device=key.device)
            scores = scores.masked_fill((keys > place[:, :, None])[:, None], float("-inf"))
        row = scores.softmax(-1)  # [b, heads, q, keys]
        member = self.member[:, None, : key.shape[2]]
        out = {"mass": row @ member}
        if self.sinks is not None:
            out["sink"] = row @ (member * self.sinks[:, None, layer, : key.shape[2], None])
        if self.rows:
            out["rows"] = F.pad(row, (0, self.member.shape[1] - row.shape[-1]))
        if self.norms or self.moved:
            grouped = row.unflatten(1, (key.shape[1], groups))
            moved = torch.einsum("bkgqn,bns,bknd->bkgqsd", grouped, member[:, 0], value.float()).flatten(1, 2)
            w = module.o_proj.weight.float().unflatten(1, (row.shape[1], -1))  # [hidden, heads, dim]
            if self.norms:
                gram = torch.einsum("xhd,xhe->hde", w, w)  # |Wv|^2 = v' W'W v, without the hidden axis
                out["norm"] = torch.einsum("bhqsd,hde,bhqse->bhqs", moved, gram, moved).clamp_min(0).sqrt()
            if self.moved:
                out["moved"] = torch.einsum("bhqsd,xhd->bhqsx", moved, w)
        return out

    def finish(self) -> list[Captured]:
        """One Captured a plan. Raises RuntimeError unless every layer gave one row for every query."""
        count = self.queries.shape[1]
        order, layers = [], []
        for layer, parts in enumerate(self._out):
            which = torch.cat([w for w, _ in parts]) if parts else torch.empty(0, dtype=torch.long)
            if sorted(which.tolist()) != list(range(count)):
                raise RuntimeError(f"layer {layer} gave rows for {len(which)} of {count} captured queries")
            order.append(which.argsort())
            layers.append([got for _, got in parts])

        def stack(name: str, b: int) -> Tensor:
            """[queries, layers, heads, ...]"""
            each = [torch.cat([g[name][b] for g in gs], 1)[:, o] for gs, o in zip(layers, order, strict=True)]
            return torch.stack(each).movedim(2, 0).cpu()

        def stages(b: int) -> Tensor:
            """[queries, layers + 1, hidden]"""
            each = []
            for parts in self._residual:
                which = torch.cat([w for w, _ in parts])
                each.append(torch.cat([x[b] for _, x in parts])[which.argsort()])
            return torch.stack(each, 1).cpu()

        out = []
        for b, w in enumerate(self.wanted):
            mass = stack("mass", b)
            norms = (
                [torch.stack([self._norms[la][i][b] for la in range(self.layers)]).cpu() for i in (0, 1)]
                if w.kv
                else [None] * 2
            )
            out.append(
                Captured(
                    queries=tuple(self.queries[b].tolist()),
                    mass=mass,
                    sink=stack("sink", b) if w.sinks is not None else torch.zeros_like(mass),
                    norm=stack("norm", b) if w.norms else None,
                    rows=stack("rows", b) if w.rows else None,
                    key_norm=norms[0],
                    value_norm=norms[1],
                    residual=stages(b) if w.residual else None,
                    moved=stack("moved", b) if w.moved else None,
                )
            )
        return out


def attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, kvattn=None, sliding_window=None, **rest
):
    """The attention function registered with transformers under the name "kvattn"."""
    if kvattn is None:
        raise KvattnError(
            "this model belongs to a kvattn engine; call the engine, or give the model back with release()"
        )
    strange = {k for k, v in rest.items() if v is not None} - _HARMLESS
    if strange or dropout:
        raise KvattnError(f"this model's attention takes {', '.join(sorted(strange)) or 'dropout'}: not supported")
    layer = module.layer_idx
    if sliding_window != kvattn.windows[layer]:
        raise KvattnError(f"layer {layer} has a window of {sliding_window}, its config says {kvattn.windows[layer]}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = kvattn.mask(layer, key.shape[2], query.dtype)
    k, v = key, value
    if query.is_cuda and mask is not None and query.shape[2] > 1:  # the fused CUDA kernels take a mask or groups
        groups = query.shape[1] // key.shape[1]
        k, v = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = mask is None and query.shape[2] > 1
    out = F.scaled_dot_product_attention(
        query, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=k.shape[1] != query.shape[1]
    )
    if kvattn.recorder is not None:
        kvattn.recorder.record(layer, module, query, key, value, mask, scaling)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention function known to transformers. No mask function goes with it, so none is ever built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
