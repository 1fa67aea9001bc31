"""Adapters that reach computed tokens alone, and link tokens, against a merged model and plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import long_judge, plain_model, short_prompt, tokenizer

from kvattn import methods
from kvattn.engine import sharing
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.gradients import differentiable
from kvattn.engine.influence import explain
from kvattn.engine.links import with_links
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.reach import Adapter, Reach
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.methods.repaired import reach_of

SHAPES = ("llama", "gemma3", "mistral-window", "phi3-partial")
PROMPT = short_prompt("What is 2+2?", ["two and two is four", "it is 5", "four, since 2+2=4", "4!"])
FRESH = ("header", "separator", "suffix", "link")


def adapter(judge: Judge, links: int = 0, seed: int = 0) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    lora = {
        name: (torch.randn(2, m.in_features, generator=g) / 4, torch.randn(m.out_features, 2, generator=g) / 4)
        for name, m in judge.engine.model.get_decoder().named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    width = judge.engine.model.config.hidden_size
    return Adapter(lora, torch.randn(links, width, generator=g) if links else None, scale=0.5)


@pytest.fixture(scope="module", params=SHAPES)
def judge(request) -> Judge:
    return long_judge(request.param)


def plans(judge: Judge, spec: str, roles=FRESH, links: int = 0, orders=((0, 1, 2, 3), (2, 0, 3, 1))) -> list[KVPlan]:
    blocks, learned, method = Blocks(judge.engine, PROMPT), adapter(judge, links), methods.get(spec)
    layouts = [judge.compile(PROMPT.ordered(o)) for o in orders]
    return [reach_of(method.plan(x, blocks, judge.engine), roles, learned) for x in layouts]


def test_on_all_tokens_it_is_the_merged_model(judge):
    layout, learned = judge.compile(PROMPT), adapter(judge)
    merged = copy.deepcopy(plain_model(judge.shape))
    modules = dict(merged.get_decoder().named_modules())
    with torch.no_grad():
        for name, (down, up) in learned.lora.items():
            modules[name].weight += (learned.scale * (up @ down)).to(modules[name].weight)
    want = Engine(merged, tokenizer())
    want.compiler.max_tokens = None
    plan = replace(dense_plan(layout, judge.engine.layers), reach=Reach(learned, torch.ones(len(layout), dtype=bool)))
    a, b = judge.engine.execute([plan])[0], want.execute([dense_plan(layout, want.layers)])[0]
    assert (a.logits - b.logits).abs().max() < 1e-4 * b.logits.std()
    plain = judge.engine.execute([dense_plan(layout, judge.engine.layers)])[0]
    assert (a.logits - plain.logits).abs().max() > 0.01 * plain.logits.std()


def test_where_it_does_not_reach_everything_is_the_base_bit_for_bit(judge):
    (plan, _) = plans(judge, "tail:tokens=2", ("suffix",))
    base = replace(plan, reach=None)
    with_, without = (judge.engine.execute([p], keep_cache=True)[0] for p in (plan, base))
    before = plan.layout.find("suffix").start
    assert torch.equal(with_.keys[:, :, :before], without.keys[:, :, :before])
    assert torch.equal(with_.values[:, :, :before], without.values[:, :, :before])
    assert not torch.equal(with_.logits, without.logits)


@pytest.mark.parametrize("spec", ["naive-linked", "tail:tokens=2", "links:count=2", "links:count=2,sight=blind"])
def test_kept_keys_and_values_are_those_of_the_blocks_bit_for_bit(judge, spec):
    for plan in plans(judge, spec, links=2 if "links" in spec else 0):
        run, kept = judge.engine.execute([plan], keep_cache=True)[0], 0
        for k in plan.kept:
            span = slice(k.start, k.start + len(k.block))
            still = plan.depth[span] == 0
            placed = k.block.moved(plan.positions[span], judge.engine.rotary)
            kept += int(still.sum())
            assert torch.equal(run.keys[:, :, span][:, :, still].cpu(), placed.keys[:, :, still].cpu())
            assert torch.equal(run.values[:, :, span][:, :, still].cpu(), k.block.values[:, :, still].cpu())
        assert kept


@pytest.mark.parametrize("spec", ["naive-linked", "tail:tokens=2", "links:count=3", "last-k:budget=0.5,shrink=0.5"])
def test_the_training_forward_is_the_engine(judge, spec):
    some = plans(judge, spec, (*FRESH, "candidate"), links=3 if "links" in spec else 0)
    want = [r.logits for r in judge.engine.execute(some)]
    leaves = [t.requires_grad_() for t in some[0].reach.adapter.tensors().values()]
    some = [replace(p, reach=replace(p.reach, adapter=some[0].reach.adapter)) for p in some]
    got = differentiable(judge.engine, some)
    for a, b in zip(got, want, strict=True):
        assert (a.detach().cpu() - b).abs().max() < 1e-5 * b.std()
    grads = torch.autograd.grad(sum(x.square().sum() for x in got), leaves)
    assert all(bool(g.abs().sum() > 0) for g in grads)


def test_the_gradient_is_that_of_finite_differences():
    judge = Judge(Engine(copy.deepcopy(plain_model("llama", torch.float64)), tokenizer()))
    judge.engine.compiler.max_tokens = None
    (plan, _) = plans(judge, "tail:tokens=2", (*FRESH, "candidate"))
    learned = plan.reach.adapter
    down, up = (t.double() for t in learned.lora["layers.1.self_attn.v_proj"])
    up.requires_grad_()
    lora = {k: tuple(t.double() for t in v) for k, v in learned.lora.items()} | {
        "layers.1.self_attn.v_proj": (down, up)
    }

    def loss() -> torch.Tensor:
        reach = replace(plan.reach, adapter=Adapter(lora, None, learned.scale))
        return differentiable(judge.engine, [replace(plan, reach=reach)])[0].double().square().mean()

    (grad,) = torch.autograd.grad(loss(), [up])
    way, ends = grad / grad.norm(), []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            up += step * way
            ends.append(float(loss()))
            up -= step * way
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(grad.norm()), rel=5e-3)


def test_batched_or_shared_or_alone_it_decides_alike(judge):
    some = plans(judge, "links:count=2", links=2, orders=((0, 1, 2, 3), (0, 1, 3, 2), (3, 1, 2, 0)))
    base = [replace(p, reach=None) for p in some]
    other = [replace(p, reach=replace(p.reach, adapter=adapter(judge, 2, seed=1))) for p in some]
    mixed = [*some, *base, *other]
    alone = [judge.engine.execute([p])[0].logits for p in mixed]
    for runs in (judge.engine.execute(mixed), sharing.execute(judge.engine, mixed)):
        for run, want in zip(runs, alone, strict=True):
            assert (run.logits - want).abs().max() < 2e-4 * want.std()


def test_decoded_tokens_carry_the_adapter_of_the_token_before_them():
    judge = long_judge("llama")
    (plan, _) = plans(judge, "naive-linked")
    run = judge.engine.execute([plan], room=2)[0]
    (base,) = judge.engine.execute([replace(plan, reach=None)], room=2)
    assert not torch.allclose(judge.engine.extend(run, [5])[0], judge.engine.extend(base, [5])[0])
    with pytest.raises(KvattnError, match="an adapter acts on its tokens"):
        judge.engine.execute([plan], keep_cache=True)[0].past_key_values()


def test_link_tokens_stand_behind_their_candidates_and_are_computed():
    judge = long_judge("llama")
    layout, blocks = judge.compile(PROMPT), Blocks(judge.engine, PROMPT)
    old = methods.get("naive-linked").plan(layout, blocks, judge.engine)
    plan = with_links(old, [7, 8])
    names = plan.layout.names
    for slot in range(1, 5):
        assert names[names.index(f"candidate:{slot}") + 1] == f"link:{slot}"
    assert plan.layout.token_ids[plan.layout.mask("link")].tolist() == [7, 8] * 4
    assert torch.equal(plan.layout.token_ids[~plan.layout.mask("link")], layout.token_ids)
    assert torch.equal(plan.positions, torch.arange(len(plan.layout)))
    assert plan.token_layers == old.token_layers + 8 * judge.engine.layers
    assert plan.layout.answer_ids == layout.answer_ids


def test_links_in_a_dense_plan_are_text():
    """A dense plan with links is the dense prompt that has those tokens in it."""
    judge = long_judge("llama")
    plan = with_links(dense_plan(judge.compile(PROMPT), judge.engine.layers), [7, 8])
    want = plain_model("llama")(plan.layout.token_ids[None].to(judge.engine.device)).logits[0, -1]
    got = judge.engine.execute([plan])[0].logits[0]
    assert (got - want.cpu()).abs().max() < 1e-4 * want.std()


def test_learned_links_replace_their_embeddings_and_no_other():
    judge = long_judge("llama")
    (plan, _) = plans(judge, "links:count=2", ())
    table = judge.engine.model.get_input_embeddings().weight
    same = Adapter({}, table[plan.layout.token_ids[plan.layout.mask("link")][:2]].detach().clone())
    none = torch.zeros(len(plan.layout), dtype=torch.bool)
    a, b = judge.engine.execute([replace(plan, reach=None), replace(plan, reach=Reach(same, none))])
    assert torch.equal(a.logits, b.logits)
    with pytest.raises(ValueError, match="embeddings for 3 link tokens"):
        replace(plan, reach=Reach(Adapter({}, torch.zeros(3, table.shape[1])), none))


def test_links_cut_a_block_that_spans_them():
    judge = long_judge("llama")
    layout = judge.compile(PROMPT)
    whole = judge.engine.encode(layout).span(0, len(layout) - 1)
    depth = torch.zeros(len(layout), dtype=torch.long)
    depth[-1] = judge.engine.layers
    plan = with_links(KVPlan.of(layout, judge.engine.layers, depth, [Kept(whole, 0)]), [7])
    assert len(plan.kept) == 5
    assert sum(len(k.block) for k in plan.kept) == len(layout) - 1


@pytest.mark.parametrize(("spec", "sees"), [("links:count=2", True), ("links:count=2,sight=blind", False),
                                            ("tail:tokens=2", True), ("tail:tokens=2,sight=blind", False)])  # fmt: skip
def test_explain_says_who_sees_and_where_an_adapter_acts(judge, spec, sees):
    (plan, _) = plans(judge, spec, ("link", "candidate"), links=2 if "links" in spec else 0)
    graph = explain(plan)  # without the window, which some shapes have
    names = list(graph.names)
    later = names.index("link:3" if "links" in spec else "candidate:3")
    assert bool(graph.reaches[names.index("candidate:1"), later]) is sees
    assert graph.decision[names.index("candidate:1")]
    want = {n for n in names if n.startswith("link" if "links" in spec else "candidate")}
    assert set(graph.adapted) == want
    assert "an adapter acts on computed tokens of: " in str(graph)


def test_blind_and_seeing_cost_the_same(judge):
    for name in ("links:count=2", "tail:tokens=2"):
        a, b = (plans(judge, f"{name}{more}")[0] for more in ("", ",sight=blind"))
        assert a.token_layers == b.token_layers


def test_a_tail_that_leaves_early_is_the_whole_tail_below_and_its_base_above(judge):
    layers, layout = judge.engine.layers, judge.compile(PROMPT)
    blocks, leaves = Blocks(judge.engine, PROMPT), layers - 1
    spec = ("tail:tokens=2", f"tail:tokens=2,layers={leaves}", "naive-linked")
    plan = [methods.get(s).plan(layout, blocks, judge.engine) for s in spec]
    whole, early, base = (x.cache() for x in judge.engine.execute(plan, keep_cache=True))
    tails = torch.zeros(len(layout), dtype=torch.bool)
    for s in layout.each("candidate"):
        tails[max(s.start, s.stop - 2) : s.stop] = True
    for kept, again, stale in zip(early, whole, base, strict=True):  # keys, then values: [layers, heads, tokens, width]
        assert torch.equal(kept[:leaves, :, tails], again[:leaves, :, tails])
        assert torch.equal(kept[leaves:, :, tails], stale[leaves:, :, tails])
        assert not torch.allclose(again[leaves:, :, tails], stale[leaves:, :, tails])
    assert plan[0].token_layers - plan[1].token_layers == int(tails.sum()) * (layers - leaves)
    with pytest.raises(KvattnError, match=f"layers=99, but this model has {layers}"):
        methods.get("tail:layers=99").plan(layout, blocks, judge.engine)


def test_an_adapter_on_a_kept_token_is_refused(judge):
    (plan, _) = plans(judge, "naive-linked")
    with pytest.raises(ValueError, match="computed tokens alone"):
        replace(plan, reach=replace(plan.reach, tokens=torch.ones(len(plan.layout), dtype=torch.bool)))


def test_an_adapter_of_another_model_is_refused(judge):
    learned = adapter(judge)
    name, (down, up) = next(iter(learned.lora.items()))
    decoder = judge.engine.model.get_decoder()
    learned.check(decoder)
    with pytest.raises(KvattnError, match="do not fit"):
        Adapter({name: (down[:, 1:], up)}).check(decoder)
    with pytest.raises(KvattnError, match="no linear module"):
        Adapter({"layers.99.mlp": (down, up)}).check(decoder)


def test_full_visibility_needs_nothing_from_links():
    judge = long_judge("llama")
    plan = with_links(dense_plan(judge.compile(PROMPT), judge.engine.layers), [7])
    assert torch.equal(plan.visibility.allowed, Visibility.full(plan.layout).allowed)
