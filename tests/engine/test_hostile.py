"""Hostile input: texts that want to be more than text, files that are none, names that want to be paths."""

from __future__ import annotations

import ast
import csv as standard_csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import hostile
import pandas as pd
import pytest
import yaml
from conftest import CHECKOUT
from fake_run import Fake, write_fake_run
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import byte_llama, plain_added_tokenizer, save_bytes, tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from kvattn.cli import main, terminal
from kvattn.engine.compiler import PromptCompiler
from kvattn.errors import LONGEST, KvattnError
from kvattn.judge.readout import get as get_readout
from kvattn.models.source import packaged, prepare
from kvattn.questions import read_candidates, write_candidates
from kvattn.questions.problems import load_problems
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import get_template
from kvattn.study.gate.features import Recipe
from kvattn.study.gate.gate import Gate
from kvattn.study.gate.guarantee import Certificate
from kvattn.study.gate.scorers import Scorer
from kvattn.study.grid import Grid
from kvattn.study.run_folder import Run, read_manifest
from kvattn.text import FORMULA, csv, one_line

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "tiny": tokenizer,
    "organism": lambda: AutoTokenizer.from_pretrained(packaged()["organism-safe"]),
    "smollm2": lambda: AutoTokenizer.from_pretrained(str(prepare("smollm2-135m").folder)),
    "plain-added": plain_added_tokenizer,
}


@cache
def compiler(name: str) -> PromptCompiler:
    return PromptCompiler(TOKENIZERS[name]())


def prompt(*texts: str, question: str = "2+2?", name: str = "tiny", own: str | None = None) -> JudgePrompt:
    made = tuple(Candidate(f"c{i}", t, prompt=own) for i, t in enumerate(texts))
    return JudgePrompt(question, made, get_template("organism-max" if name == "organism" else "math"))


def pieces(layout) -> list[tuple[str, tuple[int, ...]]]:
    """(name, ids) of every segment."""
    return [(s.name, tuple(layout.token_ids[s.start : s.stop].tolist())) for s in layout.segments]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_moves_a_span_or_becomes_a_reserved_token(name: str) -> None:
    """At least 200 texts a tokenizer, each as a candidate, as the question, and as what an agent was asked."""
    it = compiler(name)
    ask = get_readout("label").ask(prompt("a", name=name).template)
    texts = hostile.texts(it.tokenizer)
    assert len(texts) >= 200
    plain = pieces(it.compile(prompt("a", "b", "c", name=name), ask))
    contexts = [pieces(x) for x in it.execution(prompt("a", "b", "c", name=name), "progressive")]
    added = it.tokenizer.added_tokens_decoder.items()
    reserved = {i for i, token in added if token.special or re.search(r"[^ \t\r\n\u25810-9]", token.content)}
    reserved = (reserved | {*it.tokenizer.all_special_ids}) - {it.tokenizer.unk_token_id}
    assert reserved
    for text in texts:
        try:
            ids = it.text(text)
        except KvattnError as refused:  # a vocabulary of whole words holds its reserved ones as words
            if name != "organism" or "reserved token" not in str(refused):
                raise
            continue
        assert not reserved & set(ids), text
        for where, asked in (
            ("candidate:2", prompt("a", text, "c", name=name)),
            ("question", prompt("a", "b", "c", question=text, name=name)),
        ):
            found = pieces(it.compile(asked, ask))
            assert dict(found)[where] == tuple(ids)
            assert [p for p in found if p[0] != where] == [p for p in plain if p[0] != where], text
        for before, after in zip(contexts, it.execution(prompt("a", text, "c", name=name), "progressive"), strict=True):
            assert [p for p in pieces(after) if p[0] != "candidate:2"] == [p for p in before if p[0] != "candidate:2"]
        own = it.execution(prompt("a", own=text, name=name))[-1]
        assert pieces(own)[1][1][: len(ids)] == tuple(ids)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(n, t, id=f"{n}-{k}", marks=[] if k == i else pytest.mark.slow)
        for i, n in enumerate(TOKENIZERS)
        for k, t in enumerate(hostile.MEGABYTE)
    ],
)
def test_a_megabyte_is_text_too_and_too_much_for_a_context(name: str, text: str) -> None:
    it = compiler(name)
    ask = get_readout("label").ask(prompt("a", name=name).template)
    found = pieces(it.compile(prompt("a", text, name=name), ask))
    assert [p for p in found if p[0] != "candidate:2"] == [
        p for p in pieces(it.compile(prompt("a", "b", name=name), ask)) if p[0] != "candidate:2"
    ]
    if len(it.text(text)) > 8192:  # some tokenizers drop what they do not know
        small = PromptCompiler(it.tokenizer, max_tokens=8192)
        with pytest.raises(KvattnError, match="context holds 8192"):
            small.compile(prompt("a", text, name=name), ask)


