"""The TransformerLens side against the engine, against the plain model with the same intervention, and for what it must
leave alone."""

from __future__ import annotations

import socket
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from tiny import CONFIGS, engine, layout, plain_model
from torch import nn
from transformers import LlamaForCausalLM

from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.lens import check, lens
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan, keep
from kvattn.errors import KvattnError

SHAPES = list(CONFIGS)
ROW, LOGIT = 1e-5, 1e-4


@cache
def shared(shape: str) -> Engine:
    """An engine for the tests that change nothing on it; its lens is made once."""
    return engine(shape)


def run(eng: Engine, plan: KVPlan, **more) -> Any:
    """An execution with everything that is optional in one: logits, decision rows, cache."""
    return eng.execute([plan], Wanted(rows=True), keep_cache=True, **more)[0]


def linked(eng: Engine, x) -> KVPlan:
    """Every candidate made alone and moved to its place, the rest recomputed."""
    placed = []
    for s in x.each("candidate"):
        alone = x.select(lambda t, s=s: t is s)
        block = eng.encode(alone).span(0, s.length).moved(x.positions[s.start : s.stop], eng.rotary)
        placed.append((s, block))
    return keep(x, 4, placed)


def exact(eng: Engine, execution) -> bool:
    row, logit = check(eng, execution)
    return row < ROW and logit < LOGIT


@pytest.mark.parametrize("shape", SHAPES)
def test_row_and_logits_equal_the_executions_under_every_kind_of_plan(shape):
    eng, x = shared(shape), layout(1)
    full = run(eng, dense_plan(x, 4))
    stale = run(eng, linked(eng, x))
    assert exact(eng, full)
    assert exact(eng, stale)
    assert (full.logits - stale.logits).abs().max() > 100 * LOGIT  # the two caches are not the same cache
    assert exact(eng, run(eng, dense_plan(x, 4, Visibility.isolated(x))))

    seen = x.names.index("candidate:1")
    rule = Visibility.full(x).cut([(x.names.index("suffix"), seen)], 4, 4, where=[(1, 2), (3, 0)])
    cut = run(eng, dense_plan(x, 4, rule))
    assert exact(eng, cut)
    candidate = x.segments[seen]
    row = lens(eng).run(cut)[1][..., candidate.start : candidate.stop]
    assert not row[1, 2].any()
    assert not row[3, 0].any()

    stacked = x.shared_start("candidate")
    assert exact(eng, run(eng, dense_plan(stacked, 4, Visibility.isolated(x, ("candidate",)))))

    depth = torch.randint(0, 5, (len(x),), generator=torch.Generator().manual_seed(4))
    depth[-1] = 4
    assert exact(eng, run(eng, KVPlan.of(x, 4, depth, (Kept(full.span(0, len(x)), 0),))))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_branch_of_a_yes_no_layout_is_a_decision_step(shape):
    eng, x = shared(shape), layout(2, branches=True)
    full = run(eng, dense_plan(x, 4))
    assert exact(eng, full)
    steps = [lens(eng).run(full, which=i)[0] for i in range(3)]
    assert (steps[0] - steps[1]).abs().max() > 100 * LOGIT
    with pytest.raises(KvattnError, match="decision 3"):
        lens(eng).run(full, which=3)


def test_tokens_decoded_after_the_prompt_are_not_seen():
    eng, x = shared("mistral-window"), layout(3)
    full = run(eng, dense_plan(x, 4), room=5)
    assert len(list(islice(eng.stream(full), 5))) == 5
    assert exact(eng, full)


