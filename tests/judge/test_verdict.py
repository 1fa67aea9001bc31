"""Reading what a judge wrote."""

from __future__ import annotations

import pytest

from kvattn.judge.verdict import Verdict, read_verdict

LABELS = ("1", "2", "3", "4")
TEXTS = ("B\nbecause", "C\nsince", "B\nas well", "It is 7.")


@pytest.mark.parametrize(
    ("output", "slot", "rule"),
    [
        ("Selected agent id: 3\nThe answer is 7", 2, "format"),
        ("**Selected agent id:** 3", 2, "format"),
        ("selected agent id: Agent 2", 1, "format"),
        ("Selected agent id: <4>\nAgent 1 is best", 3, "format"),
        ("It is 7.", 3, "copy"),
        ("I compared them all. Selected agent: 2", 1, "pattern"),
        ("The best answer is that of Agent 2.", 1, "phrase"),
        ("Agent 3 is correct, since 3 + 4 = 7.", 2, "phrase"),
        ("Agent 1 is correct. Agent 2 is correct.", None, None),
        ("Selected agent 1? No: selected agent 2.", None, None),
        ("Selected agent id: 9", None, None),
        ("Selected agent id: 12", None, None),
        ("7", None, None),
        ("", None, None),
    ],
)
def test_the_first_rule_that_names_one_slot_counts(output, slot, rule):
    assert read_verdict(output, LABELS, TEXTS) == Verdict(slot, rule)


def test_a_letter_counts_for_choices_alone_and_takes_the_first_displayed():
    assert read_verdict("B", LABELS, TEXTS, "choice") == Verdict(0, "letter")
    assert read_verdict("C", LABELS, TEXTS, "choice") == Verdict(1, "letter")
    assert read_verdict("B", LABELS, TEXTS, "math") == Verdict()


def test_labels_of_letters():
    assert read_verdict("Selected agent id: b", tuple("ABCDEFGHIJ"), ("x",) * 10) == Verdict(1, "format")
