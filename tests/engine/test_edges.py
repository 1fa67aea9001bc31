"""Odd prompts and odd requests, through every method: empty, single, many and equal candidates, branches on kept
blocks, tiny chunks, batches of unlike plans, and captures that cannot be had."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tiny import engine, layout, logits_of, plain_model, short_prompt, tokenizer
from transformers import DynamicCache

from kvattn import methods
from kvattn.decision import deciding_query
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Continued, Engine
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.rotary import Rotary
from kvattn.errors import KvattnError
from kvattn.judge import readout as readouts
from kvattn.judge.judge import Judge
from kvattn.methods.kvcomm import KVComm
from kvattn.questions.prompt import JudgePrompt

CASES = {
    "plain": ("two", "it's 5", "four!", "4"),
    "empty": ("", "x", ""),
    "all-empty": ("", ""),
    "one": ("just me",),
    "one-empty": ("",),
    "identical": ("same", "same", "same"),
    "sixteen": tuple(f"it is {i}" for i in range(16)),
}


def make_judge(readout: str, shape: str = "gemma3", chunk: int = 1024) -> Judge:
    made = Engine(plain_model(shape), tokenizer(*(("Yes", "No") if readout == "yesno" else ())), chunk=chunk)
    made.compiler.max_tokens = None
    return Judge(made, readouts.get(readout))


@pytest.fixture(scope="module", params=["label", "yesno"])
def judges(request) -> tuple[Judge, Judge]:
    """The same judge with all queries in one call, and with seven a call."""
    return make_judge(request.param), make_judge(request.param, chunk=7)


def prompt(texts: tuple[str, ...], number: int = 0) -> JudgePrompt:
    return short_prompt(f"What is 2+{number}?", texts, id=f"q{number}")


def zoo() -> list[str]:
    extra = ["naive", "naive-linked:headers=isolated", "isolated:labelled=false"]
    known = [m for m in methods.registry() if m != "slot-offset"]  # its plans are its base's, once it is fit
    return [*known, *extra, "first-k:budget=0.5,shrink=0", "last-k:budget=0.5,per=whole,shrink=0.5"]


@pytest.mark.parametrize("case", CASES)
def test_every_method_judges_odd_prompts_the_same_in_any_chunks(judges, case):
    p = prompt(CASES[case])
    orders = [tuple(range(p.n)), tuple(reversed(range(p.n)))]
    stale = [s for s in zoo() if s != "dense"]
    turn = list(CASES).index(case)  # each odd prompt meets some of the methods, the plain one all
    specs = ["dense", *(stale if case == "plain" else stale[turn % 3 :: 3])]
    whole, pieces = (j.judge(p, [methods.get(s) for s in specs], orders) for j in judges)
    assert len(whole) == len(specs) * len(orders)
    for a, b in zip(whole, pieces, strict=True):
        assert a.method == b.method
        assert np.isfinite(a.scores).all()
        assert a.scores == pytest.approx(b.scores, abs=1e-3), a.method
        assert len(a.scores) == p.n
        assert a.choice == p.ordered(a.order).shown(a.slot).id
        if a.method == "pointwise":  # no row over slots
            continue
        assert a.mass is not None
        assert b.mass is not None
        assert a.mass.query == deciding_query(a.readout)
        assert [m.query for m in a.more] == [f"at_choice:{i + 1}" for i in range(p.n if a.readout == "yesno" else 0)]
        for x, y in zip((a.mass, *a.more), (b.mass, *b.more), strict=True):
            assert np.abs(x.mass - y.mass).max() < 1e-4, a.method
            assert np.abs(x.mass.sum(-1) - 1).max() < 1e-4


def test_one_query_at_a_time_is_the_same_again():
    p = prompt(CASES["empty"])
    specs = ["dense", "true-mask", "naive-linked", "last-k:budget=0.5,shrink=0.5"]
    for readout in ("label", "yesno"):
        whole, single = (make_judge(readout, "mistral-window", chunk=c).judge(p, specs) for c in (1024, 1))
        for a, b in zip(whole, single, strict=True):
            assert a.scores == pytest.approx(b.scores, abs=1e-3), a.method


def test_a_batch_of_orders_equals_each_order_alone(judges):
    p = prompt(CASES["plain"])
    orders = [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)]
    specs = ["true-mask", "isolated", "naive", "kv-deviation", "random:per=whole", "low-rank-patch"]
    for spec in [*specs, "last-k:budget=0.5,shrink=0"]:
        together = judges[1].judge(p, [spec], orders, capture=False)
        for order, got in zip(orders, together, strict=True):
            alone = judges[1].judge(p, [spec], [order], capture=False)[0]
            assert got.scores == pytest.approx(alone.scores, abs=1e-3), spec


def test_identical_candidates_have_identical_blocks_but_need_not_tie():
    judge = make_judge("label")
    p = prompt(CASES["identical"])
    x = judge.compile(p)
    plan = methods.get("naive-linked").plan(x, Blocks(judge.engine, p), judge.engine)
    first, second, _ = plan.kept
    assert torch.allclose(first.block.values, second.block.values, atol=1e-6)
    orders = [(0, 1, 2), (2, 0, 1)]
    for method in ("dense", "naive-linked", "isolated"):
        one, two = judge.judge(p, [method], orders, capture=False)
        assert one.scores == pytest.approx(two.scores, abs=1e-4)  # equal texts: the order is no change at all
        assert p.same_content(one.choice, two.choice)


def plain_kv(model, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [layers, kv heads, tokens, dim] of the plain model's forward."""
    cache = DynamicCache()  # without the config: no layer drops its old tokens
    with torch.inference_mode():
        model(torch.tensor([ids]), past_key_values=cache)
    keys, values = ([getattr(x, kind)[0] for x in cache.layers] for kind in ("keys", "values"))
    return torch.stack(keys), torch.stack(values)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "phi3-partial"])
