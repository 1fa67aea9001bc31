"""Policies of selective recomputation as their papers have them: CacheClip, A3, SamKV."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from tiny import engine, logits_of, long_judge, plain_model, save, short_prompt, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.shapes import SIZE
from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.plan import Visibility, dense_plan
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import Judge
from kvattn.methods.cacheclip import CacheClip, characters, spread
from kvattn.methods.companion import beside
from kvattn.methods.samkv import SamKV, asked_for, personal
from kvattn.methods.selective import by_group
from kvattn.questions.prompt import JudgePrompt
from kvattn.study.study import Study

TEXTS = ("two and two is four", "it is 5", "four, since 2+2=4", "4!")
PROMPT = short_prompt("What is 2+2?", TEXTS, (2, 0, 3, 1))


@pytest.fixture(scope="module")
def judge() -> Judge:
    return long_judge("llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[..., str]:
    """Model folders of a tiny shape, whose tokenizer knows some words."""
    made: dict[tuple, str] = {}

    def of(shape: str = "llama", *words: str) -> str:
        if (shape, words) not in made:
            made[shape, words] = save(tmp_path_factory.mktemp("helper"), shape, words)
        return made[shape, words]

    return of


def scored(judge: Judge, method, prompt: JudgePrompt = PROMPT):
    """The layout, the scores of its tokens, and what they cost."""
    layout = judge.compile(prompt)
    blocks = Blocks(judge.engine, prompt)
    stale = methods.get("naive-linked").plan(layout, blocks, judge.engine)
    return layout, *method.score(layout, blocks, judge.engine, stale)


def attention_of(shape: str, token_ids: torch.Tensor, layer: int, queries: range) -> torch.Tensor:
    """[heads, queries, tokens] of transformers' own eager attention in a dense pass."""
    with torch.inference_mode():
        out = plain_model(shape, kernel="eager")(token_ids[None], output_attentions=True)
    return out.attentions[layer][0, :, list(queries)]


def ranked(scores: torch.Tensor, layout) -> list[int]:
    """Candidates' tokens, the best first."""
    inside = torch.nonzero(layout.mask("candidate"))[:, 0]
    return inside[torch.argsort(scores[inside], descending=True, stable=True)].tolist()


def test_groups_are_taken_whole_and_the_last_one_by_its_best_tokens():
    worth = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.9, 0.5, 0.5])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    within = torch.tensor([0.1, 0.3, 0.2, 0.0, 0.9, 9.0, 8.0])
    order = torch.argsort(by_group(worth, group, within), descending=True)
    assert order.tolist() == [4, 3, 1, 2, 0, 5, 6]


def test_a3_scores_are_the_plain_models_first_layer_over_candidates_alone(judge):
    """Keys of the first layer do not depend on context, so the stale cache has the dense pass's there."""
    layout, scores, spent = scored(judge, methods.get("a3"))
    suffix = layout.find("suffix")
    rows = attention_of("llama", layout.token_ids, 0, range(suffix.start, suffix.stop))
    inside = layout.mask("candidate")
    logits = torch.where(inside, rows.log(), -torch.inf)
    assert torch.allclose(scores[inside], logits.softmax(-1).sum((0, 1))[inside], atol=1e-5)
    assert spent == int((~inside).sum())  # one layer of what naive-linked computes


def test_a3_competes_across_candidates_where_query_attention_serves_each(judge):
    layout = judge.compile(PROMPT)
    counts = {}
    for name in ("a3", "query-attention"):
        plan = methods.get(f"{name}:budget=0.3").plan(layout, Blocks(judge.engine, PROMPT), judge.engine)
        counts[name] = [int((plan.depth[s.start : s.stop] > 0).sum()) for s in layout.each("candidate")]
    assert counts["query-attention"] == [round(0.3 * s.length) for s in layout.each("candidate")]
    assert sum(counts["a3"]) == round(0.3 * int(layout.mask("candidate").sum()))
    assert counts["a3"] != counts["query-attention"]


