"""The synthetic set and candidates files, against what can be recomputed from their texts and against broken files."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvattn.errors import KvattnError
from kvattn.questions import (
    LADDER,
    SyntheticPrompt,
    data_sha256,
    iter_candidates,
    load,
    load_problems,
    mixed_only,
    read_candidates,
    synthetic,
    write_candidates,
)
from kvattn.questions.orders import orders
from kvattn.questions.prompt import REGIMES, Candidate, JudgePrompt
from kvattn.questions.templates import TEMPLATES, Template

EQUATION = re.compile(r"(\d+)([-+*x/])(\d+)=(\d+)")


def broken_equations(text: str) -> int:
    """How many of the equations written in a text are false, by exact arithmetic on what stands there."""
    wrong = 0
    for left, op, right, value in EQUATION.findall(text):
        a, b, v = int(left), int(right), int(value)
        wrong += not {"+": a + b == v, "-": a - b == v, "*": a * b == v, "x": a * b == v, "/": a == v * b}[op]
    return wrong


def rungs(prompts: list[JudgePrompt]) -> list[tuple[SyntheticPrompt, str, str, bool]]:
    """(prompt, rung, text, correct) of every candidate."""
    out = []
    for p in prompts:
        assert isinstance(p, SyntheticPrompt)
        out += [(p, rung, c.text, c.correct) for rung, c in zip(p.rungs, p.candidates, strict=True)]
    return out


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("candidates", [2, 4, 8])
def test_synthetic_flags_agree_with_the_arithmetic_in_the_texts(candidates: int, matched: bool) -> None:
    for p, rung, text, correct in rungs(synthetic(150, 3, candidates, matched)):
        written = re.fullmatch(r".* The answer is (\d+)", text, re.DOTALL)
        assert written is not None, text
        equations = EQUATION.findall(text)
        assert correct == (rung == "right")
        if rung == "right":
            assert broken_equations(text) == 0
            assert len(equations) == p.steps
            assert written[1] == p.answer == equations[-1][3]
        elif rung == "slip":
            assert broken_equations(text) == 1
            assert written[1] == equations[-1][3] != p.answer
        elif rung == "off-topic":
            assert broken_equations(text) == 0
            assert written[1] == equations[-1][3] != p.answer
        elif rung == "wrong-path":
            assert written[1] == p.answer
            # Two errors that cancel, or one more step than the problem has.
            assert broken_equations(text) == 2 or (broken_equations(text) == 0 and len(equations) == p.steps + 1)
        else:
            assert rung == "garbled"
            assert written[1] != p.answer


def test_synthetic_answer_follows_from_the_numbers_in_the_question() -> None:
    """The right solution uses the question's numbers: each number of its first equation stands in the question."""
    for p, rung, text, _ in rungs(synthetic(200, 11)):
        if rung == "right":
            left, _, right, _ = EQUATION.findall(text)[0]
            assert {left, right} <= set(re.findall(r"\d+", p.question)), (p.question, text)


def test_synthetic_independent_solution_of_one_family() -> None:
    seen = 0
    for p in synthetic(300, 5):
        assert isinstance(p, SyntheticPrompt)
        if p.family == "garden":
            numbers = [int(x) for x in re.findall(r"\d+", p.question)]
            assert p.answer == str(numbers[0] * numbers[1] - numbers[2])
            seen += 1
    assert seen > 10


def test_synthetic_covers_kinds_families_steps_and_numbers_of_right_candidates() -> None:
    prompts = synthetic(600, 1)
    assert all(isinstance(p, SyntheticPrompt) for p in prompts)
    kinds = Counter(p.ladder for p in prompts)  # type: ignore[attr-defined]
    assert kinds == dict.fromkeys(LADDER, 120)
    assert len({p.family for p in prompts}) == 11  # type: ignore[attr-defined]
    assert {p.steps for p in prompts} == {2, 3, 4, 5}  # type: ignore[attr-defined]
    right = Counter(sum(bool(c.correct) for c in p.candidates) for p in prompts)
    assert set(right) == {1, 2, 3}
    assert min(right.values()) > 100
    assert mixed_only(prompts) == prompts
    assert len({p.question for p in prompts}) > 590
    assert all(len({c.text for c in p.candidates}) == 4 for p in prompts)


