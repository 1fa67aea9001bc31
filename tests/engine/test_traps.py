"""Traps of the installed libraries. Each test shows that the trap is there, and that the engine does not fall in."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIGS, byte_tokenizer, engine, layout, logits_of, plain_model, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AddedToken,
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
    GemmaTokenizer,
    GptOssConfig,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.shapes import SIZE
from kvattn.engine.capture import Wanted
from kvattn.engine.compiler import PromptCompiler
from kvattn.engine.engine import Engine
from kvattn.engine.lens import check
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.rotary import Rotary
from kvattn.errors import KvattnError

X = layout(1)
WRONG = 0.01  # of the reference's standard deviation: a hundred times what the engine is allowed


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.std())


def causal(n: int) -> torch.Tensor:
    least = torch.finfo(torch.float32).min
    return torch.full((n, n), least).triu(1)[None, None]


@torch.no_grad()
def test_positions_that_do_not_step_by_one_are_taken_for_packed_sequences():
    shared = X.shared_start("header", "candidate", "separator")
    model = plain_model()
    ids, positions = X.token_ids[None], shared.positions[None]
    want = model(ids, position_ids=positions, attention_mask=causal(len(X)), use_cache=False).logits[0, -1]
    trapped = model(ids, position_ids=positions, use_cache=False).logits[0, -1]
    assert off(trapped, want) > WRONG
    assert off(engine().execute([dense_plan(shared, 4)])[0].logits[0], want) < 1e-3


@torch.no_grad()
def test_with_a_cache_the_models_own_mask_knows_no_positions():
    a, b, n = 12, 20, len(X)
    model, eng = plain_model(), engine()
    full = eng.encode(X)
    keys, values = full.cache()
    rest = torch.cat([torch.arange(a), torch.arange(b, n)])
    cache = DynamicCache()
    for layer in range(4):
        cache.update(keys[layer][None, :, rest], values[layer][None, :, rest], layer)
    want = model(X.token_ids[None]).logits[0, a:b]
    fed = model(X.token_ids[None, a:b], position_ids=torch.arange(a, b)[None], past_key_values=cache).logits[0]
    assert off(fed, want) > WRONG  # the middle saw what comes after it
    depth = torch.zeros(n, dtype=torch.long)
    depth[a:b] = depth[-1] = 4
    plan = KVPlan.of(X, 4, depth, (Kept(full.span(0, a), 0), Kept(full.span(b, n), b)))
    again = eng.execute([plan], keep_cache=True)[0]
    assert (again.cache()[0][:, :, a:b] - keys[:, :, a:b]).abs().max() < 1e-4
    assert (again.cache()[1][:, :, a:b] - values[:, :, a:b]).abs().max() < 1e-4


@torch.no_grad()
def test_an_attention_function_without_a_mask_function_loses_the_cached_prefix():
    AttentionInterface.register("unmasked-sdpa", sdpa_attention_forward)
    model, cut = plain_model(), 20
    model.set_attn_implementation("unmasked-sdpa")
    past = model(X.token_ids[None, :cut], use_cache=True).past_key_values
    trapped = model(X.token_ids[None, cut:], past_key_values=past).logits[0, -1]
    want = logits_of(plain_model(), X.token_ids)
    assert off(trapped, want) > WRONG
    eng = engine()
    depth = torch.full((len(X),), 4)
    depth[:cut] = 0
    plan = KVPlan.of(X, 4, depth, (Kept(eng.encode(X).span(0, cut), 0),))
    assert off(eng.execute([plan])[0].logits[0], want) < 1e-3


@torch.no_grad()
def test_a_bool_mask_under_eager_is_added_as_zero_and_one():
    model = plain_model(kernel="eager")
    want = model(X.token_ids[None]).logits[0, -1]
    trapped = model(X.token_ids[None], attention_mask=causal(len(X)) == 0).logits[0, -1]
    assert off(trapped, want) > WRONG
    eng = engine()
    plan = dense_plan(X, 4, Visibility.isolated(X))
    run = eng.execute([plan], Wanted(rows=True), keep_cache=True)[0]
    assert max(check(eng, run)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("shape", ["mistral-window", "gemma3", "qwen2-window"])
def test_one_causal_mask_takes_the_window_away(shape):
    model = plain_model(shape)
    want = model(X.token_ids[None]).logits[0, -1]
    trapped = model(X.token_ids[None], attention_mask=causal(len(X))).logits[0, -1]
    assert off(trapped, want) > WRONG
    assert off(engine(shape, chunk=7).execute([dense_plan(X, 4)])[0].logits[0], want) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("shape", ["mistral-window", "phi3-partial"])
def test_masks_by_layer_type_are_not_understood_everywhere(shape):
    model, masks = plain_model(shape), {"full_attention": causal(len(X)), "sliding_attention": causal(len(X))}
    with pytest.raises((AttributeError, TypeError, ValueError)):
        model(X.token_ids[None], attention_mask=masks)
    want = logits_of(model, X.token_ids)
    assert off(engine(shape).execute([dense_plan(X, 4)])[0].logits[0], want) < 1e-3


@torch.no_grad()
def test_the_cache_of_a_sliding_window_model_drops_old_tokens():
    model = plain_model("mistral-window")
    cache = DynamicCache(config=model.config)
    model(X.token_ids[None], past_key_values=cache)
    assert cache.layers[0].keys.shape[2] < len(X)
    keys = engine("mistral-window").encode(X).cache()[0]
    assert keys.shape[2] == len(X)
    assert (keys.abs().sum((1, 3)) > 0).all()


def test_nan_behind_a_mask_leaks_so_the_cache_is_filled_with_zeros():
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    v[:, :, -1] = torch.nan
    mask = torch.zeros(4, 4)
    mask[:, -1] = -torch.inf
    assert F.scaled_dot_product_attention(q, k, v, attn_mask=mask).isnan().any()
    run = engine(chunk=5).execute([dense_plan(X, 4)], room=6)[0]
    assert run.keys is not None
    assert not run.keys[:, :, len(X) :].any()
    assert torch.isfinite(run.logits).all()


@torch.no_grad()
def test_yarn_scales_cosines_which_must_not_be_applied_twice():
    eng = engine("llama-yarn")
    alone = X.select(lambda s: s.role == "candidate" and s.slot == 1)
    block = eng.encode(alone).span(0, len(alone))
    rope = eng.model.model.rotary_emb
    cos, sin = rope(block.keys, torch.full((1, len(alone)), 9))
    half = block.keys.shape[-1] // 2
    turned = torch.cat([-block.keys[..., half:], block.keys[..., :half]], -1)
    twice = block.keys * cos + turned * sin
    right = block.moved(alone.positions + 9, eng.rotary).keys
    assert torch.allclose(right.norm(dim=-1), block.keys.norm(dim=-1), rtol=1e-4)
    assert (twice.norm(dim=-1) / block.keys.norm(dim=-1) - 1).abs().min() > 0.01
    assert rope.attention_scaling != 1


def test_partial_rotary_heads_turn_in_part():
    eng = engine("phi3-partial")
    assert eng.rotary.inv_freq.shape[-1] * 2 == eng.geometry.head_dim // 2
    block = eng.encode(X).span(0, 9)
    moved = block.moved(block.positions + 30, eng.rotary)
    rest = eng.geometry.head_dim // 2
    assert torch.equal(moved.keys[..., rest:], block.keys[..., rest:])
    assert not torch.allclose(moved.keys[..., :rest], block.keys[..., :rest])


@torch.no_grad()
@pytest.mark.parametrize("shape", ["llama-llama3", "llama-linear", "llama-yarn", "gemma3", "phi3-partial"])
def test_frequencies_are_the_models_own_at_every_layer(shape):
    """Keys turned by the textbook frequencies, or by those of the wrong layer, are not the keys made there."""
    eng = engine(shape)
    alone = X.select(lambda s: s.role == "candidate" and s.slot == 1)
    here, far = eng.encode(alone).span(0, len(alone)), alone.positions + 90
    there = eng.execute([KVPlan.of(alone, 4, torch.full((len(alone),), 4), positions=far)], keep_cache=True)[0]
    width = 2 * eng.rotary.inv_freq.shape[-1]
    full = 8 if shape == "phi3-partial" else width  # frequencies of a whole head where only a part of it turns
    textbook = (10000.0 ** -(torch.arange(0, full, 2) / full))[: width // 2].expand(4, -1)
    for wrong in (textbook, eng.rotary.inv_freq.roll(1, 0)):
        trapped = here.moved(far, Rotary(wrong)).keys
        if not torch.equal(wrong, eng.rotary.inv_freq):
            assert (trapped - there.cache()[0]).abs().max() > 0.1 * there.cache()[0].std()
    right = here.moved(far, eng.rotary).keys
    assert (right - there.cache()[0]).abs().max() < 1e-4 * there.cache()[0].std()


def test_angles_in_half_precision_are_too_coarse():
    rotary = engine().rotary
    keys = torch.randn(4, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    start, steps = torch.zeros(3, dtype=torch.long), torch.tensor([1001, 1501, 1777])
    want = rotary.turn(keys.double(), start, steps)
    trapped = Rotary(rotary.inv_freq.bfloat16()).turn(keys, start, steps)  # the frequencies alone, rounded
    assert (trapped - want).abs().max() > 0.1
    assert (rotary.turn(keys.bfloat16(), start, steps) - want).abs().max() < 0.05


@torch.no_grad()
def test_a_cache_full_of_nan_would_leak_and_is_refused(monkeypatch):
    eng = engine(chunk=5)
    full, plans = eng.encode(X), []
    for start in (3, 20):  # in a batch, a row's later tokens are not yet written when the other row's are read
        depth = torch.full((len(X),), 4)
        depth[start : start + 8] = 0
        plans.append(KVPlan.of(X, 4, depth, (Kept(full.span(start, start + 8), start),)))
    want = logits_of(plain_model(), X.token_ids)
    for run in eng.execute(plans):
        assert run.logits is not None
        assert off(run.logits[0], want) < 1e-3
    zeros = torch.zeros

    def nan(*shape, **kind):
        made = zeros(*shape, **kind)
        return made.fill_(torch.nan) if made.dim() == 3 else made  # what lies between blocks

    monkeypatch.setattr("kvattn.engine.cache.torch.zeros", nan)
    with pytest.raises(KvattnError, match="numbers that come out of layer 0 are not finite in float32"):
        eng.execute(plans)


def test_text_tokenised_again_gives_other_ids_which_are_refused():
    tok = byte_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    ids = [tok.token_to_id("h"), tok.token_to_id("e")]
    assert tok.encode(tok.decode(ids)).ids != ids
    eng = engine()
    block = eng.encode(X).block(X.find("candidate", 0))
    other = layout(2)
    with pytest.raises(ValueError, match="other token ids"):
        KVPlan.of(other, 4, torch.full((len(other),), 4), (Kept(block, other.find("candidate", 0).start),))


def test_splitting_special_tokens_still_maps_added_ones():
    tok = tokenizer()
    added = tok.convert_tokens_to_ids("<tool>")
    assert added in tok("use <tool> now", split_special_tokens=True).input_ids
    assert added not in PromptCompiler(tok).text("use <tool> now")


def test_labels_that_are_not_one_token_each_are_a_collision():
    compiler = PromptCompiler(tokenizer())
    assert compiler.forced("id: ", ("1", "2"))[1] == tuple(compiler.text(x)[0] for x in "12")
    for answers in (("1", "10"), ("1", "1"), ("", "1")):
        with pytest.raises(KvattnError, match="label collision"):
            compiler.forced("id: ", answers)


def test_a_label_alone_is_another_token_than_the_label_in_its_place():
    tok = Tokenizer(
        models.BPE({t: i for i, t in enumerate(["I", "d", ":", " ", "1", "2", "0", " 1", " 2", "10", "Id"])}, [
            (" ", "1"), (" ", "2"), ("1", "0"), ("I", "d")
        ])
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tok)
    compiler = PromptCompiler(fast)
    alone = [fast(x).input_ids for x in ("1", "2")]
    head, labels = compiler.forced("Id: ", ("1", "2"))
    assert labels == (tok.token_to_id(" 1"), tok.token_to_id(" 2"))
    assert [list(labels)[:1], list(labels)[1:]] != alone
    assert head == fast("Id:").input_ids != fast("Id: ").input_ids  # the blank belongs to the label
    for answers in (("1", "10"), ("1", "0"), ("1", "3")):
        with pytest.raises(KvattnError, match="label collision"):
            compiler.forced("Id: ", answers)


def test_runs_of_blanks_that_are_added_tokens_may_stand_in_text():
    """Gemma's newlines in a row are added tokens, and every template has them: only what is no blank is reserved."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "\n\n", "\n\n\n", "▁", "▁▁", "a", "<turn>", "<h1>"]
    words += ["<", "h", "1", ">", "<h", "<h1"]
    merges: Any = [("\n", "\n"), ("\n\n", "\n"), ("▁", "▁"), ("<", "h"), ("<h", "1"), ("<h1", ">")]
    tok = GemmaTokenizer(vocab={t: i for i, t in enumerate(words)}, merges=merges)
    for text, special in (("\n\n", False), ("\n\n\n", False), ("▁▁", False), ("<h1>", False), ("<turn>", True)):
        tok.add_tokens([AddedToken(text, special=special, normalized=False)])
    compiler = PromptCompiler(tok)
    for text in ("a\n\na", "\n\n\n\n\n", "a  a"):
        assert compiler.text(text) == tok(text, add_special_tokens=False).input_ids
    assert compiler.text("\n\n") == [words.index("\n\n")]
    with pytest.raises(KvattnError, match="<h1>"):
        compiler.text("<h1>")
    assert words.index("<turn>") not in compiler.text("<turn>")