def test_lone_surrogates_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    for bad in ("\ud800", "a\udfffb", "\ud83d\u0020\ude00"):
        for make in (
            lambda b: prompt(b),
            lambda b: prompt("a", question=b),
            lambda b: prompt("a", own=b),
        ):
            with pytest.raises(KvattnError, match="lone surrogate") as error:
                make(bad)
            str(error.value).encode()
        with pytest.raises(KvattnError) as error:
            read_candidates(tmp_path / f"{bad}.jsonl")
        str(error.value).encode()


def test_every_message_is_one_printable_line_of_bounded_length() -> None:
    for text in (*hostile.HANDMADE, *hostile.MEGABYTE, "\ud800"):
        said = str(KvattnError(f"{text} is wrong; do this"))
        assert said.isprintable()
        assert len(said) < LONGEST + 20
        assert said.endswith("is wrong; do this")
    assert str(KvattnError("plain text, as it is: ü 日本")) == "plain text, as it is: ü 日本"
    assert one_line("a\x1b[31m\u202e\n") == "a\\x1b[31m\\u202e\\n"


def test_no_cell_of_a_csv_is_a_formula_and_all_can_be_read_back() -> None:
    texts = [*hostile.HANDMADE, *hostile.CHATS]
    made = csv(pd.DataFrame({"=text": texts, "n": range(len(texts))}))
    head, *rows = standard_csv.reader(io.StringIO(made, newline=""))
    assert head == ["'=text", "n"]
    assert len(rows) == len(texts)
    for text, (found, number) in zip(texts, rows, strict=True):
        assert not found.startswith(FORMULA)
        assert found.removeprefix("'") == text.removeprefix("'")
        assert number.isdigit()
    numbers = pd.DataFrame({"x": [-1.5, 2.0], "y": pd.Series([-1, 2], dtype="int64"), "z": [None, "-1"]})
    assert csv(numbers).splitlines() == ["x,y,z", "-1.5,-1,", "2.0,2,'-1"]
    near = pd.DataFrame({"x": [1.1, 1.1 + 1e-15], "y": [None, 0.1 + 0.2], "z": pd.Series([0.1, 0.1], dtype="float32")})
    assert csv(near).splitlines() == ["x,y,z", "1.1,,0.1", "1.1,0.3,0.1"]  # what two processors may differ by


