"""Which models plans can be trusted on. Everything else is refused when it loads, by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kvattn.errors import KvattnError

SUPPORTED = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text")
ROPES = ("default", "linear", "llama3", "yarn")

REASONS = {
    "gpt_oss": "attention sinks (a learned logit in every softmax)",
    "gemma2": "soft-capped attention logits",
    "gemma3": "a vision tower; load the text model (gemma3_text) alone",
    "gemma3n": "KV shared between layers",
    "gemma4": "KV shared between layers",
    "deepseek_v2": "latent attention (MLA), whose cache is not keys and values",
    "deepseek_v3": "latent attention (MLA), whose cache is not keys and values",
    "gpt2": "learned absolute positions: cached keys cannot be moved",
    "opt": "learned absolute positions: cached keys cannot be moved",
    "bloom": "ALiBi positions",
    "mpt": "ALiBi positions",
    "falcon": "ALiBi or fused attention",
    "mamba": "a recurrent state instead of a KV cache",
    "mamba2": "a recurrent state instead of a KV cache",
    "qwen3_next": "a recurrent state in some layers",
    "jamba": "a recurrent state in some layers",
}


@dataclass(frozen=True)
class Geometry:
    """What the engine needs to know of a model.

    inv_freq: [layers, pairs], rotary frequencies of every layer, fp32
    windows:  sliding window of every layer, None for full attention
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inv_freq: Float[Tensor, "layers pairs"]
    windows: tuple[int | None, ...]
    max_tokens: int | None


def geometry(model) -> Geometry:
    """The model's geometry. Raises KvattnError, naming the feature, for a model that is not supported."""
    config = model.config
    kind = config.model_type
    if kind not in SUPPORTED:
        why = REASONS.get(kind, "no test shows that its cache can be cut and moved")
        raise KvattnError(f"model type {kind!r} is not supported: {why}. Supported: {', '.join(SUPPORTED)}.")
    for flag, what in (
        ("attn_logit_softcapping", "soft-capped attention logits"),
        ("final_logit_softcapping", "soft-capped output logits"),
        ("use_bidirectional_attention", "bidirectional attention"),
    ):
        if getattr(config, flag, None):
            raise KvattnError(f"this {kind} model has {what} ({flag}), which is not supported")
    layers = config.num_hidden_layers
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = getattr(config, "layer_types", None)
    for t in set(types or ()):
        if t not in ("full_attention", "sliding_attention"):
            raise KvattnError(f"this {kind} model has layers of type {t!r}, which is not supported")
    if types:
        windows = tuple(config.sliding_window if t == "sliding_attention" else None for t in types)
    else:
        windows = (config.sliding_window if kind in ("mistral", "phi3") else None,) * layers
    return Geometry(
        layers=layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        inv_freq=_frequencies(model, types),
        windows=windows,
        max_tokens=_context(config),
    )


def _context(config) -> int | None:
    """Tokens of the longest prompt; under YaRN what it stretches to, where the configuration says from what."""
    said, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    if said is not None and said < 1:
        raise KvattnError(f"its configuration says a context of {said} tokens (max_position_embeddings); correct it")
    if said and rope.get("rope_type") == "yarn":
        return max(said, int((rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)))
    return said


def _frequencies(model, types) -> Tensor:
    rope = model.get_decoder().rotary_emb
    kinds = rope.rope_type if isinstance(rope.rope_type, dict) else {None: rope.rope_type}
    for kind in kinds.values():
        if kind not in ROPES:
            raise KvattnError(
                f"RoPE of type {kind!r} changes with the length of the prompt or is untested, so cached keys cannot be "
                f"moved exactly. Supported: {', '.join(ROPES)}."
            )
    if None in kinds:
        found = rope.inv_freq.detach().float()[None].repeat(model.config.num_hidden_layers, 1)
    else:
        found = torch.stack([getattr(rope, f"{t}_inv_freq").detach().float() for t in types])
    if not bool(torch.isfinite(found).all()):
        raise KvattnError("its rotary frequencies are not finite; correct rope_parameters in its config.json")
    return found
