"""The engine against the plain forward of the same weights, on every supported shape."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from tiny import CONFIGS, engine, layout, logits_of, plain_model

from kvattn.engine.capture import Recorder, Wanted
from kvattn.engine.engine import Continued
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.queries import Pass
from kvattn.errors import KvattnError

SHAPES = list(CONFIGS)
BOUND = {torch.float32: 2e-4, torch.bfloat16: 0.35}
DTYPES = [pytest.param(d, id=str(d)[6:]) for d in BOUND]


def scale(reference: torch.Tensor) -> float:
    return float(reference.std())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 24])
def test_everything_recomputed_equals_the_plain_forward(shape, dtype, batch):
    eng = engine(shape, dtype)
    layouts = [layout(seed) for seed in range(batch)]
    got = eng.execute([dense_plan(x, 4) for x in layouts], max_batch=24)
    model = plain_model(shape, dtype)
    for x, run in zip(layouts, got, strict=True):
        want = logits_of(model, x.token_ids)
        assert (run.logits[0] - want).abs().max() < BOUND[dtype] * scale(want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1024, 5])
def test_a_random_half_kept_from_a_dense_pass_equals_dense(shape, dtype, chunk):
    eng, x = engine(shape, dtype, chunk), layout(1)
    full = eng.execute([dense_plan(x, 4)], keep_cache=True)[0]
    g = torch.Generator().manual_seed(3)
    plans = []
    for _ in range(3):  # a batch whose rows keep different tokens, equally many
        kept = torch.randperm(len(x) - 1, generator=g)[: len(x) // 2]
        depth = torch.full((len(x),), 4)
        depth[kept] = 0
        plans.append(KVPlan.of(x, 4, depth, tuple(Kept(full.span(i, i + 1), i) for i in kept.tolist())))
    want = logits_of(plain_model(shape, dtype), x.token_ids)
    for run in eng.execute(plans):
        assert run.cost.batch == 3
        assert (run.logits[0] - want).abs().max() < BOUND[dtype] * scale(want)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "mistral-window"])
@pytest.mark.parametrize("chunk", [1024, 5])
def test_tokens_that_leave_at_any_layer_change_nothing_when_their_kv_is_denses(shape, chunk):
    eng, x = engine(shape, chunk=chunk), layout(2)
    full = eng.execute([dense_plan(x, 4)], keep_cache=True)[0]
    depth = torch.randint(0, 5, (len(x),), generator=torch.Generator().manual_seed(4))
    depth[-1] = 4
    plan = KVPlan.of(x, 4, depth, (Kept(full.span(0, len(x)), 0),))
    run = eng.execute([plan, plan])[0]
    want = logits_of(plain_model(shape), x.token_ids)
    assert (run.logits[0] - want).abs().max() < 2e-4 * scale(want)
    assert run.cost.token_layers == int(depth.sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_moved_block_equals_the_block_made_there(shape):
    eng, x = engine(shape), layout(5)
    alone = x.select(lambda s: s.role == "candidate" and s.slot == 1)
    here = eng.encode(alone)
    far = alone.positions + 57
    there = eng.execute([KVPlan.of(alone, 4, torch.full((len(alone),), 4), positions=far)], keep_cache=True)[0]
    moved = here.span(0, len(alone)).moved(far, eng.rotary)
    assert (moved.keys - there.keys).abs().max() < 1e-4 * float(there.keys.std())
    assert (moved.values - there.values).abs().max() < 1e-4 * float(there.values.std())
    back = moved.moved(alone.positions, eng.rotary)
    assert (back.keys - here.keys).abs().max() < 1e-4 * float(there.keys.std())
    assert (moved.keys - here.keys).abs().max() > 0.1 * float(there.keys.std())


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_after_a_stitched_prompt_equals_the_models_own(shape):
    eng, x, model = engine(shape), layout(6), plain_model(shape)
    full = eng.execute([dense_plan(x, 4)], keep_cache=True)[0]
    depth = torch.full((len(x),), 4)
    depth[5:20] = 0
    plan = KVPlan.of(x, 4, depth, (Kept(full.span(5, 20), 5),))
    run = eng.execute([plan], room=6)[0]
    ids, want = x.token_ids, []
    for _ in range(6):
        want.append(int(logits_of(model, ids).argmax()))
        ids = torch.cat([ids, torch.tensor(want[-1:])])
    assert [step.token for step in islice(eng.stream(run), 6)] == want
    assert eng.generate([Continued(run, 6)]) == [want]
    second = want.index(want[2])  # where a token ends a row, others go on
    after = [Continued(run, 6, lambda logits: int(logits.argsort()[-2])), Continued(run, 6)]
    rows = eng.generate(after, frozenset(want[2:3]))
    assert rows[1] == want[:second]
    assert rows[:1] == eng.generate(after[:1], frozenset(want[2:3]))
    with pytest.raises(KvattnError, match="room"):
        eng.extend(run, [5, 5])


@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_of_any_length_are_continued_side_by_side(shape):
    """Each as alone, which is as the plain model goes on; what sees otherwise than causally is decoded apart."""
    eng, model = engine(shape), plain_model(shape)
    layouts = [layout(6, slots, length) for slots, length in ((3, 9), (2, 4), (4, 20), (3, 9))]
    plans = [dense_plan(x, 4) for x in layouts]
    plans.append(dense_plan(layouts[1], 4, Visibility.isolated(layouts[1])))
    rows = [Continued(run, n) for run, n in zip(eng.execute(plans, keep_cache=True), (6, 3, 6, 1, 5), strict=True)]
    together = eng.generate(rows)
    assert together == [eng.generate([row])[0] for row in rows]
    for x, made in zip(layouts, together, strict=False):
        ids = x.token_ids
        for token in made:
            assert token == int(logits_of(model, ids).argmax())
            ids = torch.cat([ids, torch.tensor([token])])
    assert [len(made) for made in together] == [6, 3, 6, 1, 5]


@pytest.mark.parametrize("shape", ["llama", "llama-dynamic"])
def test_a_row_that_has_ended_goes_no_further_beside_others(shape):
    """One turns all rows by the furthest position of a batch, once that lies behind the context it was trained on."""
    eng = engine(shape)
    runs = eng.execute([dense_plan(layout(*x), 4) for x in ((1, 4, 50), (2, 2, 4), (3, 2, 6))], keep_cache=True)
    rows, said = [Continued(run, n) for run, n in zip(runs, (22, 60, 60), strict=True)], []
    assert len(runs[0].plan.layout) + 22 == eng.geometry.max_tokens
    alone = [eng.generate([row])[0] for row in rows]

    def watched(logits):
        said.append(logits.clone())
        return alone[1][len(said) - 1]

    eng.generate([rows[1]._replace(choose=watched)])
    want, said[:] = list(said), []
    assert eng.generate([rows[0], rows[1]._replace(choose=watched), rows[2]]) == alone
    torch.testing.assert_close(torch.stack(said), torch.stack(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1024, 7])
def test_rows_equal_eagers_and_sum_to_one(shape, chunk):
    eng, x = engine(shape, chunk=chunk), layout(7)
    queries = (len(x) - 1, 20, 3)
    run = eng.execute([dense_plan(x, 4)], Wanted(queries=queries, rows=True))[0]
    with torch.inference_mode():
        eager = plain_model(shape, kernel="eager")(x.token_ids[None], output_attentions=True).attentions
    for which, q in enumerate(queries):
        want = torch.stack([a[0, :, q] for a in eager])
        assert (run.captured.rows[which] - want).abs().max() < 1e-4
        for i, s in enumerate(x.segments):
            assert torch.allclose(run.captured.mass[which, ..., i], want[..., s.start : s.stop].sum(-1), atol=1e-4)
    assert (run.captured.mass.sum(-1) - 1).abs().max() < 1e-5


def test_norms_equal_attention_times_value_times_output_matrix():
    eng, x = engine("qwen3"), layout(8)
    run = eng.execute([dense_plan(x, 4)], Wanted(rows=True, norms=True), keep_cache=True)[0]
    row, values = run.captured.rows[0], run.values
    for layer in range(4):
        w = eng.model.model.layers[layer].self_attn.o_proj.weight
        for head in range(4):
            part = w[:, head * 8 : head * 8 + 8]
            for i, s in enumerate(x.segments):
                moved = row[layer, head, s.start : s.stop] @ values[layer, head // 2, s.start : s.stop]
                assert torch.isclose(run.captured.norm[0, layer, head, i], (part @ moved).norm(), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_visibility_equals_a_brute_force_mask_of_the_plain_model(shape):
    """The true mask against the plain eager model fed a hand-made 4-D float mask by layer type."""
    eng, x, model = engine(shape), layout(9), plain_model(shape, kernel="eager")
    n = len(x)
    allowed = torch.zeros(n, n, dtype=torch.bool)
    names = x.names
    for q in range(n):
        for k in range(q + 1):
            a, b = x.segments[int(x.segment_of[q])], x.segments[int(x.segment_of[k])]
            cut = a.slot is not None and b.slot is not None and a.slot != b.slot
            allowed[q, k] = not cut
    rows = []
    for layer in model.get_decoder().layers:
        window = eng.geometry.windows[layer.self_attn.layer_idx]

        def force(_m, args, kwargs, window=window):
            m = allowed if window is None else allowed & (torch.arange(n)[:, None] - torch.arange(n)[None] < window)
            kwargs["attention_mask"] = torch.zeros(n, n).masked_fill(~m, torch.finfo(torch.float32).min)[None, None]
            return args, kwargs

        rows.append(layer.register_forward_pre_hook(force, with_kwargs=True))
    want = logits_of(model, x.token_ids)
    got = eng.execute([dense_plan(x, 4, Visibility.isolated(x))])[0].logits[0]
    assert (got - want).abs().max() < 2e-4 * scale(want)
    assert len(names) == 13


def test_visibility_by_layer_and_head_cuts_there_and_nowhere_else():
    eng, x = engine("llama"), layout(10)
    source, target = x.names.index("candidate:1"), x.names.index("suffix")
    rule = Visibility.full(x).cut([(target, source)], layers=4, heads=4, where=[(1, 2), (3, 0)])
    mass = eng.execute([dense_plan(x, 4, rule)], Wanted())[0].captured.mass[0, ..., source]
    cut = torch.zeros(4, 4, dtype=torch.bool)
    cut[1, 2] = cut[3, 0] = True
    assert (mass[cut] == 0).all()
    assert (mass[~cut] > 1e-6).all()


def test_branches_equal_separate_prompts():
    """A branch sees the prompt and itself: its logits are those of the prompt followed by that branch alone."""
    for shape in SHAPES:
        eng, x, model = engine(shape), layout(11, branches=True), plain_model(shape)
        got = eng.execute([dense_plan(x, 4)])[0].logits
        trunk = x.token_ids[: x.find("branch", 0).start]
        for i, s in enumerate(x.each("branch")):
            want = logits_of(model, torch.cat([trunk, x.token_ids[s.start : s.stop]]))
            assert (got[i] - want).abs().max() < 2e-4 * scale(want), shape


def test_probe_computes_the_first_layers_and_meters_them():
    eng, x = engine("llama"), layout(12)
    full = eng.execute([dense_plan(x, 4)], Wanted(rows=True), keep_cache=True)[0]
    before = eng.meter.token_layers
    got = eng.probe(dense_plan(x, 4), 2, Wanted(rows=True))
    assert eng.meter.token_layers - before == 2 * len(x) == got.cost.token_layers
    assert torch.allclose(got.values[:3], full.values[:3], atol=1e-5)
    assert got.values[2].any()
    assert not got.values[3:].any()
    assert torch.allclose(got.captured.rows[0], full.captured.rows[0][:2], atol=1e-5)
    with pytest.raises(KvattnError, match="depth"):
        eng.probe(dense_plan(x, 4), 4)


def test_metered_token_layers_equal_a_hand_count():
    eng, x = engine("llama"), layout(13)
    full = eng.execute([dense_plan(x, 4)], keep_cache=True)[0]
    depth = torch.full((len(x),), 4)
    depth[2:10], depth[12:15] = 0, 1
    kept = (Kept(full.span(2, 10), 2), Kept(full.span(12, 15), 12))
    cost = eng.execute([KVPlan.of(x, 4, depth, kept)])[0].cost
    assert cost.token_layers == 4 * (len(x) - 11) + 3
    assert cost.tokens_computed == len(x) - 8
    assert cost.share == pytest.approx((4 * (len(x) - 11) + 3) / (4 * len(x)))


def test_plans_that_cannot_be_right_are_refused():
    x = layout(14)
    with pytest.raises(ValueError, match="kept block"):
        KVPlan.of(x, 4, torch.zeros(len(x), dtype=torch.long))
    eng = engine("llama")
    full = eng.execute([dense_plan(x, 4)], keep_cache=True)[0]
    with pytest.raises(ValueError, match="decision"):
        KVPlan.of(x, 4, torch.zeros(len(x), dtype=torch.long), (Kept(full.span(0, len(x)), 0),))
    other = layout(15)
    with pytest.raises(ValueError, match="token ids"):
        KVPlan.of(other, 4, torch.full((len(x),), 4), (Kept(full.span(12, 20), 12),))
    with pytest.raises(ValueError, match="overlaps"):
        KVPlan.of(x, 4, torch.full((len(x),), 4), (Kept(full.span(2, 8), 2), Kept(full.span(7, 9), 7)))


def test_the_models_own_forward_is_refused_until_it_is_given_back():
    eng, x = engine("llama"), layout(16)
    with pytest.raises(KvattnError, match="release"):
        eng.model(x.token_ids[None])
    want = logits_of(plain_model("llama"), x.token_ids)
    assert torch.allclose(logits_of(eng.release(), x.token_ids), want, atol=1e-4)


@pytest.mark.parametrize("chunk", [1024, 11])
def test_many_queries_at_once_equal_each_alone(chunk):
    eng = engine("gemma3", chunk=chunk)
    xs = [layout(seed) for seed in (20, 21)]
    queries = tuple(range(len(xs[0])))[::-1]  # every token, in no order
    rule = [dense_plan(x, 4, Visibility.isolated(x)) for x in xs]
    both = eng.execute(rule, Wanted(queries=queries, rows=True, norms=True))
    for run in both:
        for which in (0, 7, len(queries) - 1):
            alone = eng.execute([run.plan], Wanted(queries=(queries[which],), rows=True, norms=True))[0].captured
            assert torch.allclose(run.captured.rows[which], alone.rows[0], atol=1e-5)
            assert torch.allclose(run.captured.norm[which], alone.norm[0], atol=1e-4)


def test_one_mask_is_held_under_a_rule_by_layer():
    eng, x = engine(), layout(7)
    rule = Visibility.full(x).cut([(len(x.segments) - 1, 2)], 4, 4, where=[(0, 1), (2, 3)])
    run = eng.execute([dense_plan(x, 4, rule)], room=1)[0]
    assert len(run.state.current._masks) == 1
    both = eng.execute([dense_plan(layout(7), 4)], room=1)[0]  # windows and full attention take turns
    assert len(both.state.current._masks) <= 2


@pytest.mark.parametrize("shape", ["gemma3"])
def test_masks_of_alternating_windows_are_made_once(shape, monkeypatch):
    made = []
    make = Pass._make
    monkeypatch.setattr(Pass, "_make", lambda self, *args: made.append(args) or make(self, *args))
    eng, x = engine(shape), layout(7, length=30)
    eng.execute([dense_plan(x, 4)])
    assert len(made) == len(set(eng.geometry.windows)) == 2


def test_calls_without_a_wanted_query_compute_no_rows(monkeypatch):
    eng, x, calls = engine(chunk=7), layout(7), []
    some = Recorder._some
    monkeypatch.setattr(Recorder, "_some", lambda self, *args: calls.append(args[-1]) or some(self, *args))
    eng.execute([dense_plan(x, 4, Visibility.isolated(x))], Wanted())  # a mask: several calls
    assert len(x) > 3 * 7
    assert [place.own.shape[1] for place in calls] == [1] * 4


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch):
    eng, x = engine(), layout(7)
    for budget, sizes in ((10**6, {8}), (3 * len(x) + 1, {3, 2}), (1, {1})):
        eng.batch_tokens = budget
        runs = eng.execute([dense_plan(layout(7), 4)] * 8)
        assert {r.cost.batch for r in runs} == sizes