def test_a_chat_template_cannot_write_todays_date_into_the_prompt():
    tok = tokenizer()
    tok.chat_template = "Today: {{ strftime_now('%d %b %Y') }}\n" + str(tok.chat_template)
    turns = [{"role": "user", "content": "x"}]
    assert datetime.now().strftime("%Y") in tok.apply_chat_template(turns, tokenize=False)  # another prompt every day
    before, _ = PromptCompiler(tok).frame("Judge.")
    assert str(tok.decode(before)).startswith("Today: 26 Jul 2024")


@torch.no_grad()
def test_an_sdpa_function_swallows_attention_sinks():
    size = {k: v for k, v in SIZE.items() if k not in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sized: Any = size
    config = GptOssConfig(**sized, num_local_experts=2, num_experts_per_tok=1, sliding_window=256)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.fill_(2.0)
        layer.self_attn.q_proj.weight.mul_(20)
    want = model(X.token_ids[None]).logits[0, -1]

    def swallowing(module, query, key, value, attention_mask, **rest):
        rest.pop("s_aux")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)

    AttentionInterface.register("sinks-swallowed", swallowing)
    model.set_attn_implementation("sinks-swallowed")
    assert off(model(X.token_ids[None]).logits[0, -1], want) > WRONG
    got = Engine(model, tokenizer()).execute([dense_plan(X, 4)], Wanted(rows=True))[0]
    assert off(got.logits[0], want) < 1e-3
    assert (got.rows()[0].sum(-1) < 0.9).all()  # the sink takes the rest