def test_tables_for_people_are_written_in_one_place() -> None:
    """What a person opens in a spreadsheet goes through `kvattn.text.csv`."""
    tops = [CHECKOUT / top for top in ("kvattn", "app", "analyses", "benchmarks")]
    for path in sorted(p for top in tops for p in top.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "to_csv":
                by_the_app = isinstance(node.value, ast.Name) and node.value.id == "show"  # whose to_csv is text.csv
                assert by_the_app or path.name == "text.py", f"{path}:{node.lineno}"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run over hostile questions whose ids are paths, judged by the command line, and nothing else."""
    here = tmp_path_factory.mktemp("hostile")
    judge = byte_llama()
    judge.config.max_position_embeddings = 8192
    model = str(save_bytes(tmp_path_factory.mktemp("model"), judge))
    ids = [*hostile.PATHS, *hostile.CELLS, *hostile.MARKUP[:8]]
    texts = hostile.HANDMADE + hostile.CHATS
    prompts = [
        JudgePrompt(
            texts[(5 * i) % len(texts)][:300],
            tuple(Candidate(f"{id_}{k}", texts[(7 * i + 31 * k) % len(texts)][:300], agent=id_) for k in range(2)),
            id=id_,
        )
        for i, id_ in enumerate(ids)
    ]
    write_candidates(here / "file.jsonl", prompts)
    command = ["judge", "file.jsonl", "--model", model, "--methods", "dense,naive-linked", "--run", "=run()"]
    patch = pytest.MonkeyPatch()
    patch.chdir(here)
    done = CliRunner().invoke(main.app, command, catch_exceptions=False)
    patch.undo()
    assert done.exit_code == 0, done.output
    return here


def test_a_run_over_hostile_questions_stays_in_its_folder(judged: Path) -> None:
    assert {p.name for p in judged.iterdir()} == {"file.jsonl", "=run()"}
    names = [p.name for p in (judged / "=run()").rglob("*")]
    assert all(n.isascii() and len(n) < 120 and ".." not in n for n in names)
    run = Run(judged / "=run()")
    assert not run.check()
    given = {p.id for p in read_candidates(judged / "file.jsonl")}
    assert set(run.judgements()["question_id"]) == set(run.questions()["question_id"]) == given


def test_its_report_and_its_comparison_hold_text_alone(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (judged / "=run()" / "report.html").read_text(encoding="utf-8")
    for bad in ("<script>document.title", "<img src=x", "<svg/onload", "<iframe srcdoc", "<a href='javascript"):
        assert bad not in page
    monkeypatch.chdir(judged)
    for form in ("--csv", "--json", "--markdown", ""):
        said = CliRunner().invoke(main.app, ["compare", "=run()", *filter(None, [form])], catch_exceptions=False).output
        if form == "--csv":
            rows = list(standard_csv.reader(io.StringIO(said)))
            assert len(rows) >= 10
            assert {row[0] for row in rows[1:]} == {"'=run()"}
            for cell in (c for row in rows for c in row if c.startswith(FORMULA)):
                float(cell)  # a negative number
        if form == "--json":
            json.loads(said)


def test_the_terminal_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    asked, decision = prompt("a"), Fake(questions=1, rows=False).unit(0)[1][0]
    for text in (*hostile.MARKUP, *hostile.CONTROLS):
        gated = terminal.Gated()
        gated.add(asked, [replace(decision, question_id=text, choice=text, notes=("gate: accepts",))])
        gated.print(())
        terminal.rows([{"cell": text}])
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert all(c.isprintable() or c == "\n" for c in said)
    terminal.rows([{"cell": "[bold]x[/bold] [/red] :smile:"}])
    assert "[bold]x[/bold] [/red] :smile:" in capsys.readouterr().out


ONE_LINE = [
    (["judge", "{bad}.jsonl"], "cannot read"),
    (["judge", "file\x1b[31m.jsonl"], "cannot read"),
    (["judge", "synthetic", "--limit", "1", "--model", "a\nb"], "unknown model"),
    (["judge", "synthetic", "--limit", "1", "--model", "../\u202ex"], "no folder"),
    (["judge", "synthetic", "--limit", "1", "--methods", "den\nse"], "unknown method"),
    (["report", "no\nsuch"], "no run folder"),
    (["study", "run", "no\nsuch.yaml"], "cannot read"),
]


@pytest.mark.parametrize(("arguments", "said"), ONE_LINE, ids=lambda x: ascii(x)[:30])
def test_a_bad_command_ends_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kvattn", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("kvattn: ")
    assert error.count("\n") == 1
    assert error[:-1].isprintable()
    assert said in error
    assert not list(tmp_path.iterdir())


# Parsers: any bytes are read, or refused in one line.

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    plain, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=6
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "[" * 100_000
FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads(parse, path: Path, data: bytes) -> bool:
    """Whether the file was read; anything but a KvattnError of one line is a failure."""
    path.write_bytes(data)
    said = None
    try:
        parse(path)
    except KvattnError as error:
        said = str(error)
    assert said is None or (said and said.isprintable())
    return said is None


@st.composite
def mutated(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good JSON document with one value at any depth replaced, removed or added, or with its bytes harmed."""
    document = json.loads(json.dumps(good))
    at: Any = document
    while True:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
            at = at[key]
            continue
        break
    deed = draw(st.sampled_from(["replace", "remove", "add"]))
    if deed == "replace":
        at[key] = draw(values)
    elif deed == "remove":
        del at[key]
    elif isinstance(at, dict):
        at[draw(st.text(max_size=4))] = draw(values)
    data = json.dumps(document).encode()
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=3)) + data[cut + draw(st.integers(0, 3)) :]
    return data


