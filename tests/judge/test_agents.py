"""Execution agents and the files they are frozen to: against the plain model, over interruptions, across models."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tiny import long_judge, plain_model, save
from typer.testing import CliRunner

from kvattn.cli.main import app
from kvattn.errors import KvattnError
from kvattn.judge.agents import Agents, checked, sampler, unspeakable
from kvattn.judge.verdict import stop_tokens
from kvattn.questions import Problem, read_candidates, write_candidates
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.template_files import of_entries
from kvattn.study import run_folder
from kvattn.study.candidates_file import Generation
from kvattn.study.grid import Grid

PROBLEMS = [Problem(f"p{i}", f"What is {i} + 2?", str(i + 2)) for i in range(4)]


@pytest.fixture(scope="module")
def engine():
    """A tiny engine with weights that have a name."""
    made = long_judge("llama").engine
    made.identity = made.compiler.identity = "tiny@sha256:1"
    return made


@torch.inference_mode()
def _continued(engine, ids: torch.Tensor, n: int) -> list[int]:
    """Greedy continuation by the plain model, the whole prompt anew for every token, banned ids left out."""
    model, out = plain_model("llama"), []
    while len(out) < n:
        logits = model(torch.cat([ids, torch.tensor(out, dtype=torch.long)])[None]).logits[0, -1]
        token = int(logits.masked_fill(unspeakable(engine), float("-inf")).argmax())
        if token in stop_tokens(engine):
            break
        out.append(token)
    return out


@pytest.mark.parametrize("regime", ["parallel", "progressive"])
def test_agents_continue_their_own_context_as_the_plain_model_does(engine, regime):
    prompt = Agents(3, regime, temperature=0, max_new=10).answer(engine, [PROBLEMS[0]])[0]
    for i, c in enumerate(prompt.candidates):
        earlier = prompt.candidates[:i] if regime == "progressive" else ()
        asked = JudgePrompt(prompt.question, (*earlier, replace(c, text="", token_ids=())), prompt.template)
        context = engine.compiler.execution(asked, regime)[-1]
        assert list(c.token_ids) == _continued(engine, context.token_ids, 10)
        assert c.text == engine.tokenizer.decode(list(c.token_ids))
        assert c.model == "tiny@sha256:1"
    assert (len({c.token_ids for c in prompt.candidates}) == 1) == (regime == "parallel")


def test_agents_side_by_side_answer_as_they_do_alone(engine, monkeypatch):
    how = Agents(4, temperature=1.0, max_new=12)
    together = how.answer(engine, [PROBLEMS[0]])[0]
    monkeypatch.setattr(engine, "batch_tokens", 1)
    assert how.answer(engine, [PROBLEMS[0]])[0] == together
    assert len({c.token_ids for c in together.candidates}) == 4


WORDS = of_entries(
    {
        "messages": [{"role": "user", "content": "{{question}}\n{{candidate.1}}\n--\n{{candidate.2}}\nA or B?"}],
        "labels": ["A", "B"],
        "agent_system": "Be brief.",
        "agent_instruction": "\nNow.",
    },
    "own",
    "own",
)


def test_agents_are_asked_in_a_templates_words_as_the_judge_takes_them_to_be(engine, tmp_path):
    """What agents read is the context that reuse is made in, when the judge has the same template."""
    made = Agents(2, temperature=0, max_new=6).answer(engine, [PROBLEMS[0]], WORDS)[0]
    assert made.template.name == "math"
    context = engine.compiler.execution(replace(made, template=WORDS), "parallel")[0]
    start = context.find("candidate", 0).start
    said = engine.tokenizer.decode(context.token_ids[:start])
    assert ("Be brief." in said, "What is 0 + 2?\nNow." in said) == (True, True)
    assert list(made.candidates[0].token_ids or ()) == _continued(engine, context.token_ids[:start], 6)
    path = tmp_path / "c.jsonl"
    Generation(engine, PROBLEMS[:2], Agents(2, max_new=4), template=WORDS).write(path)
    assert [p.template.name for p in read_candidates(path)] == ["math"] * 2
    said = json.loads(path.with_name("c.jsonl.manifest.json").read_text())
    assert ([t["name"] for t in said["templates"]], said["made"]["cut_off"]) == (["own"], 4)
    with pytest.raises(KvattnError, match="begun with other parameters: templates"):
        Generation(engine, PROBLEMS[:2], Agents(2, max_new=4)).write(path)


def test_a_judge_sees_the_very_ids_that_were_generated(engine):
    prompt = Agents(2, temperature=1.0, max_new=12).answer(engine, [PROBLEMS[1]])[0]
    texts = [engine.compiler.candidate_ids(prompt, i) for i in range(2)]
    assert texts == [list(c.token_ids) for c in prompt.candidates]
    assert not set(texts[0] + texts[1]) & (engine.compiler.reserved | stop_tokens(engine))


def test_an_agents_answer_depends_on_seed_problem_and_number_alone(engine):
    def ids(count=2, seed=0, problem=PROBLEMS[0]):
        made = Agents(count, temperature=1.0, max_new=8, seed=seed).answer(engine, [problem])[0]
        return [c.token_ids for c in made.candidates]

    assert ids() == ids() == ids(count=4)[:2]
    assert ids()[0] != ids()[1]
    assert ids() != ids(seed=1)
    assert ids() != ids(problem=replace(PROBLEMS[0], id="other"))


def test_sampling_follows_the_softmax_and_never_takes_banned_ids():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0])
    banned = torch.tensor([False, False, False, False, True])
    for temperature in (0.5, 2.0):
        choose = sampler(temperature, "seed", banned)
        counts = np.bincount([choose(logits) for _ in range(4000)], minlength=5)
        assert counts[4] == 0
        want = torch.softmax(logits[:4].double() / temperature, 0).numpy() * 4000
        assert chisquare(counts[:4], want).pvalue > 1e-4
    assert sampler(0, "seed", banned)(logits) == 3


def test_answers_are_checked_and_programs_only_where_allowed():
    prompt = JudgePrompt("q", (Candidate("a", "The answer is 4"), Candidate("b", "5"), Candidate("c", "?")), id="p")
    made = checked(prompt, Problem("p", "q", "4"))
    assert [c.correct for c in made.candidates] == [True, False, False]
    assert [c.correct for c in checked(prompt, Problem("p", "q")).candidates] == [None] * 3
    with pytest.raises(KvattnError, match="allow"):
        checked(prompt, Problem("p", "q", "def check(f): pass", "code", "code"))


AGENTS = Agents(2, temperature=0.7, max_new=6)


def test_agents_take_several_temperatures_in_turn(engine, tmp_path):
    mixed, cool, hot = (Agents(4, temperature=t, max_new=12) for t in ((0.5, 2.0), 0.5, 2.0))
    a, b, c = ([x.token_ids for x in how.answer(engine, [PROBLEMS[0]])[0].candidates] for how in (mixed, cool, hot))
    assert a == [b[0], c[1], b[2], c[3]]
    assert b != c
    path = Generation(engine, PROBLEMS[:1], mixed).write(tmp_path / "mixed.jsonl")
    assert Generation(engine, PROBLEMS[:1], mixed).write(path) == path  # the manifest says the same
    with pytest.raises(KvattnError, match="temperature"):
        Generation(engine, PROBLEMS[:1], cool).write(path)


def test_a_full_context_names_a_way_out_that_is_one(monkeypatch):
    narrow = long_judge("llama").engine
    first = narrow.compiler.execution(JudgePrompt(PROBLEMS[0].question, (Candidate("a", "", token_ids=()),)))[0]

    def holding(tokens):
        monkeypatch.setattr(narrow, "geometry", replace(narrow.geometry, max_tokens=tokens))
        monkeypatch.setattr(narrow.compiler, "max_tokens", tokens)

    holding(len(first) + 8)
    assert len(Agents(2, max_new=6).answer(narrow, PROBLEMS[:1])[0].candidates) == 2
    for how in (Agents(2, "progressive", max_new=6), Agents(2, "progressive", max_new=8)):
        with pytest.raises(KvattnError, match="take fewer agents, or parallel ones"):
            how.answer(narrow, PROBLEMS[:1])
    for tokens in (len(first) - 1, len(first)):
        holding(tokens)
        with pytest.raises(KvattnError, match=r"context.*; shorten the question"):
            Agents(2).answer(narrow, PROBLEMS[:1])


@pytest.mark.parametrize("regime", ["parallel", "progressive"])
def test_several_problems_are_answered_side_by_side_each_as_alone(engine, regime, tmp_path):
    how = Agents(2, regime, temperature=0.7, max_new=6)
    problems = [replace(p, question=p.question + " Why?" * i) for i, p in enumerate(PROBLEMS)]
    alone = Generation(engine, problems, how).write(tmp_path / "alone.jsonl")
    two = Generation(engine, problems, how, together=2)
    path = tmp_path / "two.jsonl"

    def stop(what, done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two.write(path, stop)
    part = path.with_name("two.jsonl.part")
    held = part.read_text().splitlines(keepends=True)
    assert len(held) == 2
    part.write_text(held[0])  # killed between the two: both are answered anew, one is written
    assert two.write(path).read_bytes() == alone.read_bytes()
    for other in (3, 0):
        with pytest.raises(KvattnError, match="together"):
            replace(two, together=other).write(path)


def test_an_interrupted_file_continues_and_equals_one_made_in_one_go(engine, tmp_path):
    whole = Generation(engine, PROBLEMS, AGENTS).write(tmp_path / "whole.jsonl")

    class Killed(BaseException):
        pass

    def stop(what, done, of):
        if done == stop.at:
            raise Killed

    path = tmp_path / "broken.jsonl"
    for stop.at in (1, 3):
        with pytest.raises(Killed):
            Generation(engine, PROBLEMS, AGENTS).write(path, stop)
        with path.with_name("broken.jsonl.part").open("ab") as file:
            file.write(b'{"id": "half a li')  # killed in the middle of a line
        assert not path.exists()
    assert Generation(engine, PROBLEMS, AGENTS).write(path).read_bytes() == whole.read_bytes()
    assert not path.with_name("broken.jsonl.part").exists()
    made = json.loads((tmp_path / "broken.jsonl.manifest.json").read_text())
    assert made["made"]["candidates"] == 8
    assert made["made"]["cut_off"] == sum(len(c.token_ids) == 6 for p in read_candidates(path) for c in p.candidates)
    assert made["agents"]["temperature"] == 0.7
    assert made["identity"] == "tiny@sha256:1"
    before = path.stat().st_mtime_ns
    assert Generation(engine, PROBLEMS, AGENTS).write(path) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a, p: (replace(a, seed=5), p), "seed"),
        (lambda a, p: (replace(a, max_new=7), p), "max_new"),
        (lambda a, p: (a, p[:2]), "problems"),
        (lambda a, p: (a, [replace(p[0], question="another"), *p[1:]]), "sha256"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_of_other_parameters_is_refused_and_stays(engine, tmp_path, change, named, finished):
    path = Generation(engine, PROBLEMS, AGENTS).write(tmp_path / "a.jsonl")
    if not finished:
        path = path.rename(tmp_path / "a.jsonl.part")
    before = path.read_bytes()
    agents, problems = change(AGENTS, PROBLEMS)
    with pytest.raises(KvattnError, match=rf"begun with other parameters.*{named}"):
        Generation(engine, problems, agents).write(tmp_path / "a.jsonl")
    assert path.read_bytes() == before


def test_strange_files_second_writers_and_bad_requests_are_refused(engine, tmp_path):
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(KvattnError, match="does not say how it was made"):
        Generation(engine, PROBLEMS, AGENTS).write(tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "precious"
    path = Generation(engine, PROBLEMS, AGENTS).write(tmp_path / "a.jsonl")
    part = path.rename(tmp_path / "a.jsonl.part")
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(KvattnError, match="another process"):
            Generation(engine, PROBLEMS, AGENTS).write(path)
    with pytest.raises(KvattnError, match="no problems"):
        Generation(engine, [], AGENTS).write(tmp_path / "b.jsonl")
    with pytest.raises(KvattnError, match="unique"):
        Generation(engine, PROBLEMS[:1] * 2, AGENTS).write(tmp_path / "b.jsonl")
    with pytest.raises(KvattnError, match=r"--allow-code-execution.*--no-verify"):
        Generation(engine, [Problem("c", "def f():", "check(f)", "code", "code")], AGENTS).write(tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl.manifest.json").exists()
    heats = [{"temperature": t} for t in (-1.0, float("nan"), (0.5, -1.0), (), (0.1, 0.2, 0.3, 0.4, 0.5))]
    for bad in ({"count": 0}, {"count": 17}, *heats, {"max_new": 0}, {"regime": "debate"}):
        with pytest.raises(KvattnError):
            Agents(**bad)


def test_caches_of_another_model_are_refused_and_its_texts_are_not(engine, tmp_path):
    judge = long_judge("llama")
    prompt = Agents(2, max_new=8).answer(engine, [PROBLEMS[0]])[0]
    judge.engine.identity = judge.engine.compiler.identity = "other@sha256:2"
    with pytest.raises(KvattnError, match=r"generated by tiny@sha256:1.*judge densely"):
        judge.judge(prompt, ["dense", "naive"])
    alone = replace(prompt, candidates=tuple(replace(c, token_ids=None, model=None) for c in prompt.candidates))
    there, here = judge.decide(prompt), judge.decide(alone)
    assert there.scores == pytest.approx(here.scores)  # its ids are not looked at
    for same in ("tiny@sha256:1", "renamed@sha256:1"):
        judge.engine.identity = judge.engine.compiler.identity = same
        assert len(judge.judge(prompt, ["dense", "naive"])) == 2
    path = tmp_path / "c.jsonl"
    write_candidates(path, [prompt])
    assert read_candidates(path) == [prompt]


def _run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words])
    assert got.exit_code == 0, got.output + str(got.exception)
    return got.output


def test_the_command_makes_a_file_that_the_judge_reads(tmp_path):
    model, out = save(tmp_path / "model"), tmp_path / "c.jsonl"
    words = ("candidates", "generate", "synthetic:3", "--out", out, "--model", model, "--limit", 2, "--agents", 3)
    said = _run(*words, "--max-new", 5, "--regime", "progressive")
    assert "2 questions, 6 candidates" in said
    assert "cut off at 5 tokens" in said
    assert "as dense" in _run("judge", out, "--model", model, "--regime", "progressive")
    prompts = read_candidates(out)
    assert {p.regime for p in prompts} == {"progressive"}
    refused = CliRunner().invoke(app, ["judge", str(out), "--model", str(model)])
    assert isinstance(refused.exception, KvattnError)
    assert "--regime progressive" in str(refused.exception)
    refused = CliRunner().invoke(app, ["judge", str(out), "--model", str(model), "--run", str(tmp_path / "run")])
    assert isinstance(refused.exception, KvattnError)
    assert not (tmp_path / "run").exists()
    assert [p.n for p in prompts] == [3, 3]
    assert all(c.correct is not None for p in prompts for c in p.candidates)


STUDY = """
models: [{model}]
data:
  - {{source: gsm8k, agents: 2, limit: 2, heldout: 1, max_new: 5, temperature: 1.0}}
