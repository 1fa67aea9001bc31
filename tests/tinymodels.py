"""Tiny random models and their files, as other programs write them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "Ġ"), ("h", "e"), ("he", "y")]
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tokens() -> list[str]:
    """The vocabulary: special tokens, the byte alphabet, the merged pieces; padded to a multiple of 32."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIALS, *alphabet, *("".join(pair) for pair in MERGES)]
    return words + [f"<unused{i}>" for i in range(-len(words) % 32)]


def reference_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """The vocabulary's tokenizer, cutting text as `pre_tokenizer` does."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens())}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def llama(tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of two layers, two heads and one KV head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def save(folder: Path, model: LlamaForCausalLM | None = None) -> Path:
    """A model folder as transformers writes it: safetensors, configuration, tokenizer."""
    (model or llama()).save_pretrained(folder)
    backend = reference_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder


def plain_added_tokenizer() -> PreTrainedTokenizerFast:
    """The vocabulary's tokenizer with blanks, line ends and digits as added tokens, as some GGUFs have them: plain text
    becomes them, and they are no more reserved than letters are."""
    plain = ["  ", "\n", "\n\n", *"0123456789"]
    words = list(dict.fromkeys([*tokens(), *plain]))
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(words)}, MERGES))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT
    return fast


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    return top[name.removesuffix(".weight")] + ".weight"


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotary projection in the order llama.cpp keeps them: pairs side by side, not half a head apart."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    split: str = "smollm",
    architecture: str = "llama",
    facts: dict[str, str] | None = None,
    without: str = "",
) -> dict[str, torch.Tensor]:
    """Writes the model as a GGUF whose matrices are of type `kind`; returns the weights that it then holds.

    facts: more metadata; without: a weight (by its transformers name) to leave out.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (facts or {}).items():
        writer.add_string(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens())
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens()])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    held: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = weight.float().numpy()
        dtype = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        held[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(values, dtype), dtype).copy())
        if "q_proj" in name or "k_proj" in name:
            values = _interleave(values, 2 if "q_proj" in name else 1)
        writer.add_tensor(_gguf_name(name), gguf.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