@pytest.mark.parametrize("labelled", [True, False])
def test_isolated_blocks_are_what_the_plain_model_makes_behind_the_judges_prefix(shape, labelled):
    judge, model = make_judge("label", shape), plain_model(shape)
    p = prompt(CASES["plain"]).ordered((2, 0, 3, 1))
    x = judge.compile(p)
    plan = methods.get(f"isolated:labelled={labelled}").plan(x, Blocks(judge.engine, p), judge.engine)
    head = x.token_ids[: x.find("header", 0).start].tolist()
    assert len(plan.kept) == (12 if labelled else 4)
    for slot in range(4):
        own = [s for s in x.segments if s.slot == slot and (labelled or s.role == "candidate")]
        keys, values = plain_kv(model, head + [t for s in own for t in x.token_ids[s.start : s.stop].tolist()])
        at = len(head)
        for s in own:
            (block,) = (k.block for k in plan.kept if k.start == s.start)
            back = block.moved(torch.arange(at, at + s.length), judge.engine.rotary)
            assert torch.allclose(back.keys, keys[:, :, at : at + s.length], atol=2e-4)
            assert torch.allclose(back.values, values[:, :, at : at + s.length], atol=2e-4)
            at += s.length


def test_progressive_blocks_are_what_the_plain_model_makes_after_the_answers_before():
    judge, model = make_judge("label"), plain_model("gemma3")
    p = prompt(CASES["plain"]).ordered((2, 0, 3, 1))
    blocks = Blocks(judge.engine, p, "progressive")
    for i, context in enumerate(judge.engine.compiler.execution(p, "progressive")):
        said = judge.engine.tokenizer.decode(context.token_ids)
        assert [c.text in said for c in p.candidates] == [k <= i for k in range(4)]
        block = blocks.execution(f"c{i}")
        keys, values = plain_kv(model, context.token_ids.tolist())
        assert torch.allclose(block.keys, keys[:, :, -len(block) :], atol=2e-4)
        assert torch.allclose(block.values, values[:, :, -len(block) :], atol=2e-4)


def test_with_one_candidate_there_is_no_interaction_to_lose():
    for readout in ("label", "yesno"):
        made = make_judge(readout).judge(prompt(CASES["one"]), ["dense", "true-mask", "isolated"], capture=False)
        for d in made[1:]:
            assert d.scores == pytest.approx(made[0].scores, abs=1e-4), d.method