QUESTION = {
    "id": "q1",
    "question": "1+1?",
    "answer": "2",
    "template": "math",
    "order": [1, 0],
    "verdict": "x",
    "candidates": [
        {"id": "x", "text": "2", "agent": "a", "correct": True, "token_ids": [1, 2], "prompt": "p", "model": "m"},
        {"id": "y", "text": "3", "agent": "b", "correct": False},
    ],
}


@FEW
@given(st.binary(max_size=60) | mutated({"problems": [QUESTION]}) | mutated(QUESTION) | st.text().map(str.encode))
@example(DEEP.encode())
@example(b'{"problems": ' + DEEP.encode())
@example(b'{"id": "q", "question": "a", "candidates": [{"text": "b"}], "order": [1e999]}')
@example(b'{"id": "q", "question": "a", "candidates": [{"text": "b"}], "verdict": "x\\n\\u001b[31m"}')
@example(json.dumps({**QUESTION, "candidates": [{"id": "\n", "text": "a"}], "verdict": "b", "order": None}).encode())
def test_any_candidates_file(tmp_path: Path, data: bytes) -> None:
    for name in ("file.jsonl", "file.json"):
        if reads(read_candidates, tmp_path / name, data):
            for p in read_candidates(tmp_path / name):
                assert p.id
                assert 1 <= p.n <= 16
        reads(load_problems, tmp_path / name, data)
    reads(load_problems, tmp_path / "file.parquet", data)


STUDY = {
    "name": "s",
    "models": ["m"],
    "data": [{"source": "f.jsonl", "limit": 3, "heldout": 1, "mixed": True, "assign": "latin", "name": "n"}],
    "regimes": ["parallel"],
    "orders": ["shuffle:2"],
    "readouts": ["label"],
    "methods": ["dense", "naive-linked"],
    "seed": 3,
    "dtype": "float32",
    "device": "cpu",
    "capture": False,
}


@FEW
@given(
    st.binary(max_size=60) | mutated(STUDY) | st.text().map(str.encode) | values.map(lambda v: yaml.dump(v).encode())
)
@example(b"data: 2020-13-45")
@example(b"data: x\nseed: 0x_")
@example(b"? [a, b]\n: c")
@example(b"data: &a [*a]")
@example(b"data: x\nmodels: &a [*a]")
@example((BOMB + "data: *i\n").encode())
@example((BOMB.replace("a:", "name: x\nseed:", 1)).encode())
@example(b"data: x\nmodels: &a [x,x,x,x,x,x,x,x,x]\nseed: *a")
@example(("{data: x, models: " + "[" * 12 + "x" + "]" * 12 + "}").encode())
@example(DEEP.encode())
@example(b"data: {source: f.jsonl, agents: .nan}")
@example(b"data: {source: f.jsonl, agents: 2, temperature: .nan}")
@example(b"data: {source: f.jsonl, name: [a]}")
@example(b"data: {source: f.jsonl, limit: true}")
@example(b"!!python/object/apply:os.system ['touch owned']")
@example(b"data: !!python/name:os.system ''")
def test_any_study_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "study.yaml"
    if reads(Grid.read, path, data):
        grid = Grid.read(path)
        for cell in grid.cells():
            assert Path(cell.folder).name == cell.folder not in ("", ".", "..")
            assert cell.candidates.parts[0] == "candidates"
            assert ".." not in cell.candidates.parts
    assert {p.name for p in tmp_path.iterdir()} == {"study.yaml"}


