"""Relational questions: one candidate alone says nothing, all together say which is right."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics import roc_auc_score
from sklearn.naive_bayes import BernoulliNB

from kvattn.errors import KvattnError
from kvattn.questions import RELATIONAL, is_embedded, load, relational
from kvattn.questions.answers import final_answer
from kvattn.questions.relational import KINDS, STRICT, RelationalPrompt

SIZES = [(kind, n) for kind in RELATIONAL for n in KINDS[kind].sizes if n in (2, 3, 4, 5, 8)]


def said(p: RelationalPrompt) -> list[tuple[str, ...]]:
    """The numbers that each candidate states."""
    return [tuple(re.findall(r"\d+", c.text)) for c in p.candidates]


def solve(p: RelationalPrompt) -> list[bool] | None:
    """Which candidates are right, worked out from the numbers that they state and from their kind; None where a
    problem's values are no numbers."""
    numbers = [[int(x) for x in xs] for xs in said(p)]
    if p.kind == "link":
        ends = [b for _, b in numbers]
        return [a in ends for a, _ in numbers]
    if not all(len(x) == 1 for x in numbers):
        return None
    values = [x[0] for x in numbers]
    counts = Counter(values)
    if p.kind == "odd-one-out":
        return [counts[v] == 1 for v in values]
    if p.kind == "pair":
        return [counts[v] == 2 for v in values]
    if p.kind == "plurality":
        return [counts[v] == max(counts.values()) for v in values]
    if p.kind == "median":
        return [v == sorted(values)[p.n // 2] for v in values]
    return None


def features(p: RelationalPrompt, i: int) -> dict[str, bool]:
    """What one candidate says, without the others: its words, its numbers by tens, its length, its place."""
    text = p.candidates[i].text
    said = [f"value {k} {int(x) // 10}" for k, x in enumerate(re.findall(r"\d+", text))]
    said += [f"word {w}" for w in re.findall(r"[A-Za-z]+", text)]
    return dict.fromkeys([*said, f"place {i}", f"id {p.candidates[i].id}", f"length {len(text) // 8}"], True)


@pytest.mark.parametrize(("kind", "n"), SIZES)
def test_one_candidate_alone_says_nothing(kind: str, n: int) -> None:
    """Bayes' rule on one half of the problems tells right from wrong candidates of the other half no better than
    chance; one candidate a problem, so that all are independent."""
    problems = relational(2000, 5, n, [kind])
    one = [i % n for i in range(len(problems))]
    rows = DictVectorizer(sparse=True).fit_transform([features(p, i) for p, i in zip(problems, one, strict=True)])
    right = np.array([bool(p.candidates[i].correct) for p, i in zip(problems, one, strict=True)])
    half = len(problems) // 2
    scores = BernoulliNB().fit(rows[:half], right[:half]).predict_log_proba(rows[half:])[:, 1]
    told = right[half:]
    spread = np.sqrt((half + 1) / (12 * told.sum() * (~told).sum()))
    assert abs(roc_auc_score(told, scores) - 0.5) < 3.5 * spread
    share = 2 / n if kind == "pair" else right.mean() if kind == "plurality" else 1 / n
    assert abs(right.mean() - share) < 0.04


@pytest.mark.parametrize("kind", RELATIONAL)
def test_what_any_score_of_one_candidate_reaches(kind: str) -> None:
    """A score that is drawn for every text by itself picks a right candidate as often as `pointwise` says."""
    n = 5
    problems = relational(1500, 8, n, [kind])
    hits = 0
    for p in problems:
        drawn = {x: Random(f"{p.id} {x}").random() for x in set(p.stated)}
        best = max(range(n), key=lambda i: (drawn[p.stated[i]], Random(f"{p.id} tie {i}").random()))
        hits += bool(p.candidates[best].correct)
    expected = float(np.mean([p.pointwise for p in problems]))
    assert abs(hits / len(problems) - expected) < 0.045
    assert (expected == pytest.approx(1 / n)) == (kind in STRICT)


def test_lookup_is_pointwise() -> None:
    """The test above can fail: whoever sees question and candidate solves lookup."""
    problems = relational(200, 5, 4, ["lookup"])
    for p in problems:
        value = re.findall(r"\b([A-Z][a-z]+|[a-z]+|\d+)[?.]$", p.question)[0]
        assert [bool(re.search(rf"\b{value}\b", c.text)) for c in p.candidates] == [c.correct for c in p.candidates]


@pytest.mark.parametrize(("kind", "n"), [(k, n) for k in RELATIONAL for n in KINDS[k].sizes])
def test_all_together_say_which_is_right(kind: str, n: int) -> None:
    solved = 0
    for p in relational(60, 11, n, [kind]):
        marks = [c.correct for c in p.candidates]
        assert sum(map(bool, marks)) == {"pair": 2}.get(kind, sum(map(bool, marks)) if kind == "plurality" else 1)
        if (found := solve(p)) is not None:
            assert found == marks, p
            solved += 1
        if kind == "named":
            names = Counter(re.findall(r"(?:trust|vote for|Ask) (\w+)\.", " ".join(c.text for c in p.candidates)))
            own = [re.findall(r"(?:I am|My name is) (\w+)|(\w+) here\.", c.text)[0] for c in p.candidates]
            assert [names["".join(x)] == 2 for x in own] == marks
            solved += 1
        if kind == "contradiction":
            pairs = [re.findall(r"(?:The|the) (\w+) (?:is )?in the (\w+)\.", c.text)[0] for c in p.candidates]
            against = [sum(a == x and b != y for x, y in pairs) for a, b in pairs]
            assert [k == 2 for k in against] == marks
            solved += 1
    assert solved > 10


def test_series_and_names() -> None:
    assert relational(5, 3) == relational(9, 3)[:5]
    assert relational(3, 3) != relational(3, 4)
    assert {p.kind for p in relational(20)} == set(RELATIONAL) - {"median"}
    assert is_embedded("relational:7")
    assert load("relational:7", 3) == relational(3, 7)
    assert load("lookup:2", 3) == relational(3, 2, kinds=["lookup"])
    assert {kind: load(kind, 1)[0].kind for kind in KINDS} == {kind: kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_long_candidates_are_the_short_ones_behind_work_that_says_nothing(kind: str) -> None:
    long, short = load(f"long-{kind}", 60, 4), load(kind, 60, 4)
    words: dict[bool, list[int]] = {True: [], False: []}
    for a, b in zip(long, short, strict=True):
        assert (a.id, a.question, a.answer) == (f"{b.id}-behind-2", b.question, b.answer)
        work = [x.text.removesuffix(f" {y.text}") for x, y in zip(a.candidates, b.candidates, strict=True)]
        assert len(set(work)) == a.n
        for body, x, y in zip(work, a.candidates, b.candidates, strict=True):
            assert body != x.text
            assert (x.correct, x.id) == (y.correct, y.id)
            assert "The answer is" not in body
            assert final_answer(x.text, "relational") == final_answer(y.text, "relational")
            words[bool(x.correct)].append(len(body.split()))
    assert min(words[True] + words[False]) > 15
    spread = np.std(words[True] + words[False]) * np.sqrt(1 / len(words[True]) + 1 / len(words[False]))
    assert abs(np.mean(words[True]) - np.mean(words[False])) < 3.5 * spread


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": -1}, "0 or more"),
        ({"n": 1, "worked": -2}, "0 or more"),
        ({"n": 1, "candidates": 9}, "2 to 8"),
        ({"n": 1, "kinds": ["riddle"]}, "riddle"),
        ({"n": 1, "kinds": ["median"]}, "3, 5, 7"),
        ({"n": 1, "kinds": []}, "no relational kind"),
    ],
)
def test_refusals(arguments: dict, says: str) -> None:
    with pytest.raises(KvattnError, match=says):
        relational(**arguments)
