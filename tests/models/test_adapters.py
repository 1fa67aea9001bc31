"""LoRA adapters: a name, a folder, BASE+ADAPTER or a Hub id; merged as PEFT computes them, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import byte_llama, save_bytes

from kvattn import DEFAULT_JUDGE, models
from kvattn.engine.engine import identity
from kvattn.errors import KvattnError
from kvattn.files import sha256
from kvattn.judge.judge import load
from kvattn.models import adapter, hub, source
from kvattn.questions.orders import rotations
from kvattn.questions.relational import relational

IDS = torch.tensor([[1, 40, 41, 99, 7, 250, 2, 13]])


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base's folder, in a working folder and a cache of this test's own."""
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return save_bytes(tmp_path / "base")


def train(base: Path | str, folder: Path, seed: int = 1, **options: Any) -> torch.Tensor:
    """Writes an adapter of random numbers over the base; returns the logits that PEFT computes with it."""
    model = byte_llama()
    model.name_or_path = str(base)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | options)
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(seed)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    with torch.no_grad():
        return tuned.eval()(IDS).logits


def logits(name: str, **options: Any) -> torch.Tensor:
    model = models.load_pretrained(name, **options)[0]
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        return model(IDS).logits


def refusal(name: str) -> str:
    with pytest.raises(KvattnError) as caught:
        models.load_pretrained(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / adapter.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["norm"]},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_merge_is_what_peft_computes(base: Path, tmp_path: Path, options: dict) -> None:
    expected = train(base, tmp_path / "tuned", **options)
    found = logits("tuned")
    assert torch.allclose(found, expected, atol=2e-4)
    assert (found - logits("base")).abs().max() > 0.1


def test_the_name_says_base_and_adapter(base: Path, tmp_path: Path) -> None:
    expected = train("no/where", tmp_path / "c++ out" / "tuned")
    assert torch.allclose(logits("base+c++ out/tuned"), expected, atol=2e-4)
    info = models.load_pretrained("base+c++ out/tuned")[2]
    assert (info.kind, info.base) == ("adapter", "base")
    assert info.adapter == "LoRA of rank 4 on down_proj, q_proj, merged in float32"
    assert json.loads(json.dumps(info.to_dict()))["hashes"].keys() >= {"base/model.safetensors", adapter.WEIGHTS}
    shutil.copytree(base, tmp_path / "x+y")
    assert models.resolve("x+y").kind == "folder"


def test_a_folder_dropped_among_the_shipped_is_a_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "SHIPPED", tmp_path / "adapters")
    expected = train(base, tmp_path / "adapters" / "tiny-judge")
    assert "tiny-judge" in source.known_names()
    assert torch.allclose(logits("tiny-judge"), expected, atol=2e-4)
    assert torch.equal(logits("tiny-judge"), logits("base+tiny-judge"))
    assert [(m.name, m.prepared) for m in models.list_models() if m.name == "tiny-judge"] == [("tiny-judge", True)]
    edit(tmp_path / "adapters" / "tiny-judge", base_model_name_or_path="smollm2-135m")
    listed = next(m for m in models.list_models() if m.name == "tiny-judge")
    assert (listed.prepared, listed.note) == (False, "needs smollm2-135m")
    assert "run: kvattn models prepare smollm2-135m" in refusal("tiny-judge")


def test_base_and_adapters_are_different_judges(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "one")
    train(base, tmp_path / "two", seed=2)
    known = {identity(models.load_pretrained(name)[2].to_dict()) for name in ("base", "one", "two", "base+two")}
    assert len(known) == 4
    hashes = [models.load_pretrained(name)[2].hashes for name in ("two", "base+two")]
    assert hashes[0] == hashes[1]


def test_in_half_precision_the_merge_is_made_in_float32(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "tuned")
    whole = models.load_pretrained("tuned")[0]
    model, _, info = models.load_pretrained("tuned", dtype="bfloat16")
    assert info.dtype == "bfloat16"
    for (name, half), full in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(half, full.to(torch.bfloat16)), name
    frequencies = [b for n, b in model.named_buffers() if n.endswith("inv_freq")]
    assert {b.dtype for b in frequencies} == {torch.float32}
    assert models.load_pretrained("tuned", dtype="stored")[2].dtype == "float32"


