"""What a block that others made must be for a judge to keep it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kvattn.engine.caches.memory import name_of, said
from kvattn.engine.engine import Engine
from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError
from kvattn.text import hash_of


def check(given: KVBlock, engine: Engine, what: str, finite: bool = True) -> None:
    """Raises KvattnError, in which `what` names the cache, unless the model could have made it: layers, heads, width,
    dtype, ids, positions, and the weights where they are stated; numbers that are not finite only where `finite`."""
    if not isinstance(given, KVBlock):
        raise KvattnError(
            f"{what}: a {type(given).__name__} does not say its tokens; make it kvattn.caches.block(it, ids)"
        )
    g, n, most = engine.geometry, len(given), engine.geometry.max_tokens
    found, vocabulary = tuple(given.keys.shape), engine.model.config.vocab_size
    if len(found) != 4 or given.values.shape != given.keys.shape:
        raise KvattnError(
            f"{what}: keys {said(given.keys)} and values {said(given.values)}; both are [layers, kv heads, tokens, dim]"
        )
    for name, axis, wants in (("layers", 0, g.layers), ("kv heads", 1, g.kv_heads), ("channels a head", 3, g.head_dim)):
        if found[axis] != wants:
            raise KvattnError(
                f"{what}: {found[axis]} {name}, the model has {wants}; it is another model's, or a part of it"
            )
    if not 0 < n == found[2] == len(given.positions):
        raise KvattnError(
            f"{what}: {found[2]} tokens with keys, {n} token ids, {len(given.positions)} positions; give one for each"
        )
    if not given.keys.dtype == given.values.dtype == engine.dtype:
        raise KvattnError(
            f"{what}: {name_of(given.keys.dtype)}, the model computes in {name_of(engine.dtype)}, and nothing is "
            f"converted; load the model with dtype {name_of(given.keys.dtype)}"
        )
    if not 0 <= int(given.token_ids.min()) <= int(given.token_ids.max()) < vocabulary:
        raise KvattnError(f"{what}: it has a token id outside the model's vocabulary of {vocabulary}; check its ids")
    low, high = int(given.positions.min()), int(given.positions.max())
    if low < 0 or (most is not None and high >= most):
        context = "" if most is None else f" within the context of {most}"
        raise KvattnError(f"{what}: positions {low} to {high}; state where its keys were turned to, 0 or more{context}")
    if given.weights and engine.identity and hash_of(given.weights) != hash_of(engine.identity):
        raise KvattnError(
            f"{what}: made by {given.weights}, the judge is {engine.identity}: keys and values of one model mean "
            "nothing to another; make it with the judge's own weights"
        )
    if finite and not bool(torch.isfinite(given.keys).all() and torch.isfinite(given.values).all()):
        raise KvattnError(f"{what}: it holds numbers that are not finite; kvattn audit says where, make it again")


def alike(agents: Engine, judge: Engine) -> None:
    """Raises KvattnError unless keys and values of the one model have the other's shape, dtype, rotation and tokens,
    as those of a base and its adapters have; whether they mean the same is what is asked."""
    one, other = agents.geometry, judge.geometry
    facts = {
        "layers": (one.layers, other.layers),
        "kv heads": (one.kv_heads, other.kv_heads),
        "channels a head": (one.head_dim, other.head_dim),
        "windows": (one.windows, other.windows),
        "numbers": (name_of(agents.dtype), name_of(judge.dtype)),
    }
    differ = [f"{a} {what} and not {b}" for what, (a, b) in facts.items() if a != b]
    if not differ and not one.rotary.turns_as(other.rotary):
        differ = ["another rotation of keys"]
    if not differ and not same_vocabulary(agents.tokenizer, judge.tokenizer):
        differ = ["another vocabulary"]
    if differ:
        raise KvattnError(
            f"the agents' {agents.identity or 'weights'} have {differ[0]} as the judge's, so it cannot take their keys "
            "and values; name weights of the judge's own shape, such as its base or a sibling"
        )


@lru_cache(maxsize=16)
def same_vocabulary(one: Any, other: Any) -> bool:
    """Whether two tokenizers mean the same by every id."""
    return one.get_vocab() == other.get_vocab()


def same_ids(given: KVBlock, ids: Tensor, what: str) -> None:
    """Raises KvattnError that names the first token that differs, unless the block says `ids`."""
    way = "cut the block to these tokens, or give the candidate the token_ids it was generated with"
    if len(given) != len(ids):
        raise KvattnError(f"{what}: {len(given)} tokens, the prompt has {len(ids)} there; {way}")
    wrong = torch.nonzero(given.token_ids != ids)[:, 0].tolist()
    if wrong:
        at = wrong[0]
        raise KvattnError(
            f"{what}: its token {at} is {int(given.token_ids[at])}, the prompt has {int(ids[at])} there "
            f"({len(wrong)} of {len(ids)} differ); {way}"
        )