def test_dissent_means_three_against_one_and_the_one_is_right_about_half_of_the_time() -> None:
    odd_one_right = []
    for p in synthetic(300, 2, ladder=["dissent"]):
        counts = Counter(c.text.split()[-1] for c in p.candidates)
        assert sorted(counts.values()) == [1, 3]
        odd_one_right.append(counts[p.answer] == 1)  # type: ignore[index]
    assert 0.4 < sum(odd_one_right) / 300 < 0.6


def test_synthetic_is_seeded_and_a_prefix_of_itself() -> None:
    assert synthetic(7, 4) == synthetic(30, 4)[:7]
    assert data_sha256(synthetic(7, 4)) != data_sha256(synthetic(7, 5))
    assert [p.id for p in synthetic(13, 9)][-1] == "syn-9-000012"
    # Pinned: another value means that published problems have changed under their ids.
    assert data_sha256(synthetic(50)) == "099a7c21a2b67b9a2f9d7a3803f2cbdc658d0a1bf716ea1e9a54f571bf5a4087"


@pytest.mark.parametrize("candidates", [2, 3, 4, 5, 6, 7, 8])
def test_length_matched_candidates_have_equally_many_words(candidates: int) -> None:
    spread = {len({len(c.text.split()) for c in p.candidates}) for p in synthetic(200, 6, candidates, True)}
    assert spread == {1}
    free = [len({len(c.text.split()) for c in p.candidates}) for p in synthetic(200, 6, candidates)]
    assert max(free) > 1


def test_synthetic_prompts_are_short() -> None:
    words = [len(re.findall(r"\d|\w+|[^\w\s]", c.text)) for p in synthetic(200) for c in p.candidates]
    assert sum(words) / len(words) < 60
    assert max(len(re.findall(r"\d|\w+|[^\w\s]", p.question)) for p in synthetic(200)) < 70


@pytest.mark.parametrize("n", [2, 4, 5])
def test_agents_are_not_confounded_with_places_nor_with_quality(n: int) -> None:
    prompts = synthetic(100 * n, 8, n)
    places: Counter[tuple[int, str | None]] = Counter()
    right: Counter[str | None] = Counter()
    by_place: Counter[int] = Counter()
    for p in prompts:
        for place, c in enumerate(p.candidates):
            assert c.id == c.agent
            places[place, c.agent] += 1
            right[c.agent] += bool(c.correct)
            by_place[place] += bool(c.correct)
    assert set(places.values()) == {100}
    expected = sum(right.values()) / n
    assert all(abs(v - expected) < 4 * expected**0.5 for v in [*right.values(), *by_place.values()])