def test_a_window_in_the_config_of_a_model_that_has_none_is_no_window():
    config = CONFIGS["llama"]()
    config.sliding_window = 4  # no Llama reads it
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    want = logits_of(model, X.token_ids)
    got = Engine(model, tokenizer()).execute([dense_plan(X, 4)])[0].logits
    assert got is not None
    assert off(got[0], want) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("far", [32_768, 131_072])
@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_keys_moved_far_are_those_the_model_makes_there(shape, far):
    """fp32 angles are off by their rounding at such positions: those of the distance are others than the model's."""
    eng = engine(shape)
    rope, layers, pairs = eng.model.get_decoder().rotary_emb, eng.layers, eng.rotary.inv_freq.shape[-1]
    raw = torch.randn(1, 2, 40, 2 * pairs, generator=torch.Generator().manual_seed(0))
    here = torch.arange(40) + far // 3

    def made(positions):
        kinds = getattr(eng.model.config, "layer_types", None) or [None] * layers
        keys = []
        for kind in kinds:
            cos, sin = rope(raw, positions[None], **({} if shape == "llama" else {"layer_type": kind}))
            a, b = raw.chunk(2, -1)
            keys.append((raw * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None])[0])
        return torch.stack(keys)

    moved = eng.rotary.turn(made(here), here, here + far)
    assert (moved - made(here + far)).abs().max() < 1e-5
    by_distance = eng.rotary.turn(made(here), torch.zeros(40), torch.full((40,), far))
    assert (by_distance - made(here + far)).abs().max() > 1e-4
