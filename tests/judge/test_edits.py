"""Minimal edits, the causal echo, and independence of irrelevant alternatives: planted effects come back."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import long_judge

from kvattn import stats
from kvattn.decision import Cost, Decision
from kvattn.errors import KvattnError
from kvattn.judge.edits import echo, independence, minimal_edits, restated, without
from kvattn.questions import synthetic
from kvattn.questions.answers import final_answer
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import get_template


def asked(answers: list[int], name: str = "q", order: tuple[int, ...] = ()) -> JudgePrompt:
    texts = [f"Step {i}: 3 + 4 is not it.\nThe answer is {a}." for i, a in enumerate(answers)]
    return JudgePrompt("Q?", tuple(Candidate(f"c{i}", t) for i, t in enumerate(texts)), id=name, order=order)


class Planted:
    """A judge of which every score is known: `score(prompt, slot, method)`."""

    def __init__(self, score) -> None:
        self.score = score

    def judge(self, prompt: JudgePrompt, methods, capture: bool = True) -> list[Decision]:
        out = []
        for m in methods:
            scores = np.array([self.score(prompt, s, str(m)) for s in range(prompt.n)], dtype=float)
            slot = int(np.argmax(scores))
            choice = prompt.shown(slot).id
            out.append(Decision(prompt.id, prompt.order, str(m), "label", choice, slot, scores, 1.0, Cost(1, 1, 1, 1)))
        return out


def echoing(prompt: JudgePrompt, slot: int, method: str) -> float:
    """0.7 nats for every earlier candidate of the same answer, under dense alone; and noise that edits do not move."""
    answers = [final_answer(prompt.shown(s).text, "math") for s in range(prompt.n)]
    earlier = sum(a == answers[slot] for a in answers[:slot])
    fixed = np.random.default_rng([*prompt.id.encode(), prompt.order[slot]]).normal()
    return 0.7 * earlier * (method == "dense") + fixed + float(answers[0] or 0) * 0.01


@pytest.mark.parametrize(
    ("template", "text", "answer", "want"),
    [
        ("math", "5 + 5 = 10. The answer is 10.", "12", "5 + 5 = 10. The answer is 12."),
        ("math", "It costs $1,200 in all.\n#### 1,200", "7", "It costs $1,200 in all.\n#### 7"),
        ("math", "The answer is $18 per day", "20", "The answer is $20 per day"),
        ("math", "no number here", "20", None),
        ("choice", "B. since A is wrong", "C", "C. since A is wrong"),
        ("choice", "The answer is (D).", "A", "The answer is (A)."),
        ("code", "```python\nx = 1\n```", "2", None),
    ],
)
def test_a_final_answer_is_written_anew_and_nothing_else(template, text, answer, want):
    assert restated(text, template, answer) == want
    if want is not None:
        assert final_answer(want, template) == answer


def test_edits_are_minimal_and_say_what_they_should():
    prompt = asked([10, 12, 10, 15], order=(2, 0, 3, 1))
    edits = minimal_edits(prompt)
    assert {(e.earlier, e.later) for e in edits} == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    for e in edits:
        said = final_answer(prompt.shown(e.later).text, "math")
        for other, states in ((e.same, True), (e.other, False)):
            now = final_answer(other.shown(e.earlier).text, "math")
            assert (now == said) == states
            if not states:
                assert now not in {"10", "12", "15"}
            assert [other.shown(s) for s in range(4) if s != e.earlier] == [
                prompt.shown(s) for s in range(4) if s != e.earlier
            ]
            assert other.shown(e.earlier).text.replace(now, "#") == prompt.shown(e.earlier).text.replace(
                str(final_answer(prompt.shown(e.earlier).text, "math")), "#"
            )
        assert all(final_answer(prompt.shown(s).text, "math") != said for s in e.apart)
    assert [e.earlier for e in minimal_edits(prompt, seed=1)] == [e.earlier for e in minimal_edits(prompt, seed=1)]
    assert minimal_edits(asked([5, 5, 5])) == minimal_edits(asked([5, 6])) == []


def test_the_planted_echo_comes_back():
    prompts = [asked(a, f"q{i}") for i, a in enumerate([[10, 12, 15, 20], [1, 2, 3, 4], [7, 7, 9, 8], [5, 5, 5, 5]])]
    judge: Any = Planted(echoing)
    found = echo(judge, prompts, ["dense", "true-mask"], per_question=3)
    assert set(found["question_id"]) == {"q0", "q1", "q2"}
    means = found.groupby("method")["value"].agg(["mean", "std"])
    assert means.loc["dense", "mean"] == pytest.approx(0.7, abs=1e-9)
    assert means.loc["true-mask", "mean"] == pytest.approx(0, abs=1e-9)
    assert means["std"].max() < 1e-9


def test_a_judge_of_single_candidates_has_no_echo():
    judge = long_judge("llama")
    prompts = [replace(p, template=get_template("math")) for p in synthetic(2, seed=4)]
    found = echo(judge, prompts, ["dense", "pointwise"])
    assert len(found) == 2 * found["question_id"].nunique() > 0
    by = found.groupby("method")["value"]
    assert by.get_group("pointwise").abs().max() < 1e-4
    assert by.get_group("dense").abs().min() > 1e-4


def test_a_removed_candidate_leaves_the_others_in_their_sequence():
    prompt = asked([1, 2, 3, 4], order=(2, 0, 3, 1))
    for slot in range(4):
        rest = without(prompt, slot)
        assert [rest.shown(s).id for s in range(3)] == [prompt.shown(s).id for s in range(4) if s != slot]


def test_a_choice_that_hangs_on_the_others_is_told_from_one_that_does_not():
    prompts = [asked([10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3], f"q{i}") for i in range(1, 9)]

    def alone(prompt: JudgePrompt, slot: int, method: str) -> float:
        return float(zlib.crc32(prompt.shown(slot).text.encode()))

    def crowded(prompt: JudgePrompt, slot: int, method: str) -> float:
        return float(slot) if prompt.n == 4 else -float(slot)  # three candidates turn the sequence round

    for score, want in ((alone, 0.0), (crowded, 1.0)):
        judge: Any = Planted(score)
        edits = independence(judge, prompts)
        assert len(edits) == 8 * 3
        row = stats.independence(edits).iloc[0]
        assert (row["edit"], row["iia"], row["floor"], row["questions"]) == ("remove", want, 0.0, 8)
        assert row["low"] <= want <= row["high"]
    judge = Planted(alone)
    assert (stats.independence(independence(judge, prompts, "replace"))["iia"] == 0).all()
    with pytest.raises(KvattnError, match="among the others there is no choice"):
        independence(judge, [asked([1, 2])])
    with pytest.raises(KvattnError, match="another question"):
        independence(judge, prompts[:1], "replace")


def test_the_rate_is_less_what_an_edit_without_meaning_does():
    rng = np.random.default_rng(3)
    edits = pd.DataFrame(
        {
            "question_id": np.repeat(np.arange(40), 3),
            "edit": "remove",
            "changed": rng.random(120) < 0.4,
            "changed_floor": rng.random(120) < 0.1,
        }
    )
    row = stats.independence(edits).iloc[0]
    assert row["iia"] == pytest.approx(edits["changed"].mean() - edits["changed_floor"].mean())
    assert row["low"] < row["iia"] < row["high"]
    assert (row["changed"], row["floor"]) == (edits["changed"].mean(), edits["changed_floor"].mean())
