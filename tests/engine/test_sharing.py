"""Shared beginnings: the same results from fewer tokens."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from tiny import engine, save

from kvattn import methods as zoo
from kvattn.engine import sharing
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import join
from kvattn.engine.plan import dense_plan
from kvattn.judge import readout
from kvattn.judge.judge import Judge, load
from kvattn.questions import synthetic
from kvattn.questions.orders import orders

METHODS = (
    "dense",
    "naive-linked",
    "naive-linked:headers=isolated",
    "true-mask",
    "isolated",
    "first-k:budget=0.3",
    "last-k:shrink=0.5",
)
METHODS = (*METHODS, "kv-deviation", "query-attention", "kvcomm", "naive", "foreign-kv")


def planned(model: Engine, method: str):
    """Plans of all orders of one question."""
    judge = Judge(model, readout.get("label"))
    prompt = synthetic(1, seed=4)[0]
    blocks = Blocks(model, prompt, donor=synthetic(2, seed=5)[1])
    chosen = zoo.get(method)
    return [chosen.plan(judge.compile(prompt.ordered(o)), blocks, model) for o in orders("all", 4)]


@pytest.mark.parametrize("method", METHODS)
def test_shared_orders_equal_orders_judged_alone(method, models):
    model = models("llama")
    plans = planned(model, method)
    wanted = [Wanted(rows=True, kv=True)] * len(plans)
    together = sharing.execute(model, plans, wanted, keep_cache=True)
    for plan, run in zip(plans, together, strict=True):
        alone = model.execute([plan], wanted[0], keep_cache=True)[0]
        assert run.logits is not None
        assert alone.logits is not None
        assert torch.allclose(run.logits, alone.logits, atol=2e-4)
        assert torch.allclose(run.rows(), alone.rows(), atol=1e-5)
        assert run.captured is not None
        assert alone.captured is not None
        assert torch.allclose(run.captured.mass, alone.captured.mass, atol=1e-5)
        assert torch.allclose(run.captured.value_norm, alone.captured.value_norm, atol=1e-4)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(run.cache(), alone.cache(), strict=True))
        assert run.plan is plan
        assert replace(run.cost, seconds=0, batch=1, kv_bytes=0) == replace(alone.cost, seconds=0, batch=1, kv_bytes=0)


def test_a_branch_per_slot_is_always_computed(models):
    model = models("llama")
    texts = {s: [20 + s] * (5 + s) for s in range(3)}
    plans = []
    for order in orders("all", 3):
        parts = [("prefix", None, [3, 4, 5]), *(("candidate", i, texts[c]) for i, c in enumerate(order))]
        parts += [("suffix", None, [6, 7]), *(("branch", i, [8, 9 + i]) for i in range(3))]
        plans.append(dense_plan(join(parts, tuple(f"c{c}" for c in order)), model.layers))
    for plan, run in zip(plans, sharing.execute(model, plans), strict=True):
        assert run.logits is not None
        assert run.logits.shape[0] == 3
        assert torch.allclose(run.logits, model.execute([plan])[0].logits, atol=2e-4)


@pytest.mark.parametrize("name", ["mistral-window", "gemma3", "phi3-partial"])
def test_windows_and_partial_rotation_share_too(name, models):
    model = models(name)
    plans = planned(model, "naive-linked")
    for plan, run in zip(plans, sharing.execute(model, plans), strict=True):
        assert torch.allclose(run.logits, model.execute([plan])[0].logits, atol=2e-4)


def test_twenty_four_orders_compute_what_a_prefix_trie_holds(models):
    model = models("llama")
    plans = planned(model, "dense")
    branches = set()  # every distinct beginning of every prompt, by brute force over segments
    for p in plans:
        ids = p.layout.token_ids.tolist()
        branches |= {(s.length, tuple(ids[: s.stop])) for s in p.layout.segments}
    before = model.meter.tokens
    sharing.execute(model, plans)
    computed = model.meter.tokens - before
    assert computed == sum(length for length, _ in branches)
    blocks = {tuple(p.layout.token_ids[: s.stop].tolist()) for p in plans for s in p.layout.each("candidate")}
    assert len(blocks) == 64
    assert computed < 0.8 * sum(len(p.layout) for p in plans)


def test_a_wanted_row_is_computed_in_every_order(models):
    model = models("llama")
    plans = planned(model, "dense")
    asked = [p.layout.find("header", 1).start for p in plans]
    wanted = [Wanted(queries=(q, p.layout.decisions[0]), rows=True) for q, p in zip(asked, plans, strict=True)]
    for plan, want, run in zip(plans, wanted, sharing.execute(model, plans, wanted), strict=True):
        assert torch.allclose(run.rows(), model.execute([plan], want)[0].rows(), atol=1e-5)


def test_blocks_of_other_contents_are_not_shared(models):
    """Foreign blocks say something else than the prompt: equal token ids do not make equal keys and values."""
    model = models("llama")
    dense, stale = planned(model, "dense")[0], planned(model, "naive-linked")[0]
    sources = sharing._sources([dense, stale], [len(dense.layout)] * 2)
    first = stale.layout.find("candidate", 0)
    assert sources[1] == (0, first.start)


def test_the_judge_shares(tmp_path):
    judge = load(save(tmp_path))
    prompt = synthetic(1, seed=4)[0]
    before = judge.engine.meter.tokens
    made = judge.judge(prompt, ["dense"], orders("all", 4))
    computed = judge.engine.meter.tokens - before
    assert computed < 0.8 * sum(d.cost.tokens_computed for d in made)
    assert {d.cost.share for d in made} == {1.0}


@pytest.fixture(scope="module")
def models():
    made: dict[str, Engine] = {}
    return lambda name: made.setdefault(name, _long(name))


def _long(name: str) -> Engine:
    """A tiny engine whose context holds a whole question."""
    model = engine(name)
    model.compiler.max_tokens = None
    return model


@pytest.mark.parametrize("max_batch", [1, 4])
def test_a_beginning_is_let_go_after_the_last_plan_that_takes_it(models, monkeypatch, max_batch):
    model = models("llama")
    plans = planned(model, "dense")
    span, execute = Execution.span, model.execute
    held, alive = [], []

    def noted(self, *args, **kwargs):
        block = span(self, *args, **kwargs)
        held.append(weakref.ref(block))
        return block

    def counted(*args, **kwargs):
        alive.append(sum(ref() is not None for ref in held))
        return execute(*args, **kwargs)

    monkeypatch.setattr(Execution, "span", noted)
    monkeypatch.setattr(model, "execute", counted)
    sharing.execute(model, plans, max_batch=max_batch)
    assert len(held) > 2
    assert not any(ref() is not None for ref in held)
    assert alive[-1] <= 1 < max(alive)


def test_blocks_behind_one_prefix_are_made_once_for_all_orders(models):
    model = models("llama")
    judge, prompt = Judge(model, readout.get("label")), synthetic(1, seed=4)[0]
    for labelled, pairs in ((True, 16), (False, 4)):
        blocks, encoded = Blocks(model, prompt), []
        encode = model.encode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "encode", lambda x, *args, e=encoded, f=encode: e.append(x) or f(x, *args))
            for order in orders("all", 4):
                shown = judge.compile(prompt.ordered(order))
                got = blocks.isolated(shown, labelled)
                for s in shown.segments:
                    if s.name in got:
                        assert torch.equal(got[s.name].token_ids, shown.token_ids[s.start : s.stop])
                        assert got[s.name].seen == {shown.candidates[s.slot]}
        assert sum(x.mask("candidate").sum() > 0 for x in encoded) == len(encoded)
        assert sum(len(list(x.each("candidate"))) for x in encoded) == pairs
        last = judge.compile(prompt.ordered((3, 2, 1, 0)))
        anew = Blocks(model, prompt).isolated(last, labelled)
        kept = blocks.isolated(last, labelled)
        assert anew.keys() == kept.keys()
        for name, block in anew.items():
            assert torch.allclose(block.keys, kept[name].keys, atol=1e-5)
            assert torch.allclose(block.values, kept[name].values, atol=1e-5)
            assert torch.equal(block.positions, kept[name].positions)