@pytest.mark.parametrize("shape", ["llama", "qwen3"])
def test_query_states_are_those_that_attention_has(shape):
    """softmax of query by key is the captured row, on a model whose scores are scaled dot products."""
    eng = engine(shape)
    layout = Judge(eng).compile(PROMPT)
    asked = (len(layout) - 1, len(layout) - 7)
    run = eng.execute([dense_plan(layout, 4)], Wanted(queries=asked, rows=True, query_states=True), True, False)[0]
    assert run.captured is not None
    states, keys = run.captured.query_states, run.cache()[0].cpu()
    assert states is not None
    scale = eng.model.get_decoder().layers[0].self_attn.scaling
    for i, t in enumerate(asked):
        for layer in range(2):
            for head in range(4):
                row = (keys[layer, head // 2, : t + 1] @ states[i, layer, head] * scale).softmax(-1)
                assert torch.allclose(row, run.rows()[i, layer, head, : t + 1], atol=1e-4)


def test_a_personal_query_is_the_tasks_with_the_others_weighed_by_their_cosine():
    generic = torch.tensor([1.0, 0.0]).reshape(1, 1, 2)
    local = torch.tensor([[0.0, 5.0], [3.0, 4.0], [-2.0, 0.0]]).reshape(3, 1, 1, 2)  # |cosine| 0, 0.6, 1
    want = [
        (1 + (0.6 * 3 - 2) / 2, 0.6 * 4 / 2),
        (1 + (0 - 2) / 2, 0.0),
        (1 + 0.6 * 3 / 2, 0.6 * 4 / 2),
    ]
    assert torch.allclose(personal(generic, local).reshape(3, 2), torch.tensor(want))
    assert torch.equal(personal(generic, local[:1])[0], generic)  # one candidate has no others


def test_blocks_are_worth_their_mean_keys_inner_product_scaled_by_layer():
    query = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])  # 2 layers, 2 heads on one key
    keys = torch.tensor(
        [[[[1.0, 9.0], [3.0, 9.0], [0.0, 9.0], [0.0, 9.0], [8.0, 9.0]]], [[[9.0, 5.0]] * 2 + [[9.0, 0.0]] * 3]]
    )
    # layer 0: means 2, 0, 8 by 2; layer 1: 5, 0, 0
    assert asked_for(query, keys, 2) == pytest.approx([(0.25 + 1) / 2, 0.0, (1 + 0) / 2])
    assert asked_for(query, keys[:, :, :0], 2) == []


