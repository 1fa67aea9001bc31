"""How much of a text a tokenizer loses: none with bytes to fall back on, whatever normalises it before."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvattn.engine.compiler import MOST_LOST, PromptCompiler

TEXTS = (
    "日本語は難しい",
    "½ über 🙂👍🏽 x",
    "Ответ: пять",
    "e\u0301te\u0301",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "a b",
    "",
    " \n",
)
BYTES = {f"<0x{i:02X}>": i + 1 for i in range(256)}
ALPHABET = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
PIECES = [("<unk>", 0.0), *((byte, -5.0) for byte in BYTES), ("▁", -1.0)]


def compiler(model: Any, normalizer: Any = None, pre_tokenizer: Any = None, **more: Any) -> PromptCompiler:
    backend = Tokenizer(model)
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    return PromptCompiler(PreTrainedTokenizerFast(tokenizer_object=backend, **more))


def fallback() -> models.BPE:
    return models.BPE({"<unk>": 0, **BYTES, "▁": 257}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)


@pytest.mark.parametrize(
    "it",
    [
        compiler(fallback(), SPACES, unk_token="<unk>"),
        compiler(fallback(), normalizers.NFKC(), pre_tokenizers.Metaspace(), unk_token="<unk>"),
        compiler(models.Unigram(PIECES, 0, True), None, pre_tokenizers.Metaspace(), unk_token="<unk>"),
        compiler(models.BPE(ALPHABET, []), normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        compiler(models.BPE(ALPHABET, []), None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    ],
    ids=["llama-2", "nfkc", "unigram", "qwen", "gpt-2"],
)
def test_nothing_is_lost_on_bytes(it: PromptCompiler) -> None:
    assert [it.lost(text) for text in TEXTS] == [0.0] * len(TEXTS)


@pytest.mark.parametrize(
    "it",
    [
        compiler(
            models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, "<unk>"),
            None,
            pre_tokenizers.Whitespace(),
            unk_token="<unk>",
        ),
        compiler(
            models.WordLevel({"[U]": 0, "a": 1, "b": 2}, "[U]"), None, pre_tokenizers.Whitespace()
        ),  # not declared
        compiler(models.BPE({"a": 0, "b": 1}, []), None, pre_tokenizers.Whitespace()),  # drops what it does not know
        compiler(models.Unigram([("?", 0.0), ("a", -1.0), ("b", -1.0)], 0)),
    ],
    ids=["words", "undeclared", "dropped", "unigram"],
)
def test_what_a_vocabulary_lacks_is_lost(it: PromptCompiler) -> None:
    for text in TEXTS[:5]:
        assert it.lost(text) > MOST_LOST
    assert [it.lost(text) for text in TEXTS[5:]] == [0.0, 0.0, 0.0]
    assert it.lost("a b c c") == 0.5
