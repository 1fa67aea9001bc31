"""Two baselines: every candidate judged alone, and scores less their own offsets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import logits_of, long_judge, plain_model, short_prompt

from kvattn import methods
from kvattn.engine.scores import label_scores
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import Judge
from kvattn.questions import synthetic
from kvattn.questions.prompt import JudgePrompt
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

TEXTS = ("two and two is four", "it is 5", "four, since 2+2=4", "4!")


def prompt(number: int = 0) -> JudgePrompt:
    return short_prompt(f"What is 2+2? ({number})", [f"{t} ({number})" for t in TEXTS], id=f"q{number}")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return long_judge("llama")


def test_pointwise_scores_are_those_of_prompts_with_one_candidate(judge):
    p = prompt().ordered((2, 0, 3, 1))
    dense, alone = judge.judge(p, ["dense", "pointwise"])
    want, tokens = [], 0
    for slot in range(4):
        layout = judge.compile(replace(p, candidates=(p.shown(slot),), order=(0,)))
        logits = logits_of(plain_model("llama"), layout.token_ids)
        want.append(label_scores(logits[None], layout.answer_ids)[0][0])
        tokens += len(layout)
    assert alone.scores == pytest.approx(want, abs=1e-4)
    assert alone.slot == int(np.argmax(want))
    assert alone.choice == p.shown(alone.slot).id
    assert (alone.cost.tokens, alone.cost.tokens_computed) == (dense.cost.tokens, tokens)
    assert alone.cost.token_layers == 4 * tokens > dense.cost.token_layers
    assert alone.mass is None
    assert dense.mass is not None


def test_pointwise_knows_no_order(judge):
    orders = [(0, 1, 2, 3), (3, 1, 0, 2)]
    a, b = judge.judge(prompt(), ["pointwise"], orders)
    first, second = (dict(zip(o, d.scores, strict=True)) for o, d in zip(orders, (a, b), strict=True))
    assert first == pytest.approx(second, abs=1e-4)
    assert a.choice == b.choice


def test_pointwise_has_no_row_to_compare_and_no_verdict_to_write(judge):
    with pytest.raises(KvattnError, match="no one row or cache to compare"):
        judge.compare(prompt(), methods=["dense", "pointwise"])
    with pytest.raises(KvattnError, match="no verdict to write"):
        Judge(judge.engine, readout.get("generate:4")).judge(prompt(), ["pointwise"])


@pytest.mark.parametrize("base", ["naive", "dense", "true-mask"])
def test_offsets_are_the_mean_scores_of_held_out_questions(judge, base):
    method = methods.get(f"slot-offset:base={base}")
    with pytest.raises(KvattnError, match="no offsets for 4 slots"):
        judge.decide(prompt(), method)
    held = [prompt(i).ordered(o) for i, o in ((1, (0, 1, 2, 3)), (2, (3, 1, 0, 2)), (3, (2, 3, 1, 0)))]
    judge.warm(method, held)
    mean = np.mean([judge.decide(p, base).scores for p in held], axis=0)
    plain, less = judge.decide(prompt(), base), judge.decide(prompt(), method)
    assert less.scores == pytest.approx(plain.scores - (mean - mean.mean()), abs=1e-4)
    assert less.slot == int(np.argmax(less.scores))
    assert less.cost.share == plain.cost.share
    assert less.method == ("slot-offset" if base == "naive" else f"slot-offset(base={base})")


def test_offsets_are_kept_in_a_file_and_refused_elsewhere(judge, tmp_path):
    method = methods.get("slot-offset:base=true-mask")
    judge.warm(method, [prompt(1), prompt(2)])
    method.save(tmp_path, "mine")
    again = methods.get(f"slot-offset:base=true-mask,offsets={tmp_path / 'mine.json'}")
    want = judge.decide(prompt(), method)
    assert judge.decide(prompt(), again).scores == pytest.approx(want.scores, abs=1e-9)
    for spec, made, said in (
        ("dense", judge, "fit for method 'true-mask'"),
        ("true-mask", long_judge("gemma3"), "fit for weights") if judge.engine.identity else (None, None, None),
        ("true-mask", Judge(judge.engine, readout.get("generate:4")), "needs a score for every slot"),
    ):
        if spec is not None:
            with pytest.raises(KvattnError, match=said):
                made.judge(prompt(), [f"slot-offset:base={spec},offsets={tmp_path / 'mine.json'}"])
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(KvattnError, match="cannot read slot offsets"):
        methods.get(f"slot-offset:offsets={tmp_path / 'mine.json'}")


@pytest.mark.parametrize("spec", ["slot-offset:base=kvcomm(pool=frozen)", "slot-offset:base=slot-offset"])
def test_a_base_that_learns_is_refused(spec):
    with pytest.raises(KvattnError, match="while it learns"):
        methods.get(spec)


def test_a_study_fits_offsets_on_its_held_out_questions(judge, tmp_path):
    prompts = list(synthetic(5))
    study = Study(judge, prompts[:3], ["dense", "slot-offset", "pointwise"], heldout=prompts[3:])
    run = Run(study.run(tmp_path / "run"))
    table = run.judgements().set_index(["question_id", "method"])
    method = methods.get("slot-offset")
    judge.warm(method, prompts[3:])
    for p in prompts[:3]:
        want = judge.decide(p, method)
        assert table.loc[(p.id, "slot-offset"), "scores"] == pytest.approx(want.scores, abs=1e-4)
        assert np.isfinite(table.loc[(p.id, "slot-offset"), "calibrated"]).all()
    with pytest.raises(KvattnError, match="has to be warmed"):
        Study(judge, prompts, ["dense", "slot-offset"]).run(tmp_path / "other")
