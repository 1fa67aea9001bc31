"""The audit: every planted fault is named, honest caches raise no alarm, and what it says is exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import engine, save

import kvattn
from benchmarks.audit import BLOCKS, LENGTH, START, STOP, Bench, engines
from kvattn import KvattnError, caches
from kvattn.engine.audit import KINDS, audit

SHAPES = ("llama", "qwen3", "gemma3", "phi3-partial")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_planted_fault_is_named(shape: str) -> None:
    here, other = engines(shape, torch.float32)
    missed, planted = [], set()
    for name, kind, case in Bench(here, other, 0).catalogue():
        planted.add(kind)
        if kind not in (said := case.kinds(here)):
            missed.append((name, kind, said))
    assert not missed
    assert planted == set(KINDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_honest_cache_raises_no_alarm(shape: str, dtype: torch.dtype) -> None:
    here = engine(shape, dtype)
    for case in Bench(here, here, 1).honest():
        found = case.audit(here)
        assert found.passed, str(found)
        assert found.share < 6
        assert found.found == tuple(case.ids.tolist())
        assert found.positions == tuple(range(LENGTH))


def test_it_says_which_tokens_and_how_far_off() -> None:
    here = engine()
    bench = Bench(here, here, 2)
    case = bench.turn(lambda at: at + 97, slice(START, STOP))
    found = case.audit(here)
    assert str(found.blocks[1]) == f"block: tokens {START} to {STOP - 1}: right text, keys 97 positions late"
    assert found.positions[START:STOP] == tuple(range(START + 97, STOP + 97))
    assert [b.made for b in found.blocks] == ["here"] * 3
    assert not found.blocks[0].faults
    zero = bench.changed(lambda k, v: (k.index_fill(0, torch.tensor([2, 3]), 0), v)).audit(here)
    assert str(zero.blocks[0].faults[0]) == f"tokens 0 to {START - 1}: layers 2 to 3 are zero"
    before = bench.some(11)
    moved = bench.pasted(before, claimed=before.tolist()).audit(here)
    assert moved.passed
    assert moved.blocks[1].made == "claimed"
    assert json.loads(json.dumps(moved.to_dict()))["passed"] is True


def test_another_models_cache_is_refused() -> None:
    here = engine()
    case = Bench(here, here, 3).dense()
    for keys, values, ids, said in (
        (case.keys[:2], case.values[:2], case.ids, "it is another model's"),
        (case.keys.half(), case.values.half(), case.ids, "the cache is float16"),
        (case.keys, case.values, case.ids + 10**6, "outside the model's vocabulary"),
        (case.keys, case.values, case.ids.repeat(9), "within the context of 256"),
    ):
        with pytest.raises(KvattnError, match=said):
            audit(here, list(zip(keys, values, strict=True)), ids)
    with pytest.raises(KvattnError, match="say which tokens"):
        audit(here, list(zip(case.keys, case.values, strict=True)))
    block = caches.block(list(zip(case.keys, case.values, strict=True)), case.ids)
    for more, said in (
        ({"blocks": {"a": (4, 90)}}, "block 'a'"),
        ({"claimed": {"b": []}}, "which are no blocks: cache"),
    ):
        with pytest.raises(KvattnError, match=said):
            audit(here, block, **more)


def test_the_command_line_ends_in_2_on_a_fault(tmp_path: Path, run: Callable[..., Any]) -> None:
    save(tmp_path / "model")
    here = kvattn.load(str(tmp_path / "model")).engine
    bench = Bench(here, here, 4)
    case = bench.dense()
    caches.save(tmp_path / "good.safetensors", caches.block(list(zip(case.keys, case.values, strict=True)), case.ids))
    case = bench.turn(lambda at: at + 7, slice(START, LENGTH))
    caches.save(tmp_path / "bad.safetensors", caches.block(list(zip(case.keys, case.values, strict=True)), case.ids))
    (tmp_path / "ids.json").write_text(json.dumps({"token_ids": case.ids.tolist(), "blocks": BLOCKS}))
    done = run("audit", "good.safetensors", "--model", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cache: tokens 0 to {LENGTH - 1}: what the model computes here")
    done = run("audit", "bad.safetensors", "--model", "model", "--ids", "ids.json", cwd=tmp_path)
    assert done.returncode == 2
    assert f"block: tokens {START} to {STOP - 1}: right text, keys 7 positions late" in done.stdout
    assert "2 of 3 blocks" in done.line
    done = run("audit", "bad.safetensors", "--model", "model", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["passed"] is False
    done = run("audit", "bad.safetensors", "--model", "model", "--ids", "ids.json", "--out", "x.html", cwd=tmp_path)
    assert done.returncode == 2
    assert "page: x.html" in done.stdout
    assert "keys 7 positions late" in (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "ends in .html" in run("audit", "bad.safetensors", "--model", "model", "--out", "x.md", cwd=tmp_path).line
    (tmp_path / "claimed.json").write_text('{"block": 5}')
    (tmp_path / "half.json").write_text('{"block": "\\ud800"}')
    for file, said in (
        ("claimed.json", "claimed.json, field 'block"),
        ("half.json", "half.json, field 'block': holds a lone surrogate"),
        ("gone.json", "cannot read gone.json"),
    ):
        done = run("audit", "good.safetensors", "--model", "model", "--claimed", file, cwd=tmp_path)
        assert said in done.line