def test_half_precision_stays_within_its_rounding():
    for shape in ("llama", "phi3-partial", "gemma3"):
        eng, x = engine(shape, torch.bfloat16), layout(4)
        row, logit = check(eng, run(eng, dense_plan(x, 4)))
        assert row < 0.01
        assert logit < 0.05
        assert lens(eng).bridge.cfg.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lens_shares_the_weights_and_leaves_the_engine_alone(shape):
    eng, x = engine(shape), layout(5)
    full = run(eng, dense_plan(x, 4))
    before, kinds = full.keys.clone(), [type(m) for m in eng.model.modules()]
    view = lens(eng)
    view.run(full, view.knock_out([(0, 1)]))
    assert torch.equal(full.keys, before)
    again = run(eng, dense_plan(x, 4))
    assert torch.equal(again.logits, full.logits)
    assert [type(m) for m in eng.model.modules()] == kinds

    own = {t.untyped_storage().data_ptr() for t in (*eng.model.parameters(), *eng.model.buffers())}
    theirs = [t for m in (view.bridge, view.bridge.original_model) for t in (*m.parameters(), *m.buffers())]
    assert len(theirs) > 20
    made = [t for t in theirs if t.untyped_storage().data_ptr() not in own]
    # TransformerLens gives the unembedding a bias of zeros; nothing else is new.
    assert all(t.shape == (eng.model.config.vocab_size,) and not t.any() for t in made)
    assert {t.data_ptr() for t in eng.model.parameters()} <= {t.data_ptr() for t in theirs}


def test_the_lens_is_made_once_and_again_when_the_weights_move():
    eng, x = engine("llama"), layout(6)
    head: nn.Linear = eng.model.lm_head
    first = lens(eng)
    assert lens(eng) is first
    with torch.no_grad():
        head.weight.mul_(2.0)
    assert lens(eng) is first
    assert exact(eng, run(eng, dense_plan(x, 4)))
    head.weight = nn.Parameter(head.weight.detach() * 2)
    assert lens(eng) is not first
    assert exact(eng, run(eng, dense_plan(x, 4)))
    assert lens(engine("llama")) is not lens(eng)


@pytest.mark.parametrize("shape", SHAPES)
def test_knocked_out_heads_equal_a_plain_model_without_them(shape):
    """In the last layer, where the output matrix acts on the decision token alone."""
    eng, x = shared(shape), layout(7)
    full, view, model = run(eng, dense_plan(x, 4)), lens(eng), plain_model(shape)
    with torch.no_grad():
        for head in (1, 3):
            model.get_decoder().layers[3].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0.0
        want = model(x.token_ids[None]).logits[0, -1]
    got, rows = view.run(full, view.knock_out([(3, 1), (3, 3)]))
    assert (got - want).abs().max() < LOGIT
    assert (got - full.logits[0]).abs().max() > 10 * LOGIT
    assert (rows - full.captured.row(len(x) - 1)).abs().max() < ROW


@pytest.mark.parametrize("shape", SHAPES)
def test_patched_rows_equal_a_plain_model_that_moves_the_values_by_them(shape):
    eng, x = shared(shape), layout(8)
    full, view, model = run(eng, dense_plan(x, 4)), lens(eng), plain_model(shape)
    rows = full.captured.row(len(x) - 1).clone()
    rows[3] = torch.rand(4, len(x), generator=torch.Generator().manual_seed(8)).softmax(-1)

    def move(_module, args):
        z = args[0].clone()
        z[0, -1] = torch.einsum("hn,hnd->hd", rows[3], full.values[3].repeat_interleave(2, 0)).flatten()
        return (z,)

    handle = model.get_decoder().layers[3].self_attn.o_proj.register_forward_pre_hook(move)
    with torch.inference_mode():
        want = model(x.token_ids[None]).logits[0, -1]
    handle.remove()
    got, patched = view.run(full, view.patch_rows(rows))
    assert (got - want).abs().max() < LOGIT
    assert (got - full.logits[0]).abs().max() > 10 * LOGIT
    assert torch.allclose(patched, rows, atol=ROW)
    one = view.run(full, view.patch_rows(rows, [(3, 2)]))[1]
    assert torch.allclose(one[3, 2], rows[3, 2], atol=ROW)
    assert torch.allclose(one[3, :2], full.captured.row(len(x) - 1)[3, :2], atol=ROW)


