"""Numbers that are no numbers choose nothing, are counted nowhere, and are refused with what made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import long_judge, short_prompt

import kvattn
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import Kept, KVPlan, dense_plan
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import Judge
from kvattn.judge.prior import Prior
from kvattn.methods import Method
from kvattn.methods.fresh import Dense
from kvattn.questions.templates import get_template
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

PROMPT = short_prompt("What is 2 + 3?", ["5", "6", "It is 5"])
PLACES = {
    "model.embed_tokens.weight": "come out of the embedding",
    "model.layers.2.self_attn.k_proj.weight": "come out of layer 2",
    "model.layers.3.mlp.down_proj.weight": "come out of layer 3",
    "model.norm.weight": "come out of the last norm",
    "lm_head.weight": "the logits are not finite",
}


def harmed(name: str, value: float = float("nan")) -> Judge:
    judge = long_judge("llama")
    with torch.no_grad():
        judge.engine.model.get_parameter(name).view(-1)[::7] = value
    return judge


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("ask", ["label", "yesno", "generate:3"])
def test_a_judge_whose_numbers_are_none_decides_nothing(name: str, ask: str) -> None:
    judge = replace(harmed(name), readout=readout.get(ask))
    if ask == "yesno":  # "Yes" is no one token of the tiny vocabulary
        judge.readout = YesNo()
    with pytest.raises(KvattnError) as caught:
        judge.judge(PROMPT, ["dense", "naive"])
    assert PLACES[name] in str(caught.value)
    assert f"float32: {name} holds such" in str(caught.value)


class YesNo(readout.YesNo):
    def ask(self, template):
        return replace(super().ask(template), answers=("Y", "N"))


def test_numbers_that_grow_too_large_are_named_with_the_layer() -> None:
    with pytest.raises(KvattnError, match=r"come out of layer 1 are not finite in float32: the weights"):
        harmed("model.layers.1.mlp.down_proj.weight", 3e38).decide(PROMPT)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "lm_head.weight"])
def test_a_study_counts_nothing_of_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(KvattnError, match="not finite"):
        Study(harmed(name), [replace(PROMPT, template=get_template("free"))], ["dense"]).run(tmp_path / "run")
    assert len(Run(tmp_path / "run")) == 0


def test_keys_and_values_that_were_kept_are_no_exception() -> None:
    engine = long_judge("llama").engine
    layout = Judge(engine).compile(PROMPT)
    block = engine.encode(layout).span(3, 9)
    block.values[2, 0, 1] = float("inf")
    depth = torch.full((len(layout),), engine.layers)
    depth[3:9] = 0
    with pytest.raises(KvattnError, match=r"come out of layer 2 .* kept, are damaged"):
        engine.execute([KVPlan.of(layout, engine.layers, depth, (Kept(block, 3),))])


def test_a_shallow_probe_is_looked_at_too() -> None:
    engine = harmed("model.layers.0.self_attn.k_proj.weight").engine
    layout: PromptLayout = Judge(engine).compile(PROMPT)
    with pytest.raises(KvattnError, match="keys and values of the first 1 layers are not finite"):
        engine.probe(dense_plan(layout, engine.layers), 1)


@dataclass(frozen=True)
class Adjusted(Dense):
    """Dense, its scores spoilt."""

    name = "adjusted"

    def adjusted(self, scores):
        return scores * np.nan


@pytest.mark.parametrize(
    ("method", "prior"),
    [(Adjusted(), None), ("dense", Prior((0.0, float("nan"), 0.0), "free", "label", 1))],
)
def test_scores_that_are_no_numbers_choose_nothing(method: str | Method, prior: Prior | None) -> None:
    with pytest.raises(KvattnError, match="scores of the slots are not finite"):
        replace(long_judge("llama"), prior=prior).decide(PROMPT, method)


@pytest.mark.parametrize(
    "ask",
    [
        lambda j: j.compare("q", ["a", "b"], methods="dense"),
        lambda j: j.judge(PROMPT, "dense"),
        lambda j: j.compare("q", "ab"),
        lambda j: j.compare("q", None),
        lambda j: j.compare("q", ["a", None]),
        lambda j: j.compare("q", ["a", float("nan")]),
        lambda j: j.compare(None, ["a", "b"]),
        lambda j: j.compare("q", ["a", "b"], template=None),
        lambda j: j.compare("q", ["a", "b"], order="10"),
        lambda j: j.compare("q", ["a", "b"], order=[1.0, 0.0]),
        lambda j: j.compare("q", {"a", "b"}),
        lambda j: j.compare("q", {"a": "b", "c": "d"}),
        lambda j: j.compare("q", ["a", "b"], methods=[None]),
        lambda j: j.compare("q", ["a", "b"], methods=[Dense]),
        lambda j: j.compare("q", ["a", "b"], order=[True, False]),
        lambda j: j.judge("q", ["dense"]),
        lambda j: j.judge(PROMPT, ["dense"], []),
        lambda j: j.judge(PROMPT, ["dense"], "01"),
        lambda j: j.decide(PROMPT, None),
        lambda j: Study(j, [PROMPT], "dense"),
        lambda j: Study(j, "ab"),
        lambda j: Study(j, [PROMPT], mine=[7]),
        lambda j: Study(j, [PROMPT], orders=["fixed"]),
        lambda j: Study(j, [PROMPT], orders="shuffle:²"),
        lambda j: Study(j, [PROMPT], ["dense"], "shuffle", seed=-1).decisions(0),
        lambda j: Study(j, [PROMPT], ["dense"], "shuffle", seed=1.5).decisions(0),
        lambda _: kvattn.load(None),
        lambda _: kvattn.load(3),
        lambda _: readout.get(None),
        lambda _: readout.get("generate:²"),
        lambda _: readout.get(f"generate:{'9' * 5000}"),
    ],
)
def test_what_is_no_list_or_no_text_is_refused(ask: Callable[[Judge], object]) -> None:
    with pytest.raises(KvattnError):
        ask(long_judge("llama"))


def test_a_verdict_needs_room_in_python_too() -> None:
    judge = long_judge("llama")
    judge.engine.compiler.max_tokens = len(judge.compile(PROMPT)) + 5
    assert judge.decide(PROMPT).choice
    with pytest.raises(KvattnError, match="and up to 64 for the verdict"):
        replace(judge, readout=readout.get("generate")).decide(PROMPT)


@pytest.mark.parametrize("text", ["日本語は難しい", "½¾ 12", "Ответ: пять"])
def test_text_that_a_tokenizer_cannot_say_is_refused_with_its_share(text: str) -> None:
    judge = long_judge("llama")
    for prompt in (short_prompt(text, ["5"]), short_prompt("2 + 3?", ["5", text])):
        if text.startswith("½"):
            assert judge.decide(prompt).choice  # half of it is said
            continue
        with pytest.raises(KvattnError, match=r"cannot say (the question|candidate 'c1'): (100|73|8\d|9\d)% of its"):
            judge.decide(prompt)
