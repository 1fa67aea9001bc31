"""What is admitted is what measures right, whatever its name; what does not is refused with what was measured."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from tiny import at_home, engine, plain_model, tokenizer

from benchmarks.shapes import ADMITTED, REFUSED, random_model
from kvattn.engine import admission, survey
from kvattn.engine.admission import admit
from kvattn.engine.doctor import ESSENTIAL, Doctor
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError

SAID = {
    "llama4-tuned": r"only layers 0 to 2 could be stitched",
    "deepseek-v3": r"1 x 16 and 1 x 8 numbers a layer",
    "llama-longrope": r"moved by 232 positions, keys, values or queries of layers 0 to 3 of 4 are off by \d+%",
    "qwen3-next": r"layers 0 to 2 of 4 do not keep keys and values .*; only layer 3 could be stitched",
    "gemma3n": r"layers 2 and 3 of 4 do not keep keys and values .*; only layers 0 and 1 could be stitched",
    "gemma4": r"layers 2 and 3 of 4 do not keep keys and values .*; only layers 0 and 1 could be stitched",
    "jamba": r"layers 0 and 2 of 4 do not keep keys and values .*; only layers 1 and 3 could be stitched",
    "mamba": r"layers 0 to 3 of 4 do not keep keys and values .*; no layer could be stitched",
    "gpt2": r"moved by 232 positions, keys, values or queries of layers 0 to 3 of 4 are off",
    "opt": r"moved by 232 positions, keys, values or queries of layers 0 to 3 of 4 are off",
    "bloom": r"layers 0 to 3 of 4 attend past transformers' attention interface",
    "mpt": r"layers 0 to 3 of 4 attend past transformers' attention interface",
    "falcon": r"layers 0 to 3 of 4 attend past transformers' attention interface",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", ADMITTED)
def test_every_line_of_the_doctor_passes(shape, dtype):
    made = Engine(at_home(random_model(shape, dtype)), tokenizer())
    failed = [str(finding) for finding in Doctor(made).examine() if not finding.passed]
    assert not failed


@pytest.mark.parametrize("shape", REFUSED)
def test_refused_with_what_was_measured_and_the_layers_that_could_be_stitched(shape):
    with pytest.raises(KvattnError, match=SAID[shape]):
        Engine(at_home(random_model(shape)), tokenizer())


def test_a_name_that_nobody_knows_is_admitted_where_it_measures_right(monkeypatch):
    model = plain_model("llama")
    monkeypatch.setattr(model.config, "model_type", "never-seen")
    assert not any(not f.passed for f in Doctor(Engine(model, tokenizer())).examine(ESSENTIAL))


@pytest.mark.parametrize("shape", ["llama", "glm4", "smollm3"])
def test_another_rotation_than_the_models_tables_say_is_found(shape, monkeypatch):
    """A model whose keys turn by angles that are 1 % off its own table, by their squares, or by nothing it has."""
    model = at_home(random_model(shape))
    rope = model.model.rotary_emb
    plain = rope.forward
    for strange in (lambda p: p * 1.01, lambda p: p**2 / 100, lambda p: p.float().sqrt()):
        monkeypatch.setattr(rope, "forward", lambda x, position_ids, f=strange: plain(x, f(position_ids)))
        with pytest.raises(KvattnError, match=r"off by \d+% from those that were made before"):
            Engine(copy.deepcopy(model), tokenizer())
    monkeypatch.setattr(rope, "forward", plain)
    Engine(model, tokenizer())


def test_where_rotary_dimensions_lie_is_measured():
    styles = {shape: Engine(at_home(random_model(shape)), tokenizer()).rotary for shape in ADMITTED}
    assert {s for s, r in styles.items() if r.interleaved} == {"cohere", "cohere2", "glm4", "llama4"}
    still = {s: [i for i, row in enumerate(r.inv_freq) if not row.any()] for s, r in styles.items()}
    assert {s: x for s, x in still.items() if x} == {
        "smollm3": [1, 3],
        "cohere2": [1, 3],
        "exaone4": [1, 3],
        "llama4": [3],
    }
    partial = {s for s, r in styles.items() if 2 * r.inv_freq.shape[-1] < 8}
    assert partial == {"phi3-partial", "glm4", "stablelm", "phi"}


@pytest.mark.parametrize("width", [5, 100, 5000])
def test_windows_are_measured_at_their_full_width(width):
    model = at_home(random_model("mistral-window"))
    model.config.sliding_window, model.config.max_position_embeddings = width, 8192
    assert Engine(model, tokenizer()).geometry.windows == (width,) * 4


def test_a_context_ends_where_layers_see_chunks():
    model = at_home(random_model("llama4"))
    model.config.attention_chunk_size = 100
    assert Engine(model, tokenizer()).geometry.max_tokens == 100


def test_tokens_that_see_what_comes_behind_them_are_refused(monkeypatch):
    model = at_home(random_model("gemma3"))
    with monkeypatch.context() as patch:
        patch.setattr(model.config, "is_causal", False, raising=False)
        with pytest.raises(KvattnError, match="layers 1 and 3 of 4 attend without a mask"):
            Engine(model, tokenizer())
    rule, ahead = survey._mask, {"mask_function": lambda b, h, q, k: k <= q + 1}
    monkeypatch.setattr(survey, "_mask", lambda **given: rule(**{**given, **ahead}))
    with pytest.raises(KvattnError, match="let a token see what comes behind it"):
        Engine(model, tokenizer())


def test_attention_that_is_given_something_unknown_is_refused(monkeypatch):
    model = plain_model("llama")
    attention = model.model.layers[2].self_attn
    monkeypatch.setattr(attention, "forward", lambda plain=attention.forward, **given: plain(**given, position_bias=1))
    with pytest.raises(KvattnError, match="position_bias"):
        Engine(model, tokenizer())


@pytest.fixture
def named(monkeypatch, tmp_path) -> Engine:
    monkeypatch.setenv("KVATTN_CACHE", str(tmp_path))
    made = engine("llama")
    made.identity = "tiny@sha256:0"
    return made


def test_what_passed_is_remembered_by_its_weights(named, monkeypatch, tmp_path):
    admit(named)
    (record,) = (tmp_path / "admitted").iterdir()
    assert [name for name, _, _ in json.loads(record.read_text())] == list(ESSENTIAL)
    monkeypatch.setattr(admission, "Doctor", lambda _: pytest.fail("measured again"))
    admit(named)
    named.identity = "tiny@sha256:1"
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        admit(named)


def test_what_does_not_pass_is_refused_each_time(named, monkeypatch, tmp_path):
    attention = named.model.model.layers[1].self_attn
    plain = attention.forward

    def leaky(hidden_states, **kwargs):  # every token also reads the others' mean, whatever the mask says
        return plain(hidden_states=hidden_states + 0.1 * hidden_states.mean(1, keepdim=True), **kwargs)

    monkeypatch.setattr(attention, "forward", leaky)
    for _ in range(2):
        with pytest.raises(KvattnError, match=r"a random half kept from a dense pass equals dense: \d"):
            admit(named)
    assert not (tmp_path / "admitted").exists()


def test_a_low_precision_model_is_surveyed_in_float32_and_left_as_it_was(monkeypatch):
    moved: list[float] = []
    monkeypatch.setattr(survey, "_refuse_moved", lambda errors, *_: moved.append(float(errors.max())))
    model = random_model("qwen3-moe", torch.bfloat16)
    was = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    survey.survey(at_home(model))
    assert moved[0] < 1e-4  # keys moved near by, beside equal keys made there
    for name, p in model.named_parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(p, was[name][1].to(p.device))
        assert p.data_ptr() == was[name][0] or p.is_cuda


def test_a_model_that_cannot_run_is_refused_in_one_line():
    model = plain_model("llama")
    model.model.layers[1].mlp.forward = SimpleNamespace  # no such call
    with pytest.raises(KvattnError, match="cannot be watched while it runs"):
        Engine(model, tokenizer())
