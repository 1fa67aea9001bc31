"""The content test of three verdicts: judges that read, judges that do not, and too few questions to tell."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CHECKOUT
from judges import cyclic

from kvattn.errors import KvattnError
from kvattn.questions import synthetic
from kvattn.stats.reading import ASK, MARGIN, ContentTest, Held, content_test, read_held, reading, reading_for_quality
from kvattn.study.run_folder import Run, question_row


def held(
    rng: np.random.Generator,
    questions: int,
    liking: float = 0.0,
    quality: float = 0.0,
    plurality: float = 0.0,
    length: float = 0.0,
    bias: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    orders: int = 4,
    noise: float = 1.0,
) -> Held:
    """A judge whose score is `liking` times a candidate's own draw, plus what it gives for being right, for each other
    candidate with the same answer, for length, for a slot, and noise. Answers that more candidates state are oftener
    right, and so are longer texts."""
    shape = (questions, 4)
    sizes = rng.choice(3, questions)
    groups = np.array([[0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 1, 1]])[sizes]
    groups = np.take_along_axis(groups, np.argsort(rng.random(shape), 1), 1)
    shared = (groups[:, :, None] == groups[:, None, :]).sum(-1) - 1
    one = rng.integers(0, 3, questions)  # the right answer: usually the first, which most candidates state
    right = np.where(rng.random(questions) < 0.7, 0, np.where(groups.max(1) >= one, one, 0))
    correct = (groups == right[:, None]).astype(float)
    sizes = np.exp(rng.normal(size=shape) + 0.5 * correct)
    score = liking * rng.normal(size=shape) + quality * correct + plurality * shared + length * np.log(sizes)
    order = cyclic(questions, orders)

    def by_slot(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values[:, None, :].repeat(orders, 1), order, -1).reshape(-1, 4)

    noisy = by_slot(score) + noise * rng.normal(size=(questions * orders, 4)) + np.array(bias)
    names = np.repeat(np.arange(questions), orders)
    flat = order.reshape(-1, 4)
    return Held(names, flat, noisy.argmax(1), flat, by_slot(groups), by_slot(correct), by_slot(sizes))


def verdicts(count: int, **judge) -> Counter:
    return Counter(reading(held(np.random.default_rng(s), **judge), draws=300).verdict for s in range(count))


def test_a_reader_reads_and_a_locked_or_random_judge_does_not():
    assert verdicts(10, questions=48, liking=2.0) == {"reads": 10}
    assert verdicts(10, questions=10, bias=(0, 0, 0, 99.0)) == {"does not read": 10}
    found = verdicts(30, questions=300)
    assert found["does not read"] >= 26
    assert found["reads"] <= 4


def test_too_few_questions_are_no_verdict():
    """A weak reader, as a judge of 1.5B is: seldom told on ten questions, mostly on what the verdict asks for."""
    few = verdicts(40, questions=10, liking=0.45)
    assert few["cannot tell"] >= 22
    assert few["does not read"] <= 3
    needed = []
    for seed in range(20):
        found = reading(held(np.random.default_rng(seed), 24, liking=0.6), draws=300)
        assert (found.needed is None) == (found.verdict != "cannot tell")
        if found.needed is not None:
            assert f"{found.needed} questions would" in found.sentence
            needed.append(found.needed)
    assert min(needed) >= ASK
    enough = verdicts(20, questions=200, liking=0.6)
    assert enough["reads"] >= 17


@pytest.mark.parametrize("bias", [(0, 0, 0, 0), (0, 0, 0, 1.5), (0, 0, 0, 99.0)])
def test_a_judge_that_does_not_read_passes_no_oftener_than_alpha(bias):
    assert verdicts(100, questions=16, bias=bias)["reads"] <= 11  # 5 expected at most


def test_agreement_is_what_loops_say():
    judge = held(np.random.default_rng(0), 12, liking=1.0)
    judge = replace(judge, classes=np.where(judge.classes == 1, 0, judge.classes))  # two texts are equal
    found = reading(judge, draws=4000)
    agreement, chance = [], []
    for q in range(12):
        rows = np.flatnonzero(judge.questions == q)
        texts = [judge.classes[r, judge.slots[r]] for r in rows]
        agreement.append(np.mean([a == b for i, a in enumerate(texts) for j, b in enumerate(texts) if i != j]))
        shares = [np.mean(judge.classes[rows[0]] == c) for c in set(judge.classes[rows[0]])]
        chance.append(sum(s**2 for s in shares))
    assert found.value == pytest.approx(np.mean(agreement))
    assert found.chance == pytest.approx(np.mean(chance), abs=0.005)
    assert (found.questions, found.rows) == (12, 48)


def test_reading_for_quality_is_more_than_following_the_majority_or_the_longest():
    fond = {"plurality": held(np.random.default_rng(0), 120, plurality=4.0)}
    fond["length"] = held(np.random.default_rng(1), 120, length=4.0)
    for name, judge in fond.items():
        quality = reading_for_quality(judge, draws=600)
        assert reading(judge, draws=300).verdict == "reads", name
        assert quality.verdict != "reads", name
        # The second null gives such a judge all that it reaches; dealing within questions would give it the base rate.
        base = judge.correct[quality_rows(judge)].mean()
        assert quality.value > base + 0.08, name
        assert quality.chance == pytest.approx(quality.value, abs=0.08), name
    good = reading_for_quality(held(np.random.default_rng(2), 120, quality=2.0), draws=600)
    assert good.verdict == "reads"
    assert good.p < 0.01


def quality_rows(judge: Held) -> np.ndarray:
    return judge.correct.max(1) > judge.correct.min(1)


def test_the_null_of_quality_is_no_looser_than_alpha():
    fond = [held(np.random.default_rng(s), 60, plurality=1.0, length=0.5) for s in range(30)]
    assert sum(reading_for_quality(j, draws=200).verdict == "reads" for j in fond) <= 5  # 1.5 expected


def test_a_judge_that_reads_but_not_for_quality_gets_two_verdicts():
    judge = held(np.random.default_rng(3), 300, liking=3.0)
    assert reading(judge, draws=300).verdict == "reads"
    quality = reading_for_quality(judge, draws=300)
    assert quality.verdict == "does not read"
    assert quality.most < quality.chance + MARGIN
    assert quality.most < quality.high


def test_questions_that_cannot_tell_are_said_so():
    judge = held(np.random.default_rng(0), 5, orders=1)
    found = reading(judge)
    assert (found.verdict, found.questions, found.needed) == ("cannot tell", 0, ASK)
    alike = held(np.random.default_rng(0), 12)  # every text states the same answer, some of them right
    found = reading_for_quality(replace(alike, answers=np.zeros_like(alike.answers)), draws=50)
    assert found.verdict != "reads"
    unknown = replace(judge, correct=np.full_like(judge.correct, np.nan))
    assert reading_for_quality(unknown).sentence.startswith("0 held-out questions with right and wrong candidates")
    repeated = held(np.random.default_rng(0), 5)
    with pytest.raises(KvattnError, match="balanced orders, such as the cyclic ones"):
        reading(replace(repeated, orders=np.tile(np.arange(4), (20, 1))))


def test_the_judge_of_the_larger_run_reads_and_for_quality():
    run = Run(CHECKOUT / "figures" / "runs" / "gsm8k-1.5b" / "heldout")
    judgements, questions = run.judgements(), run.questions()
    judge = read_held(judgements, questions)
    assert judge.slots.tolist() == judgements["slot"].tolist()
    found, quality = reading(judge), reading_for_quality(judge)
    assert (found.verdict, found.questions, found.rows) == ("reads", 24, 96)
    assert (found.value, found.chance) == pytest.approx((0.34, 0.25), abs=0.005)
    assert found.sentence.startswith("Over 24 held-out questions the judge picks the same text in 34% of pairs")
    # Dealing within questions would put chance at 51 %; the majority and length reach 69.
    assert (quality.value, quality.chance) == pytest.approx((0.79, 0.69), abs=0.012)
    assert quality.sentence.endswith(": it reads for quality.")
    assert ContentTest.stored(Run(run.folder.parent).manifest).reading.value == pytest.approx(found.value)


MIXED = [*synthetic(40, seed=21), *synthetic(20, seed=22, candidates=3)]


def judged(slot: Any, prompts: Any = MIXED) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Picks of a judge in cyclic orders, and the questions; `slot` takes the prompt as displayed and a generator."""
    rng = np.random.default_rng(4)
    orders = [(p, tuple((k + s) % p.n for s in range(p.n))) for p in prompts for k in range(p.n)]
    picks = [{"question_id": p.id, "order": list(o), "slot": slot(p.ordered(o), rng)} for p, o in orders]
    return pd.DataFrame(picks, columns=["question_id", "order", "slot"]), pd.DataFrame(map(question_row, prompts))