def test_an_adapter_brings_its_own_tokenizer(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "tuned")
    assert models.load_pretrained("tuned")[1].chat_template == models.load_pretrained("base")[1].chat_template
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, tmp_path / "tuned" / name)
    (tmp_path / "tuned" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert models.load_pretrained("tuned")[1].chat_template == "{{ messages[0]['content'] }}"


def test_the_weights_of_the_base_can_be_pinned(base: Path, tmp_path: Path) -> None:
    expected = train(base, tmp_path / "tuned")
    pin = {"base_weights": adapter.base_weights(base)}
    before = models.load_pretrained("tuned")[2].hashes
    (tmp_path / "tuned" / "kvattn.json").write_text(json.dumps(pin))
    assert models.load_pretrained("tuned")[2].hashes == before
    assert torch.allclose(logits("tuned"), expected, atol=2e-4)
    save_bytes(tmp_path / "other", byte_llama(seed=3))
    assert "was trained on other weights than those of other" in refusal("other+tuned")
    (tmp_path / "tuned" / "kvattn.json").write_text('{"base_weights": ["model.safetensors"]}')
    assert "was trained on other weights" in refusal("tuned")


def test_hub_ids_of_adapters(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(base, tmp_path / "snapshots" / "abc")
    fetched: list[str] = []

    def snapshot(repository: str, revision: str | None, local_files_only: bool = False) -> str:
        if local_files_only and not fetched:
            raise OSError("not cached")
        if not local_files_only:
            fetched.append(repository)
        return str(tmp_path / "snapshots" / "abc")

    monkeypatch.setattr(hub, "_snapshot", snapshot)
    assert models.resolve("org/tuned").kind == "hub"
    assert torch.allclose(logits("org/tuned"), expected, atol=2e-4)
    assert models.resolve("org/tuned").kind == "adapter"
    fetched.clear()
    assert torch.allclose(logits("base+org/tuned@v1"), expected, atol=2e-4)
    assert set(fetched) == {"org/tuned"}
    fetched.clear()
    assert models.prepare("org/tuned").kind == "adapter"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "kind PROMPT_TUNING, not LORA"),
        ({"task_type": "SEQ_CLS"}, "made for SEQ_CLS"),
        ({"init_lora_weights": "pissa"}, r"its start (pissa) changes the base's weights"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "it sets layer_replication"),
        ({"alora_invocation_tokens": [1]}, "it sets alora_invocation_tokens"),
        ({"target_modules": ["nothing"]}, "does not fit"),
        ({"r": 8}, "size mismatch"),
        ({"target_modules": ["q_proj"]}, "holds, and a merge would drop, base_model.model.model.layers.0.mlp"),
        ({"target_modules": ["q_proj", "k_proj", "down_proj"]}, "lacks base_model.model.model.layers.0.self_attn.k"),
        ({"modules_to_save": ["score"]}, "replaces the module score, which the base lacks"),
        ({"base_model_name_or_path": None}, "names no base; say which is meant: BASE+"),
        ({"base_model_name_or_path": "/not/here"}, "needs a base"),
    ],
)
def test_what_a_merge_cannot_hold_is_refused(base: Path, tmp_path: Path, changes: dict, said: str) -> None:
    train(base, tmp_path / "tuned")
    edit(tmp_path / "tuned", **changes)
    assert said in refusal("tuned")


def test_weights_that_are_no_adapter_are_refused(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "tuned")
    weights = tmp_path / "tuned" / adapter.WEIGHTS
    held = load_file(weights)
    first = sorted(held)[0]
    save_file(held | {first: torch.full_like(held[first], torch.nan)}, weights)
    assert f"not finite in {first}" in refusal("tuned")
    torch.save(held, tmp_path / "tuned" / "adapter_model.bin")
    weights.unlink()
    assert "holds adapter_model.bin" in refusal("tuned")
    assert "pickled weights can run code" in refusal("base+tuned")
    (tmp_path / "tuned" / adapter.CONFIG).write_text("{")
    assert "cannot be read" in refusal("tuned")


def test_names_that_are_no_sum(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "tuned")
    assert "unknown model 'nothing'" in refusal("nothing+tuned")
    assert "unknown model 'nothing'" in refusal("base+nothing")
    assert "base is no adapter" in refusal("base+base")
    assert "tuned is an adapter already" in refusal("tuned+tuned")


def test_an_adapter_of_shared_embeddings_is_refused(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "tuned", target_modules=["q_proj", "lm_head"])
    assert "shares between input and output" in refusal("tuned")
    save_bytes(tmp_path / "untied", byte_llama(tied=False))
    train("untied", tmp_path / "over", target_modules=["q_proj"])
    assert logits("over").isfinite().all()


def test_the_judge_that_ships_is_what_its_record_says() -> None:
    folder = adapter.shipped()[DEFAULT_JUDGE]
    record = json.loads((folder / "kvattn.json").read_text(encoding="utf-8"))
    assert {name: f"sha256:{sha256(folder / name)}" for name in record["sha256"]} == {
        name: f"sha256:{digest}" for name, digest in record["sha256"].items()
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert record["command"].startswith("python -m analyses.train_judge")
    assert models.resolve(DEFAULT_JUDGE).parts[0].name == record["base"] == "smollm2-135m"


def test_the_judge_that_ships_reads_where_its_base_does_not(smollm2: str) -> None:
    prompts = relational(2, 77, 4, ["lookup"])
    right = {}
    for name in (smollm2, DEFAULT_JUDGE):
        judge = load(name)
        told = [d.correct for p in prompts for d in judge.judge(p, ["dense"], rotations(p.order), capture=False)]
        right[name] = sum(map(bool, told)) / len(told)
    assert right[smollm2] < 0.5
    assert right[DEFAULT_JUDGE] > 0.9
