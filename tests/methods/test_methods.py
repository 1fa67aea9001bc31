"""Contracts that every method keeps, on two tiny shapes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from tiny import engine, logits_of, long_judge, plain_model, short_prompt

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.plan import dense_plan
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.methods.over import Over
from kvattn.methods.selective import Selective
from kvattn.questions.prompt import JudgePrompt

SHAPES = ("llama", "gemma3")
TEXTS = ("two and two is four", "it is 5", "four, since 2+2=4", "4!")


POLICIES = [method for method in methods.registry().values() if issubclass(method, Selective)]
OVER = [name for name, method in methods.registry().items() if issubclass(method, Over)]
BASES = (
    *("naive-linked", "naive", "isolated", "isolated(labelled=False)", "foreign-kv"),
    *("low-rank-patch(rank=2)", "mismatched-order(seed=1)", "last-k(base=isolated(labelled=False),budget=0.1)"),
)
NESTED = (
    "last-k:budget=0.1,base=isolated(labelled=false)",
    "query-attention:base=naive",
    "kv-deviation:base=isolated,prefix=kept",
    "hybrid:base=last-k(base=isolated,budget=0.3)",
    "progressive:base=low-rank-patch(rank=2)",
    "mismatched-order:base=isolated",
)


def prompt(number: int = 0, texts=TEXTS) -> JudgePrompt:
    return short_prompt(f"What is 2+2? ({number})", [f"{t} ({number})" for t in texts], id=f"q{number}")


@pytest.fixture(scope="module", params=SHAPES)
def judge(request) -> Judge:
    return long_judge(request.param)


def every() -> list[methods.Method]:
    out = [methods.get(name) for name in methods.registry()]
    return out + [methods.get(s) for s in (*methods.LADDER[3:5], "naive", *NESTED)]


def plan_of(judge: Judge, method: methods.Method, p: JudgePrompt):
    if method.needs_warming:
        judge.warm(method, [prompt(8)])
    layout = judge.compile(method.prompts(p)[0] if method.name != "pointwise" else p)
    blocks = Blocks(judge.engine, p, donor=prompt(9))
    return layout, blocks, method.plan(layout, blocks, judge.engine)


@pytest.mark.parametrize("method", every(), ids=lambda m: m.label)
def test_a_plan_covers_the_prompt_and_computes_its_decision(judge, method):
    _, _, plan = plan_of(judge, method, prompt())
    kept, computed = plan.depth < judge.engine.layers, plan.depth == judge.engine.layers
    assert int(kept.sum()) + int(computed.sum()) == len(plan.layout)
    assert computed[list(plan.layout.decisions)].all()
    run = judge.engine.execute([plan])[0]
    assert run.cost.token_layers == int(plan.depth.sum())
    assert torch.isfinite(run.logits).all()


@pytest.mark.parametrize("method", every(), ids=lambda m: m.label)
def test_methods_are_deterministic(judge, method):
    found = []
    for _ in range(2):
        fresh = replace(method, **({"state": type(method.state)()} if hasattr(method, "state") else {}))
        if fresh.needs_warming:
            judge.warm(fresh, [prompt(8)])
        found.append(judge.judge(prompt(), [fresh], capture=False)[0])
    first, second = found
    assert (first.scores == second.scores).all()
    assert first.choice == second.choice


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
@pytest.mark.parametrize("per", ["slot", "whole"])
def test_full_budget_equals_dense_and_zero_budget_equals_naive(judge, policy, per):
    p = prompt().ordered((2, 0, 3, 1))
    layout, _, full = plan_of(judge, policy(budget=1.0, per=per), p)
    want = logits_of(plain_model(judge.shape), layout.token_ids)  # type: ignore[attr-defined]
    got = judge.engine.execute([full])[0].logits[0]
    assert (got - want).abs().max() < 2e-4 * want.std()
    none, naive = (judge.judge(p, [m], capture=False)[0] for m in (policy(budget=0.0), methods.get("naive-linked")))
    assert (none.scores == naive.scores).all()
    assert none.cost == replace(naive.cost, seconds=none.cost.seconds)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.name)
def test_budgets_are_spent_where_they_may_be(judge, policy):
    for per in ("slot", "whole"):
        layout, _, plan = plan_of(judge, policy(budget=0.4, per=per, shrink=0.5), prompt())
        inside = layout.mask("candidate")
        assert (plan.depth[~inside] == judge.engine.layers).all()
        counts = [int((plan.depth[inside] > layer).sum()) for layer in range(judge.engine.layers)]
        assert counts == sorted(counts, reverse=True)
        if per == "slot":
            for s in layout.each("candidate"):
                d = plan.depth[s.start : s.stop]
                assert int((d > 0).sum()) == round(0.4 * s.length)
                assert int((d == judge.engine.layers).sum()) == round(0.2 * s.length)
        else:
            assert counts[0] == round(0.4 * int(inside.sum()))


def test_first_k_and_last_k_take_the_ends():
    judge = Judge(engine("llama"))
    judge.engine.compiler.max_tokens = None
    for name, pick in (("first-k", slice(0, 5)), ("last-k", slice(-5, None))):
        layout, _, plan = plan_of(judge, methods.get(f"{name}:budget=0.25"), prompt(texts=("a" * 16, "b" * 16)))
        for s in layout.each("candidate"):
            expected = torch.zeros(s.length, dtype=torch.bool)
            expected[pick] = True
            assert torch.equal(plan.depth[s.start : s.stop] > 0, expected)


def test_kv_deviation_scores_equal_a_hand_computed_difference(judge):
    method = methods.get("kv-deviation")
    layout, blocks, _ = plan_of(judge, method, prompt())
    stale = methods.get("naive-linked").plan(layout, blocks, judge.engine)
    scores, spent = method.score(layout, blocks, judge.engine, stale)
    dense = judge.engine.encode(layout)
    for k in stale.kept:
        for t in range(len(k.block)):
            d = dense.values[1, :, k.start + t] - k.block.values[1, :, t]
            assert scores[k.start + t] == pytest.approx(float((d * d).sum()), rel=1e-3, abs=1e-6)
    assert spent == len(layout)


@pytest.mark.parametrize("role", ["gets", "gives", "both"])
def test_cross_candidate_scores_equal_sums_of_whole_rows(judge, role, monkeypatch):
    monkeypatch.setattr("kvattn.engine.capture.QUERIES_AT_ONCE", 7)
    method = methods.get(f"cross-candidate:role={role}")
    layout, blocks, stale = plan_of(judge, methods.get("naive-linked"), prompt().ordered((2, 0, 3, 1)))
    kept = []
    real = judge.engine.probe
    monkeypatch.setattr(judge.engine, "probe", lambda *args: kept.append(real(*args)) or kept[-1])
    scores, spent = method.score(layout, blocks, judge.engine, stale)
    assert kept[0].captured.rows is None  # tokens x tokens is never held
    spans = [range(s.start, s.stop) for s in layout.each("candidate")]
    asked = tuple(t for span in spans for t in span)
    probe = real(dense_plan(layout, judge.engine.layers), 2, Wanted(queries=asked, rows=True))
    rows, want = probe.rows().mean((1, 2)), torch.zeros(len(layout))
    for i, t in enumerate(asked):
        for other in asked:
            if not any(t in span and other in span for span in spans):
                want[t] += rows[i, other] if role != "gets" else 0
                want[other] += rows[i, other] if role != "gives" else 0
    assert (scores - want).abs().max() < 1e-6
    assert want.max() > 0
    assert spent == probe.cost.token_layers


def test_permuting_candidates_permutes_the_plan(judge):
    """The kept KV of a candidate depends on the candidate, not on the slot it is shown in, but for the move."""
    for name in ("naive-linked", "first-k", "isolated:labelled=false", "foreign-kv"):
        a, _, one = plan_of(judge, methods.get(name), prompt())
        b, _, two = plan_of(judge, methods.get(name), prompt().ordered((3, 2, 1, 0)))
        for slot, candidate in enumerate(a.candidates):
            s, t = a.find("candidate", slot), b.find("candidate", b.candidates.index(candidate))
            assert torch.equal(one.depth[s.start : s.stop], two.depth[t.start : t.stop])
            first = next(k.block for k in one.kept if k.start == s.start)
            second = next(k.block for k in two.kept if k.start == t.start)
            assert torch.allclose(first.values, second.values, atol=1e-5)


def test_kept_candidates_equal_the_agents_own_cache(judge):
    """Naive reuse against a plain forward of the execution prompt, keys moved by the model's own rotation."""
    p = prompt().ordered((1, 3, 0, 2))
    plan = plan_of(judge, methods.get("naive-linked"), p)[2]
    model = plain_model(judge.shape)  # type: ignore[attr-defined]
    (together,) = judge.engine.compiler.execution(p, "parallel")
    head = together.token_ids[: together.find("candidate", 0).start]
    for kept in plan.kept:
        ids = torch.cat([head, kept.block.token_ids])
        with torch.inference_mode():
            cache = model(ids[None], use_cache=True).past_key_values
        for layer in range(4):
            values = cache.layers[layer].values[0][:, -len(kept.block) :]
            assert torch.allclose(kept.block.values[layer][:, -values.shape[1] :], values, atol=2e-4)


