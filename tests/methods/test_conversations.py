"""Every method judges a conversation, whose tokens are not cut where its texts meet its words."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_methods import every
from tiny import byte_llama, plain_added_tokenizer, plain_model

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import of_entries, read_template, to_yaml
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

TEMPLATE = of_entries(
    {
        "name": "prod",
        "messages": [
            {"role": "user", "content": "Q: {{question}}\n\nA: {{candidate.1}}\nB: {{candidate.2}}\n\nA or B?"},
        ],
        "labels": ["A", "B"],
        "yesno_branch": "{label}?",
        "agent_system": "",
        "agent_instruction": " Go.",
    },
    "here",
)


def prompt(number: int = 0) -> JudgePrompt:
    texts = (f"two and two is {number}\n", f"\nhey, 4 ({number})")
    made = tuple(Candidate(f"c{i}", t) for i, t in enumerate(texts))
    return JudgePrompt(f"What is 2+2? ({number})", made, TEMPLATE, id=f"q{number}")


@pytest.fixture(scope="module", params=["characters", "bytes"])
def judge(request) -> Judge:
    """One whose tokens are characters, and one whose line ends and blanks merge with their neighbours."""
    if request.param == "characters":
        tokenizer, model = tiny.tokenizer(), plain_model()
    else:
        tokenizer, model = plain_added_tokenizer(), byte_llama()
        model.resize_token_embeddings(len(tokenizer))
    made = Engine(copy.deepcopy(model), tokenizer)
    made.geometry = replace(made.geometry, max_tokens=None)
    made.compiler.max_tokens = None
    judge = Judge(made)
    judge.plain = model  # type: ignore[attr-defined]
    return judge


@pytest.mark.parametrize("method", every(), ids=lambda m: m.label)
def test_a_method_judges_a_conversation_in_every_order(judge: Judge, method: methods.Method) -> None:
    if method.name == "pointwise":  # refused: below
        return
    if method.name == "cross-candidate":
        method = replace(method, depth=1)  # the smaller of the two has two layers
    if method.needs_warming:
        judge.warm(method, [prompt(8)])
    decisions = judge.judge(prompt(), [method], [(0, 1), (1, 0)], donor=prompt(9))
    assert [d.order for d in decisions] == [(0, 1), (1, 0)]
    for d in decisions:
        assert torch.isfinite(torch.tensor(d.scores)).all()
        assert d.cost.candidate_tokens > 0


def test_what_reuse_keeps_is_what_the_agents_context_makes(judge: Judge) -> None:
    p = prompt()
    blocks = Blocks(judge.engine, p)
    before, after = judge.engine.compiler.frame(TEMPLATE.agent_system, TEMPLATE.chat)
    text = judge.engine.compiler.text
    for i, c in enumerate(p.candidates):
        block = blocks.execution(c.id)
        head = [*before, *text(TEMPLATE.question_heading), *text(p.question), *text(TEMPLATE.agent_instruction), *after]
        ids = [*head, *text(c.text)]
        lead = judge.engine.compiler.conversations.core(TEMPLATE, "candidate.1", c.text, "").before
        with torch.inference_mode():
            cache = judge.plain(torch.tensor([ids]), use_cache=True).past_key_values
        start = len(head) + len(lead)
        assert block.token_ids.tolist() == judge.engine.compiler.candidate_ids(p, i)
        for layer, values in enumerate(block.values):
            there = cache.layers[layer].values[0][:, start : start + len(block)]
            assert torch.allclose(values, there, atol=2e-4)


def test_one_prompt_a_candidate_is_refused(judge: Judge) -> None:
    with pytest.raises(KvattnError, match="has 1 candidates, and the template 'prod' has marks for 2"):
        judge.judge(prompt(), ["pointwise"])


@pytest.mark.parametrize("edit", ["reword", "header"])
def test_a_conversation_is_not_reworded(judge: Judge, edit: str) -> None:
    with pytest.raises(KvattnError, match="whose words are not kvattn's to change"):
        judge.judge(prompt(), [f"null-edit:edit={edit}"])


def test_a_run_goes_on_by_what_its_template_says(judge: Judge, tmp_path: Path) -> None:
    prompts = [prompt(i) for i in range(3)]
    Study(judge, prompts, ["dense", "naive"], mine=[0]).run(tmp_path / "run")
    (tmp_path / "elsewhere.yaml").write_text(to_yaml(TEMPLATE))
    again = read_template(tmp_path / "elsewhere.yaml")
    Study(judge, [replace(p, template=again) for p in prompts], ["dense", "naive"]).run(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert len(run) == 3
    assert run.manifest["template"] == TEMPLATE.id
    other = replace(TEMPLATE, messages=(replace(TEMPLATE.messages[0], content="hm " + TEMPLATE.messages[0].content),))
    with pytest.raises(KvattnError, match=r"begun with other parameters: .*template"):
        Study(judge, [replace(p, template=other) for p in prompts], ["dense", "naive"]).run(tmp_path / "run")