@given(st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_latin_square(n: int, seed: int) -> None:
    square = orders("latin", n, seed)
    assert all(sorted(row) == list(range(n)) for row in square)
    assert all(sorted(column) == list(range(n)) for column in zip(*square, strict=True))
    assert square == orders("latin", n, seed)


def test_latin_squares_depend_on_the_seed_alone() -> None:
    """Recorded once: what a seed gives must not change, or stored runs would not go on."""
    assert len({tuple(orders("latin", 5, s)) for s in range(20)}) > 15
    recorded = ["13204", "42130", "20341", "34012", "01423"]
    assert orders("latin", 5, 3, "q7") == [tuple(map(int, row)) for row in recorded]
    agents = [c.agent for p in synthetic(39, candidates=3)[36:] for c in p.candidates]
    assert agents == [f"agent-{x}" for x in "abcbcacab"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: synthetic(-1), "-1 synthetic problems"),
        (lambda: synthetic(1, candidates=1), "2 to 8 candidates"),
        (lambda: synthetic(1, candidates=9), "2 to 8 candidates"),
        (lambda: synthetic(1, ladder=["slips"]), "did you mean 'slip'"),
        (lambda: synthetic(1, ladder=[]), "no ladder kind"),
        (lambda: load("synthetic"), "no end"),
        (lambda: load("synthetic:x", 3), "the seed in 'synthetic:x' is 'x'"),
        (lambda: load("synthetic:-1", 3), "a whole number of 0 or more"),
        (lambda: load("synthetic", 3, -1), "a whole number of 0 or more"),
        (lambda: load("synthetic", 1.5), "limit is 1.5"),  # type: ignore[arg-type]
        (lambda: load("synthetic", True), "limit is True"),
        (lambda: read_candidates(None), "names no file"),  # type: ignore[arg-type]
        (lambda: load("synthetc", 3), "did you mean 'synthetic'"),
        (lambda: load("no/such/file.jsonl"), "cannot read"),
    ],
)
def test_bad_requests_are_refused_in_one_line(call, words: str) -> None:
    with pytest.raises(KvattnError) as e:
        call()
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_load_resolves_names_and_paths(tmp_path: Path) -> None:
    assert load("synthetic", 3, 7) == load("synthetic:7", 3) == synthetic(3, 7)
    assert load("synthetic-matched:2", 3) == synthetic(3, 2, length_matched=True)
    path = tmp_path / "plain"
    write_candidates(path, synthetic(4))
    assert len(load(path, 3)) == 3
    assert len(load(str(path))) == 4


PROBLEM = {"id": "q1", "question": "1+1?", "candidates": [{"text": "2"}, {"text": "3"}]}


def written(tmp_path: Path, text: str | bytes, name: str = "file.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def with_(**fields: object) -> str:
    return json.dumps({**PROBLEM, **fields})


def test_defaults_and_extra_fields(tmp_path: Path) -> None:
    candidates = [
        {"text": "a", "agent": "ann", "correct": True, "score": 3, "token_ids": [5, 0]},
        {"text": "", "id": "x", "agent": "bob", "correct": None},
        {"text": "c"},
    ]
    line = with_(candidates=candidates, source="there", answer=None)
    (p,) = read_candidates(written(tmp_path, line))
    assert p == JudgePrompt(
        "1+1?",
        (Candidate("ann", "a", "ann", True, (5, 0)), Candidate("x", "", "bob"), Candidate("c3", "c")),
        id="q1",
    )
    assert read_candidates(written(tmp_path, line), template="code")[0].template == TEMPLATES["code"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (json.dumps(PROBLEM), "one.json"),
        (json.dumps(PROBLEM), "one.jsonl"),
        (json.dumps(PROBLEM, indent=1), "one.json"),
        ("\ufeff" + json.dumps(PROBLEM) + "\r\n\r\n", "bom.jsonl"),
        (json.dumps([PROBLEM]), "list.json"),
        (json.dumps([PROBLEM], indent=2), "list.jsonl"),
        (json.dumps({"about": {"problems": [1]}, "problems": [PROBLEM]}), "wrapped.json"),
        (json.dumps({"about": {"problems": [1]}, "problems": [PROBLEM], "z": 1}, indent=2), "wrapped.json"),
        (json.dumps({"problems": [PROBLEM]}), "wrapped.jsonl"),
    ],
)
def test_every_form_of_file_reads_the_same(tmp_path: Path, text: str, name: str) -> None:
    (p,) = read_candidates(written(tmp_path, text, name))
    assert (p.id, p.question, [c.text for c in p.candidates]) == ("q1", "1+1?", ["2", "3"])


READ = "from kvattn.questions import load; print([p.id for p in load({path!r}, limit=9)])"


