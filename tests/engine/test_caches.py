"""Caches of transformers and of files: judged bit for bit, continued exactly, refused in one line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKOUT
from safetensors.torch import save_file
from tiny import CONFIGS, engine, layout, long_judge, plain_model, short_prompt
from tiny import save as save_model
from transformers import DynamicCache, GenerationConfig, StaticCache

import kvattn
from kvattn import KvattnError, caches
from kvattn.engine.blocks import Blocks
from kvattn.engine.plan import Kept, KVPlan, dense_plan
from kvattn.judge.judge import Judge
from kvattn.questions import synthetic, write_candidates

SHAPES = ("llama", "qwen2-window", "gemma3", "phi3-partial")
TEXTS = ("two and two is four", "it is 5", "four, since 2+2=4")


def agents(judge: Judge, prompt) -> list[tuple[torch.Tensor, int]]:
    """The ids of every agent's context, with the first of its own answer: what a user's pipeline ran."""
    out = []
    for x in judge.engine.compiler.execution(prompt, "progressive"):
        out.append((x.token_ids, x.segments[-1].start))
    return out


def prefilled(shape: str, ids: torch.Tensor, cache=None):
    """A plain forward's past_key_values."""
    with torch.inference_mode():
        return plain_model(shape)(ids[None], past_key_values=cache or DynamicCache(), use_cache=True).past_key_values


@pytest.fixture(params=SHAPES)
def judge(request) -> Judge:
    made = long_judge(request.param)
    made.regime = "progressive"
    return made


def test_a_cache_of_plain_transformers_is_judged_as_kvattns_own(judge: Judge, tmp_path: Path) -> None:
    """Made by the plain model, written, read, judged: the very bits of kvattn's own block, and its decision."""
    prompt = short_prompt("What is 2+2?", TEXTS)
    given = {}
    for i, (ids, start) in enumerate(agents(judge, prompt)):
        made = caches.block(prefilled(judge.shape, ids), ids, start)  # type: ignore[attr-defined]
        caches.save(tmp_path / f"{i}.safetensors", made)
        given[i] = caches.load(tmp_path / f"{i}.safetensors")
    own = Blocks(judge.engine, prompt, "progressive")
    for i, block in given.items():
        mine = own.execution(prompt.candidates[i].id)
        assert torch.equal(block.keys, mine.keys)
        assert torch.equal(block.values, mine.values)
        assert torch.equal(block.positions, mine.positions)
    methods = ["naive", "naive-linked"]
    theirs, ours = judge.compare(prompt, methods=methods, caches=given), judge.compare(prompt, methods=methods)
    for a, b in zip(theirs.decisions, ours.decisions, strict=True):
        assert np.array_equal(a.scores, b.scores)
        assert "given" in a.notes
    for name in methods:
        assert torch.equal(theirs.row[name], ours.row[name])


def test_a_cache_is_kept_bit_for_bit_where_it_stands(judge: Judge) -> None:
    prompt = short_prompt("What is 2+2?", TEXTS)
    target = judge.compile(prompt)
    s = target.find("candidate", 1)
    g = judge.engine.geometry
    shape = (g.layers, g.kv_heads, s.length, g.head_dim)
    noise = torch.Generator().manual_seed(0)
    made = kvattn.KVBlock(
        torch.randn(shape, generator=noise),
        torch.randn(shape, generator=noise),
        target.token_ids[s.start : s.stop],
        target.positions[s.start : s.stop],
    )
    keys, values = judge.compare(prompt, methods=["naive"], caches={"c1": made}).kv["naive"]
    assert torch.equal(keys[:, :, s.start : s.stop].cpu(), made.keys)
    assert torch.equal(values[:, :, s.start : s.stop].cpu(), made.values)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_container_gives_the_same_block(shape: str) -> None:
    ids = layout(length=12).token_ids
    config = CONFIGS[shape]()
    whole = caches.block(prefilled(shape, ids), ids)
    for held in (
        prefilled(shape, ids, StaticCache(config=config, max_cache_len=len(ids) + 7)),
        prefilled(shape, ids, DynamicCache(config=config)),
    ):
        start = max(len(ids) - min(x.keys.shape[2] for x in held.layers), 0)
        if any(x.is_sliding for x in held.layers):
            assert start
            with pytest.raises(KvattnError, match=f"give start={start} or later"):
                caches.block(held, ids)
        part = caches.block(held, ids, start)
        assert torch.equal(part.keys, whole.keys[:, :, start:])
        assert torch.equal(part.values, whole.values[:, :, start:])
    pairs = [(k, v) for k, v in zip(whole.keys, whole.values, strict=True)]
    assert torch.equal(caches.block(pairs, ids).keys, whole.keys)