def test_samkv_takes_the_ends_of_each_candidate_then_whole_blocks(judge):
    layout, scores, spent = scored(judge, SamKV(initial=2, local=1, block=3))
    for s in layout.each("candidate"):
        order = [t - s.start for t in ranked(scores, layout) if s.start <= t < s.stop]
        ends = {0, 1, s.length - 1}
        assert set(order[: len(ends)]) == {t for t in ends if t < s.length}
        middle = order[len(ends) :]
        numbers = [number for number, _ in groupby((t - 2) // 3 for t in middle)]
        assert len(numbers) == len({*numbers}) == math.ceil(max(0, s.length - 3) / 3)  # no block is begun twice
    computed = int((~layout.mask("candidate")).sum()) + 4  # one last token of each candidate
    assert spent == computed * (judge.engine.layers - 1)


def test_samkv_ranks_blocks_as_plain_loops_over_the_formula_do(judge):
    layout, scores, _ = scored(judge, SamKV(initial=1, local=2, block=2))
    stale = methods.get("naive-linked").plan(layout, Blocks(judge.engine, PROMPT), judge.engine)
    suffix, shown = layout.find("suffix"), list(layout.each("candidate"))
    last = torch.zeros(len(layout), dtype=torch.bool)
    for s in shown:
        last[max(s.start, s.stop - 2) : s.stop] = True
    asked = (*torch.nonzero(last)[:, 0].tolist(), *range(suffix.start, suffix.stop))
    apart = replace(stale.recompute(last), visibility=Visibility.isolated(layout))
    run = judge.engine.execute([apart], Wanted(queries=asked, query_states=True), True, False)[0]
    assert run.captured is not None
    assert run.captured.query_states is not None
    states, keys = dict(zip(asked, run.captured.query_states, strict=True)), run.cache()[0].cpu()
    layers = judge.engine.layers

    def query(tokens: range, layer: int, head: int) -> torch.Tensor:
        return torch.stack([states[t][layer, head] for t in tokens]).mean(0)

    def personal_query(i: int, layer: int, head: int) -> torch.Tensor:
        task = query(range(suffix.start, suffix.stop), layer, head)
        mine = task.clone()
        for o in (o for j, o in enumerate(shown) if j != i):
            other = query(range(max(o.start, o.stop - 2), o.stop), layer, head)
            mine += abs(float(other @ task / other.norm() / task.norm())) * other / (len(shown) - 1)
        return mine

    for i, s in enumerate(shown):
        parts = [range(a, min(a + 2, s.stop - 2)) for a in range(s.start + 1, s.stop - 2, 2)]
        value = dict.fromkeys(parts, 0.0)
        for layer in range(layers - 1):
            inner = {
                x: sum(
                    float(personal_query(i, layer, head) @ keys[layer, head // 2, list(x)].mean(0)) for head in range(4)
                )
                for x in parts
            }
            for x in parts:
                low, high = min(inner.values()), max(inner.values())
                value[x] += (inner[x] - low) / (high - low) if high > low else 0.0
        want = [t for x in sorted(parts, key=lambda x: -value[x]) for t in x]
        order = [t for t in ranked(scores, layout) if s.start <= t < s.stop]
        assert order[len(order) - len(want) :] == want


def test_cacheclips_helper_of_the_same_weights_gives_the_judges_own_last_layer(judge, folder):
    method = CacheClip(helper=folder(), window=1, queries=3)
    layout, scores, spent = scored(judge, method)
    rows = attention_of("llama", layout.token_ids, -1, range(len(layout) - 3, len(layout)))
    assert ranked(scores, layout) == ranked(rows.mean((0, 1)), layout)
    assert spent == len(layout) * judge.engine.layers  # a helper as large as the judge: a whole dense pass
    held = judge.engine.companions[method.helper]
    scored(judge, method)
    assert judge.engine.companions[method.helper] is held


def test_cacheclip_takes_the_windows_with_the_highest_mean(judge, folder):
    method = CacheClip(helper=folder(), window=4, budget=0.3)
    layout, scores, _ = scored(judge, method)
    row = attention_of("llama", layout.token_ids, -1, range(len(layout) - 8, len(layout))).mean((0, 1))
    windows = [range(a, min(a + 4, s.stop)) for s in layout.each("candidate") for a in range(s.start, s.stop, 4)]
    best = sorted(windows, key=lambda w: -float(row[list(w)].mean()))
    want = [t for w in best for t in sorted(w, key=lambda t: -float(row[t]))]
    assert ranked(scores, layout) == want
    plan = method.plan(layout, Blocks(judge.engine, PROMPT), judge.engine)
    count = round(0.3 * int(layout.mask("candidate").sum()))
    assert torch.nonzero((plan.depth > 0) & layout.mask("candidate"))[:, 0].tolist() == sorted(want[:count])


def test_cacheclip_reads_with_another_tokenizer_by_characters(judge, folder):
    """Words of the helper are several of the judge's characters, which share what the word gets."""
    method = CacheClip(helper=folder("llama", "four", "two"), window=1)
    layout, scores, _ = scored(judge, method)
    theirs, own, given = method._read(layout, judge.engine)
    helper = judge.engine.companions[method.helper]
    assert helper.tokenizer.get_vocab() != judge.engine.tokenizer.get_vocab()
    assert len(theirs) < layout.trunk
    text = judge.engine.tokenizer.decode(layout.token_ids)
    for t, (start, stop) in zip(theirs.token_ids.tolist(), given, strict=True):
        assert helper.tokenizer.decode([t]) == text[start:stop]
    assert [text[a:b] for a, b in own] == [judge.engine.tokenizer.decode([t]) for t in layout.token_ids.tolist()]
    row = helper.execute(
        [dense_plan(theirs, 4)], Wanted(queries=tuple(range(len(theirs) - 8, len(theirs))), rows=True), False, False
    )[0].rows()
    weight = [0.0] * len(text)
    for got, (start, stop) in zip(row[:, -1].mean((0, 1)).tolist(), given, strict=True):
        for c in range(start, stop):
            weight[c] += got / (stop - start)
    assert ranked(scores, layout) == ranked(torch.tensor([sum(weight[a:b]) for a, b in own]), layout)


def test_attention_goes_by_characters_and_none_is_lost_or_made():
    assert characters(["ab", "", "c", "é", "", ""]) == [(0, 2), (0, 2), (2, 3), (3, 4), (3, 4), (3, 4)]
    got = spread(torch.tensor([0.6, 0.4]), [(0, 3), (3, 4)], [(0, 1), (1, 4)])
    assert got.tolist() == pytest.approx([0.2, 0.8])
    assert spread(torch.tensor([1.0]), [(2, 2)], [(0, 1)]).tolist() == [0.0]  # a token that stands for no character


def test_a_smaller_helper_costs_its_share_of_the_judges_layers(judge, tmp_path):
    size = {**SIZE, "intermediate_size": 16, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    layout, _, spent = scored(judge, CacheClip(helper=str(tmp_path)))
    # of a layer's weights those of attention are 32 x (32 + 16 + 16 + 32), those of the rest 3 x 32 x intermediate
    attention, norms = 32 * 96, 64
    share = (attention + 3 * 32 * 16 + norms) / (attention + 3 * 32 * 64 + norms)
    assert spent == pytest.approx(len(layout) * 2 * share, rel=0.01)


def test_cacheclip_keeps_the_contract_of_a_policy(judge, folder):
    layout = judge.compile(PROMPT)
    full = CacheClip(helper=folder(), budget=1.0).plan(layout, Blocks(judge.engine, PROMPT), judge.engine)
    want = logits_of(plain_model("llama"), layout.token_ids)
    assert (judge.engine.execute([full])[0].logits[0] - want).abs().max() < 2e-4 * want.std()
    none, naive = (
        judge.judge(PROMPT, [m], capture=False)[0]
        for m in (CacheClip(helper=folder(), budget=0.0), methods.get("naive-linked"))
    )
    assert (none.scores == naive.scores).all()
    one, again = (judge.judge(PROMPT, [CacheClip(helper=folder())], capture=False)[0] for _ in range(2))
    assert (one.scores == again.scores).all()
    assert one.cost.probe_token_layers == len(layout) * judge.engine.layers


def test_cacheclip_reads_no_branches_and_odd_candidates(folder):
    scale = long_judge("llama")
    scale.readout = readout.get("score")
    for texts in (("", "4"), ("four",), ("same", "same")):
        for name in (f"cacheclip:helper={folder()}", f"cacheclip:helper={folder('llama', 'four')}", "a3", "sam-kv"):
            made = scale.judge(short_prompt("2+2?", texts), [methods.get(name)], capture=False)[0]
            assert len(made.scores) == len(texts)


def test_the_helpers_weights_are_part_of_what_a_run_is(judge, folder):
    first, other = (CacheClip(helper=folder(*x)).files for x in (("llama",), ("qwen2",)))
    assert list(first) == [folder()]
    assert {len(x) for x in (*first.values(), *other.values())} == {64}
    assert set(first.values()) != set(other.values())
    held = Study(judge, [PROMPT], [CacheClip(helper=folder())]).manifest()["methods"][0]
    assert held["files"] == first
    assert CacheClip(helper=folder()).files == first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cacheclip:window=0", "window counts tokens, 1 or more, not 0"),
        ("cacheclip:queries=0", "queries counts tokens, 1 or more, not 0"),
        ("sam-kv:block=0", "block counts tokens, 1 or more, not 0"),
        ("sam-kv:local=0", "local counts tokens, 1 or more, not 0"),
        ("sam-kv:initial=-1", "initial counts tokens, 0 or more, not -1"),
    ],
)
def test_counts_that_are_none_are_refused(spec, message):
    with pytest.raises(KvattnError, match=message):
        methods.get(spec)


def test_a_helper_that_cannot_serve_is_refused_before_anything_is_judged(judge, folder):
    layout = judge.compile(PROMPT)
    with pytest.raises(KvattnError, match="unknown model 'smolm2'"):
        methods.get("cacheclip:helper=smolm2").require(layout, judge.engine)
    CacheClip(helper=folder()).require(layout, judge.engine)
    short = CacheClip(helper=folder("llama", "four"))
    held = beside(judge.engine, short.helper)
    held.geometry = replace(held.geometry, max_tokens=20)
    with pytest.raises(KvattnError, match=r"tokens of the helper .*, whose context holds 20; take another helper"):
        short.require(layout, judge.engine)
    wide = Judge(Engine(plain_model("llama"), tokenizer("数", "字")))
    wide.engine.compiler.max_tokens = None
    said = wide.compile(short_prompt("2+2?", ("数字数字", "字")))
    with pytest.raises(KvattnError, match="cannot say candidate:1: 100% of its characters become unknown tokens"):
        CacheClip(helper=folder()).require(said, wide.engine)