def packed(tmp_path: Path, form: str) -> Path:
    """Two problems in a file of that form."""
    two = [PROBLEM, PROBLEM | {"id": 2, "answer": float("nan")}]
    lines = "".join(json.dumps(p) + "\n" for p in two).encode()
    if form == "parquet":
        rows = [{**p, "id": str(p["id"]), "answer": None if p["id"] == 2 else p.get("answer")} for p in two]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    else:
        (tmp_path / f"q.{form}").write_bytes(gzip.compress(lines) if form.endswith("gz") else lines)
    return tmp_path / f"q.{form}"


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet"])
def test_gzip_parquet_and_pipes_read_the_same(tmp_path: Path, form: str) -> None:
    path = packed(tmp_path, form)
    one, two = load(path)
    assert (one.id, two.id, two.answer, [c.text for c in two.candidates]) == ("q1", "2", None, ["2", "3"])
    assert [p.id for p in read_candidates(path, limit=1)] == ["q1"]
    assert [p.question for p in load_problems(path)] == ["1+1?", "1+1?"]
    for name in ("-", "/dev/stdin"):
        with path.open("rb") as file:
            done = subprocess.run(
                [sys.executable, "-c", READ.format(path=name)], input=file.read(), capture_output=True, check=True
            )
        assert done.stdout == b"['q1', '2']\n", done.stderr


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PK\x03\x04abc", "is a zip archive or a spreadsheet; give JSON Lines"),
        (b"\x28\xb5\x2f\xfdabc", "is packed by zstd"),
        (b"\x80\x04K\x01.", "is a pickle"),
        (gzip.compress(gzip.compress(b'{"id": 1}', mtime=0), mtime=0), "packed by gzip twice"),
        (b"PAR1abcdefgh", "it is damaged"),
        (gzip.compress(b'{"id": 1}' * 99, mtime=0)[:-20], "it is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer, not the file itself"),
    ],
)
def test_what_a_file_really_is_is_said(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(data)
    with pytest.raises(KvattnError, match=said) as caught:
        load(tmp_path / "q.jsonl")
    assert "UTF-8" not in str(caught.value)
    (tmp_path / "q.jsonl").write_text("{}", encoding="utf-16")
    with pytest.raises(KvattnError, match="is text in UTF-16, not in UTF-8"):
        load(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "q2", "question" "x"}', "line 2, column 25: malformed JSON"),
        ('{"id": "q2"', "line 2, column 12: malformed JSON"),
        ("[1]", "line 2: must be an object, not [1]"),
        ("3", "line 2: must be an object, not 3"),
        (json.dumps({k: v for k, v in PROBLEM.items() if k != "id"}), "line 2, field 'id': is missing"),
        (json.dumps({"id": "a", "question": "x"}), "line 2, field 'candidates': is missing"),
        (with_(id=""), "line 2, field 'id': must not be empty"),
        (with_(id="q2", question=None), "line 2, field 'question': must be a string, not null"),
        (with_(id="q2", answer=18), "line 2, field 'answer': must be a string, not 18 (put it in quotes)"),
        (with_(id="q2", answer=True), "line 2, field 'answer': must be a string, not true"),
        (with_(id="q2", template="maths"), "line 2, field 'template': unknown template 'maths'; did you mean 'math'"),
        (with_(id="q2", candidates={}), "line 2, field 'candidates': must be a list, not {}"),
        (with_(id="q2", candidates=[]), "line 2, field 'candidates': must be a list of 1 or more, not one of 0"),
        (
            with_(id="q2", candidates=[{"text": str(i)} for i in range(17)]),
            "field 'candidates': must be a list of 16 or fewer, not one of 17",
        ),
        (with_(id="q2", candidates=["a"]), "line 2, field 'candidates[0]': must be an object, not 'a'"),
        (with_(id="q2", candidates=[{"text": "a"}, {}]), "line 2, field 'candidates[1].text': is missing"),
        (with_(id="q2", candidates=[{"text": None}]), "field 'candidates[0].text': must be a string, not null"),
        (with_(id="q2", candidates=[{"text": "a", "correct": 1}]), "'candidates[0].correct': must be true or false"),
        (with_(id="q2", candidates=[{"text": "a", "agent": ""}]), "'candidates[0].agent': must not be empty"),
        (
            with_(id="q2", candidates=[{"text": "a", "token_ids": [1, True]}]),
            "'candidates[0].token_ids[1]': must be a whole number, not true",
        ),
        (
            with_(id="q2", candidates=[{"text": "a", "token_ids": [-1]}]),
            "'candidates[0].token_ids[0]': must be 0 or more, not -1",
        ),
        (
            with_(id="q2", candidates=[{"text": "a", "agent": "x"}, {"text": "b", "agent": "x"}]),
            "line 2: question 'q2': candidate id 'x' is given twice; give each its own 'id'",
        ),
        (
            with_(id="q2", candidates=[{"text": "a", "id": "c2"}, {"text": "b"}]),
            "line 2: question 'q2': candidate id 'c2' is given twice",
        ),
        (with_(id="q2", order=[0, 0]), "line 2: question 'q2': order [0, 0] is no permutation"),
        (with_(), "line 2, field 'id': 'q1' was given in line 1 already"),
        (with_(id="q2", question="a\ud800"), "line 2, field 'question': holds a lone surrogate (U+D800)"),
        (with_(id="q2\udfff"), "line 2, field 'id': holds a lone surrogate (U+DFFF)"),
        (with_(id="q2", candidates=[{"text": "\ud83d"}]), "field 'candidates[0].text': holds a lone surrogate"),
        ("[" * 100_000, "line 2"),
        ('{"id": ' + "9" * 5000 + "}", "line 2"),
    ],
)
def test_a_bad_line_names_file_line_and_field_and_loses_nothing_before_it(
    tmp_path: Path, line: str, words: str
) -> None:
    path = written(tmp_path, json.dumps(PROBLEM) + "\n" + line + "\n" + with_(id="q3"))
    reader = iter_candidates(path)
    assert next(reader).id == "q1"
    with pytest.raises(KvattnError) as e:
        next(reader)
    assert str(e.value).startswith(f"{path}, line 2")
    assert words in str(e.value)
    assert "\n" not in str(e.value)
    assert [p.id for p in read_candidates(path, limit=1)] == ["q1"]


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"note": "\n", "problems": p}])
def test_problems_are_counted_inside_a_json_document(tmp_path: Path, wrap) -> None:
    bad = {**PROBLEM, "id": "q2", "candidates": [{"texts": "a"}]}
    text = json.dumps(wrap([PROBLEM, bad]), indent=2)
    with pytest.raises(KvattnError, match=r"problem 2, field 'candidates\[0\]\.text': is missing"):
        read_candidates(written(tmp_path, text, "file.json"))
    text = json.dumps(wrap([PROBLEM, PROBLEM]))
    with pytest.raises(KvattnError, match="problem 2, field 'id': 'q1' was given in problem 1 already"):
        read_candidates(written(tmp_path, text, "file.json"))


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "a.jsonl", "holds no problems"),
        (b" \n\n", "a.json", "holds no problems"),
        (b"[]", "a.json", "holds no problems"),
        (b'{"id": "a"}\n{"id": "\xff"}', "a.json", "field 'question': is missing"),
        (b'[1,\n"\xff"]', "a.json", "line 2: byte 0xff is no UTF-8"),
        (b"[1,\n2,,]", "a.json", "line 2, column 3: malformed JSON"),
        (b"nonsense", "a.json", "line 1, column 1: malformed JSON"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, name: str, words: str) -> None:
    with pytest.raises(KvattnError) as e:
        read_candidates(written(tmp_path, content, name))
    assert words in str(e.value)
    assert name in str(e.value)


