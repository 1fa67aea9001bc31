"""Logs that inspect_ai itself wrote (tests/questions/inspect, made with its mock model), and samples that it opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvattn.errors import KvattnError
from kvattn.questions import read_candidates
from kvattn.questions.template_files import of_entries, to_yaml

LOGS = Path(__file__).parent / "inspect"
TEMPLATE = of_entries(
    {
        "name": "judge",
        "messages": [
            {"role": "system", "content": "You grade."},
            {"role": "user", "content": "Q: {{question}}\n\n[A]\n{{candidate.1}}\n\n[B]\n{{candidate.2}}\n\nA or B?"},
        ],
        "labels": ["A", "B"],
    },
    "here",
)
ASKED = [
    ("s0", "2+2?", ["It is 4.", "It is 5."], "c1", [True, False]),
    ("s1", "3*3?", ["6", "9, since 3*3=9"], "c2", [False, True]),
    ("s2", "Capital of Peru?", ["Lima", "Cusco"], "c2", [True, False]),
]


def read(path: Path) -> list[tuple]:
    return [
        (p.id, p.question, [c.text for c in p.candidates], p.verdict, [c.correct for c in p.candidates])
        for p in read_candidates(path, template=TEMPLATE)
    ]


def test_a_log_in_json_is_read() -> None:
    assert read(LOGS / "judge.json") == ASKED


def test_a_log_in_the_binary_form_is_read_by_inspect_ai() -> None:
    pytest.importorskip("inspect_ai")
    assert read(LOGS / "judge.eval") == ASKED


def test_without_inspect_ai_the_binary_form_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "inspect_ai.log", None)
    with pytest.raises(KvattnError, match=r"kvattn\[inspect\].*or write the log as JSON"):
        read(LOGS / "judge.eval")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda log: log.update(samples=[]), "holds no samples"),
        (lambda log: log["samples"][1].update(messages=None), "sample 2: holds no messages"),
        (
            lambda log: log["samples"][1]["messages"][1].update(content="Hi"),
            "sample 2, field 'messages[1]': does not say",
        ),
    ],
)
def test_what_is_no_judges_log_is_named(tmp_path: Path, change: Callable[[dict], None], says: str) -> None:
    log = json.loads((LOGS / "judge.json").read_text())
    change(log)
    (tmp_path / "log.json").write_text(json.dumps(log, indent=2))
    with pytest.raises(KvattnError) as error:
        read(tmp_path / "log.json")
    assert says in str(error.value)


def test_what_is_written_is_what_inspect_ai_opens(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(to_yaml(TEMPLATE))
    done = run(
        "candidates", "export", LOGS / "judge.json", "--template", "judge.yaml", "--out", "x.jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [r["target"] for r in rows] == [["A"], ["B"], ["A"]]
    log = json.loads((LOGS / "judge.json").read_text())
    assert [r["input"][1]["content"] for r in rows] == [s["messages"][1]["content"] for s in log["samples"]]
    dataset = pytest.importorskip("inspect_ai.dataset")
    samples = dataset.json_dataset(str(tmp_path / "x.jsonl"))
    assert [(s.id, s.input[1].text, s.target) for s in samples] == [
        (r["id"], r["input"][1]["content"], r["target"]) for r in rows
    ]
