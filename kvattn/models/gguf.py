"""From a GGUF file to a folder of safetensors with the same values, or a refusal where something would be lost."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvattn.errors import KvattnError
from kvattn.models.loading import first_line, load_model, quiet
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma3")

# How text is cut before byte-level merges, by the GGUF's name for it. transformers knows the first group; for a name
# that it does not know it takes GPT-2's rule without a word, which for the second group joins blanks and digits that
# the model has never seen joined. Any other name is refused.
KNOWN_SPLITS = ("gpt-2", "llama-bpe", "llama3", "llama-v3", "falcon3", "qwen2", "deepseek-r1-qwen", "tekken")
DIGIT_SPLITS = ("smollm", "starcoder", "refact", "codeshell")
NFC_SPLITS = ("qwen2",)  # their own tokenizers compose Unicode first; a GGUF does not say so


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF says of itself: architecture, pre-tokenisation (None for SentencePiece), context, parameters, tensor
    names."""

    architecture: str
    split: str | None
    context: int | None
    parameters: int
    tensors: tuple[str, ...]


def read_header(path: Path) -> GgufHeader:
    """The file's header. Raises KvattnError for what is no whole GGUF, and for one that cannot be converted faithfully
    (an architecture, a rotary scaling or a pre-tokenisation that the conversion would drop)."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items() if not name.endswith(_LONG)}
        parts = int(facts.get("split.count", 1))
        if parts > 1:
            raise KvattnError(
                f"{path} is one of {parts} parts; join them: llama-gguf-split --merge {path.name} WHOLE.gguf"
            )
        lists = {name: len(field.data) for name, field in reader.fields.items() if name.endswith(_LONG)}
        architecture = str(facts["general.architecture"])
        tensors = {tensor.name: prod(int(n) for n in tensor.shape) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise KvattnError(f"{path} is no whole GGUF file ({first_line(error)}); fetch it again") from error
    if not lists.get("tokenizer.ggml.tokens"):
        raise KvattnError(f"{path} holds no vocabulary; fetch the whole model")
    if facts.get("tokenizer.ggml.model") == "gpt2" and not lists.get("tokenizer.ggml.merges"):
        raise KvattnError(f"{path}: its vocabulary has no merges, so that every text falls into bytes; fetch it again")
    _check_faithful(path, architecture, facts, tensors)
    context = facts.get(f"{architecture}.context_length")
    return GgufHeader(
        architecture=architecture,
        split=str(facts.get("tokenizer.ggml.pre")) if facts.get("tokenizer.ggml.model") == "gpt2" else None,
        context=None if context is None else int(context),
        parameters=sum(tensors.values()),
        tensors=tuple(tensors),
    )


_LONG = (".tokens", ".merges", ".scores", ".token_type", ".precompiled_charsmap")


def _check_faithful(path: Path, architecture: str, facts: Mapping, tensors: Mapping[str, int]) -> None:
    """Raises KvattnError where transformers would read the file and leave something out."""

    def refuse(what: str) -> KvattnError:
        return KvattnError(f"{path} cannot be converted faithfully: {what}; use the model's safetensors instead")

    if architecture not in ARCHITECTURES:
        raise refuse(f"its architecture is {architecture!r}, not one of {', '.join(ARCHITECTURES)}")
    factors = sorted(name for name in tensors if name.startswith("rope_"))
    scaling = facts.get(f"{architecture}.rope.scaling.type", "none")
    if factors or scaling != "none":
        raise refuse(f"it scales its rotary positions ({', '.join(factors) or scaling}), which would be dropped")
    heads, width = facts.get(f"{architecture}.attention.head_count"), facts.get(f"{architecture}.embedding_length")
    head_dim = facts.get(f"{architecture}.attention.key_length") or (width // heads if heads and width else None)
    rotary = facts.get(f"{architecture}.rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise refuse(f"it rotates {rotary} of {head_dim} dimensions of a head, which would be dropped")
    split = facts.get("tokenizer.ggml.pre")
    if facts.get("tokenizer.ggml.model") == "gpt2" and split not in KNOWN_SPLITS + DIGIT_SPLITS:
        raise refuse(f"it cuts text by a rule named {split!r}, which kvattn does not know")


def convert(path: Path, folder: Path, progress: Progress = silent) -> dict:
    """Writes `model.safetensors`, `config.json` and the tokenizer's files into `folder`; returns what was made:
    architecture, parameters in the file, dtype of the weights.

    The weights are stored in the smallest of bfloat16, float16 and float32 that holds the dequantised values exactly.
    Raises KvattnError for a file that `read_header` refuses, that lacks weights, or whose weights are not finite.
    """
    header = read_header(path)
    progress(f"dequantising {path.name}", 0, 1)
    # The dequantiser's progress bar cannot be switched off.
    with _alone(path) as (home, name), quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = _load_model(path, home, name)
        _check_used(path, model, header)
        tokenizer = _load_tokenizer(home, name, header)
    dtype = _write_model(model, folder, path, progress)
    _write_tokenizer(tokenizer, folder, path)
    return {"architecture": header.architecture, "parameters": header.parameters, "dtype": dtype}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[str, str]]:
    """A folder that holds the GGUF (a link to it) and nothing else: transformers also reads a tokenizer or a
    configuration that happens to lie beside it."""
    with tempfile.TemporaryDirectory(prefix="kvattn-") as home:
        (Path(home) / "model.gguf").symlink_to(path.resolve())
        yield home, "model.gguf"


def _load_model(path: Path, home: str, name: str) -> PreTrainedModel:
    import torch
    from transformers import GgufConfig

    try:
        # Without this flag the weights stay packed wherever matching kernels are installed.
        unpacked = GgufConfig(dequantize=True)
        model, wrong = load_model(home, gguf_file=name, quantization_config=unpacked, dtype=torch.float32)
    except (ValueError, KeyError, IndexError, NotImplementedError, RuntimeError) as error:
        raise KvattnError(f"{path} cannot be read ({first_line(error)}); fetch it again, or use safetensors") from error
    if wrong:
        raise KvattnError(f"{path} is no whole model: {wrong}; fetch it again, or use safetensors")
    return model


def _check_used(path: Path, model: PreTrainedModel, header: GgufHeader) -> None:
    """Raises KvattnError for a tensor of the file that has no place in the model: transformers passes over it."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == header.architecture)
    known = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    stems = [name.rpartition(".") for name in model.state_dict()]
    if unused := sorted(set(header.tensors) - {f"{known.get_name(stem)}.{kind}" for stem, _, kind in stems}):
        raise KvattnError(
            f"{path} holds {unused[0]}, which the conversion would drop; use the model's safetensors instead"
        )


