"""Agents with other weights: what they made is theirs, bit for bit; what the judge computes is its own."""

from __future__ import annotations

import pytest
import torch
from tiny import byte_llama, save, save_bytes, short_prompt, tokenizer

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge, load
from kvattn.methods.agents import Agents

TEXTS = ("two and two is four", "it is 5", "four, since 2+2=4", "4!")
PROMPT = short_prompt("What is 2+2?", TEXTS, (2, 0, 3, 1))
BASES = ("naive", "naive-linked", "isolated", "tail:tokens=1", "foreign-kv", "hybrid:k=2")


def model(seed: int, **config):
    """A tiny model with room for the prompt."""
    made = byte_llama(seed=seed)
    made.config.update({"max_position_embeddings": 512, **config})
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """Two models of one shape and tokenizer with other weights."""
    at = tmp_path_factory.mktemp("models")
    return tuple(str(save_bytes(at / f"seed-{seed}", model(seed))) for seed in (0, 1))


@pytest.fixture(scope="module")
def judges(folders) -> tuple[Judge, Judge]:
    return tuple(load(f) for f in folders)


def cache_of(judge: Judge, method, blocks: Blocks | None = None):
    layout = judge.compile(PROMPT)
    blocks = blocks or Blocks(judge.engine, PROMPT)
    plan = method.plan(layout, blocks, judge.engine)
    run = judge.engine.execute([plan], keep_cache=True)[0]
    return layout, plan, *run.cache()


@pytest.mark.parametrize("base", BASES)
def test_agents_with_the_judges_own_weights_are_its_base(judges, folders, base):
    judge = judges[0]
    own = judge.judge(PROMPT, [base], capture=False)[0]
    same = judge.judge(PROMPT, [Agents(methods.get(base), folders[0])], capture=False)[0]
    assert same.scores.tolist() == own.scores.tolist()
    assert same.cost.token_layers == own.cost.token_layers


@pytest.mark.parametrize("base", BASES)
def test_what_is_kept_was_made_by_the_agents_weights(judges, folders, base):
    (judge, other), method = judges, Agents(methods.get(base), folders[1])
    own, theirs = (j.judge(PROMPT, [base], capture=False)[0].scores for j in judges)
    found = judge.judge(PROMPT, [method], capture=False)[0].scores
    assert found.tolist() != own.tolist()
    assert found.tolist() != theirs.tolist()
    if base != "naive-linked":
        return
    layout, plan, _, values = cache_of(judge, method)
    blocks = Blocks(other.engine, PROMPT)
    for s, candidate in layout.shown():
        part = slice(s.start, s.stop)
        assert (plan.depth[part] == 0).all()
        assert torch.equal(values[:, :, part].cpu(), blocks.execution(candidate).values.cpu())


def test_agents_are_loaded_and_asked_once(judges, folders):
    judge, method = judges[0], Agents(methods.get("naive"), folders[1])
    blocks = Blocks(judge.engine, PROMPT)
    cache_of(judge, method, blocks)
    spent = next(iter(method.loaded.values())).meter.token_layers
    assert spent > 0
    cache_of(judge, method, blocks)
    assert [e.meter.token_layers for e in method.loaded.values()] == [spent]


def test_agents_of_another_shape_or_vocabulary_are_refused_before_anything_is_judged(judges, tmp_path):
    judge, layout = judges[0], judges[0].compile(PROMPT)
    words = tmp_path / "words"
    model(1).save_pretrained(words)
    tokenizer().save_pretrained(words)
    faster = model(1, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    for name, says in (
        (save(tmp_path / "shape"), "layers and not"),
        (str(words), "another vocabulary"),
        (str(save_bytes(tmp_path / "faster", faster)), "another rotation"),
        (str(tmp_path / "nobody"), "nobody"),
    ):
        with pytest.raises(KvattnError, match=says):
            Agents(model=name).require(layout, judge.engine)


def test_other_weights_are_another_method(folders):
    first, second = (methods.get(f"agents:model={f},base=naive") for f in folders)
    assert first.label == f"agents(base=naive,model={folders[0]})"
    assert set(first.files) == {folders[0]}
    assert set(first.files.values()) != set(second.files.values())
