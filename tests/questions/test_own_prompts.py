"""Candidates whose agents were given prompts of their own, as a production judge's logs have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_methods import SHAPES, plan_of, prompt
from tiny import SHORT, long_judge, plain_model

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.layout import join
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.questions import data_sha256, load, read_candidates, synthetic, write_candidates
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.study.study import Study

OWN = {0: "You add. <|turn|>system What is 2+2?", 2: "Be brief: 2+2"}


@pytest.fixture(scope="module", params=SHAPES)
def judge(request) -> Judge:
    return long_judge(request.param)


def mixed(own: dict[int, str] = OWN) -> JudgePrompt:
    p = prompt()
    return replace(p, candidates=tuple(replace(c, prompt=own.get(i)) for i, c in enumerate(p.candidates)))


def head_of(judge: Judge, p: JudgePrompt, i: int) -> list[int]:
    """Ids of the context of agent i, put together here from the chat frame and the bare texts."""
    compiler = judge.engine.compiler
    before, after = compiler.frame(SHORT.agent_system, SHORT.chat)
    own = p.candidates[i].prompt
    text = [own] if own is not None else [SHORT.question_heading, p.question, SHORT.agent_instruction]
    return before + [t for x in text for t in compiler.text(x)] + after


@pytest.mark.parametrize("own", [OWN, {i: f"Prompt {i}" for i in range(4)}, {}], ids=["some", "all", "none"])
def test_reuse_keeps_what_a_forward_of_the_agents_own_text_makes(judge, own) -> None:
    p = mixed(own).ordered((1, 3, 0, 2))
    layout, _, plan = plan_of(judge, methods.get("naive-linked"), p)
    model = plain_model(judge.shape)
    kept = {k.start: k.block for k in plan.kept}
    for s, c in layout.shown():
        i = int(c[1:])
        head = head_of(judge, p, i)
        ids = torch.tensor([*head, *judge.engine.compiler.candidate_ids(p, i)])
        with torch.inference_mode():
            cache = model(ids[None], use_cache=True).past_key_values
        text = join([("prefix", None, head), ("candidate", 0, ids[len(head) :].tolist())], (c,))
        block = judge.engine.encode(text).block(text.find("candidate", 0))
        block = block.moved(kept[s.start].positions, judge.engine.rotary)
        for layer in range(4):
            values = cache.layers[layer].values[0][:, -s.length :]
            n = values.shape[1]
            assert torch.allclose(kept[s.start].values[layer][:, -n:], values, atol=2e-4)
            assert torch.allclose(kept[s.start].keys[layer], block.keys[layer], atol=2e-4)


def test_a_prompt_of_its_own_changes_that_candidates_cache_alone(judge) -> None:
    with_own, without = Blocks(judge.engine, mixed()), Blocks(judge.engine, prompt())
    for i in range(4):
        a, b = with_own.execution(f"c{i}"), without.execution(f"c{i}")
        assert torch.equal(a.token_ids, b.token_ids)
        assert torch.allclose(a.values[3], b.values[3], atol=1e-4) == (i not in OWN)
        assert a.seen == {f"c{i}"}
    assert torch.allclose(with_own.question().values[3], without.question().values[3], atol=1e-4)
    assert with_own.log_probability("c0") != pytest.approx(without.log_probability("c0"), abs=1e-4)
    assert with_own.log_probability("c1") == pytest.approx(without.log_probability("c1"), abs=1e-4)


def test_progressive_contexts_with_prompts_of_their_own(judge) -> None:
    """The prompt is the whole context, and such a block has seen no other; the rest still see the answers before."""
    own, plain = Blocks(judge.engine, mixed(), "progressive"), Blocks(judge.engine, prompt(), "progressive")
    alone = Blocks(judge.engine, mixed())
    for i in range(4):
        a, b = own.execution(f"c{i}"), plain.execution(f"c{i}")
        assert torch.allclose(a.values[3], b.values[3], atol=1e-4) == (i not in OWN)
        assert a.seen == ({f"c{i}"} if i in OWN else {f"c{k}" for k in range(i + 1)})
        assert a.source == ("progressive" if i in OWN else "pr-teacher-forced")
    for i in OWN:
        assert torch.allclose(own.execution(f"c{i}").values[3], alone.execution(f"c{i}").values[3], atol=1e-4)
    assert torch.allclose(own.question().values[3], plain.question().values[3], atol=1e-4)


@pytest.mark.parametrize("spec", ["dense", "naive-linked", "kvcomm", "last-k", "true-mask", "foreign-kv"])
def test_methods_judge_such_prompts(judge, spec) -> None:
    own = {i: f"Prompt number {i}." for i in range(4)}
    first, second = (judge.judge(mixed(x), [spec], donor=mixed(x))[0] for x in (own, {}))
    assert len(first.distribution) == 4
    if spec in ("dense", "true-mask"):  # they look at no execution context
        assert torch.allclose(torch.tensor(first.distribution), torch.tensor(second.distribution), atol=1e-6)


def test_chat_markers_in_a_prompt_are_text(judge) -> None:
    compiler = judge.engine.compiler
    marker = compiler.tokenizer.convert_tokens_to_ids("<|turn|>")
    count = [int((x.token_ids == marker).sum()) for x in compiler.execution(mixed(), "parallel")]
    before, after = compiler.frame(SHORT.agent_system, SHORT.chat)
    assert count == [(before + after).count(marker)] * 3
    with pytest.raises(KvattnError, match="lone surrogate"):
        JudgePrompt("q", (Candidate("a", "x", prompt="\ud800"),))


def test_files_hold_prompts_and_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    row = {"id": "1", "question": "q", "verdict": "b"}
    row["candidates"] = [{"id": "a", "text": "x", "prompt": "You are\na checker."}, {"id": "b", "text": "y"}]
    path.write_text(json.dumps(row))
    (p,) = read_candidates(path)
    assert (p.verdict, p.candidates[0].prompt, p.candidates[1].prompt) == ("b", "You are\na checker.", None)
    write_candidates(tmp_path / "again.jsonl", [p])
    assert read_candidates(tmp_path / "again.jsonl") == [p]
    bare = replace(p, verdict=None, candidates=tuple(replace(c, prompt=None) for c in p.candidates))
    assert len({data_sha256([x]) for x in (p, replace(p, verdict=None), bare)}) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "c"}, "field 'verdict': 'c' is no candidate's id; the candidates are a, b"),
        ({"verdict": 1}, "field 'verdict': must be a string, not 1"),
        ({"regime": "debate"}, "field 'regime': must be 'parallel' or 'progressive', not 'debate'"),
        ({"regime": 1}, "field 'regime': must be 'parallel' or 'progressive', not 1"),
        ({"candidates": [{"text": "x", "prompt": ["y"]}]}, "field 'candidates[0].prompt': must be a string"),
        ({"candidates": [{"text": "x", "prompt": "\ud800"}]}, "lone surrogate"),
    ],
)
def test_bad_logs_are_named(tmp_path: Path, change: dict, says: str) -> None:
    path = tmp_path / "log.jsonl"
    row = {"id": "1", "question": "q", "candidates": [{"id": "a", "text": "x"}, {"id": "b", "text": "y"}]}
    path.write_text(json.dumps({**row, **change}))
    with pytest.raises(KvattnError) as e:
        read_candidates(path)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_hashes_of_data_without_them_are_what_they_were(shared: Path) -> None:
    """Recorded before the fields were there: runs made then go on."""
    assert data_sha256(synthetic(20, 3)) == "bb4da86a7a2a56c3cd6ed6fe5e825c2d0091ce78bb11066b06cb2de00f63f68f"
    gsm8k = load(shared / "data" / "gsm8k_candidates.jsonl")
    assert data_sha256(gsm8k) == "b68d0dff7c7c1867a94c318d0a8a753ddf11d28ff2efe8e773104cc1d3ba2418"


@pytest.mark.parametrize("regime", ["parallel", "progressive"])
def test_candidates_are_judged_as_they_were_made(regime: str) -> None:
    other, p = {"parallel": "progressive", "progressive": "parallel"}[regime], replace(prompt(), regime=regime)
    judge = replace(long_judge("llama"), regime=other)
    assert judge.judge(replace(p, regime=None), ["dense", "naive-linked"])
    for refused in (
        lambda: judge.decide(p),
        lambda: Blocks(judge.engine, p, other),
        lambda: Study(judge, [p]).checked(),
    ):
        with pytest.raises(KvattnError, match=f"made under the {regime} regime.*--regime {regime}"):
            refused()
    with pytest.raises(KvattnError, match="unknown regime 'debate'"):
        replace(p, regime="debate")
