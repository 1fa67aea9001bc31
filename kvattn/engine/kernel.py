"""From queries, keys and values to what attention brings: what a model does to scores, and the kernels that do it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 256  # queries whose scores are held at once where no fused kernel serves
ROOM = 8  # dimensions that a head grows by for a sink: fused kernels want multiples of it


@dataclass(frozen=True)
class Scoring:
    """What a model does to the products of queries and keys before they are weights.

    scaling: they are multiplied by it
    softcap: c of c * tanh(score / c) (Gemma 2, arXiv 2408.00118), or None
    sinks:   [heads], a score in every softmax that no key has (gpt-oss), or None; rows then sum to one less its share
    """

    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None

    def weights(
        self, query: Float[Tensor, "batch heads queries dim"], key: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The attention rows, in fp32. mask: additive, [batch or 1, heads or 1, queries, keys]"""
        q = rearrange(query.float(), "batch (kv group) query dim -> batch kv group query dim", kv=key.shape[1])
        pairs = "batch kv group query dim, batch kv key dim -> batch kv group query key"
        scores = rearrange(einsum(q, key.float(), pairs), "batch kv group query key -> batch (kv group) query key")
        scores = scores * self.scaling
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh() * self.softcap
        if mask is not None:
            scores = scores + mask.float()
        if self.sinks is None:
            return scores.softmax(-1)
        sink = self.sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

    def attend(
        self, query: Float[Tensor, "batch heads queries dim"], key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "batch heads queries dim"]:
        """What every query gets. mask: additive; None: every query sees the keys up to its own, the last of them the
        last key."""
        if self.softcap is not None:
            return self._capped(query, key, value, mask)
        if self.sinks is None:
            return _fused(query, key, value, mask, self.scaling)
        # One more key, whose product with a query is the sink's score thanks to one more dimension, and whose value is
        # zero. Under the causal kernel the queries start one key later, so one more query stands before them.
        dim, causal = query.shape[-1], mask is None and query.shape[2] > 1
        query, key, value = (F.pad(x, (0, ROOM)) for x in (query, key, value))
        query[..., dim] = (self.sinks / self.scaling).to(query.dtype)[:, None]
        query = F.pad(query, (0, 0, int(causal), 0))
        key, value = (F.pad(x, (0, 0, 1, 0)) for x in (key, value))
        key[..., 0, dim] = 1
        mask = None if mask is None else F.pad(mask, (1, 0))
        return _fused(query, key, value, mask, self.scaling)[:, :, int(causal) :, :dim]

    def _capped(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """No fused kernel caps scores: rows are made, a few queries' at once."""
        out, count = [], query.shape[2]
        values = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        for at in range(0, count, AT_ONCE):
            part = slice(at, min(at + AT_ONCE, count))
            own = torch.arange(at, part.stop, device=query.device) + key.shape[2] - count
            rule = causal_rows(own, key.shape[2]) if mask is None else mask[..., part, :]
            out.append(self.weights(query[:, :, part], key, rule).to(value.dtype) @ values)
        return torch.cat(out, 2)


def causal_rows(own: Int[Tensor, "*batch queries"], keys: int) -> Float[Tensor, "*batch queries keys"]:
    """The additive mask of queries that see the keys up to their own."""
    behind = torch.arange(keys, device=own.device) > own[..., None]
    return torch.zeros(behind.shape, device=own.device).masked_fill_(behind, float("-inf"))


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    heads, count = query.shape[1:3]
    groups = heads // key.shape[1]
    if count == 1 and groups > 1:  # decoding: the heads that share a key stand as queries, so that it is read once
        mask = mask if mask is None or mask.shape[1] == 1 else mask.unflatten(1, (-1, groups)).squeeze(3)
        folded = query.unflatten(1, (-1, groups)).squeeze(3)
        return F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling).reshape(query.shape)
    # The fused CUDA kernels take groups without a mask and in half precision alone; else all scores would be held.
    if query.is_cuda and count > 1 and (mask is not None or query.dtype not in (torch.bfloat16, torch.float16)):
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    causal = mask is None and count > 1
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=groups != 1
    )