def test_progressive_contexts_see_the_answers_before(judge):
    p = prompt()
    blocks = Blocks(judge.engine, p, regime="progressive")
    assert blocks.execution("c0").seen == {"c0"}
    assert blocks.execution("c2").seen == {"c0", "c1", "c2"}
    assert blocks.execution("c2").source == "pr-teacher-forced"
    alone = Blocks(judge.engine, p).execution("c2")
    assert alone.seen == {"c2"}
    assert not torch.allclose(alone.values[3], blocks.execution("c2").values[3], atol=1e-3)


def test_mismatched_order_is_naive_under_another_order(judge):
    p = prompt()
    method = methods.get("mismatched-order")
    other = method.prompt(p)
    assert other.order != p.order
    got, want = judge.judge(p, [method], capture=False)[0], judge.judge(other, ["naive-linked"], capture=False)[0]
    assert (got.scores == want.scores).all()
    assert got.order == p.order
    assert got.choice == p.shown(want.slot).id


def test_null_edit_changes_the_prompt_and_little_else(judge):
    plain = judge.compile(prompt())

    def texts(layout):
        return {(s.role, s.slot): layout.token_ids[s.start : s.stop].tolist() for s in layout.segments}

    for edit, roles in (("newline", {"separator"}), ("reword", {"suffix"}), ("header", {"header"})):
        layout, _, plan = plan_of(judge, methods.get(f"null-edit:edit={edit}"), prompt())
        before, after = texts(plain), texts(layout)
        assert {role for role, slot in before if before[role, slot] != after[role, slot]} == roles
        assert plan.is_dense