def branch_alone(plan: KVPlan, slot: int) -> KVPlan:
    """The plan without all branches but one: what is asked about one slot, asked alone."""
    x = plan.layout
    keep = [i for i, s in enumerate(x.segments) if s.role != "branch" or s.slot == slot]
    tokens = torch.cat([torch.arange(x.segments[i].start, x.segments[i].stop) for i in keep])
    alone: PromptLayout = join(
        [
            (x.segments[i].role, x.segments[i].slot, x.token_ids[x.segments[i].start : x.segments[i].stop].tolist())
            for i in keep
        ],
        x.candidates,
        x.answer_ids,
    )
    allowed = plan.visibility.allowed[..., keep, :][..., keep]
    return KVPlan.of(alone, plan.layers, plan.depth[tokens], plan.kept, Visibility(allowed))


@pytest.mark.parametrize("spec", zoo())
def test_a_branch_on_kept_blocks_equals_that_branch_asked_alone(spec):
    for shape in ("gemma3", "llama"):
        judge = make_judge("yesno", shape)
        p = prompt(("two", "it's 5", "four!"))
        method = methods.get(spec)
        x = judge.compile(method.prompt(p))
        plan = method.plan(x, Blocks(judge.engine, p, donor=prompt(("a", "b"), 1)), judge.engine)
        together = judge.engine.execute([plan])[0].logits
        assert together is not None
        for slot in range(3):
            alone = judge.engine.execute([branch_alone(plan, slot)])[0].logits
            assert alone is not None
            assert (together[slot] - alone[0]).abs().max() < 1e-3 * alone.std()


def test_kvcomm_reuses_under_yes_and_no():
    judge = make_judge("yesno", "llama")
    learner = KVComm(gamma=0.0, size=20)
    for i in range(3):
        judge.judge(prompt(("one, two!!!!", "three, four!", "five, six!!!"), i + 1), [learner], capture=False)
    learner.state.anchors = {  # texts that differ, so that there is something to weigh
        k: [replace(a, values=a.values + 0.01 * i) for i, a in enumerate(v)] for k, v in learner.state.anchors.items()
    }
    got = judge.judge(prompt(("two", "it's 5", "four!")), [KVComm(gamma=1.01, size=20, state=learner.state)])[0]
    assert "kvcomm: reused" in got.notes
    assert got.mass is not None
    assert got.mass.query == "at_choice"
    branches = sum(n for n, name in zip(got.mass.lengths, got.mass.names, strict=True) if name.startswith("branch"))
    assert got.cost.tokens_computed == 1 + branches  # the prompt's last token, and what is asked after it


def test_a_suffix_of_one_token():
    parts = [("question", None, [9, 8, 7]), ("header", 0, [5]), ("candidate", 0, [11, 12]), ("suffix", None, [6])]
    x = join(parts, ("c0",), (10,))
    for shape in ("llama", "mistral-window"):
        eng = engine(shape)
        full = eng.encode(x)
        depth = torch.zeros(len(x), dtype=torch.long)
        depth[-1] = 4
        run = eng.execute([KVPlan.of(x, 4, depth, (Kept(full.span(0, len(x) - 1), 0),))], Wanted(rows=True))[0]
        want = logits_of(plain_model(shape), x.token_ids)
        assert run.logits is not None
        assert (run.logits[0] - want).abs().max() < 1e-3 * want.std()
        assert run.cost.tokens_computed == 1


# -- batches and requests ----------------------------------------------------------------------------------------------


