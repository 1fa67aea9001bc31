"""The doctor names what is wrong with a model folder, and passes every whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CHAT, CONFIGS, byte_llama, plain_model, save, save_bytes, tokenizer

import kvattn
from kvattn.errors import KvattnError
from kvattn.judge.doctor import examine

Break = Callable[[Path], object]
ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.2.mlp"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save(tmp_path_factory.mktemp("sound") / "model"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path / "cache"))
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def config(file: str = "config.json", **changes: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def harm(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return harm


def fill(name: str, value: float) -> Break:
    return weights(lambda held: held[name].view(-1)[3::5].fill_(value))


def text(name: str, content: str | None) -> Break:
    return lambda folder: (folder / name).unlink() if content is None else (folder / name).write_text(content)


def template(content: Any) -> Break:
    """Another chat template; a list of several goes where transformers looks for it."""
    if isinstance(content, str):
        return text("chat_template.jinja", content)

    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        config("tokenizer_config.json", chat_template=content)(folder)

    return change


def words(change: Callable[[dict[str, Any]], object]) -> Break:
    def harm(folder: Path) -> None:
        held = json.loads((folder / "tokenizer.json").read_text())
        change(held)
        (folder / "tokenizer.json").write_text(json.dumps(held))

    return harm


def without(characters: str) -> Break:
    """A vocabulary in which these characters stand for nothing."""

    def change(held: dict[str, Any]) -> None:
        vocab = held["model"]["vocab"]
        held["model"]["vocab"] = {f"<{i}>" if t in characters else t: i for t, i in vocab.items()}

    return words(change)


def bytes_without_merges(folder: Path) -> None:
    shutil.rmtree(folder)
    model = byte_llama()
    model.resize_token_embeddings(800)
    save_bytes(folder, model)
    more = {f"word{i}": 400 + i for i in range(300)}
    words(lambda held: held["model"].update(merges=[], vocab=held["model"]["vocab"] | more))(folder)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 269060552\n"
ONE_TURN = "{% for m in messages %}{% if m['role'] == 'user' %}<|turn|>MORE{{ m['content'] }}{% endif %}{% endfor %}"

BROKEN: dict[str, tuple[Break, str]] = {
    "context too short": (config(max_position_embeddings=300), "the model's context holds 300"),
    "no context": (config(max_position_embeddings=0), "a context of 0 tokens (max_position_embeddings)"),
    "context in words": (config(max_position_embeddings="many"), "'max_position_embeddings': TypeError"),
    "no rotary base": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
        "its rotary frequencies are not finite",
    ),
    "fewer layers": (config(num_hidden_layers=3), "no use for, e.g. model.layers.3.input_layernorm.weight"),
    "more layers": (config(num_hidden_layers=5), "lacks weights that would then be random, e.g. model.layers.4."),
    "wider mlp": (config(intermediate_size=80), "(32, 64) in its weights and (32, 80) by its configuration"),
    "more heads": (config(num_attention_heads=8), "o_proj.weight is (32, 32) in its weights and (32, 64) by"),
    "more kv heads": (config(num_key_value_heads=4), "k_proj.weight is (16, 32) in its weights and (32, 32) by"),
    "other vocabulary": (config(vocab_size=200), "(112, 32) in its weights and (200, 32) by its configuration"),
    "biases by config": (config(attention_bias=True), "lacks weights that would then be random, e.g. model.layers.0.s"),
    "rope that changes at length": (
        config(
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 64,
            }
        ),
        "off by",
    ),
    "code of its own": (
        config(model_type="own", auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}),
        "needs code of its own",
    ),
    "unknown type": (config(model_type="own"), "cannot be loaded"),
    "config cut off": (text("config.json", '{"model_type": "llama", '), "cannot be loaded"),
    "no config": (text("config.json", None), "there is no config.json"),
    "no weights": (text("model.safetensors", None), "there is no safetensors"),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "cannot be loaded",
    ),
    "weights empty": (text("model.safetensors", ""), "cannot be loaded"),
    "weights of git lfs": (text("model.safetensors", LFS), "model.safetensors is a Git LFS pointer"),
    "pickled weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "holds pickled weights"),
    "tensor missing": (weights(lambda w: w.pop(f"{MLP}.up_proj.weight")), f"e.g. {MLP}.up_proj.weight"),
    "norm missing": (weights(lambda w: w.pop("model.norm.weight")), "e.g. model.norm.weight"),
    "surplus bias": (
        weights(lambda w: w.update({f"{ATTENTION}.q_proj.bias": torch.ones(32)})),
        f"no use for, e.g. {ATTENTION}.q_proj.bias",
    ),
    "surplus norm": (
        weights(lambda w: w.update({f"{ATTENTION}.q_norm.weight": torch.ones(8)})),
        f"no use for, e.g. {ATTENTION}.q_norm.weight",
    ),
    "packed weights": (
        weights(lambda w: w.update({f"{MLP}.up_proj.weight": torch.ones(64, 4)})),
        f"{MLP}.up_proj.weight is (64, 4)",
    ),
    "weights of whole numbers": (
        weights(lambda w: w.update({f"{MLP}.up_proj.weight": w[f"{MLP}.up_proj.weight"].to(torch.int8)})),
        f"{MLP}.up_proj.weight (I8) is of whole numbers",
    ),
    "NaN in a layer": (fill(f"{MLP}.up_proj.weight", float("nan")), f"{MLP}.up_proj.weight holds numbers that are not"),
    "infinite output": (fill("lm_head.weight", float("inf")), "lm_head.weight holds numbers that are not finite"),
    "numbers that overflow": (fill(f"{MLP}.down_proj.weight", 3e38), "come out of layer 2 are not finite in float32"),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "holds no tokenizer, such as tokenizer.json",
    ),
    "tokenizer of git lfs": (text("tokenizer.json", LFS), "tokenizer.json is a Git LFS pointer"),
    "tokenizer cut off": (text("tokenizer.json", '{"version": "1.0", '), "cannot be loaded"),
    "ids beyond the embedding": (
        words(lambda t: t["model"]["vocab"].update({"~": 150})),
        "knows '~' as id 150, and its embedding has 112 rows",
    ),
    "no merges": (bytes_without_merges, "has no merges"),
    "no letters": (without(LETTERS), "templates that the tokenizer can say: question"),
    "no digits": (without("0123456789"), "label collision"),
    "template raises": (template("{{ raise_exception('turns must alternate') }}"), "TemplateError: turns must"),
    "template calls what is not there": (template("{{ today() }}"), "UndefinedError: 'today' is undefined"),
    "template is no Jinja": (template("{% for m in messages %}{{ m"), "TemplateSyntaxError"),
    "templates without a default": (
        template([{"name": "rag", "template": CHAT}, {"name": "tool_use", "template": CHAT}]),
        "rag, tool_use, and none is the default",
    ),
    "template drops the user": (template("<|turn|>judge\n"), "does not carry the system and user text unchanged"),
    "template says the user twice": (
        template(ONE_TURN.replace("MORE", "{{ m['content'] }}")),
        "does not carry the system and user text unchanged",
    ),
    "template changes the text": (
        template(ONE_TURN.replace("m['content'] }}", "m['content'] | upper }}")),
        "does not carry the system and user text unchanged",
    ),
    "template of another vocabulary": (template(CHAT), "writes <|im_end|>, <|im_start|>, which is no token here"),
}


def first_fault(folder: Path) -> str:
    try:
        engine = kvattn.load(str(folder)).engine
    except KvattnError as refused:
        return str(refused)
    return next((str(found) for found in examine(engine) if not found.passed), "")


@pytest.mark.parametrize("kind", BROKEN)
def test_the_fault_of_a_broken_model_is_named(kind: str, folder: Path) -> None:
    harm, said = BROKEN[kind]
    harm(folder)
    assert said in first_fault(folder)


def one_layer(folder: Path) -> None:
    sized = CONFIGS["llama"]()
    sized.num_hidden_layers, sized.max_position_embeddings = 1, 8192
    model = type(plain_model())(sized)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


WHOLE: dict[str, Break] = {
    "as saved": lambda _: None,
    "one layer": one_layer,
    "dynamic rope, which changes behind the context": config(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "no chat template": text("chat_template.jinja", None),
    "a template without a system role": template(ONE_TURN.replace("MORE", "")),
    "a template that refuses a system role": template(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + ONE_TURN.replace("MORE", "")
    ),
    "settings that kvattn sets itself": config(
        return_dict=False, attn_implementation="flash_attention_2", use_cache=False, output_hidden_states=True
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_model_passes(kind: str, folder: Path) -> None:
    WHOLE[kind](folder)
    assert first_fault(folder) == ""


def test_an_organism_passes_with_the_templates_that_it_can_say() -> None:
    found = list(examine(kvattn.load("organism-safe").engine))
    assert not [str(f) for f in found if not f.passed]
    assert 1 <= sum("prompts of the template" in f.name for f in found) < 7