def test_hybrid_recomputes_the_likeliest_and_pays_for_the_probe(judge):
    p = prompt()
    naive = judge.judge(p, ["naive-linked"], capture=False)[0]
    layout, _, plan = plan_of(judge, methods.get("hybrid:k=2"), p)
    best = set(naive.scores.argsort()[-2:].tolist())
    for s in layout.each("candidate"):
        assert bool((plan.depth[s.start : s.stop] > 0).all()) == (s.slot in best)
    assert plan.probe_token_layers == naive.cost.token_layers
    layout, blocks, plan = plan_of(judge, methods.get("hybrid:likelihood=logprob"), p)
    model = plain_model(judge.shape)  # type: ignore[attr-defined]
    (together,) = judge.engine.compiler.execution(p, "parallel")
    head = together.token_ids[: together.find("candidate", 0).start]
    for c, text in zip(p.candidates, range(4), strict=True):
        ids = torch.cat([head, torch.tensor(judge.engine.compiler.candidate_ids(p, text))])
        with torch.inference_mode():
            logp = model(ids[None]).logits[0].float().log_softmax(-1)
        n = len(ids) - len(head)
        want = logp[len(head) - 1 : -1].gather(1, ids[-n:, None]).mean()
        assert blocks.log_probability(c.id) == pytest.approx(float(want), abs=1e-3)
    assert plan.probe_token_layers == 0


def test_a_full_rank_patch_makes_its_own_order_dense(judge):
    p = prompt()
    layout, blocks, plan = plan_of(judge, methods.get("low-rank-patch:rank=999"), p)
    want = logits_of(plain_model(judge.shape), layout.token_ids)  # type: ignore[attr-defined]
    got = judge.engine.execute([plan])[0].logits[0]
    assert (got - want).abs().max() < 1e-3 * want.std()
    assert plan.probe_token_layers == 4 * len(layout)
    again = methods.get("low-rank-patch:rank=999").plan(layout, blocks, judge.engine)
    assert again.probe_token_layers == 0
    none = judge.engine.execute([methods.get("low-rank-patch:rank=0").plan(layout, blocks, judge.engine)])[0]
    naive = judge.engine.execute([methods.get("naive-linked").plan(layout, blocks, judge.engine)])[0]
    assert torch.allclose(none.logits, naive.logits, atol=1e-3)


def test_specs_are_parsed_and_mistakes_named():
    assert methods.get("naive").label == "naive"
    assert [m.label for m in methods.parse("dense,first-k:budget=0.3+per=whole")] == [
        "dense",
        "first-k(budget=0.3,per=whole)",
    ]
    assert methods.get("isolated:labelled=false").label == "isolated(labelled=False)"
    for bad, message in (
        ("naiv", "did you mean 'naive'"),
        ("naive-linked:headers=some", "one of linked, isolated"),
        ("naive-linked:x=1", "no parameter 'x'"),
        ("first-k:budget=2", "share from 0 to 1"),
        ("first-k:budget=lots", "takes a float"),
        ("kvcomm:state=1", "no parameter 'state'"),
    ):
        with pytest.raises(KvattnError, match=message):
            methods.get(bad)
    with pytest.raises(KvattnError, match="given twice"):
        methods.parse("dense,dense")
    assert issubclass(POLICIES[0], Selective)