def test_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(KvattnError, match="cannot read"):
        read_candidates(tmp_path)
    with pytest.raises(KvattnError, match="cannot write"):
        write_candidates(tmp_path / "no" / "such.jsonl", synthetic(1))
    with pytest.raises(KvattnError, match="limit is -1"):
        read_candidates(tmp_path / "x", limit=-1)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def prompts(draw: st.DrawFn) -> JudgePrompt:
    n = draw(st.integers(1, 5))
    candidates = tuple(
        Candidate(
            id=f"c{i}" + draw(texts),
            text=draw(texts),
            agent=draw(st.none() | texts),
            correct=draw(st.none() | st.booleans()),
            token_ids=draw(st.none() | st.lists(st.integers(0, 99)).map(tuple)),
        )
        for i in range(n)
    )
    return JudgePrompt(
        question=draw(texts),
        candidates=candidates,
        template=TEMPLATES[draw(st.sampled_from(sorted(TEMPLATES)))],
        order=tuple(draw(st.permutations(range(n)))),
        id="q" + draw(texts),
        answer=draw(st.none() | texts),
        regime=draw(st.sampled_from([None, *REGIMES])),
    )


@given(st.lists(prompts(), min_size=1, max_size=4, unique_by=lambda p: p.id))
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: list[JudgePrompt]) -> None:
    path = tmp_path_factory.mktemp("round") / "trip.jsonl"
    write_candidates(path, drawn)
    back = read_candidates(path)
    assert back == drawn
    assert data_sha256(back) == data_sha256(drawn)
    assert [f.name for f in path.parent.iterdir()] == ["trip.jsonl"]