def test_a_pattern_and_the_values_it_moves_can_come_from_different_plans():
    eng, x = shared("qwen3"), layout(9)
    full, stale, view = run(eng, dense_plan(x, 4)), run(eng, linked(eng, x)), lens(eng)
    last = len(x) - 1
    back, _ = view.run(stale, view.patch_rows(stale.captured.row(last)))
    assert (back - stale.logits[0]).abs().max() < LOGIT
    pattern, rows = view.run(stale, view.patch_rows(full.captured.row(last)))
    assert torch.allclose(rows, full.captured.row(last), atol=ROW)
    values, _ = view.run(full, view.patch_rows(stale.captured.row(last)))
    for mixed in (pattern, values):
        for pure in (full, stale):
            assert (mixed - pure.logits[0]).abs().max() > 10 * LOGIT


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_cached_by_transformerlens_names_and_shapes(shape):
    eng, x = shared(shape), layout(10)
    full, view = run(eng, dense_plan(x, 4)), lens(eng)
    names = ["blocks.2.attn.hook_pattern", "blocks.2.attn.hook_z", "blocks.3.hook_resid_post"]
    logits, cache = view.run_with_cache(full, names)
    assert (logits - full.logits[0]).abs().max() < LOGIT
    assert cache["blocks.2.attn.hook_pattern"].shape == (1, 4, 1, len(x))
    assert cache["blocks.2.attn.hook_z"].shape == (1, 1, 4, 8)
    with torch.inference_mode():
        hidden = plain_model(shape).get_decoder()(x.token_ids[None], output_hidden_states=True).hidden_states
        final = eng.model.get_decoder().norm(cache["blocks.3.hook_resid_post"])
    assert torch.allclose(final[0, 0], hidden[-1][0, -1], atol=1e-3)
    _, gone = view.run_with_cache(full, names, hooks=view.knock_out([(2, 0)]))
    assert not gone["blocks.2.attn.hook_z"][0, 0, 0].any()
    assert gone["blocks.2.attn.hook_z"][0, 0, 1].any()
    assert len(view.run_with_cache(full)[1]) > 40


def test_what_cannot_be_done_is_refused_in_one_line():
    eng, x = shared("llama"), layout(11)
    full, view = run(eng, dense_plan(x, 4)), lens(eng)
    bad = [
        (lambda: view.run(eng.execute([dense_plan(x, 4)])[0]), "keep_cache=True"),
        (lambda: view.run(eng.probe(dense_plan(x, 4), 2)), "probe"),
        (lambda: check(eng, eng.encode(x)), "rows=True"),
        (
            lambda: view.run(full, [("blocks.1.attn.hook_patern", print)]),
            r"did you mean 'blocks\.1\.attn\.hook_pattern'",
        ),
        (lambda: view.run_with_cache(full, "blocks.9.attn.hook_z"), r"blocks\.9"),
        (lambda: view.knock_out([(4, 0)]), r"no head \(4, 0\)"),
        (lambda: view.patch_rows(torch.zeros(2, 4, 9)), "shape"),
        (lambda: view.run(full, view.patch_rows(torch.ones(4, 4, 9))), "do not fit"),
        (lambda: view.run(full, view.patch_rows(torch.ones(4, 4, 500))), "do not fit"),
    ]
    for call, words in bad:
        with pytest.raises(KvattnError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert exact(eng, full)  # no hook of a refused run stays behind
    full.keys = full.values = torch.zeros(3, 2, len(x), 8)
    with pytest.raises(KvattnError, match="another model"):
        view.run(full)


def test_a_model_that_the_bridge_cannot_wrap_is_named():
    class HomemadeForCausalLM(LlamaForCausalLM):
        pass

    eng = engine("llama")
    eng.model.__class__ = HomemadeForCausalLM
    with pytest.raises(KvattnError, match="cannot wrap HomemadeForCausalLM") as caught:
        lens(eng)
    assert "\n" not in str(caught.value)
    eng = engine("llama")
    eng.model.to("meta")
    with pytest.raises(KvattnError, match="LlamaForCausalLM on one device"):
        lens(eng)


def test_nothing_is_looked_up_on_the_network(monkeypatch):
    def refuse(*_args, **_more):
        raise AssertionError("the lens opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert all(lens(engine(shape)) for shape in SHAPES)
    with pytest.raises(AssertionError, match="opened a connection"):
        socket.create_connection(("localhost", 9))
