"""SamKV: of each candidate the blocks of tokens that a query made with the others' help asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from kvattn.engine.capture import Wanted
from kvattn.engine.plan import Visibility
from kvattn.errors import KvattnError
from kvattn.methods.selective import Selective, asking, by_group


@dataclass(frozen=True)
class SamKV(Selective):
    """First and last tokens of each candidate, then the blocks that the task and the other candidates ask for.

    Adapted to a judge: tokens that are not chosen stay as they were kept, where the paper drops them; the budget says
    how many are chosen, where the paper's share follows from the scores; one choice serves all layers, by the mean over
    layers; the task's query sees the whole stale cache, not first and last tokens alone; new keys and values replace
    the kept ones and are not mixed with them.

    Parameters
    ----------
    initial, local : first and last tokens of each candidate that come before all blocks, in the budget; the last ones
        give the candidate's own query, 1 or more.
    block : tokens of a block, 1 or more; its key is their mean.
    depth : through how many layers queries and keys are compared; None: all but the last.
    """

    initial: int = 1
    local: int = 1
    block: int = 4
    depth: int | None = None

    name = "sam-kv"
    source = "SamKV (Cao et al., AAAI 2026, arXiv 2508.11661), the formulas after the code of KVPacket"

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, least in (("initial", 0), ("local", 1), ("block", 1)):
            if getattr(self, what) < least:
                raise KvattnError(
                    f"method {self.name!r}: {what} counts tokens, {least} or more, not {getattr(self, what)}"
                )

    def score(self, layout, blocks, engine, stale):
        """Inner product of each block's mean key with its candidate's personal query, summed over heads, scaled to 0
        to 1 by layer, mean over layers."""
        shown = [s for s in layout.each("candidate") if s.length]
        ends = [range(max(s.start, s.stop - self.local), s.stop) for s in shown]
        again = torch.zeros(len(layout), dtype=torch.bool)
        again[[t for end in ends for t in end]] = True
        task, own = asking(stale), tuple(t for end in ends for t in end)
        apart = replace(stale.recompute(again), visibility=Visibility.isolated(layout))
        depth = self.depth or engine.layers - 1
        probe = engine.probe(apart, depth, Wanted(queries=(*own, *task), query_states=True))
        assert probe.captured is not None
        assert probe.captured.query_states is not None
        states = dict(zip((*own, *task), probe.captured.query_states, strict=True))
        generic = torch.stack([states[t] for t in task]).mean(0)
        local = [torch.stack([states[t] for t in end]).mean(0) for end in ends]
        queries = personal(generic, torch.stack(local)) if local else []
        keys = probe.cache()[0][:depth].float().cpu()
        worth, group = torch.zeros(len(layout)), torch.zeros(len(layout), dtype=torch.long)
        for s, query in zip(shown, queries, strict=True):
            first, last = min(s.start + self.initial, s.stop), max(s.start, s.stop - self.local)
            worth[s.start : s.stop] = 2.0  # above every block's
            for number, (value, start) in enumerate(
                zip(asked_for(query, keys[:, :, first:last], self.block), range(first, last, self.block), strict=True)
            ):
                part = slice(start, min(start + self.block, last))
                worth[part], group[part] = value, 1 + number
        earlier = -torch.arange(len(layout), dtype=torch.float32)
        return by_group(worth, group, earlier), probe.cost.token_layers


def personal(
    generic: Float[Tensor, "layers heads dim"], local: Float[Tensor, "candidates layers heads dim"]
) -> Float[Tensor, "candidates layers heads dim"]:
    """Every candidate's query: the task's, and the mean of the other candidates' own, each weighted by |cosine| with
    the task's, head by head."""
    helped = local * torch.cosine_similarity(local, generic[None], dim=-1).abs()[..., None]
    return generic + (helped.sum(0) - helped) / max(1, len(local) - 1)


def asked_for(
    query: Float[Tensor, "layers heads dim"], keys: Float[Tensor, "layers kv_heads tokens dim"], block: int
) -> list[float]:
    """What each block of so many tokens is worth: its mean key's inner product with the query (mean over the heads that
    share a key), summed over heads, from 0 for a layer's lowest to 1 for its highest; mean over layers."""
    if not keys.shape[2]:
        return []
    shared = reduce(query, "layer (kv group) dim -> layer kv dim", "mean", kv=keys.shape[1])
    means = torch.stack([part.mean(2) for part in keys.split(block, 2)], 2)
    inner = einsum(shared, means, "layer kv dim, layer kv block dim -> layer block")
    low, high = inner.amin(1, keepdim=True), inner.amax(1, keepdim=True)
    scaled = (inner - low) / (high - low).clamp_min(torch.finfo(inner.dtype).tiny)
    return scaled.mean(0).tolist()
