"""What is loaded is what the files say: every tensor used, text cut as tokenizer.json cuts it, or one line that names
what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import byte_llama, save_bytes, write_gguf
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from kvattn import models
from kvattn.errors import KvattnError

TEXTS = ("Steps:\n\n1. 12 * 12 = 144", "e\u0301te\u0301  1234", "Hey hey\they  99")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))


def refusal(name: Path) -> str:
    with pytest.raises(KvattnError) as caught:
        models.load_pretrained(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def configure(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("surplus", "shape"),
    [
        (f"{Q}.bias", (64,)),
        (f"{Q}.weight_scale", (1,)),
        ("model.layers.0.self_attn.q_norm.weight", (32,)),
        ("model.layers.2.mlp.up_proj.weight", (96, 64)),
        ("score.weight", (2, 64)),
    ],
)
def test_weights_without_a_place_are_named_and_refused(tmp_path: Path, surplus: str, shape: tuple[int, ...]) -> None:
    folder = save_bytes(tmp_path / "model")
    reweigh(folder, lambda weights: weights.update({surplus: torch.ones(shape)}))
    said = refusal(folder)
    assert f"no use for, e.g. {surplus}" in said
    assert "its configuration" in said


def test_surplus_layers_are_refused_in_whole(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    configure(folder, num_hidden_layers=1)
    assert "no use for, e.g. model.layers.1.input_layernorm.weight" in refusal(folder)


def test_weights_of_another_size_are_named(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    configure(folder, intermediate_size=80)
    assert "model.layers.0.mlp.down_proj.weight is (64, 96) in its weights and (64, 80) by its config" in refusal(
        folder
    )


def test_an_output_of_its_own_is_used_whatever_the_configuration_says(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    own = torch.randn_like(byte_llama().lm_head.weight)
    reweigh(folder, lambda weights: weights.update({"lm_head.weight": own}))
    assert torch.equal(models.load_pretrained(str(folder))[0].get_output_embeddings().weight, own)


def cut_by(folder: Path, normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """tokenizer.json with other rules; what it says."""
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if normalizer is not None:
        own.normalizer = normalizer
    own.pre_tokenizer = pre_tokenizer
    own.save(str(folder / "tokenizer.json"))
    return own


@pytest.mark.parametrize("said", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (normalizers.NFKC(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
        (
            normalizers.Lowercase(),
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
    ],
    ids=["plain", "prefix", "digits"],
)
def test_text_is_cut_as_tokenizer_json_says_whatever_class_is_named(
    tmp_path: Path, said: str, normalizer: Any, pre_tokenizer: Any
) -> None:
    folder = save_bytes(tmp_path / "model")
    own = cut_by(folder, normalizer, pre_tokenizer)
    configure(folder, "tokenizer_config.json", tokenizer_class=said)
    tokenizer = models.load_pretrained(str(folder))[1]
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False).input_ids == own.encode(text, add_special_tokens=False).ids


def test_another_vocabulary_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    own = json.loads((folder / "tokenizer.json").read_text())
    own["added_tokens"].append({**own["added_tokens"][0], "id": len(own["model"]["vocab"]), "content": "<beyond>"})
    (folder / "tokenizer.json").write_text(json.dumps(own))
    assert "knows '<beyond>' as id 288, and its embedding has 288 rows" in refusal(folder)


def test_a_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    own = json.loads((folder / "tokenizer.json").read_text())
    words = {f"word{i}": 400 + i for i in range(300)}
    own["model"] |= {"merges": [], "vocab": own["model"]["vocab"] | words}
    (folder / "tokenizer.json").write_text(json.dumps(own))
    model = byte_llama()
    model.resize_token_embeddings(800)
    model.save_pretrained(folder)
    assert "has no merges" in refusal(folder)


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer, such as tokenizer.json" in refusal(folder)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 269060552\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_what_git_did_not_fetch_is_named(tmp_path: Path, name: str) -> None:
    folder = save_bytes(tmp_path / "model")
    (folder / name).write_text(POINTER)
    assert f"{name} is a Git LFS pointer, not the file itself; run: git lfs pull" in refusal(folder)
    (tmp_path / "model.gguf").write_text(POINTER)
    assert "is a Git LFS pointer" in refusal(tmp_path / "model.gguf")


def test_a_kernel_that_a_configuration_asks_for_is_not_needed(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    configure(folder, attn_implementation="flash_attention_2")
    assert models.load_pretrained(str(folder))[0].config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"more": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "holds blk.0.attn_q.bias, which the conversion"),
        ({"more": {"blk.1.attn_q_norm.weight": np.ones(32, np.float32)}}, "holds blk.1.attn_q_norm.weight"),
        ({"more": {"blk.2.attn_norm.weight": np.ones(64, np.float32)}}, "holds blk.2.attn_norm.weight"),
        ({"more": {"blk.0.ffn_up.scale": np.ones(1, np.float32)}}, "holds blk.0.ffn_up.scale"),
        ({"facts": {"split.count": 3}}, "is one of 3 parts; join them"),
        ({"merges": ()}, "its vocabulary has no merges"),
    ],
)
def test_what_a_conversion_would_drop_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    write_gguf(tmp_path / "a.gguf", byte_llama(), **options)
    assert said in refusal(tmp_path / "a.gguf")
    assert not list((tmp_path / "cache").glob("models/gguf-*"))