def test_a_bomb_of_aliases_is_a_short_message(tmp_path: Path) -> None:
    for key in ("seed", "models", "name"):
        (tmp_path / "study.yaml").write_text("data: x\n" + BOMB.replace("a: &a", "methods: &a", 1) + f"{key}: *i\n")
        with pytest.raises(KvattnError) as error:
            Grid.read(tmp_path / "study.yaml")
        assert len(str(error.value)) < 1000
    said = {"data": "x", **{k: [f"{k}{i}" for i in range(50)] for k in ("models", "orders", "regimes", "readouts")}}
    with pytest.raises(KvattnError, match="6250000 cells"):
        Grid.of(said)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_fake_run(tmp_path_factory.mktemp("fake") / "run", Fake(questions=2, candidates=2, orders=1))
    return json.loads((folder / "manifest.json").read_text())


@settings(parent=FEW)
@given(data=st.data())
def test_any_manifest(tmp_path: Path, manifest: dict[str, Any], data: st.DataObject) -> None:
    drawn = data.draw(st.binary(max_size=60) | mutated(manifest) | st.just(DEEP.encode()))
    if reads(lambda p: read_manifest(p.parent), tmp_path / "manifest.json", drawn):
        assert len(Run(tmp_path)) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("late", 5), ("late", [[1]]), ("sessions", {}), ("methods", ["x"]), ("model", "m"), ("n_candidates", ["2"])],
)
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, manifest: dict[str, Any], key: str, value: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(KvattnError, match=f"damaged at '{key}'"):
        Run(tmp_path)


GATES = {
    form: Gate(
        Recipe("naive-linked", ("isolated",), 2),
        Scorer("logistic", form, ("a",), (0.0,), numbers),
        Certificate(0.5, 0.05, 0.95, 100, 80, 1, 0.04, 3),
        {"model": {"name": "m"}},
        {"run": "r"},
    ).to_json()
    for form, numbers in {
        "linear": {"mean": [0], "scale": [1], "weights": [2], "intercept": 0.5},
        "single": {"sign": 1.0},
        "trees": {
            "rate": 0.1,
            "start": 0.0,
            "trees": [
                {
                    "left": [1, -1, -1],
                    "right": [2, -1, -1],
                    "feature": [0, -2, -2],
                    "threshold": [0.5, -2, -2],
                    "value": [0, 1, -1],
                }
            ],
        },
    }.items()
}


@FEW
@given(
    st.binary(max_size=60)
    | st.sampled_from(sorted(GATES)).flatmap(lambda form: mutated(GATES[form]))
    | st.text().map(str.encode)
)
@example(DEEP.encode())
@example(json.dumps({**GATES["linear"], "recipe": {**GATES["linear"]["recipe"], "votes": math.inf}}).encode())
@example(json.dumps({**GATES["linear"], "certificate": {"threshold": "0"}}).encode())
def test_any_gate(tmp_path: Path, data: bytes) -> None:
    if reads(Gate.load, tmp_path / "gate.json", data):
        gate = Gate.load(tmp_path / "gate.json")
        x = pd.DataFrame([[0.0] * len(gate.scorer.names)], columns=list(gate.scorer.names))
        assert gate.accepts(x).shape == (1,)
        assert asdict(gate.certificate)