@pytest.mark.parametrize("name", OVER)
@pytest.mark.parametrize("base", BASES)
def test_labels_of_nested_methods_are_their_specs(name, base):
    method = methods.get(f"{name}:base={base}")
    assert method.base == methods.get(base)  # type: ignore[attr-defined]
    assert method.label == (name if base == "naive-linked" else f"{name}(base={base})")
    assert methods.get(method.label) == method
    spec = (
        f"dense,{name}:base={base}+seed=3,naive-linked"
        if "seed" in method.fields()
        else f"dense,{method.label},naive-linked"
    )
    assert [m.label for m in methods.parse(spec)][::2] == ["dense", "naive-linked"]
    assert json.loads(json.dumps(method.parameters)).get("base", "naive-linked") == base


def test_bases_that_do_not_fit_are_refused():
    for spec, message in (
        ("last-k:base=dense", "cannot start from 'dense', which keeps no candidate; take base=naive-linked"),
        ("hybrid:base=true-mask", "keeps no candidate"),
        ("mismatched-order:base=null-edit(edit=reword)", "keeps no candidate"),
        ("oracle:base=kvcomm(pool=frozen)", "learns from judgements"),
        ("last-k:base=isolate", "did you mean 'isolated'"),
        ("last-k:base=isolated(labelled=maybe)", "labelled takes a bool"),
        ("last-k:base=isolated(labelled=false", "do not pair"),
        ("last-k:base=isolated)", "do not pair"),
        ("last-k(base=isolated)x", "is no method"),
    ):
        for read in (methods.get, methods.parse):
            with pytest.raises(KvattnError, match=re.escape(message)) as error:
                read(spec)
            assert "\n" not in str(error.value)


def test_a_base_gives_its_blocks_and_the_policy_its_tokens(judge):
    p = prompt().ordered((2, 0, 3, 1))
    for base in ("naive-linked", "naive-linked(headers=isolated)", "isolated", "isolated(labelled=False)"):
        layout, _, stale = plan_of(judge, methods.get(base), p)
        _, _, plan = plan_of(judge, methods.get(f"last-k:budget=0.3,base={base}"), p)
        last = torch.zeros(len(layout), dtype=torch.bool)
        for s in layout.each("candidate"):
            last[s.stop - round(0.3 * s.length) : s.stop] = True
        assert torch.equal(plan.depth, stale.recompute(last).depth)
        assert torch.equal(plan.visibility.allowed, stale.visibility.allowed)
        assert [(k.start, k.block.source) for k in plan.kept] == [(k.start, k.block.source) for k in stale.kept]
        for kept, own in zip(plan.kept, stale.kept, strict=True):
            assert torch.equal(kept.block.keys, own.block.keys)
            assert torch.equal(kept.block.values, own.block.values)


def test_probes_of_a_base_are_paid_for(judge):
    for name in ("query-attention", "hybrid:likelihood=logprob", "hybrid"):
        alone, base, both = (
            plan_of(judge, methods.get(s), prompt())[2].probe_token_layers
            for s in (name, "cross-candidate", name + (",", ":")[":" not in name] + "base=cross-candidate")
        )
        assert base > 0
        assert both >= base + (alone if name != "hybrid" else 1)


def test_the_edit_of_a_base_is_the_prompt_that_is_shown(judge):
    wrong = judge.judge(prompt(), ["mismatched-order"], capture=False)[0]
    nested = judge.judge(prompt(), ["last-k:budget=0,base=mismatched-order"], capture=False)[0]
    assert (nested.scores == wrong.scores).all()
    assert nested.choice == wrong.choice


@pytest.mark.parametrize(
    "spec", ["naive-linked", "last-k:budget=0.4", "query-attention:budget=0.4", "last-k:base=isolated"]
)
def test_a_kept_prefix_costs_less_and_changes_nothing(judge, spec):
    join = "+" if ":" in spec else ":"
    saved = methods.parse(f"{spec}{join}prefix=kept")[0]
    runs: list = []
    whole, less = judge.judge(prompt(), [methods.parse(spec)[0], saved], keep=runs, capture=False)
    assert less.scores == pytest.approx(whole.scores, abs=1e-4)
    prefix = runs[0].plan.layout.find("prefix").length
    assert whole.cost.token_layers - less.cost.token_layers == prefix * judge.engine.layers > 0


def test_a_ramp_spends_nothing_in_the_first_slot_and_twice_the_share_in_the_last(judge):
    layout, _, plan = plan_of(judge, methods.get("last-k:budget=0.4,per=ramp"), prompt())
    spans = list(layout.each("candidate"))
    for i, s in enumerate(spans):
        count = min(s.length, round(s.length * 0.4 * 2 * i / (len(spans) - 1)))
        depth = plan.depth[s.start : s.stop]
        assert (depth[s.length - count :] == judge.engine.layers).all()
        assert (depth[: s.length - count] == 0).all()
