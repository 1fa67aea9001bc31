"""Tiny random models of many shapes: what a judge may be made of, without its weights.

ADMITTED, REFUSED: name to the configuration of a model with four layers and a context of 256 tokens
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

VOCAB = 112
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADLESS = {key: value for key, value in SIZE.items() if key != "head_dim"}
ROPE = {"rope_theta": 10000.0}
PLAIN = {**ROPE, "rope_type": "default"}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    **ROPE,
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}
GEMMA = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}
HALF = {**PLAIN, "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LLAMA4: dict[str, Any] = {
    **SIZE,
    "intermediate_size_mlp": 64,
    "num_local_experts": 2,
    "attention_chunk_size": 4096,
    "no_rope_layers": [1, 1, 1, 0],
}

Shapes = dict[str, Callable[[], Any]]

ADMITTED: Shapes = {
    "llama": lambda: t.LlamaConfig(**SIZE),
    "llama-llama3": lambda: t.LlamaConfig(**SIZE, rope_parameters=LLAMA3),
    "llama-linear": lambda: t.LlamaConfig(**SIZE, rope_parameters={**ROPE, "rope_type": "linear", "factor": 4.0}),
    "llama-yarn": lambda: t.LlamaConfig(**SIZE, rope_parameters=YARN),
    "llama-dynamic": lambda: t.LlamaConfig(**SIZE, rope_parameters={**ROPE, "rope_type": "dynamic", "factor": 2.0}),
    "qwen2": lambda: t.Qwen2Config(**HEADLESS),
    "qwen2-window": lambda: t.Qwen2Config(**HEADLESS, use_sliding_window=True, sliding_window=12, max_window_layers=2),
    "qwen3": lambda: t.Qwen3Config(**SIZE),
    "mistral-window": lambda: t.MistralConfig(**SIZE, sliding_window=16),
    "phi3-partial": lambda: t.Phi3Config(**HEADLESS, rope_parameters=HALF, original_max_position_embeddings=256),
    "gemma3": lambda: t.Gemma3TextConfig(
        **SIZE, sliding_window=14, query_pre_attn_scalar=8, layer_types=ALTERNATING, rope_parameters=GEMMA
    ),
    "gemma2": lambda: t.Gemma2Config(
        **SIZE,
        sliding_window=14,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=30.0,
        layer_types=ALTERNATING,
    ),
    "gpt-oss": lambda: t.GptOssConfig(
        **SIZE, **LOCAL, sliding_window=14, layer_types=ALTERNATING, rope_parameters=YARN
    ),
    "mixtral": lambda: t.MixtralConfig(**SIZE, **LOCAL),
    "qwen2-moe": lambda: t.Qwen2MoeConfig(**HEADLESS, **EXPERTS, shared_expert_intermediate_size=48),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**SIZE, **EXPERTS),
    "smollm3": lambda: t.SmolLM3Config(**HEADLESS, no_rope_layers=[1, 0, 1, 0]),
    "olmo2": lambda: t.Olmo2Config(**HEADLESS),
    "olmo3": lambda: t.Olmo3Config(**HEADLESS, sliding_window=14, layer_types=ALTERNATING),
    "granite": lambda: t.GraniteConfig(
        **HEADLESS,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "granite-moe": lambda: t.GraniteMoeConfig(
        **HEADLESS,
        **LOCAL,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "cohere": lambda: t.CohereConfig(**HEADLESS, logit_scale=0.25),
    "cohere2": lambda: t.Cohere2Config(**SIZE, sliding_window=14, layer_types=ALTERNATING, logit_scale=0.25),
    "glm4": lambda: t.Glm4Config(**SIZE, rope_parameters=HALF),
    "starcoder2": lambda: t.Starcoder2Config(**HEADLESS, sliding_window=16),
    "stablelm": lambda: t.StableLmConfig(**HEADLESS, rope_parameters=HALF),
    "phi": lambda: t.PhiConfig(**HEADLESS, rope_parameters=HALF),
    "exaone4": lambda: t.Exaone4Config(
        **HEADLESS, sliding_window=14, sliding_window_pattern=2, layer_types=ALTERNATING
    ),
    "ministral": lambda: t.MinistralConfig(**SIZE, sliding_window=14, layer_types=ALTERNATING),
    "llama4": lambda: t.Llama4TextConfig(**LLAMA4),
}

REFUSED: Shapes = {
    "llama4-tuned": lambda: t.Llama4TextConfig(**LLAMA4, attn_temperature_tuning=True, floor_scale=32),
    "deepseek-v3": lambda: t.DeepseekV3Config(**{**HEADLESS, "num_key_value_heads": 4}, **LATENT),
    "llama-longrope": lambda: t.LlamaConfig(**SIZE, rope_parameters=LONG),
    "qwen3-next": lambda: t.Qwen3NextConfig(**SIZE, **EXPERTS, shared_expert_intermediate_size=48),
    "gemma3n": lambda: t.Gemma3nTextConfig(
        **SIZE,
        sliding_window=14,
        layer_types=ALTERNATING,
        num_kv_shared_layers=2,
        laurel_rank=4,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4": lambda: t.Gemma4TextConfig(
        **SIZE,
        sliding_window=14,
        layer_types=ALTERNATING,
        num_kv_shared_layers=2,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
    ),
    "jamba": lambda: t.JambaConfig(
        **HEADLESS, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, state_size=4),
    "gpt2": lambda: t.GPT2Config(vocab_size=VOCAB, n_positions=256, n_embd=32, n_layer=4, n_head=4),
    "opt": lambda: t.OPTConfig(**{**HEADLESS, "word_embed_proj_dim": 32, "ffn_dim": 64}),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=4, n_head=4),
    "mpt": lambda: t.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=4, n_heads=4, max_seq_len=256),
    "falcon": lambda: t.FalconConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=4, num_attention_heads=4),
}

SHAPES = ADMITTED | REFUSED


def random_model(
    name: str, dtype: torch.dtype = torch.float32, kernel: str | None = None, seed: int = 0
) -> t.PreTrainedModel:
    """The model as transformers makes it, its weights large enough that every mistake shows in the logits."""
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(SHAPES[name](), attn_implementation=kernel).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            elif name.endswith("sinks"):
                parameter.add_(2.0)
    return model.to(dtype)