def sees(p: Any, rng: np.random.Generator) -> int:
    """Finds a right candidate through noise."""
    return int(np.argmax([2.5 * bool(p.shown(s).correct) + rng.normal() for s in range(p.n)]))


def drawn(p: Any, rng: np.random.Generator) -> int:
    return int(rng.integers(p.n))


def test_questions_of_different_numbers_of_candidates_are_tested_together():
    found = content_test(*judged(sees))
    assert (found.verdict, found.quality.verdict) == ("reads", "reads")
    picks, questions = judged(drawn)
    found, known = content_test(picks, questions), questions.set_index("question_id")
    agree, right, chance = [], [], []
    for key, rows in picks.groupby("question_id"):
        chosen = [o[s] for o, s in zip(rows["order"], rows["slot"], strict=True)]
        texts, marks = known["texts"][key], known["corrects"][key]
        agree.append(np.mean([texts[a] == texts[b] for i, a in enumerate(chosen) for b in chosen[:i]]))
        shares = Counter(texts)
        chance.append(sum((c / len(texts)) ** 2 for c in shares.values()))
        right += [marks[c] for c in chosen] if len(set(marks)) == 2 else []
    assert (found.reading.value, found.quality.value) == pytest.approx((np.mean(agree), np.mean(right)))
    assert found.reading.chance == pytest.approx(np.mean(chance), abs=0.005)
    assert (found.reading.questions, found.reading.rows, found.quality.rows) == (60, 220, len(right))
    assert found.verdict != "reads"
    assert not found.quality.p < 0.01


