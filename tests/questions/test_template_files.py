"""Templates as YAML files: what they may say, what is wrong with them in one line, and their way back into a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvattn.errors import KvattnError
from kvattn.judge.verdict import read_verdict
from kvattn.questions import data_sha256, load, write_candidates
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import find_template, of_manifest, read_template, to_yaml
from kvattn.questions.templates import TEMPLATES, Message

PAIR: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": "Q: {{question}}\nA: {{candidate.1}}\nB: {{candidate.2}}\nA or B?"},
    ],
    "labels": ["A", "B"],
}


def user(content: str) -> dict[str, Any]:
    return {**PAIR, "messages": [{"role": "user", "content": content}]}


def write(folder: Path, said: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(said if isinstance(said, str) else yaml.safe_dump(said))
    return path


def test_a_file_of_parts_says_what_differs_from_free(tmp_path: Path) -> None:
    t = read_template(write(tmp_path, {"system": "Pick.", "header": "[{label}] ", "labels": "letters"}))
    free = TEMPLATES["free"]
    assert t == replace(free, name="mine", system="Pick.", header="[{label}] ", labels="letters")
    assert (t.slot_labels(2), t.kind, t.built_in) == (("A", "B"), "free", False)


def test_a_conversation_says_all_that_the_judge_reads(tmp_path: Path) -> None:
    t = read_template(write(tmp_path, {**PAIR, "name": "prod", "task": "math", "verdict": r"\[\[(\w)\]\]"}))
    assert (t.name, t.kind, t.slot_labels(2), t.system, t.label_question) == ("prod", "math", ("A", "B"), "", "")
    assert t.messages[0] == Message("system", "You grade.")
    assert t.agent_system == TEMPLATES["free"].agent_system


SENT = "Q: 2 + 2?\nA: four\nB: 5\nA or B?"
SPANS = [
    {"message": 1, "start": SENT.index(text), "stop": SENT.index(text) + len(text), "mark": mark}
    for text, mark in (("2 + 2?", "question"), ("four", "candidate.1"), ("5", "candidate.2"))
]


def spans(*said: dict[str, Any], content: str = SENT) -> dict[str, Any]:
    return {**PAIR, "messages": [PAIR["messages"][0], {"role": "user", "content": content}], "spans": list(said)}


def test_places_in_a_prompt_that_was_sent_are_marks(tmp_path: Path) -> None:
    assert read_template(write(tmp_path, spans(*reversed(SPANS)))) == read_template(write(tmp_path, PAIR))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_shown_is_read_again(tmp_path: Path, name: str) -> None:
    assert read_template(write(tmp_path, to_yaml(TEMPLATES[name]))) == TEMPLATES[name]
    assert of_manifest(TEMPLATES[name].to_json()) == TEMPLATES[name]


def test_a_conversation_is_written_and_read_again(tmp_path: Path) -> None:
    t = read_template(write(tmp_path, PAIR))
    assert read_template(write(tmp_path, to_yaml(t))) == t
    assert of_manifest(t.to_json()) == t


def test_another_word_is_another_template(tmp_path: Path) -> None:
    one = read_template(write(tmp_path, PAIR))
    two = read_template(write(tmp_path, user("Q {{question}}\nA: {{candidate.1}}\nB: {{candidate.2}}\nA or B?")))
    same = read_template(write(tmp_path, yaml.safe_dump(PAIR, default_style='"')))
    assert one.id == same.id != two.id
    made = (Candidate("a", "x"), Candidate("b", "y"))
    hashes = [data_sha256([JudgePrompt("q", made, t)]) for t in (one, same, two)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_to_json_of_what_is_built_in_is_what_it_was() -> None:
    """It stands in the manifests of runs that go on."""
    assert set(TEMPLATES["math"].to_json()) == {
        *("name", "system", "question_heading", "candidates_heading", "header", "separator", "instruction"),
        *("agent_system", "agent_instruction", "label_question", "label_opening", "yesno_branch", "chat"),
    }


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("- a list", "a template is a mapping"),
        ("messages: [", "line 1: no valid YAML"),
        ("name: a\nname: b", "line 2: no valid YAML (the key 'name' is given twice)"),
        ({"sistem": "x"}, "unknown key in {path} 'sistem'; did you mean 'system'?"),
        ({"system": 3}, "field 'system': must be a string, not 3"),
        ({"chat": "no"}, "field 'chat': must be true or false, not 'no'"),
        ({"labels": "roman"}, "field 'labels': must be digits, letters, or a list of names"),
        ({"labels": ["A", "a"]}, "field 'labels': must be names that differ"),
        ({"task": "poetry"}, "field 'task': must be"),
        ({"header": "Agent:"}, "field 'header' holds no {label}"),
        ({"yesno_branch": "Right?"}, "field 'yesno_branch' holds no {label}"),
        ({"verdict": "("}, "field 'verdict' is no regular expression"),
        ({"verdict": "A|B"}, "field 'verdict' has 0 groups"),
        ({"name": "a/b"}, "is no plain word"),
        ({"name": "math"}, "'math' is a built-in template, and this one differs"),
        ({"system": "x" * 300_000}, "longer than 200000 characters"),
        ({"messages": []}, "'messages' is empty"),
        ({**PAIR, "system": "x"}, "'system' and 'messages' both say what the judge reads"),
        ({**PAIR, "labels": ["A"]}, "has 1 labels, and 2 candidates are shown"),
        ({**PAIR, "messages": [{"role": "tool", "content": "x"}]}, "field 'messages[0].role': must be"),
        ({**PAIR, "messages": [{"role": "user", "text": "x"}]}, "messages"),
        (user("{{question}} {{candidate.1}} and {{candidate.1}}"), "the mark {{candidate.1}} is used twice"),
        (user("{{question}} {{question}} {{candidate.1}}"), "the mark {{question}} is used twice"),
        (user("A: {{candidate.1}} B: {{candidate.2}}"), "the mark {{question}} is missing"),
        (user("{{question}}"), "the mark {{candidate.1}} is missing"),
        (user("{{question}} {{candidate.1}} {{candidate.3}}"), "the mark {{candidate.2}} is missing"),
        (user("{{question}} {{candidate.2}} {{candidate.1}}"), "{{candidate.2}} stands first"),
        (user("{{question}} {{candidates}}"), "the mark {{candidate.1}} is missing"),
        (user("{{question}} {{candidate.0}} {{candidate.1}}"), "{{candidate.0}} is no mark"),
        (user("{{question}} {{Candidate 1}}"), "{{Candidate 1}} is no mark"),
        (
            user("{{question}}{{candidate.1}} {{candidate.2}}"),
            "nothing stands between {{question}} and {{candidate.1}}",
        ),
        (spans(*SPANS, SPANS[1]), "'spans': candidate.1 and the text behind it overlap in message 1"),
        (spans({**SPANS[0], "stop": 99}), "question has no place at message 1, characters 3 to 99"),
        (spans({**SPANS[0], "message": 2}), "question has no place at message 2"),
        (spans({**SPANS[0], "mark": "query"}, *SPANS[1:]), "{{question}} is missing"),
        (spans({"message": 1, "start": 3, "mark": "question"}), "field 'spans[0].stop'"),
        (spans(*SPANS, content="{{question}}"), "'spans' and the mark {{question}} both say where texts stand"),
        ({"spans": SPANS}, "candidate.2 has no place at message 1"),
        (
            {**PAIR, "messages": [*PAIR["messages"], {"role": "assistant", "content": "{{question}}"}]},
            "{{question}} is used twice",
        ),
        (
            {"messages": [{"role": "assistant", "content": "{{question}} {{candidate.1}}"}]},
            "opens the judge's own turn and holds a mark",
        ),
        (
            {"messages": [{"role": "system", "content": "{{question}} {{candidate.1}}"}]},
            "the last message is the system's",
        ),
    ],
)
def test_what_cannot_be_a_template_is_said_in_one_line(tmp_path: Path, said: Any, why: str) -> None:
    path = write(tmp_path, said)
    with pytest.raises(KvattnError) as error:
        read_template(path)
    assert str(path) in str(error.value)
    assert why.replace("{path}", str(path)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_neither_template_nor_file() -> None:
    assert find_template("math") is TEMPLATES["math"]
    with pytest.raises(KvattnError, match=r"unknown template or file 'mathe'; did you mean 'math'?"):
        find_template("mathe")
    with pytest.raises(KvattnError, match=r"cannot read none.yaml: No such file"):
        find_template("none.yaml")


def test_a_conversation_takes_as_many_candidates_as_it_has_marks_for(tmp_path: Path) -> None:
    t = read_template(write(tmp_path, PAIR))
    with pytest.raises(KvattnError, match="has 4 candidates, and the template 'mine' has marks for 2"):
        load("synthetic", 1, template=t)
    write_candidates(tmp_path / "c.jsonl", [JudgePrompt("q", (Candidate("a", "x"), Candidate("b", "y")))])
    (p,) = load(tmp_path / "c.jsonl", template=t)
    assert p.template == t
    with pytest.raises(KvattnError, match="a template of its own, 'mine', which a file cannot name"):
        write_candidates(tmp_path / "d.jsonl", [p])


@pytest.mark.parametrize(
    ("output", "slot"),
    [
        ("I think [[B]].", 1),
        ("[[a]]", 0),
        ("[[A]] or [[B]]", None),
        ("B", None),
        ("[[C]]", None),
        ("[[B]] so [[B]]", 1),
    ],
)
def test_a_templates_own_rule_reads_its_verdicts(output: str, slot: int | None) -> None:
    found = read_verdict(output, ("A", "B"), ("x", "y"), own=r"\[\[(\w)\]\]")
    assert (found.slot, found.rule) == (slot, None if slot is None else "own")