def test_a_quantised_cache_is_what_attention_reads() -> None:
    from transformers.cache_utils import Cache, Fp8QuantizedLayer

    ids, layers = layout().token_ids, engine().layers
    held = prefilled("llama", ids, Cache(layers=[Fp8QuantizedLayer() for _ in range(layers)]))
    block = caches.block(held, ids)
    assert torch.equal(block.keys[1], held.layers[1]._dequantize(held.layers[1]._quantized_keys)[0])
    held.layers[2]._quantized_keys = None
    with pytest.raises(KvattnError, match="layer 2 of the cache is quantised"):
        caches.block(held, ids)


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, "mistral-window"])
def test_generate_continues_a_stitched_cache(shape: str, config: bool) -> None:
    """Half of the prompt kept from a dense pass; then the plain model's generate, against its own from scratch."""
    tiny, target = engine(shape), layout(length=12)
    dense = tiny.encode(target)
    depth = torch.full((len(target),), tiny.layers)
    depth[8:24] = 0
    plan = KVPlan.of(target, tiny.layers, depth, (Kept(dense.span(8, 24), 8),))
    run = tiny.execute([plan], keep_cache=True)[0]
    plain, how = plain_model(shape), {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    how |= {"output_logits": True, "return_dict_in_generate": True}
    want = plain.generate(target.token_ids[None], **how)
    past = run.past_key_values(CONFIGS[shape]() if config else None)
    got = plain.generate(target.token_ids[None], past_key_values=past, **how)
    assert torch.equal(got.sequences, want.sequences)
    error = torch.stack(got.logits) - torch.stack(want.logits)
    assert error.abs().max() < 1e-3 * torch.stack(want.logits).std()


def test_a_cache_that_transformers_would_continue_wrongly_is_refused() -> None:
    tiny, target = engine(), layout(branches=True)
    with pytest.raises(KvattnError, match="transformers cannot continue this plan"):
        tiny.execute([dense_plan(target, tiny.layers)], keep_cache=True)[0].past_key_values()


def test_the_notebook_of_the_documents_runs_as_it_stands(tmp_path: Path, capsys) -> None:
    """Plain transformers and ten lines of kvattn: decisions under dense and naive, an honest audit of each agent."""
    save_model(tmp_path / "model")
    letters = set(engine().tokenizer.encode("".join(map(chr, range(32, 127)))))  # random weights say anything else, too
    never = [i for i in range(CONFIGS["llama"]().vocab_size) if i not in letters]
    GenerationConfig(suppress_tokens=never).save_pretrained(tmp_path / "model")
    cells = re.findall(r"^```python\n(.*?)^```", (CHECKOUT / "docs/caches.md").read_text(encoding="utf-8"), re.M | re.S)
    names = {"folder": str(tmp_path / "model"), "question": "What is 2+2?"}
    torch.manual_seed(0)
    exec(cells[0], names)
    exec(cells[1], names)
    assert len(cells[1].splitlines()) <= 11
    shown = capsys.readouterr().out
    assert names["result"].decisions[1].method == "naive"
    assert "given" in names["result"].decisions[1].notes
    assert shown.count("cache: tokens 0 to") == 3


# -- somebody else's whole prompt --------------------------------------------------------------------------------------


def test_a_foreign_cache_is_their_stitching_and_our_decision(judge: Judge) -> None:
    """Our naive cache, handed in as somebody else's, decides as naive; a dense one as dense; a wrong one otherwise."""
    prompt = short_prompt("What is 2+2?", TEXTS)
    ids = judge.compile(prompt).token_ids
    ours = judge.compare(prompt, methods=["dense", "naive"])
    for name in ("dense", "naive"):
        keys, values = ours.kv[name]
        for n in (len(ids), len(ids) - 1):  # with the last token, or as engines hold it
            whole = caches.block(list(zip(keys[:, :, :n], values[:, :, :n], strict=True)), ids[:n])
            theirs = judge.compare(prompt, methods=["foreign-cache"], whole=whole)
            same = ours.decisions[("dense", "naive").index(name)]
            assert np.allclose(theirs.decisions[0].scores, same.scores, atol=2e-4 * same.scores.std())
            assert torch.allclose(theirs.row["foreign-cache"], ours.row[name], atol=1e-5)
            assert theirs.decisions[0].cost.tokens_computed == 1
    with pytest.raises(KvattnError, match="none was given"):
        judge.compare(prompt, methods=["foreign-cache"])
    with pytest.raises(KvattnError, match=r"its token \d+ is"):
        judge.compare(prompt.ordered((1, 0, 2)), methods=["foreign-cache"], whole=whole)


def test_positions_that_a_foreign_cache_states_are_the_judges(judge: Judge) -> None:
    prompt = short_prompt("What is 2+2?", TEXTS)
    target = judge.compile(prompt)
    keys, values = judge.compare(prompt, methods=["naive"]).kv["naive"]
    whole = caches.block(list(zip(keys, values, strict=True)), target.token_ids, positions=target.positions // 2)
    run = judge.compare(prompt, methods=["foreign-cache"], whole=whole).runs[0]
    assert torch.equal(run.plan.positions[:-1], target.positions[:-1] // 2)
    assert torch.equal(run.cache()[0][:, :, :-1].cpu(), whole.keys[:, :, :-1].cpu())


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def held() -> kvattn.KVBlock:
    return engine().encode(layout()).span(0, 20)


@pytest.mark.parametrize("packed", ["halves", "side by side"])
def test_what_vllms_example_connector_writes_is_read(held: kvattn.KVBlock, tmp_path: Path, packed: str) -> None:
    """Its two layouts: [2, tokens, kv heads x dim], and [tokens, kv heads, 2 x dim]; ids beside."""
    for i, (k, v) in enumerate(zip(held.keys, held.values, strict=True)):
        pages = torch.stack([k, v]).transpose(1, 2).flatten(2)
        side = torch.cat([k, v], -1).transpose(0, 1)
        tensor = (pages if packed == "halves" else side).contiguous()
        save_file({"kv_cache": tensor}, tmp_path / f"model.layers.{i}.self_attn.attn.safetensors")
    ids = [*held.token_ids.tolist(), 5, 6]
    with pytest.raises(KvattnError, match=r"in ids\.json"):
        caches.load(tmp_path)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    if packed == "halves":
        with pytest.raises(KvattnError, match="give kv_heads"):
            caches.load(tmp_path)
    got = caches.load(tmp_path, kv_heads=2)
    assert torch.equal(got.keys, held.keys)
    assert torch.equal(got.values, held.values)
    assert torch.equal(got.token_ids, held.token_ids)
    (tmp_path / "model.layers.1.self_attn.attn.safetensors").unlink()
    with pytest.raises(KvattnError, match=r"holds layers \[0, 2, 3\]"):
        caches.load(tmp_path)


def test_files_that_are_no_cache_are_refused(held: kvattn.KVBlock, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = {name: getattr(held, name) for name in ("keys", "values", "token_ids", "positions")}
    told = {"format": "kvattn-cache-1"}

    def said(tensors, metadata=told) -> str:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
        with pytest.raises(KvattnError) as e:
            caches.load(path)
        return str(e.value)

    assert "is no cache of kvattn" in said(good, {})
    assert "holds keys, values" in said({k: good[k] for k in ("keys", "values")})
    assert "keys of F64" in said({**good, "keys": held.keys.double(), "values": held.values.double()})
    assert "[tokens] twice" in said({**good, "token_ids": held.token_ids[:-1]})
    assert "[tokens] twice" in said({**good, "values": held.values[:2]})
    assert "whole numbers" in said({**good, "positions": held.positions.float()})
    caches.save(path, held)
    whole = path.read_bytes()
    for damaged in (b"", b"\x80\x04.", whole[:100], whole[:-1], b"\xff" * 64, b"\x00" * 8 + whole):
        path.write_bytes(damaged)
        with pytest.raises(KvattnError, match=r"cannot be read as safetensors .* pickles are never read"):
            caches.load(path)
    torch.save(good, tmp_path / "x.pt")
    with pytest.raises(KvattnError, match="pickles are never read"):
        caches.load(tmp_path / "x.pt")
    with pytest.raises(KvattnError, match="is no file"):
        caches.load(tmp_path / "gone")


# -- what cannot be this candidate's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: replace(b, keys=b.keys[:3], values=b.values[:3]), "3 layers, the model has 4"),
        (lambda b: replace(b, keys=b.keys[:, :1], values=b.values[:, :1]), "1 kv heads, the model has 2"),
        (lambda b: replace(b, keys=b.keys[..., :4], values=b.values[..., :4]), "4 channels a head, the model has 8"),
        (lambda b: replace(b, values=b.values[:3]), "keys .4, 2, 7, 8. of float32 and values .3, 2, 7, 8."),
        (lambda b: replace(b, keys=b.keys.half(), values=b.values.half()), "float16, the model computes in float32"),
        (lambda b: b.part(0, 5), "5 tokens, the prompt has 7 there"),
        (lambda b: replace(b, token_ids=b.token_ids.flip(0)), r"its token 0 is \d+, the prompt has \d+ there"),
        (lambda b: replace(b, token_ids=b.token_ids + 10**6), "a token id outside the model's vocabulary"),
        (lambda b: replace(b, positions=b.positions - 100), "positions -43 to -37"),
        (lambda b: replace(b, positions=b.positions[:3]), "7 tokens with keys, 7 token ids, 3 positions"),
        (lambda b: replace(b, weights="other@sha256:1"), "made by other@sha256:1, the judge is mine@sha256:2"),
        (lambda b: replace(b, keys=b.keys.index_fill(2, torch.tensor(2), torch.nan)), "numbers that are not finite"),
        (lambda b: DynamicCache(), "a DynamicCache does not say its tokens"),
    ],
)
def test_a_cache_that_cannot_be_the_candidates_is_refused_by_its_cause(change, said: str) -> None:
    judge = long_judge("llama")
    judge.engine.identity = "mine@sha256:2"
    prompt = short_prompt("What is 2+2?", TEXTS)
    good = Blocks(judge.engine, prompt).execution("c1")
    with pytest.raises(KvattnError, match=f"question 'q': cache of candidate 'c1': .*{said}"):
        judge.compare(prompt, methods=["naive"], caches={1: change(good)})
    for key, name in ((7, "there is no candidate 7"), ("x", "unknown candidate")):
        with pytest.raises(KvattnError, match=name):
            judge.compare(prompt, methods=["naive"], caches={key: good})


def test_caches_in_memory_that_are_no_block_are_refused() -> None:
    ids = layout().token_ids
    two = ids[None].repeat(2, 1)
    with torch.inference_mode():
        batch = plain_model()(two, past_key_values=DynamicCache(), use_cache=True).past_key_values
    held = prefilled("llama", ids)
    for bad, given, said in (
        (batch, ids, "holds 2 sequences"),
        (DynamicCache(), ids, "no layer with keys"),
        (held, ids[:-1], "has seen 55 tokens, 54 ids"),
        (held, [1.5, 2], "whole numbers"),
        (held, [], "whole numbers"),
        ("path", ids, "str is no cache"),
        ([torch.zeros(3)], ids, "holds no keys and values"),
        (
            [(torch.zeros(2, 55, 8), torch.zeros(2, 55, 8)), (torch.zeros(1, 55, 8),) * 2],
            ids,
            "layer 1 of the cache has",
        ),
    ):
        with pytest.raises(KvattnError, match=said):
            caches.block(bad, given)
    with pytest.raises(KvattnError, match="give 0 <= start < stop"):
        caches.block(held, ids, 9, 9)


def test_the_command_line_judges_a_folder_of_caches(tmp_path: Path, run) -> None:
    """As without it where the caches are the candidates' own; a wrong one is refused before anything is judged."""
    save_model(tmp_path / "model")
    judge = kvattn.load(str(tmp_path / "model"))
    prompts = list(synthetic(2))
    write_candidates(tmp_path / "q.jsonl", prompts)
    (tmp_path / "caches").mkdir()
    for p in prompts:
        own = Blocks(judge.engine, p)
        for i, c in enumerate(p.candidates):
            made = replace(own.execution(c.id), weights=judge.engine.identity)
            caches.save(tmp_path / "caches" / f"{p.id}-{i}.safetensors", made, p.id, c.id)
    line = ("judge", "q.jsonl", "--model", "model", "--methods", "dense,naive-linked")
    for out, more in (("a.jsonl", ()), ("b.jsonl", ("--caches", "caches"))):
        done = run(*line, "--out", out, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = (pd.read_json(tmp_path / f"{x}.jsonl", lines=True) for x in "ab")
    assert a["scores"].tolist() == b["scores"].tolist()
    assert "given" in b["notes"].iloc[-1]
    other = prompts[0].candidates[0]
    wrong = Blocks(judge.engine, prompts[1]).execution(prompts[1].candidates[1].id)
    for candidate, block, said in (
        (other.id, wrong, f"cache of candidate {other.id!r}: "),
        ("nobody", wrong, "unknown candidate"),
        (prompts[0].candidates[1].id, wrong, "are both of question"),
    ):
        caches.save(tmp_path / "caches" / f"{prompts[0].id}-0.safetensors", block, prompts[0].id, candidate)
        done = run(*line, "--caches", "caches", "--out", "c.jsonl", cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.line
    assert not (tmp_path / "c.jsonl").exists()


def test_a_candidates_file_names_its_caches(tmp_path: Path, run) -> None:
    """The field cache is read beside the file; a run, a gate and a judge that was given none refuse it."""
    save_model(tmp_path / "model")
    judge = kvattn.load(str(tmp_path / "model"))
    (prompt,) = synthetic(1)
    own = Blocks(judge.engine, prompt)
    (tmp_path / "kv").mkdir()
    named = []
    for i, c in enumerate(prompt.candidates):
        noisy = own.execution(c.id)
        noisy = replace(noisy, values=noisy.values * 0.5)  # so that it is seen whether they are read
        caches.save(tmp_path / "kv" / f"{i}.safetensors", noisy, prompt.id, c.id)
        named.append(replace(c, cache=f"kv/{i}.safetensors"))
    bare, prompt = prompt, replace(prompt, candidates=tuple(named))
    write_candidates(tmp_path / "q.jsonl", [prompt])
    given = caches.named(prompt, tmp_path)
    want = judge.compare(prompt, methods=["naive-linked"], caches=given).decisions[0]
    assert not np.array_equal(want.scores, judge.compare(bare, methods=["naive-linked"]).decisions[0].scores)
    line = ("judge", "q.jsonl", "--model", "model", "--methods", "naive-linked")
    done = run(*line, "--out", "a.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pd.read_json(tmp_path / "a.jsonl", lines=True)["scores"].iloc[0] == pytest.approx(want.scores.tolist())
    with pytest.raises(KvattnError, match=r"names its cache, kv/0\.safetensors, which was not given"):
        judge.compare(prompt, methods=["naive-linked"])
    assert judge.decide(prompt).method == "dense"  # it reuses nothing
    assert "names its cache" in run(*line, "--run", "r", cwd=tmp_path).line
    assert "too; leave one of them out" in run(*line, "--caches", "kv", cwd=tmp_path).line
    swapped = replace(prompt, candidates=(replace(named[0], cache="kv/1.safetensors"), *named[1:]))
    with pytest.raises(KvattnError, match=r"kv/1\.safetensors says that it is of question .*, candidate"):
        caches.named(swapped, tmp_path)
    with pytest.raises(KvattnError, match="is no file; the field cache names one"):
        caches.named(prompt, tmp_path / "kv")
