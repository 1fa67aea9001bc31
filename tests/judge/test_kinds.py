"""Kinds of judgement: the better of two or a tie, and scores on a scale, against the plain forward and by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHORT, engine, logits_of, plain_model, save, short_prompt

from kvattn import methods as zoo
from kvattn.decision import TIE
from kvattn.engine.scores import Scale
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import Judge, calibrate, load
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import of_entries
from kvattn.questions.templates import get_template
from kvattn.report import write_report
from kvattn.study.drift import drift
from kvattn.study.replay import replay
from kvattn.study.run_folder import Run
from kvattn.study.study import Study

PAIR = short_prompt("What is 2?", ["It is 2.", "It is 5, maybe."])
OWN = of_entries(
    {
        "labels": ["A", "B", "C"],
        "score_branch": "Rate {label}, {low} to {high}.",
        "messages": [{"role": "user", "content": "{{question}}\n{{candidate.1}}\n--\n{{candidate.2}}\nA, B or C?"}],
    },
    "own",
    "own",
)


def judge(name: str) -> Judge:
    return Judge(engine(), readout.get(name))


def of_branch(judge: Judge, prompt: JudgePrompt, slot: int) -> list[int]:
    """What the judge reads before it scores a slot, as one text: all but the branches of the other slots."""
    layout = judge.compile(prompt)
    own = layout.find("branch", slot)
    return [*layout.token_ids[: layout.trunk].tolist(), *layout.token_ids[own.start : own.stop].tolist()]


@pytest.mark.parametrize("prompt", [PAIR, replace(PAIR, template=OWN)], ids=["parts", "messages"])
def test_a_score_is_the_expected_number_of_the_plain_forward(prompt: JudgePrompt) -> None:
    """Digits are tokens apart here, so that ten is two of them."""
    asked = judge("score")
    found, model = asked.decide(prompt), plain_model()
    coverage = []
    for slot in range(2):
        ids = of_branch(asked, prompt, slot)
        assert asked.engine.tokenizer.decode(ids[-1:]) == "1"
        first, second = (logits_of(model, torch.tensor(x)).double().softmax(-1) for x in (ids[:-1], ids))
        number = {str(k): asked.engine.tokenizer(str(k), add_special_tokens=False).input_ids[0] for k in range(10)}
        p = {k: float(first[number[str(k)]]) for k in range(1, 10)}
        p[10] = p[1] * float(second[number["0"]])
        p[1] -= p[10]
        coverage.append(sum(p.values()))
        assert found.scores[slot] == pytest.approx(sum(k * v for k, v in p.items()) / sum(p.values()), abs=1e-5)
    assert found.coverage == pytest.approx(np.mean(coverage), abs=1e-5)
    assert found.slot == int(found.scores.argmax())
    assert found.mass is not None
    assert [m.query for m in (found.mass, *found.more)] == ["at_choice", "at_choice:1", "at_choice:2"]


def test_numbers_of_one_token_need_one_decision() -> None:
    asked = judge("score")
    prompt = replace(PAIR, template=replace(SHORT, scale=(1, 5)))
    layout = asked.compile(prompt)
    assert (len(layout.decisions), len(layout.answer_ids), layout.decisions) == (2, 5, layout.deciding)
    logits = torch.randn(2, asked.engine.model.config.vocab_size)
    p = logits.double().softmax(-1)[:, list(layout.answer_ids)]
    scores, coverage = layout.scores(logits)
    assert scores == pytest.approx(((p * torch.arange(1, 6)).sum(1) / p.sum(1)).numpy())
    assert coverage == pytest.approx(float(p.sum(1).mean()))
    assert Scale(1, 5).__name__ == "scores from 1 to 5"


def test_a_pair_is_judged_by_three_labels_of_the_plain_forward() -> None:
    for prompt, labels in ((PAIR, "123"), (replace(PAIR, template=OWN), "ABC")):
        asked = judge("pairwise")
        layout, found = asked.compile(prompt), asked.decide(prompt)
        ids = [asked.engine.tokenizer(x, add_special_tokens=False).input_ids[0] for x in labels]
        want = logits_of(plain_model(), layout.token_ids).double().log_softmax(-1)[ids].numpy()
        assert found.scores == pytest.approx(want, abs=1e-4)
        assert (found.order, found.slot) == ((0, 1, 2), int(want.argmax()))
        assert found.choice == ("c0", "c1", TIE)[int(want.argmax())]


def test_the_question_names_the_tie() -> None:
    asked = judge("pairwise")
    said = asked.engine.tokenizer.decode(asked.compile(PAIR).token_ids)
    assert "Reply. If both are equally good, the id is 3." in said


@pytest.mark.parametrize("name", ["pairwise", "score"])
@pytest.mark.parametrize("method", zoo.registry())
def test_every_method_judges_so(name: str, method: str) -> None:
    asked, chosen = judge(name), zoo.get(method)
    prompt = short_prompt("What is 2 + 2?", ["It is 4. It is 4.", "It is 5, maybe. So."])
    if name == "pairwise" and method in ("pointwise", "slot-offset"):
        with pytest.raises(KvattnError, match="use the readout label"):
            asked.warm(chosen, [prompt]) if chosen.needs_warming else asked.judge(prompt, [chosen])
        return
    if chosen.needs_warming:
        asked.warm(chosen, [prompt])
    donor = short_prompt("Why?", ["Because it is so, I think.", "It is not so at all, no."], id="other")
    for d in asked.judge(prompt, ["dense", chosen], [(0, 1), (1, 0)], donor):
        assert d.order == ((*d.order[:2], 2) if name == "pairwise" else d.order)
        assert d.slot is not None
        assert d.choice == ("c0", "c1", TIE)[d.order[d.slot]]
        assert len(d.scores) == len(d.order)
        assert name == "pairwise" or method == "slot-offset" or ((d.scores >= 1) & (d.scores <= 10)).all()


@pytest.mark.parametrize(
    ("name", "prompt", "says"),
    [
        ("pairwise", short_prompt("q?", ["a", "b", "c"]), "has 3 candidates, and the readout pairwise compares two"),
        ("pairwise", JudgePrompt("q?", (Candidate("a", "x"), Candidate(TIE, "y")), SHORT), "is that of a tie"),
        ("pairwise", replace(PAIR, template=replace(SHORT, labels=("A", "B"))), "names A, B and no tie"),
        ("score", replace(PAIR, template=replace(SHORT, scale=(1, 20))), "not one distinct token each"),
        ("score", replace(PAIR, template=replace(SHORT, scale=(9, 10))), r"'10' is neither one token .* \[1, 10\]"),
    ],
)
def test_what_cannot_be_judged_so_is_refused(name: str, prompt: JudgePrompt, says: str) -> None:
    with pytest.raises(KvattnError, match=says):
        judge(name).decide(prompt)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"scale": [5, 1]}, r"'scale' is \[5, 1\]"),
        ({"scale": [1]}, "scale"),
        ({"score_branch": "How good?"}, "'score_branch' holds no {label}"),
    ],
)
def test_a_template_is_checked(entries: dict, says: str) -> None:
    with pytest.raises(KvattnError, match=says):
        of_entries(entries, "t.yaml", "t")


def test_what_is_not_said_leaves_older_templates_as_they_were() -> None:
    said = replace(get_template("free"), name="mine").to_json()
    assert not {"scale", "score_branch", "tie_rule"} & set(said)
    assert of_entries({"scale": [1, 5]}, "t", "t").to_json()["scale"] == [1, 5]


def test_a_tie_has_no_text_of_a_candidate_and_is_right_where_both_are_alike() -> None:
    made = [(True, False, False), (True, True, True), (False, False, True), (None, True, None)]
    for a, b, right in made:
        pair = (Candidate("a", "(tie)", correct=a), Candidate("b", "((tie))", correct=b))
        tie = JudgePrompt("q?", pair, SHORT).verdicts("pairwise")[2]
        assert (tie.id, tie.text, tie.correct) == (TIE, "(((tie)))", right)
    assert PAIR.same_content(TIE, TIE)
    assert not PAIR.same_content(TIE, "c0")


def test_a_prior_leaves_ties_as_they_are() -> None:
    asked = judge("pairwise")
    prompts = [short_prompt(f"What is {i}?", [f"{i}", f"{i + 1}, or so"], id=f"q{i}") for i in range(3)]
    prior = asked.prior = calibrate(asked, prompts)
    assert len(prior.scores) == 2
    found = asked.decide(prompts[0])
    assert found.calibrated is not None
    assert found.scores - found.calibrated == pytest.approx([*prior.scores, 0])
    with pytest.raises(KvattnError, match="made for 2 candidates, this prompt has 1"):
        prior.apply(np.zeros(2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["pairwise", "score"])
def test_a_study_is_judged_reported_and_checked(name: str, model: str, tmp_path: Path) -> None:
    prompts = [
        replace(short_prompt(f"What is {i}?", [f"It is {i}.", f"It is {i + 3}, maybe."], (1, 0), f"q{i}"), verdict="c1")
        for i in range(9)
    ]
    if name == "pairwise":
        prompts[0] = replace(prompts[0], verdict=TIE)
    study = Study(load(model, readout=name), prompts[:7], ["dense", "null-edit", "naive"], "rotations", prompts[7:])
    run = Run(study.run(tmp_path / "run"))
    wide = 3 if name == "pairwise" else 2
    assert {len(o) for o in run.judgements()["order"]} == {wide}
    assert {tuple(x)[2:] for x in run.questions()["candidate_ids"]} == {(TIE,)[: wide - 2]}
    assert len(run.manifest["calibration"]["scores"]) == 2
    assert "held-out" in run.manifest["content_test"]["raw"]["reading"]["sentence"]
    made = replay(run)
    assert made is not None
    assert (made.pairs, made.own_order) == (7, True)
    page = write_report(run.folder).read_text()
    heads = set(re.findall(r">\s*(points|flips of ties)\s*<", page))
    assert heads == {"flips of ties" if name == "pairwise" else "points"}
    why = drift(run, run, method="naive").why
    assert ("into or out of a tie" in why, "scores move by" in why) == (name == "pairwise", name == "score")