def test_right_and_wrong_dealt_out_anew_against_a_direct_simulation():
    picks, questions = judged(lambda p, _: max(range(p.n), key=lambda s: len(p.shown(s).text)))
    held = read_held(picks, questions.assign(texts=[[f"{i} {t}" for i, t in enumerate(x)] for x in questions["texts"]]))
    alike = replace(held, lengths=np.ones_like(held.lengths), answers=held.classes)  # nothing to draw alike by
    found, rng = reading_for_quality(alike, draws=4000), np.random.default_rng(1)
    marks = {k: c for k, c in zip(questions["question_id"], questions["corrects"], strict=True) if len(set(c)) == 2}
    null = []
    for _ in range(1000):
        dealt = {k: rng.permutation(c) for k, c in marks.items()}
        rows = zip(picks["question_id"], picks["order"], picks["slot"], strict=True)
        null.append(np.mean([dealt[k][o[s]] for k, o, s in rows if k in dealt]))
    assert found.chance == pytest.approx(np.mean(null), abs=0.01)
    assert found.p == pytest.approx(np.mean(np.array(null) >= found.value - 1e-9), abs=0.06)


def test_the_test_is_stored_as_plain_json_and_read_back():
    blind = content_test(*(t if i == 0 else t.assign(corrects=None) for i, t in enumerate(judged(sees))))
    text = json.dumps({"content_test": {"raw": blind.to_dict()}}, allow_nan=False)
    back = ContentTest.stored(json.loads(text))
    assert back is not None
    assert back.reading == blind.reading
    assert (back.quality.verdict, back.quality.needed) == ("cannot tell", ASK)
    assert np.isnan(back.quality.p)
    assert ContentTest.stored({}) is ContentTest.stored({"content_test": None}, calibrated=True) is None
    nothing = content_test(pd.DataFrame(columns=["question_id", "order", "slot"]), judged(sees)[1])
    assert (nothing.verdict, nothing.reading.questions) == ("cannot tell", 0)


@pytest.mark.parametrize(
    ("agreement", "accuracy", "verdicts"),
    [
        ((0.0, 0.0, 0.09, 0.25, 1.0), (0.4, 0.3, 0.45, 0.4, 0.5), ("does not read", "does not read")),
        ((0.2, 0.1, 0.5, 0.25, 0.6), (0.5, 0.3, 0.7, 0.4, 0.1), ("cannot tell", "cannot tell")),
        ((0.6, 0.5, 0.7, 0.25, 0.001), (0.8, 0.7, 0.9, 0.4, 0.001), ("reads", "cannot tell")),
    ],
)
def test_what_an_older_kvattn_stored_is_told_anew(agreement, accuracy, verdicts):
    stored = {"verdict": "fails", "questions": 40, "rows": 160, "mixed_questions": 30, "mixed_rows": 120}
    for name, numbers in (("agreement", agreement), ("accuracy", accuracy)):
        stored |= {f"{name}{end}": v for end, v in zip(("", "_low", "_high", "_null", "_p"), numbers, strict=True)}
    found = ContentTest.stored({"content_test": {"raw": stored}})
    assert found is not None
    assert (found.reading.verdict, found.quality.verdict) == verdicts
    assert ("was not asked" in found.quality.sentence) == (verdicts[0] == "reads")
    empty = ContentTest.stored({"content_test": {"raw": {"questions": 0, "agreement": None}}})
    assert empty is not None
    assert empty.verdict == "cannot tell"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("q", (0, 1), 0), ("q", (0, 1), 0)], "judged twice"),
        ([("q", (0, 1), 0), ("z", (0, 1), 0)], "not in the questions table"),
        ([("q", (0, 1), 2)], "does not fit 2 candidates"),
        ([("q", (0, 2), 0)], "does not fit 2 candidates"),
        ([("q", (0, 1), None)], None),
    ],
)
def test_picks_that_do_not_fit_are_refused(rows, words):
    two = judged(drawn, synthetic(1, candidates=2))[1].assign(question_id="q")
    picks = pd.DataFrame(rows, columns=["question_id", "order", "slot"])
    if words is None:
        assert content_test(picks, two).reading.rows == 0  # a written verdict that names nobody
        return
    with pytest.raises(KvattnError, match=words):
        content_test(picks, two)
    with pytest.raises(KvattnError, match="lacks the column 'slot'"):
        content_test(picks.drop(columns="slot"), two)