def rules(x: PromptLayout) -> list[Visibility | None]:
    names = x.names
    reader, read = names.index("suffix"), names.index("candidate:2")
    edge = (reader, read)
    return [
        None,
        Visibility.isolated(x),
        Visibility.isolated(x, ("candidate",)),
        Visibility.full(x).cut([edge], 4, 4),
        Visibility.full(x).cut([edge], 4, 4, [(1, 2), (3, 3)]),
        Visibility.full(x).cut([edge], 4, 4, [(0, 0)]),
        Visibility(Visibility.full(x).allowed[None].repeat(4, 1, 1)).cut([(read, reader - 2)], 4, 4),
    ]


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
@pytest.mark.parametrize(("chunk", "max_batch"), [(1024, 8), (7, 2), (3, 8)])
def test_unlike_plans_in_one_call_equal_each_alone(shape, chunk, max_batch):
    """Other rules, other kept tokens, other captured queries: results come back in the order given."""
    eng, xs = engine(shape, chunk=chunk), [layout(s) for s in (30, 31)]
    full = [eng.encode(x) for x in xs]
    plans, wanted = [], []
    g = torch.Generator().manual_seed(5)
    for i, (x, run) in enumerate(zip(xs, full, strict=True)):
        for rule in rules(x):
            plans.append(dense_plan(x, 4, rule))
            kept = torch.randperm(len(x) - 1, generator=g)[:20].tolist()
            depth = torch.full((len(x),), 4)
            depth[kept] = torch.randint(0, 4, (20,), generator=g) if i else 0
            plans.append(KVPlan.of(x, 4, depth, tuple(Kept(run.span(t, t + 1), t) for t in kept), rule))  # type: ignore[arg-type]
    for p in plans:
        through = (p.depth == 4).nonzero()[:, 0].tolist()
        some = int(torch.randint(1, 4, (), generator=g))
        wanted.append(Wanted(queries=tuple(through[:: len(through) // some][:some]), rows=True))
    together = eng.execute(plans, wanted, keep_cache=True, max_batch=max_batch)
    for p, w, got in zip(plans, wanted, together, strict=True):
        assert got.plan is p
        alone = eng.execute([p], w, keep_cache=True)[0]
        assert got.logits is not None
        assert got.captured is not None
        assert alone.logits is not None
        assert alone.captured is not None
        assert (got.logits - alone.logits).abs().max() < 1e-4 * alone.logits.std()
        assert (got.cache()[0] - alone.cache()[0]).abs().max() < 1e-4
        assert got.captured.queries == alone.captured.queries
        assert (got.captured.mass - alone.captured.mass).abs().max() < 1e-5


def test_a_captured_query_may_fall_into_another_call_in_every_plan():
    """The same token of the prompt, after kept blocks of other lengths: its place among the computed tokens differs."""
    eng, x = engine(chunk=4), layout(32)
    full = eng.encode(x)
    plans = []
    for start in (5, 25):
        depth = torch.full((len(x),), 4)
        depth[start : start + 9] = 0
        plans.append(KVPlan.of(x, 4, depth, (Kept(full.span(start, start + 9), start),)))
    for q in (15, 16, 17, 18, 20):
        both = eng.execute(plans, Wanted(queries=(q,), rows=True))
        for p, run in zip(plans, both, strict=True):
            alone = eng.execute([p], Wanted(queries=(q,), rows=True))[0]
            assert torch.allclose(run.captured.rows, alone.captured.rows, atol=1e-5)  # type: ignore[union-attr, arg-type]


def test_decoding_room_for_several_plans():
    eng, x = engine("gemma3"), layout(33)
    full = eng.encode(x)
    depth = torch.full((len(x),), 4)
    depth[6:20] = 0
    plans = [dense_plan(x, 4), KVPlan.of(x, 4, depth, (Kept(full.span(6, 20), 6),)), dense_plan(x, 4)]
    model, want, ids = plain_model("gemma3"), [], x.token_ids
    for _ in range(4):
        want.append(int(logits_of(model, ids).argmax()))
        ids = torch.cat([ids, torch.tensor(want[-1:])])
    runs = eng.execute(plans, room=4)
    for run in runs:
        assert [step.token for step in islice(eng.stream(run), 4)] == want
    assert eng.generate([Continued(run, 4) for run in runs]) == [want] * 3
    assert eng.generate([Continued(runs[1], 0), Continued(runs[1], 2)]) == [[], want[:2]]
    assert eng.generate([]) == []
    for run in eng.execute(plans[:1] * 2, room=2):
        logits, captured = eng.extend(run, want[:2], wanted=True)
        assert int(logits.argmax()) == want[2]
        assert captured is not None
        assert captured.mass.sum(-1) == pytest.approx(1, abs=1e-4)
        with pytest.raises(KvattnError, match="room"):
            eng.extend(run, [5])


def test_captures_that_cannot_be_had_are_refused():
    eng, x = engine(), layout(34)
    depth = torch.full((len(x),), 4)
    depth[12:20], depth[20:22] = 0, 2
    plan = KVPlan.of(x, 4, depth, (Kept(eng.encode(x).span(12, 22), 12),))
    with pytest.raises(KvattnError, match=r"token 13 \(header:1\) is kept"):
        eng.execute([plan], Wanted(queries=(13,)))
    with pytest.raises(KvattnError, match=r"token 21 .* is kept"):
        eng.execute([plan], Wanted(queries=(len(x) - 1, 21)))
    assert eng.probe(plan, 2, Wanted(queries=(21,), rows=True)).captured is not None
    with pytest.raises(KvattnError, match="is kept"):
        eng.probe(plan, 3, Wanted(queries=(21,), rows=True))
    for q in (-1, len(x)):
        with pytest.raises(KvattnError, match="no token"):
            eng.execute([plan], Wanted(queries=(q,)))
    with pytest.raises(KvattnError, match="no query"):
        eng.execute([plan], Wanted(queries=()))


@torch.no_grad()
@pytest.mark.parametrize("shape", ["mistral-window", "gemma3"])
@pytest.mark.parametrize("step", [1, 3, 20])
def test_a_window_counts_positions_not_tokens(shape, step):
    """A short prompt whose positions are far apart: fewer keys than the window holds, and yet it cuts."""
    eng, model = engine(shape), plain_model(shape, kernel="eager")
    x = join([("question", None, list(range(20, 30))), ("suffix", None, [7])], (), (10,))
    positions = torch.arange(len(x)) * step
    got = eng.execute([KVPlan.of(x, 4, torch.full((len(x),), 4), positions=positions)])[0].logits
    assert got is not None
    apart = positions[:, None] - positions[None]
    for layer in model.get_decoder().layers:
        near = apart < (eng.geometry.windows[layer.self_attn.layer_idx] or 10**6)

        def force(_m, args, kwargs, near=near):
            mask = torch.zeros(len(x), len(x)).masked_fill(~(near & (apart >= 0)), torch.finfo(torch.float32).min)
            kwargs["attention_mask"] = mask[None, None]
            return args, kwargs

        layer.register_forward_pre_hook(force, with_kwargs=True)
    fed = {"position_ids": positions[None], "attention_mask": torch.zeros(1, 1, len(x), len(x)), "use_cache": False}
    if shape == "gemma3":
        fed["attention_mask"] = dict.fromkeys(("full_attention", "sliding_attention"), fed["attention_mask"])
    want = model(x.token_ids[None], **fed).logits[0, -1]
    assert (got[0] - want).abs().max() < 1e-3 * want.std()


def test_keys_turn_on_the_device_they_lie_on():
    keys = torch.empty(2, 3, 4, 8, device="meta")
    assert Rotary(torch.ones(2, 4)).turn(keys, torch.zeros(4), torch.arange(4)).device.type == "meta"


def test_every_text_that_a_question_makes_is_held_against_its_readers_context():
    judge, agents = Judge(engine(), readouts.get("label")), engine()
    eng = judge.engine
    own, donor = short_prompt("q", ["z" * 140, "b"], id="own"), short_prompt("w" * 150, ["a", "b"], id="donor")
    bare = short_prompt("?", ["a", "b"], id="bare")
    texts = {
        "donor": (eng, lambda: Blocks(eng, own, donor=donor).foreign(judge.compile(own).find("candidate", 0), "c0")),
        "bare": (eng, lambda: Blocks(eng, bare).template(judge.compile(bare))),
        "own": (agents, lambda: Blocks(eng, own).made_by(agents).log_probability("c0")),
    }
    for blamed, (reader, make) in texts.items():
        eng.compiler.max_tokens = reader.compiler.max_tokens = None
        with patch.object(reader, "execute", wraps=reader.execute) as execute:
            make()
        read = [int(call.args[0][0].layout.positions.max()) + 1 for call in execute.call_args_list]
        reader.compiler.max_tokens = max(read) - 1  # which holds what else there is of the question
        said = rf"question '{blamed}' needs {max(read)} tokens, the {'model' if reader is eng else 'agents'}'"
        with pytest.raises(KvattnError, match=said):
            make()
