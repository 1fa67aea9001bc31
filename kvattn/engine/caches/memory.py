"""Caches that others made, as blocks: from the caches of transformers and back. Nothing is converted: a block holds the
very bits of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicCache

from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError

PLAIN = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
STATIC = (cache_utils.StaticLayer, cache_utils.StaticSlidingWindowLayer)


def block(
    cache: Any,
    token_ids: Sequence[int] | Tensor,
    start: int = 0,
    stop: int | None = None,
    positions: Sequence[int] | Tensor | None = None,
    weights: str | None = None,
) -> KVBlock:
    """Tokens [start, stop) of a cache of transformers (`past_key_values`, of one sequence), or of the keys and values
    of every layer, [kv heads, tokens, dim] each or with a batch of one.

    token_ids: of all tokens that the cache has seen; the last one that `generate` wrote has no keys and is none of them
    positions: RoPE positions of all of them (default: 0, 1, 2, ...)
    weights:   which weights made it (`Engine.identity`), where that is known

    Raises KvattnError for a layer whose keys cannot be read, a length that is not that of the ids, and a sliding window
    that dropped some of the tokens."""
    layers = [_layer(x, i) for i, x in enumerate(_layers(cache))]
    if not layers:
        raise KvattnError("the cache has no layer with keys in it; run the model with it first")
    ids = integers(token_ids, "token_ids")
    stop = len(ids) if stop is None else stop
    if not 0 <= start < stop <= len(ids):
        raise KvattnError(f"tokens {start} to {stop} of {len(ids)}: give 0 <= start < stop, within the ids")
    parts = []
    for i, (keys, values, seen) in enumerate(layers):
        if seen != len(ids):
            raise KvattnError(
                f"layer {i} of the cache has seen {seen} tokens, {len(ids)} ids were given; give the ids of exactly "
                "its tokens (the last one that generate wrote has no keys yet)"
            )
        gone = seen - keys.shape[1]
        if gone > start:
            raise KvattnError(
                f"layer {i} of the cache has a sliding window and dropped the tokens before {gone}, so there is no "
                f"block from {start} on; give start={gone} or later, or make it with a plain DynamicCache()"
            )
        parts.append((keys[:, start - gone : stop - gone], values[:, start - gone : stop - gone]))
    for i, (keys, values) in enumerate(parts):
        if keys.shape != parts[0][0].shape or values.shape != keys.shape or keys.dtype != parts[0][0].dtype:
            raise KvattnError(
                f"layer {i} of the cache has keys {said(keys)} and values {said(values)}, layer 0 has keys "
                f"{said(parts[0][0])}; all must be alike"
            )
    where = parts[0][0].device
    at = torch.arange(len(ids)) if positions is None else integers(positions, "positions")
    if len(at) != len(ids):
        raise KvattnError(f"{len(at)} positions for {len(ids)} token ids; give one for each")
    return KVBlock(
        keys=torch.stack([k.to(where) for k, _ in parts]),
        values=torch.stack([v.to(where) for _, v in parts]),
        token_ids=ids[start:stop],
        positions=at[start:stop],
        source="given",
        weights=weights,
    )


def layers_of(cache: Any) -> tuple[Tensor, Tensor]:
    """Keys and values [layers, kv heads, tokens, dim] of a cache of transformers, or of (keys, values) of every layer,
    as many tokens as it holds. Raises KvattnError where layers hold different ones."""
    parts = [_layer(x, i) for i, x in enumerate(_layers(cache))]
    for i, (keys, values, seen) in enumerate(parts):
        if keys.shape != parts[0][0].shape or values.shape != keys.shape or seen != keys.shape[1]:
            raise KvattnError(
                f"layer {i} of the cache holds keys {said(keys)} and values {said(values)} of {seen} tokens, layer 0 "
                f"keys {said(parts[0][0])}; give a cache whose layers all hold every token (a plain DynamicCache)"
            )
    if not parts:
        raise KvattnError("the cache has no layer with keys in it; run the model with it first")
    where = parts[0][0].device
    return torch.stack([k.to(where) for k, _, _ in parts]), torch.stack([v.to(where) for _, v, _ in parts])


def dynamic(
    keys: Float[Tensor, "layers heads tokens dim"], values: Float[Tensor, "layers heads tokens dim"], config: Any = None
) -> DynamicCache:
    """A cache of transformers with these keys and values, for one sequence; with a model's config, layers with a
    sliding window drop what transformers itself would drop."""
    made = DynamicCache(config=config)
    for i, (k, v) in enumerate(zip(keys, values, strict=True)):
        made.update(k[None].clone(), v[None].clone(), i)
    return made


def _layers(cache: Any) -> list[Any]:
    if isinstance(cache, cache_utils.EncoderDecoderCache):
        raise KvattnError("a cache of an encoder and a decoder cannot be judged; give that of a decoder")
    if isinstance(cache, cache_utils.Cache):
        return [x for x in cache.layers if getattr(x, "is_initialized", True)]
    if isinstance(cache, str | bytes) or not isinstance(cache, Sequence):
        raise KvattnError(f"{type(cache).__name__} is no cache; give past_key_values, or (keys, values) of every layer")
    return list(cache)


def _layer(layer: Any, index: int) -> tuple[Tensor, Tensor, int]:
    """Keys and values [kv heads, tokens, dim] of a layer, of its latest tokens, and how many it has seen."""
    if isinstance(layer, Sequence):
        if len(layer) != 2 or not all(isinstance(x, Tensor) for x in layer):
            raise KvattnError(f"layer {index} of the cache is no pair of tensors (keys, values)")
        keys, values = layer
        seen = None
    elif type(layer) in PLAIN:
        keys, values, seen = layer.keys, layer.values, layer.get_seq_length()
    elif type(layer) in STATIC:
        seen = int(layer.get_seq_length())
        held = min(seen, layer.keys.shape[2])
        keys, values = layer.keys[:, :, :held], layer.values[:, :, :held]
    elif isinstance(layer, cache_utils.BaseQuantizedLayer):
        keys, values, seen = *_dequantized(layer, index), layer.get_seq_length()
    else:
        raise KvattnError(
            f"layer {index} of the cache is a {type(layer).__name__}, which holds no keys and values of every token; "
            "make it with a DynamicCache"
        )
    if keys.dim() == 4 and values.dim() == 4:
        if keys.shape[0] != 1 or values.shape[0] != 1:
            raise KvattnError(f"layer {index} of the cache holds {keys.shape[0]} sequences; give one of them")
        keys, values = keys[0], values[0]
    if keys.dim() != 3 or values.dim() != 3:
        raise KvattnError(f"layer {index} of the cache has keys {said(keys)}; they are [kv heads, tokens, dim]")
    return keys, values, keys.shape[1] if seen is None else seen


def _dequantized(layer: Any, index: int) -> tuple[Tensor, Tensor]:
    """What a quantised layer gives to attention. Raises KvattnError where its backend cannot."""
    if getattr(layer, "_pending_beam_idx", None) is not None:
        raise KvattnError(f"layer {index} of the cache waits to be reordered; run the model on it once more")
    try:
        parts = [layer._dequantize(layer._quantized_keys), layer._dequantize(layer._quantized_values)]
    except Exception as error:
        raise KvattnError(
            f"layer {index} of the cache is quantised ({type(layer).__name__}) and cannot be read: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; make it with a DynamicCache"
        ) from error
    rest = [layer.keys, layer.values] if layer.keys is not None and layer.keys.dim() == 4 else [None, None]
    keys, values = (p if r is None else torch.cat([p, r.to(p.device)], 2) for p, r in zip(parts, rest, strict=True))
    return keys, values


def integers(values: Sequence[int] | Tensor, what: str) -> Tensor:
    """A list of whole numbers as a tensor on the CPU. Raises KvattnError for anything else."""
    try:
        out = torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        out = torch.empty(0, dtype=torch.float32)
    out = out[0] if out.dim() == 2 and len(out) == 1 else out
    if out.dim() != 1 or out.dtype not in (torch.int64, torch.int32) or not len(out):
        raise KvattnError(f"{what} are a list of whole numbers, one a token")
    return out.long()


def name_of(dtype: torch.dtype) -> str:
    """ "float32"."""
    return str(dtype).removeprefix("torch.")


def said(x: Tensor) -> str:
    """A tensor's shape and dtype, for people."""
    return f"{list(x.shape)} of {name_of(x.dtype)}"
