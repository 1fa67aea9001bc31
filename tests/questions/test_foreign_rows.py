"""Rows as others write them: RewardBench 2 and JudgeBench in their own fields, and requests in OpenAI's form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvattn.errors import KvattnError
from kvattn.questions import load, read_candidates
from kvattn.questions.conversation import filled
from kvattn.questions.template_files import of_entries

JUDGE_BENCH = {
    "pair_id": "81ee4d0c",
    "original_id": "1204",
    "source": "mmlu-pro-law",
    "question": "Which of these is a tort? (A) Theft (B) Battery",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": "It is theft. (A)",
    "response_B": "Battery is a tort. (B)",
    "label": "B>A",
}
REWARD_BENCH = {
    "id": "412",
    "prompt": "Name a prime above 10.",
    "chosen": ["11 is prime."],
    "rejected": ["12 is.", "9 is.", "15 is."],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["a", "b", "c", "d"],
    "subset": "Math",
    "additional_metadata": {"category": None, "method": "human", "valid": 1.0},
}
TEMPLATE = of_entries(
    {
        "name": "prod",
        "messages": [
            {"role": "system", "content": "You grade."},
            {"role": "user", "content": "Q: {{question}}\n\n[A]\n{{candidate.1}}\n\n[B]\n{{candidate.2}}\n\nA or B?"},
        ],
        "labels": ["A", "B"],
    },
    "here",
)
TEXTS = {"question": "2+2?\nSay why.", "candidate.1": "4,\n\nsince 2+2=4", "candidate.2": ""}
MESSAGES = filled(TEMPLATE.messages, TEXTS)


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_pair_of_judge_bench(tmp_path: Path) -> None:
    (p,) = load(write(tmp_path, JUDGE_BENCH))
    assert (p.id, p.question, p.template.name) == ("81ee4d0c", JUDGE_BENCH["question"], "free")
    assert [(c.id, c.text, c.correct) for c in p.candidates] == [
        ("A", "It is theft. (A)", False),
        ("B", "Battery is a tort. (B)", True),
    ]


def test_a_tie_is_a_verdict_where_the_template_names_one(tmp_path: Path) -> None:
    tied = replace(TEMPLATE, labels=("A", "B", "C"))
    rows = [
        {"id": "1", "messages": MESSAGES, "response": "C. Both are good.", "target": "C"},
        {"id": "2", "messages": MESSAGES, "verdict": "C", "target": "B"},
        {"id": "3", "messages": MESSAGES, "response": "B"},
    ]
    path = write(tmp_path, *rows)
    found = [(p.verdict, [c.correct for c in p.candidates]) for p in read_candidates(path, template=tied)]
    assert found == [("tie", [True, True]), ("tie", [False, True]), ("c2", [None, None])]
    with pytest.raises(KvattnError, match="'C' is none of the labels A, B"):
        read_candidates(path, template=TEMPLATE)


def test_a_row_of_reward_bench_hides_which_came_first(tmp_path: Path) -> None:
    rows = [{**REWARD_BENCH, "id": str(i)} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    prompts = load(tmp_path / "test.parquet")
    assert [(c.text, c.correct) for c in prompts[0].candidates] == [
        ("11 is prime.", True), ("12 is.", False), ("9 is.", False), ("15 is.", False),
    ]  # fmt: skip
    shown = [p.order.index(0) for p in prompts]
    assert all(30 < shown.count(slot) < 70 for slot in range(4))
    assert [p.order for p in load(tmp_path / "test.parquet")] == [p.order for p in prompts]


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"messages": MESSAGES, "verdict": "B"}, "c2"),
        ({"messages": MESSAGES, "verdict": "c1"}, "c1"),
        ({"messages": MESSAGES}, None),
        ({"messages": MESSAGES, "response": "B, since it is shorter"}, "c2"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "**A**"}]}, "c1"),
        ({"messages": MESSAGES, "response": "Neither."}, None),
        ({"request": {"messages": MESSAGES}, "response": {"choices": [{"message": {"content": "A"}}]}}, "c1"),
        ({"body": {"messages": MESSAGES}, "response": {"body": {"choices": [{"message": {"content": "B"}}]}}}, "c2"),
        (
            {
                "messages": [
                    {"role": "developer", "content": "You grade."},
                    {"role": "user", "content": [{"type": "text", "text": MESSAGES[1]["content"]}]},
                ],
                "choices": [{"message": {"content": "A"}}],
            },
            "c1",
        ),
    ],
)
def test_a_request_is_taken_apart_by_the_template_that_made_it(tmp_path: Path, row: dict, verdict: str | None) -> None:
    (p,) = read_candidates(write(tmp_path, {"id": "r1", **row}), template=TEMPLATE)
    assert p.question == TEXTS["question"]
    assert [c.text for c in p.candidates] == [TEXTS["candidate.1"], TEXTS["candidate.2"]]
    assert p.verdict == verdict
    values = {"question": p.question, **{f"candidate.{i + 1}": c.text for i, c in enumerate(p.candidates)}}
    assert filled(p.template.messages, values) == MESSAGES


def test_a_batch_of_requests_has_ids_of_its_own(tmp_path: Path) -> None:
    (p,) = read_candidates(write(tmp_path, {"custom_id": "x-1", "body": {"messages": MESSAGES}}), template=TEMPLATE)
    assert p.id == "x-1"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**JUDGE_BENCH, "label": "A=B"}, "line 1, field 'label': must be 'A>B' or 'B>A', not 'A=B'"),
        ({**JUDGE_BENCH, "response_A": None}, "field 'candidates[0].text': must be a string"),
        ({**REWARD_BENCH, "chosen": "11"}, "field 'chosen': must be a list of completions, not '11'"),
        ({**REWARD_BENCH, "rejected": ["x"] * 20}, "field 'candidates': must be a list of 16 or fewer"),
        ({"id": "1", "messages": "hi"}, "field 'messages': must be a list of messages, not 'hi'"),
        ({"id": "1", "messages": [{"role": "user"}]}, "field 'messages[0]': must have a role and a text"),
        ({"id": "1", "messages": MESSAGES[1:]}, "1 messages, and the template 'prod' has 2"),
        ({"id": "1", "messages": MESSAGES[::-1]}, "field 'messages[0]': is the user's, and the template"),
        (
            {"id": "1", "messages": [{"role": "system", "content": "You judge."}, MESSAGES[1]]},
            "field 'messages[0]': does not say what the template 'prod' says: 'You judge.'",
        ),
        (
            {"id": "1", "messages": [MESSAGES[0], {"role": "user", "content": "Q: x\n\n[A]\ny\n\nA or B?"}]},
            "field 'messages[1]': does not say what the template 'prod' says: '\\n\\n[B]\\n' is missing",
        ),
        (
            {"id": "1", "messages": filled(TEMPLATE.messages, {**TEXTS, "candidate.1": "x\n\n[B]\ny"})},
            "stands there more than once, so that where {{candidate.1}} ends cannot be told",
        ),
        ({"id": "1", "messages": MESSAGES, "verdict": "C"}, "field 'verdict': 'C' is none of the labels A, B"),
        ({"messages": MESSAGES}, "field 'id': is missing"),
    ],
)
def test_what_only_looks_like_them_is_named(tmp_path: Path, row: dict, says: str) -> None:
    with pytest.raises(KvattnError) as error:
        read_candidates(write(tmp_path, row), template=None if "messages" not in row else TEMPLATE)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_log_needs_a_template_that_takes_it_apart(tmp_path: Path) -> None:
    with pytest.raises(KvattnError, match="taken apart by a template that has them with marks"):
        read_candidates(write(tmp_path, {"id": "1", "messages": MESSAGES}))