def _load_tokenizer(home: str, name: str, header: GgufHeader) -> PreTrainedTokenizerFast:
    from tokenizers import normalizers, pre_tokenizers
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(home, gguf_file=name, local_files_only=True)
    tokenizer = cast("PreTrainedTokenizerFast", found)
    if header.split in DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    if header.split in NFC_SPLITS:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    if header.context is not None:
        tokenizer.model_max_length = header.context
    return tokenizer


def _write_model(model: PreTrainedModel, folder: Path, path: Path, progress: Progress) -> str:
    """Writes weights and configuration; returns the name of the dtype.

    A model that came from a GGUF refuses to be saved, so its weights go into a model made afresh (on the meta device:
    no second copy) from its configuration.
    """
    import torch

    weights = model.state_dict()
    if any(not torch.isfinite(weight).all() for weight in weights.values()):
        raise KvattnError(f"{path} holds weights that are not finite; fetch it again")
    dtype = exact_dtype(weights)
    facts = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config = type(model.config).from_dict(facts)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    name = str(dtype).removeprefix("torch.")
    progress(f"writing {sum(p.numel() for p in fresh.parameters()):,} parameters as {name}", 0, 1)
    with quiet():
        fresh.save_pretrained(folder)
    return name


def exact_dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The smallest of bfloat16, float16 and float32 in which every value of every tensor stays what it is."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in weights.values()):
            return dtype
    return torch.float32


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, path: Path) -> None:
    """Writes the tokenizer's files, and makes sure that what is read back from them cuts text in the same way."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    again = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder, local_files_only=True))
    same = (
        again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        and again.chat_template == tokenizer.chat_template
        and again.special_tokens_map == tokenizer.special_tokens_map
    )
    if not same:
        raise KvattnError(f"{path}: its tokenizer does not survive saving; use the model's safetensors instead")