def test_writing_refuses_what_would_not_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_candidates(path, synthetic(2))
    before = path.read_bytes()
    with pytest.raises(KvattnError, match="given twice"):
        write_candidates(path, synthetic(1) * 2)
    own = Template("mine", "", "", "", "{label}", "", "", "", "")
    with pytest.raises(KvattnError, match="template of its own, 'mine'"):
        write_candidates(path, [JudgePrompt("q", (Candidate("a", "b"),), template=own)])
    with pytest.raises(KvattnError, match="lone surrogate"):
        write_candidates(path, [JudgePrompt("q", (Candidate("a", "b"),), answer="\ud800")])
    assert path.read_bytes() == before


def test_hash_sees_content_and_not_the_file(tmp_path: Path) -> None:
    a = written(tmp_path, json.dumps(PROBLEM) + "\n", "a.jsonl")
    b = written(tmp_path, json.dumps([{"source": "z", **PROBLEM, "template": "math"}], indent=3), "b.json")
    changed = json.dumps({**PROBLEM, "candidates": [{"text": "2"}, {"text": "4"}]})
    c = written(tmp_path, changed, "c.jsonl")
    assert data_sha256(read_candidates(a)) == data_sha256(read_candidates(b))
    assert data_sha256(read_candidates(a)) != data_sha256(read_candidates(c))


def test_the_real_file(shared: Path) -> None:
    path = shared / "data" / "gsm8k_candidates.jsonl"
    prompts = load(path)
    assert len(prompts) == 700
    assert len(mixed_only(prompts)) == 379
    assert prompts[0].candidates[3].id == "175b_verification"
    assert prompts[0].candidates[3].correct is True
    assert prompts[0].answer == "18"
    assert [p.id for p in load(path, 2)] == ["gsm8k-test-0000", "gsm8k-test-0001"]


def test_all_bad_lines_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    good = '{"id": "a%d", "question": "q", "candidates": [{"text": "x"}]}'
    bad = ["{", '{"id": "b"}', (good % 2).replace('"id"', '"id": "c", "id"'), good % 0, "\xff"]
    lines = [good % 0, *bad, good % 1, *["["] * 3]
    path = tmp_path / "many.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    delivered = []
    with pytest.raises(KvattnError) as caught:
        delivered.extend(iter_candidates(path))
    said = str(caught.value)
    assert said.startswith(f"{path} has 8 faults: line 2, column")
    for part in ("line 3, field 'question'", "the key 'id' is given twice", "was given in line 1", "0xff is no UTF-8"):
        assert part in said
    assert said.endswith("; and 3 more")
    assert read_candidates(path, limit=1)[0].id == "a0"


def test_what_is_read_before_a_bad_line_is_delivered(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"id": "a", "question": "q", "candidates": [{"text": "x"}]}\n{"id": "b"}\n')
    read = iter_candidates(path)
    assert next(read).id == "a"
    with pytest.raises(KvattnError, match="line 2, field 'question'"):
        next(read)


def test_all_bad_rows_of_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "q"}\n{"question": 1}\n{"question": "r", "answer": 2}\n')
    with pytest.raises(KvattnError, match=r"has 2 faults: line 2, field 'question': .*; line 3, field 'answer'"):
        load_problems(path)