regimes: [parallel, progressive]
orders: [fixed, rotations]
readouts: ["generate:4"]
methods: [dense, naive]
"""


def test_a_study_whose_candidates_agents_make(tmp_path):
    model, file = save(tmp_path / "model"), tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=model))
    rows = [{"id": f"g{i}", "question": f"How many is {i} and 1?", "answer": f"so\n#### {i + 1}"} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"gsm8k={tmp_path / 'rows.jsonl'}"
    folder = tmp_path / "runs"
    assert "0" in _run("study", "status", file, "--folder", folder, "--data", data)
    assert "all" in _run("study", "estimate", file, "--data", data)
    assert not folder.exists()
    runs = [Path(x) for x in _run("study", "run", file, "--folder", folder, "--data", data).split() if "generate" in x]
    assert len(runs) == 4
    assert len(list((folder / "candidates").glob("*.jsonl"))) == 2  # a regime each, shared by orders
    for run in map(run_folder.Run, runs):
        assert run.manifest["data"]["source"] == "gsm8k"
        assert str(tmp_path) not in json.dumps({**run.manifest, "model": ""})
        questions = run.questions()
        assert list(questions["question_id"]) == ["g0", "g1"]
        assert run.manifest["heldout"]["questions"] == 1
    notes = run_folder.Run(next(r for r in runs if "progressive-fixed" in r.name)).judgements()["notes"]
    assert not any("pr-teacher-forced" in n for n in notes)  # they were made under refinement
    before = {r: run_folder.Run(r).judgements() for r in runs}
    _run("study", "resume", file, "--folder", folder, "--data", data)
    for r, table in before.items():
        assert run_folder.Run(r).judgements().equals(table)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("{source: gsm8k, agents: -1}", "agents"),
        ("{source: gsm8k, agents: 2, max_new: 0}", "max_new"),
        ("{source: gsm8k, max_new: 4}", "say how many"),
        ("{source: gsm8k, agents: 2, mixed: true}", "generate the file first"),
        ("{source: gsm8k, agents: 2, verify: maybe}", "true or false"),
    ],
)
def test_study_entries_that_make_no_sense_are_refused(tmp_path, entry, named):
    (tmp_path / "s.yaml").write_text(f"data: [{entry}]")
    with pytest.raises(KvattnError, match=named):
        Grid.read(tmp_path / "s.yaml")


def test_data_files_must_belong_to_a_source(tmp_path):
    (tmp_path / "s.yaml").write_text("data: [gsm8k]")
    got = CliRunner().invoke(app, ["study", "status", str(tmp_path / "s.yaml"), "--data", "mmlu=x.jsonl"])
    assert isinstance(got.exception, KvattnError)
    assert "one of the study's: gsm8k" in str(got.exception)
