"""Tiny random models of every supported shape, their tokenizers and files, short prompts, and the plain model as an
independent reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase

import gguf
import numpy as np
import torch
from accelerate.utils import send_to_device
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.shapes import ADMITTED, VOCAB, random_model
from kvattn.engine.engine import Engine
from kvattn.engine.layout import PromptLayout, join
from kvattn.judge import readout
from kvattn.judge.judge import Judge
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import get_template

# The shapes that every test of the engine runs on; tests/engine/test_admission.py has all the others.
CONFIGS = {
    name: ADMITTED[name]
    for name in (
        "llama",
        "llama-llama3",
        "llama-linear",
        "llama-yarn",
        "qwen2",
        "qwen2-window",
        "qwen3",
        "mistral-window",
        "phi3-partial",
        "gemma3",
    )
}


def get_device() -> torch.device:
    """Where the models of every test lie: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def at_home(model: torch.nn.Module) -> torch.nn.Module:
    """The model on `get_device()`; it takes what lies on the CPU and answers there, so that a reference is the same."""
    device = get_device()
    if device.type != "cpu":
        model.register_forward_pre_hook(lambda _, *given: send_to_device(given, device), with_kwargs=True)
        model.register_forward_hook(lambda _, given, output: send_to_device(output, "cpu"))
    return model.to(device)


def plain_model(name: str = "llama", dtype: torch.dtype = torch.float32, kernel: str = "sdpa", seed: int = 0):
    """A random model as transformers makes it."""
    return at_home(random_model(name, dtype, kernel, seed))


def engine(name: str = "llama", dtype: torch.dtype = torch.float32, chunk: int = 1024) -> Engine:
    """An engine on the same weights as `plain_model(name, dtype)`."""
    return Engine(copy.deepcopy(plain_model(name, dtype)), tokenizer(), chunk=chunk)


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """Byte-free character tokenizer with two special tokens, one added token, and a chat template; `words` are one
    token each."""
    letters = [chr(c) for c in range(32, 127)] + ["\n", *words]
    vocab = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    tok = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*words, r"[\s\S]"])), "isolated")
    tok.decoder = decoders.Fuse()
    tok.add_special_tokens([AddedToken("<|turn|>", special=True)])
    tok.add_tokens([AddedToken("<tool>", special=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>judge\n{% endif %}"
    )
    return fast


def layout(seed: int = 0, slots: int = 3, length: int = 9, branches: bool = False) -> PromptLayout:
    """A layout of random ids with every role in it."""
    g = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCAB - 2, (n,), generator=g).tolist()

    parts: list[tuple[str, int | None, list[int]]] = [("prefix", None, ids(4)), ("question", None, ids(6))]
    parts.append(("separator", None, ids(2)))
    for s in range(slots):
        parts += [("header", s, ids(2)), ("candidate", s, ids(length + s)), ("separator", s, ids(1))]
    parts.append(("suffix", None, ids(4)))
    if branches:
        parts += [("branch", s, ids(3)) for s in range(slots)]
    return join(parts, tuple(f"c{s}" for s in range(slots)), answer_ids=tuple(range(10, 10 + slots)))


def logits_of(model, token_ids: torch.Tensor) -> torch.Tensor:
    """Last-token logits of the plain forward."""
    with torch.inference_mode():
        return model(token_ids[None]).logits[0, -1].float()


def save(folder, name: str = "llama", words: Sequence[str] = ()) -> str:
    """A model folder with the tiny tokenizer (of those `words`) and room for long prompts; returns its path as text."""
    model = plain_model(name, kernel="eager")
    model.config.max_position_embeddings = 8192
    model.save_pretrained(folder)
    tokenizer(*words).save_pretrained(folder)
    return str(folder)


def long_judge(shape: str) -> Judge:
    """A label judge on a tiny engine that takes prompts of any length."""
    judge = Judge(engine(shape), readout.get("label"))
    judge.engine.geometry = replace(judge.engine.geometry, max_tokens=None)
    judge.engine.compiler.max_tokens = None
    judge.shape = shape  # type: ignore[attr-defined]
    return judge


# A template of few characters, for tokenizers of which a character is a token.
SHORT = replace(
    get_template("free"),
    system="Judge.",
    candidates_heading="\nAnswers:\n",
    instruction="Check.",
    label_question="Reply.",
    label_opening="id: ",
    agent_system="Solve.",
    agent_instruction="\nGo.",
    yesno_branch="{label}?",
    score_branch="{label}, {low} to {high}?",
)


def short_prompt(question: str, texts: Sequence[str], order: tuple[int, ...] = (), id: str = "q") -> JudgePrompt:
    """A prompt of the short template: candidates c0, c1, ... of agents a, b, ..."""
    candidates = tuple(Candidate(f"c{i}", t, agent=ascii_lowercase[i]) for i, t in enumerate(texts))
    return JudgePrompt(question, candidates, SHORT, order, id)


# Models of a byte-level vocabulary, and their files as other programs write them.

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "Ġ"), ("h", "e"), ("he", "y")]
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def byte_tokens() -> list[str]:
    """The vocabulary: special tokens, the byte alphabet, the merged pieces; padded to a multiple of 32."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIALS, *alphabet, *("".join(pair) for pair in MERGES)]
    return words + [f"<unused{i}>" for i in range(-len(words) % 32)]


def byte_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """The vocabulary's tokenizer, cutting text as `pre_tokenizer` does."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(byte_tokens())}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def plain_added_tokenizer() -> PreTrainedTokenizerFast:
    """The byte vocabulary's tokenizer with blanks, line ends and digits as added tokens, as some GGUFs have them: plain
    text becomes them, and they are no more reserved than letters are."""
    plain = ["  ", "\n", "\n\n", *"0123456789"]
    words = list(dict.fromkeys([*byte_tokens(), *plain]))
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(words)}, MERGES))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT
    return fast


def byte_llama(tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of two layers, two heads, one KV head; on the CPU, for what files hold is compared bit by bit."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(byte_tokens()),
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


def save_bytes(folder: Path, model: LlamaForCausalLM | None = None) -> Path:
    """A model folder as transformers writes it: safetensors, configuration, tokenizer."""
    (model or byte_llama()).save_pretrained(folder)
    backend = byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder


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
    facts: dict[str, str | int] | None = None,
    without: str = "",
    more: dict[str, np.ndarray] | None = None,
    merges: Sequence[tuple[str, str]] = tuple(MERGES),
) -> dict[str, torch.Tensor]:
    """Writes the model as a GGUF whose matrices are of type `kind`; returns the weights that it then holds.

    facts: more metadata; without: a weight (by its transformers name) to leave out; more: tensors beyond the model's
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
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(key, value)  # type: ignore[operator]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(byte_tokens())
    writer.add_token_types([3 if token in SPECIALS else 1 for token in byte_tokens()])
    if merges:
        writer.add_token_merges([" ".join(pair) for pair in merges])
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
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
