"""Queries attended to in pieces get what they get under one mask, and fewer scores are made; a layer's cache that
nobody wants ends with its layer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import layout, plain_model, tokenizer

from kvattn.engine import queries
from kvattn.engine.cache import PromptLayer
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.kernel import Scoring
from kvattn.engine.layout import PromptLayout, join
from kvattn.engine.plan import Kept, KVPlan, Visibility, dense_plan
from kvattn.engine.queries import Pass


def engine(shape: str = "llama", chunk: int = 1024) -> Engine:
    return Engine(copy.deepcopy(plain_model(shape, kernel="eager")), tokenizer(), chunk=chunk)


def sized(*lengths: int, question: int = 6) -> PromptLayout:
    """A layout whose candidates have so many tokens."""
    x, parts = layout(3, length=max(lengths)), []
    for s in x.segments:
        ids = x.token_ids[s.start : s.stop].tolist()
        count = lengths[s.slot] if s.role == "candidate" else question if s.role == "question" else s.length
        parts.append((s.role, s.slot, (ids * count)[:count]))
    return join(parts, x.candidates, x.answer_ids)


def plans(eng, kind: str) -> list[KVPlan]:
    """Two of a batch, whose segments end at other tokens."""
    out = []
    for lengths in ((11, 5, 9), (6, 9, 10)):
        x = sized(*((11, 5, 9) if kind == "alike" else lengths))
        rule = Visibility.isolated(x)
        if kind == "by head":
            rule = Visibility.full(x).cut([(len(x.segments) - 1, 2), (5, 2)], 4, 4, where=[(0, 1), (2, 3)])
        plan = dense_plan(x, 4, rule)
        if kind in ("prefix kept", "scattered"):
            made = eng.encode(x)
            depth = torch.full((len(x),), 4)
            depth[:20] = 0
            if kind == "scattered":
                depth[:20:3] = 4
                depth[24:40:2] = 0
            plan = KVPlan.of(x, 4, depth, (Kept(made.span(0, 40), 0),))
        out.append(plan)
    return out


def cut(monkeypatch, fewest: int, most: int) -> list[int]:
    """Sets the size of pieces; the scores that are made from then on, by layer and call."""
    monkeypatch.setattr(queries, "FEWEST", fewest)
    monkeypatch.setattr(queries, "MOST", most)
    scores, make = [], Pass._make

    def counted(self, *args):
        made = make(self, *args)
        scores.append(0 if made is None else sum(x.mask[..., 0, :, :].numel() for row in made for x in row))
        return made

    monkeypatch.setattr(Pass, "_make", counted)
    return scores


KINDS = ("isolated", "by head", "alike", "prefix kept", "scattered")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["llama", "gemma3", "gemma2", "gpt-oss", "qwen2-window"])
@pytest.mark.parametrize("chunk", [1024, 23])
def test_pieces_equal_one_mask(shape, kind, chunk, monkeypatch):
    eng = engine(shape, chunk=chunk)
    asked = plans(eng, kind)
    wanted = Wanted(rows=True, norms=True)
    with monkeypatch.context() as patched:
        whole = cut(patched, 10**6, 10**6)
        want = eng.execute(asked, wanted, keep_cache=True)
    for fewest, most in ((3, 5), (1, 1), (4, 100)):
        with monkeypatch.context() as patched:
            made = cut(patched, fewest, most)
            got = eng.execute(asked, wanted, keep_cache=True)
        assert sum(made) <= sum(whole)
        assert most == 100 or sum(made) < sum(whole)
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a.logits, b.logits, atol=1e-4 * float(b.logits.std()))
            assert torch.allclose(a.captured.rows, b.captured.rows, atol=1e-5)
            assert torch.allclose(a.keys, b.keys, atol=1e-4)
            assert torch.allclose(a.values, b.values, atol=1e-4)


def test_candidates_apart_make_no_scores_of_each_other():
    x = sized(90, 80, 100, question=70)
    eng = engine()
    current = Pass([dense_plan(x, 4, Visibility.isolated(x))], (None,) * 4, 0)
    current.stand(torch.arange(len(x))[None])
    pieces = current.pieces(0, eng.dtype, eng.device)
    assert pieces is not None
    for slot in range(3):
        first, last = x.find("header", slot).start, x.find("separator", slot).stop
        mine = [p for p in pieces[0] if first <= p.queries.start < last]
        assert (mine[0].queries.start, mine[-1].queries.stop) == (first, last)
        for piece in mine:
            seen = torch.arange(piece.end) if piece.chosen is None else piece.chosen
            assert {x.segments[i].slot for i in x.segment_of[seen].tolist()} == {None, slot}


@pytest.mark.parametrize("shape", ["llama", "gpt-oss"])
def test_a_layer_that_nobody_wants_ends_with_its_run(shape, monkeypatch):
    eng, x = engine(shape), layout(3)
    made, moved = eng.encode(x), []
    depth = torch.zeros(len(x), dtype=torch.long)
    depth[-1] = 4
    plan = KVPlan.of(x, 4, depth, (Kept(replace(made.span(0, len(x)), positions=x.positions + 3), 0),))
    update = PromptLayer.update

    def watched(self, *args, **kwargs):
        out = update(self, *args, **kwargs)
        moved.append((self.keys is None, len(self._cache._parts)))
        return out

    monkeypatch.setattr(PromptLayer, "update", watched)
    alone = eng.execute([plan])[0]
    assert moved == [(True, 0)] * 4
    moved.clear()
    held = eng.execute([plan], keep_cache=True)[0]
    assert moved == [(False, 1)] * 4
    assert torch.equal(alone.logits, held.logits)
    assert alone.cost.kv_bytes == held.cost.kv_bytes == held.keys.nbytes + held.values.nbytes


def test_a_kept_block_of_no_tokens_changes_nothing() -> None:
    eng, x = engine(), sized(11, 5, 9)
    made, depth = eng.encode(x), torch.full((len(x),), 4)
    depth[:20] = 0
    plan = KVPlan.of(x, 4, depth, (Kept(made.span(0, 20), 0),))
    empty = Kept(made.span(0, 0), 0), Kept(made.span(20, 20), 20)
    for kept in ((*plan.kept, *empty), (*empty, *plan.kept)):
        first, second = eng.execute([plan, replace(plan, kept=kept)])
        assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("shape", [None, (1, 1), (1, 6), (3, 1), (3, 6)], ids=str)
@pytest.mark.parametrize("sinks", [False, True])
def test_one_query_gets_what_its_row_says_whichever_heads_share_its_keys(shape, sinks):
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, n, 8, generator=g) for heads, n in ((6, 1), (2, 21), (2, 21)))
    how = Scoring(0.3, sinks=torch.randn(6, generator=g) if sinks else None)
    mask = None
    if shape is not None:
        closed = torch.rand(*shape, 1, 21, generator=g) < 0.4
        mask = torch.zeros(closed.shape).masked_fill_(closed, float("-inf"))
    want = how.weights(query, key, mask) @ value.repeat_interleave(3, 1)
    torch.testing.assert_close(how.attend(query, key, value, mask), want, atol=1e-6, rtol=0)
