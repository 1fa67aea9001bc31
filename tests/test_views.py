"""Block matrix, drift, lens and attribution against the plain model and brute-force loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import engine, layout, plain_model

from kvattn import views
from kvattn.capture import Wanted
from kvattn.errors import KvattnError
from kvattn.plan import Kept, KVPlan, Visibility, dense_plan


def test_the_block_matrix_equals_a_loop_over_eagers_attention():
    eng, x = engine("qwen3"), layout(1)
    plan = dense_plan(x, 4)
    got = views.block_matrix(eng.execute([plan], views.computed_queries(plan))[0].captured, x)
    with torch.inference_mode():
        eager = plain_model("qwen3", kernel="eager")(x.token_ids[None], output_attentions=True).attentions
    for layer in range(4):
        for a, s in enumerate(x.segments):
            for b, t in enumerate(x.segments):
                want = eager[layer][0, :, s.start : s.stop, t.start : t.stop].sum(-1).mean(-1)
                assert torch.allclose(got[layer, :, a, b], want, atol=1e-4)
    assert torch.allclose(got.sum(-1), torch.ones(4, 4, len(x.segments)), atol=1e-4)


def test_kept_segments_have_no_rows():
    eng, x = engine("llama"), layout(2)
    full = eng.encode(x)
    s = x.find("candidate", 1)
    depth = torch.full((len(x),), 4)
    depth[s.start : s.stop] = 0
    plan = KVPlan(x, 4, depth, (Kept(full.block(s), s.start),))
    got = views.block_matrix(eng.execute([plan], views.computed_queries(plan))[0].captured, x)
    kept = x.names.index("candidate:2")
    assert got[:, :, kept].isnan().all()
    assert not got[:, :, [i for i in range(len(x.names)) if i != kept]].isnan().any()


def test_the_uniform_matrix_is_what_zero_queries_attend_to():
    eng, x = engine("llama"), layout(3)
    for layer in eng.model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    plan = dense_plan(x, 4)
    got = views.block_matrix(eng.execute([plan], views.computed_queries(plan))[0].captured, x)
    assert torch.allclose(got[2, 1], views.uniform_matrix(plan), atol=1e-5)


def test_the_uniform_matrix_knows_a_rule_by_head():
    eng, x = engine("llama"), layout(3)
    for layer in eng.model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    edge = (x.names.index("candidate:2"), x.names.index("candidate:1"))
    plan = dense_plan(x, 4, Visibility.full(x).cut([edge], 4, 4, [(2, 1)]))
    got = views.block_matrix(eng.execute([plan], views.computed_queries(plan))[0].captured, x)
    for layer, head in ((2, 0), (2, 1), (1, 1)):
        assert torch.allclose(got[layer, head], views.uniform_matrix(plan, layer, head=head), atol=1e-5)


def test_drift_is_zero_for_denses_own_kv_and_its_spectrum_finds_a_planted_rank():
    eng, x = engine("llama"), layout(4, length=20)
    full = eng.encode(x)
    s = x.find("candidate", 1)
    block = full.block(s)
    depth = torch.full((len(x),), 4)
    depth[s.start : s.stop] = 0

    def stitched(b):
        return eng.execute([KVPlan(x, 4, depth, (Kept(b, s.start),))], keep_cache=True)[0]

    keys, values = views.kv_drift(stitched(block), full)
    assert keys.max() < 1e-4
    assert values.max() < 1e-4
    g = torch.Generator().manual_seed(0)
    planted = torch.randn(s.length, 2, generator=g) @ torch.randn(2, 16, generator=g)
    change = planted.view(s.length, 2, 8).transpose(0, 1)[None].repeat(4, 1, 1, 1)
    moved = stitched(replace(block, values=block.values + change))
    spectrum = views.drift_spectrum(moved, full, "candidate:2")
    assert spectrum.shape == (4, 16)
    assert (spectrum[:, :2].sum(-1) > 0.999).all()
    t = s.start + 3
    want = change[1, :, 3].norm() / full.values[1, :, t].norm()
    assert views.kv_drift(moved, full)[1][1, t] == pytest.approx(float(want), rel=1e-3)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "phi3-partial"])
@pytest.mark.parametrize("chunk", [1024, 6])
def test_the_lens_last_stage_is_the_models_own_logits_and_earlier_ones_are_hidden_states(shape, chunk):
    eng, x = engine(shape, chunk=chunk), layout(5)
    run = eng.execute([dense_plan(x, 4)] * 2, Wanted(residual=True), keep_cache=True)[1]
    ids = (5, 6, 7, 40)
    got = views.logit_lens(eng, run.captured, ids)
    assert torch.allclose(got[0, -1], run.logits[0, list(ids)], atol=1e-3)
    model = plain_model(shape)
    with torch.inference_mode():
        hidden = model(x.token_ids[None], output_hidden_states=True).hidden_states
    for stage in range(4):
        assert torch.allclose(run.captured.residual[0, stage], hidden[stage][0, -1], atol=1e-3)


@torch.no_grad()
def test_attribution_sums_to_what_attention_writes_into_the_logits():
    eng, x = engine("llama"), layout(6)
    written = []
    for layer in eng.model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda _m, _a, out: written.append(out[0, -1].clone()))
    run = eng.execute([dense_plan(x, 4)], Wanted(residual=True, moved=True, norms=True))[0]
    ids = (5, 9)
    got = views.attribution(eng, run.captured, ids)
    last = run.captured.residual[0, -1]
    norm = eng.model.model.norm
    gain = norm.weight / (last.square().mean() + norm.variance_epsilon).sqrt()
    for layer in range(4):
        for i, token in enumerate(ids):
            want = (written[layer] * gain) @ eng.model.lm_head.weight[token]
            assert got[0, layer, ..., i].sum() == pytest.approx(float(want), rel=2e-3, abs=1e-4)
    assert torch.allclose(run.captured.moved[0].norm(dim=-1), run.captured.norm[0], atol=1e-4)
    other = engine("gemma3")
    captured = other.execute([dense_plan(x, 4)], Wanted(residual=True, moved=True))[0].captured
    with pytest.raises(KvattnError, match="no attribution by head"):
        views.attribution(other, captured, ids)
