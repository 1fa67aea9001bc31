"""Reading a model through transformers, which must then be what its files say: nothing random, nothing dropped."""

from __future__ import annotations

import contextlib
import json
import logging as levels
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kvattn.errors import KvattnError
from kvattn.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(folder: Path | str, **options: Any) -> tuple[PreTrainedModel, str | None]:
    """The causal language model in `folder`, and what does not fit between it and its files (None: all does).

    transformers fills weights that the files lack with random numbers and drops those that the model does not know, so
    a caller must refuse a model that does not fit. `options` are those of `from_pretrained`; no code of the model's
    repository is run, and a kernel that its configuration asks for is not looked for, since kvattn has its own.
    """
    from transformers import AutoModelForCausalLM

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            attn_implementation="eager" if "gguf_file" in options else _kernel(folder),
            **options,
        )
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    for name, held, wanted in sorted(report["mismatched_keys"]):
        return model, f"{name} is {tuple(held)} in its weights and {tuple(wanted)} by its configuration"
    if lacking := sorted(report["missing_keys"]):
        return model, f"it lacks weights that would then be random, e.g. {lacking[0]}"
    if surplus := sorted(report["unexpected_keys"]):
        return model, f"it holds weights that its configuration has no use for, e.g. {surplus[0]}"
    names = {name for name, _ in model.named_parameters()}
    if "gguf_file" not in options and (packed := _whole_numbers(Path(folder), names)):
        return model, f"{packed} is of whole numbers, quantised or packed, which would be taken for weights"
    return model, None


def quantisation(folder: Path, name: str) -> str | None:
    """How the weights in `folder` are quantised; None where they are not. Raises KvattnError, naming the method, where
    they cannot be run here as they are."""
    said: Any = None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # transformers says what is wrong with such a file
        said = read_json(folder / "config.json").get("quantization_config")
    if not said:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method != "torchao":
        raise KvattnError(
            f"{name} is quantised by {method or 'an unnamed method'}, whose numbers kvattn was never held against the "
            "plain forward's: save it dequantised (transformers: model.dequantize()), or quantise it with torchao"
        )
    try:
        import torchao  # type: ignore[import-not-found]
    except ImportError:
        raise KvattnError(
            f"{name} is quantised by torchao, which is not installed: pip install 'kvattn[quantised]'"
        ) from None
    kinds = re.findall(r"\w+Config", json.dumps(said))
    return f"torchao {torchao.__version__}, {kinds[0] if kinds else 'of no named kind'}"


def _kernel(folder: Path | str) -> str:
    """SDPA, or eager attention for a model that transformers has no SDPA for."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    made = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return "sdpa" if made is None or getattr(made, "_supports_sdpa", True) else "eager"


def _whole_numbers(folder: Path, names: set[str]) -> str | None:
    """The first of these tensors in the folder's files that is of no floating point."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in names & set(file.keys()):
                if not (kind := file.get_slice(name).get_dtype()).startswith(("F", "BF")):
                    return f"{name} ({kind})"
    return None


PROBES = (
    "Steps:\n\n1. 12 * 12 = 144\n\n2. done",
    "line\n\n  e\u0301te\u0301  12",
    "  It's 3,141.59 (or 1/2) -- isn't it?\tYES!\r\n",
    "def f(x):\n    return x_1 ** 2  # ok",
    "Unïcode \ufb01 № ½ 一二三 日本語 한국어 العربية 🙂👍🏽",
    "HTTPServer2 iPhone15 we'LL\u00a0x\u3000y 0000123 99999999",
)


def load_tokenizer(folder: Path, name: str, rows: int) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, cutting text as its tokenizer.json says, whatever class tokenizer_config.json names:
    transformers rebuilds some classes by their own rules. Raises KvattnError where the two cannot be brought together,
    where the vocabulary has no merges, and for ids beyond the `rows` of the embedding."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    token, top = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if top >= rows:
        raise KvattnError(
            f"{name}: its tokenizer knows {token!r} as id {top}, and its embedding has {rows} rows; take the tokenizer "
            "that belongs to these weights"
        )
    path, made = folder / "tokenizer.json", getattr(tokenizer, "backend_tokenizer", None)
    if made is None or not path.is_file():
        return tokenizer
    own = Tokenizer.from_file(str(path))
    check_merges(json.loads(own.to_str())["model"], name)
    own.no_truncation()
    own.no_padding()
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if _cuts(own) == _cuts(made):
            return tokenizer
        setattr(made, part, getattr(own, part))
    if _cuts(own) != _cuts(made):
        raise KvattnError(f"{name}: transformers cuts text otherwise than its tokenizer.json says; check that file")
    return tokenizer


def check_merges(model: dict[str, Any], name: str) -> None:
    """Raises KvattnError for a byte-pair vocabulary of words without the merges that make them: every text would fall
    into bytes."""
    if model.get("type") == "BPE" and not model.get("merges") and sum(len(word) > 1 for word in model["vocab"]) > 256:
        raise KvattnError(f"{name}: its vocabulary has no merges, so that every text falls into bytes; fetch it again")


def _cuts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and words; what it warns of (weights that are lacking) is returned."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    spreading = levels.getLogger("accelerate")
    was = spreading.level
    spreading.setLevel(levels.CRITICAL)
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        spreading.setLevel(was)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """The first line of what an error says, with the next one where it announces that; its type where it says nothing
    more than a word."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    said = " ".join([first, *more[:1]] if first.endswith(":") else [first])
    return f"{type(error).__name__}: {said}" if isinstance(error, LookupError) else " ".join(said.split())
