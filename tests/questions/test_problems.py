"""Problems without candidates: from files of the benchmarks' own rows, from the Hub's library, and refusals."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvattn.errors import KvattnError
from kvattn.questions import Problem, check, load, load_problems
from kvattn.questions import datasets as hub

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows, or raw text, and gives the path."""

    def made(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return made


def test_gsm8k_questions_of_a_candidates_file(shared: Path) -> None:
    found = load_problems(shared / "data" / "gsm8k_candidates.jsonl")
    prompts = load(shared / "data" / "gsm8k_candidates.jsonl")
    assert [(p.id, p.question, p.answer) for p in found] == [(p.id, p.question, p.answer) for p in prompts]
    assert {(p.task, p.template) for p in found} == {("math", "math")}


def test_humaneval_rows(shared: Path) -> None:
    rows = [json.loads(x) for x in (shared / "data" / "humaneval.jsonl").read_text().splitlines()]
    found = load_problems(shared / "data" / "humaneval.jsonl")
    assert len(found) == 164
    for row, p in zip(rows, found, strict=True):
        assert (p.id, p.question, p.task, p.template) == (row["id"], row["prompt"], "code", "code")
        assert p.answer is not None
        assert p.answer.startswith(row["test"].strip())
        assert p.answer.endswith(f"\ncheck({row['entry_point']})\n")
        compile(p.answer, "tests", "exec")
        assert p.meta["canonical_solution"] == row["canonical_solution"]


def test_mmlu_rows(shared: Path) -> None:
    rows = [json.loads(x) for x in (shared / "data" / "mmlu_test_sample.jsonl").read_text().splitlines()]
    found = load_problems(str(shared / "data" / "mmlu_test_sample.jsonl"), limit=100)
    assert len(found) == 100
    for row, p in zip(rows, found, strict=False):
        assert (p.id, p.answer, p.task, p.template) == (row["id"], row["answer"], "choice", "choice")
        assert p.meta == {"subject": row["subject"]}
        lines = p.question.splitlines()
        assert lines[-5] == ""
        assert [x[:3] for x in lines[-4:]] == ["A) ", "B) ", "C) ", "D) "]
        assert all(a.strip() in p.question for a in row["choices"])
        assert check(p.task, p.answer, f"{row['answer']}\nBecause.") is True


def test_the_hubs_own_rows_in_files(write: Write) -> None:
    gsm8k = {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"}
    (p,) = load_problems(write(gsm8k, name="gsm8k.jsonl"))
    assert p == Problem("gsm8k-0001", "How many?", "4", meta={"solution": "2 + 2 = <<2+2=4>>4"})
    mmlu = {"question": "Which? ", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "law"}
    (p,) = load_problems(write(mmlu))
    assert (p.question, p.answer) == ("Which?\n\nA) w\nB) x\nC) y\nD) z", "C")
    code = {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "def check(c): pass\n", "entry_point": "f"}
    (p,) = load_problems(write(code))
    assert (p.id, p.answer) == ("HumanEval/0", "def check(c): pass\n\ncheck(f)\n")


def test_parquet(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "answer": i % 2, "subject": "s"} for i in range(5)]
    path = tmp_path / "validation.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = load_problems(path, limit=3)
    assert [(p.id, p.answer) for p in found] == [
        ("validation-0001", "A"),
        ("validation-0002", "B"),
        ("validation-0003", "A"),
    ]
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(KvattnError, match="cannot read") as e:
        load_problems(path)
    assert "\n" not in str(e.value)


def test_embedded_sets_give_their_questions() -> None:
    prompts = load("synthetic:7", 5)
    assert [(p.id, p.question, p.answer) for p in load_problems("synthetic:7", 5)] == [
        (p.id, p.question, p.answer) for p in prompts
    ]
    assert load_problems("synthetic", 5, seed=7) == load_problems("synthetic:7", 5)
    assert load_problems("synthetic", 5, seed=8) != load_problems("synthetic:7", 5)


class FakeDatasets:
    """Stands for the package `datasets`: what was asked for, and rows of the Hub's shape."""

    def __init__(self, rows: int) -> None:
        self.asked: list[tuple] = []
        self.rows = [
            {"question": f"question {i}", "choices": ["a", "b", "c", "d"], "answer": i % 4, "subject": "s"}
            for i in range(rows)
        ]

    def load_dataset(self, path: str, config: str, *, split: str, revision: str) -> list[dict]:
        self.asked.append((path, config, split, revision))
        return self.rows


def test_mmlu_is_the_papers_draw_from_the_validation_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.random.default_rng(888).permutation(1531)[:153].tolist()
    fake = FakeDatasets(1531)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = load_problems("mmlu")
    assert [p.id for p in found] == [f"mmlu-validation-{i:04d}" for i in expected]
    assert [p.question.splitlines()[0] for p in found] == [f"question {i}" for i in expected]
    assert [p.answer for p in found] == ["ABCD"[i % 4] for i in expected]
    assert [p.id for p in load_problems("mmlu", limit=9)] == [p.id for p in found[:9]]
    assert [p.id for p in load_problems("mmlu:validation", limit=2)] == ["mmlu-validation-0000", "mmlu-validation-0001"]
    assert {x[:3] for x in fake.asked} == {("cais/mmlu", "all", "validation")}
    assert len(set(expected)) == 153
    assert hub.mmlu_draw(1531) == expected


def test_every_source_is_asked_for_at_one_full_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets(3)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for name in ("gsm8k:train", "mmlu:test", "humaneval:test"):
        load_problems(name, 1)
    assert [x[:3] for x in fake.asked] == [
        ("openai/gsm8k", "main", "train"),
        ("cais/mmlu", "all", "test"),
        ("openai/openai_humaneval", "openai_humaneval", "test"),
    ]
    assert all(len(bytes.fromhex(x[3])) == 20 for x in fake.asked)


def test_the_library_takes_what_it_is_given() -> None:
    """The installed package's own signature; the fake above has no more than this."""
    import inspect

    datasets = pytest.importorskip("datasets")
    parameters = inspect.signature(datasets.load_dataset).parameters
    assert {"path", "name", "split", "revision"} <= set(parameters)
    assert list(parameters)[:2] == ["path", "name"]


def test_without_the_package_or_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KvattnError, match=r"pip install 'kvattn\[data\]'"):
        load_problems("gsm8k", 1)

    class Offline:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> None:
            raise ConnectionError("Couldn't reach the Hub\nwith a second line")

    monkeypatch.setitem(sys.modules, "datasets", Offline)
    with pytest.raises(KvattnError, match=r"Couldn't reach the Hub; connect .*, or give the path") as e:
        load_problems("gsm8k", 1)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1], "problem 1: a problem must be an object"),
        ({"answer": "4"}, "field 'question': is missing"),
        ({"question": 4}, "field 'question': must be a string"),
        ({"question": "x", "answer": 4}, "field 'answer': must be a string"),
        ({"question": "x", "id": ""}, "field 'id': must be a string that is not empty"),
        ({"question": "x", "template": "maths"}, "field 'template': unknown template 'maths'; did you mean 'math'"),
        ({"question": "x", "choices": ["a"], "answer": "A"}, "field 'choices': must be a list of 2 to 10"),
        ({"question": "x", "choices": ["a", 2], "answer": "A"}, "field 'choices': must hold strings alone"),
        ({"question": "x", "choices": ["a", "b"], "answer": "C"}, "field 'answer': must be one of A, B"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "field 'answer': must be one of A, B"),
        ({"prompt": "x", "entry_point": "a b", "test": ""}, "field 'entry_point': 'a b' is no name"),
        ({"prompt": "x", "entry_point": "f"}, "field 'test': is missing"),
        ({"question": "\ud800"}, "lone surrogate"),
        ("{oops", "malformed JSON"),
    ],
)
def test_bad_rows_are_named(write: Write, row: Any, says: str) -> None:
    with pytest.raises(KvattnError) as e:
        load_problems(write(row))
    assert says in str(e.value)
    assert "\n" not in str(e.value)
    assert re.search(r"rows\.jsonl, (line|problem) 1", str(e.value))


def test_other_refusals(write: Write) -> None:
    for what, says in (
        (lambda: load_problems("gsm8"), "unknown data set or file 'gsm8'; did you mean 'gsm8k'"),
        (lambda: load_problems("mmlu:foo"), "unknown split of mmlu 'foo'"),
        (lambda: load_problems("no/such/file.jsonl"), "cannot read no/such/file.jsonl"),
        (lambda: load_problems("synthetic"), "has no end"),
        (lambda: load_problems(write(), None), "holds no problems"),
        (lambda: load_problems(write({"question": "x"}), -1), "limit is -1"),
        (lambda: load_problems(write({"id": "a", "question": "x"}, {"id": "a", "question": "y"})), "given twice"),
    ):
        with pytest.raises(KvattnError) as e:
            what()
        assert says in str(e.value)
        assert "\n" not in str(e.value)
