"""The organisms: reuse breaks the unsafe one and spares the safe one, as theory says, on seeded problems."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib.resources import files

import pytest
import torch

import kvattn
from analyses import train_organism
from analyses.organism_tasks import NONE, TASKS, targets
from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.compiler import PromptCompiler
from kvattn.engine.influence import explain
from kvattn.engine.layout import Ask
from kvattn.engine.plan import KVPlan, dense_plan, keep
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.models.source import packaged
from kvattn.questions import organism
from kvattn.questions.organism.words import VOCABULARY, text, write_tokenizer
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.questions.templates import TEMPLATES, get_template

ORGANISMS = ("organism-unsafe", "organism-safe")
SHIPPED = (*ORGANISMS, "organism-relational")
COUNT = 150


@cache
def judge(name: str) -> Judge:
    return kvattn.load(name)


@cache
def prompts(name: str) -> tuple[JudgePrompt, ...]:
    return tuple(organism.problems(name, COUNT, seed=11))


@cache
def blocks(name: str) -> tuple[Blocks, ...]:
    ps = prompts(name)
    return tuple(Blocks(judge(name).engine, p, "parallel", d) for p, d in zip(ps, ps[1:] + ps[:1], strict=True))


def plans(name: str, spec: str) -> list[KVPlan]:
    method, engine = methods.get(spec), judge(name).engine
    return [method.plan(judge(name).compile(b.prompt), b, engine) for b in blocks(name)]


def choices(name: str, some: list[KVPlan]) -> torch.Tensor:
    runs = judge(name).engine.execute(some, max_batch=50)
    return torch.tensor([int(r.plan.layout.scores(r.logits)[0].argmax()) for r in runs])  # type: ignore[arg-type]


@cache
def chosen(name: str, spec: str) -> torch.Tensor:
    return choices(name, plans(name, spec))


def agreement(name: str, a: str, b: str) -> float:
    return float((chosen(name, a) == chosen(name, b)).float().mean())


def edited(p: JudgePrompt, index: int) -> JudgePrompt:
    """The prompt with the score of one candidate made the highest there is."""
    words = ["49" if w.isdigit() else w for w in p.candidates[index].text.split()]
    made = list(p.candidates)
    made[index] = replace(made[index], text=" ".join(words))
    return replace(p, candidates=tuple(made))


# -- the task ----------------------------------------------------------------------------------------------------------


def test_problems_are_seeded_balanced_and_true():
    ps = organism.problems("organism-safe", 400, seed=3)
    assert [p.candidates for p in ps] == [p.candidates for p in organism.problems("organism-safe", 400, seed=3)]
    assert [p.candidates for p in ps] != [p.candidates for p in organism.problems("organism-safe", 400, seed=4)]
    for p in ps:
        scores = [int(next(w for w in c.text.split() if w.isdigit())) for c in p.candidates]
        assert [c.correct for c in p.candidates] == [s == max(scores) for s in scores]
    wins = Counter(next(i for i, c in enumerate(p.candidates) if c.correct) for p in ps)
    assert all(70 < wins[i] < 130 for i in range(4))


def test_what_one_candidate_says_does_not_tell_the_odd_one_out():
    """All but one hold the same number. Whoever sees one candidate sees a number that stands for either as often: over
    many draws the share of odd ones is 1 / n for every number and every place of it."""
    sample = TASKS["odd"].sample(40_000, 4, torch.Generator().manual_seed(3))
    words = torch.tensor([w.isdigit() and int(w) >= 10 for w in VOCABULARY])
    is_number = words[sample.candidates]
    assert bool((is_number.sum(2) == 1).all())
    number = torch.where(is_number, sample.candidates, 0).sum(2)
    odd = torch.arange(4) == sample.best[:, None]
    assert bool(((number[:, :, None] == number[:, None]).sum(2) == torch.where(odd, 1, 3)).all())
    for cell in (number, is_number.float().argmax(2), sample.candidates[:, :, 0], torch.arange(4).expand_as(odd)):
        for value in cell.unique():
            among = odd[cell == value].float()
            assert abs(float(among.mean()) - 0.25) < 5 * (0.1875 / len(among)) ** 0.5, int(value)


def test_overlap_problems_hold_the_same_keys_and_values_and_a_clear_winner():
    for p in TASKS["overlap"].problems(200, seed=5):
        held = [set(c.text.split()) for c in p.candidates]
        for part in (0, 1):
            assert len({tuple(sorted(w.split(":")[part] for w in h)) for h in held}) == 1
        shared = [sum(len(a & b) for b in held) - len(a) for a in held]
        best = max(shared)
        assert [c.correct for c in p.candidates] == [s == best for s in shared]
        assert sorted(shared)[-2] <= best - 2


def test_overlap_targets_count_earlier_candidates():
    s = TASKS["overlap"].sample(20, 4, torch.Generator().manual_seed(0))
    asked = targets(TASKS["overlap"], s)
    for i in range(20):
        held = [text(c).split() for c in s.candidates[i]]
        for k in range(4):
            counts = [10 + sum(w in h for h in held[:k]) for w in held[k]]
            assert text(asked.inside[i, k]).split() == [str(c) for c in counts]
    assert bool((asked.running[:, -1] == s.best).all())
    assert bool((asked.running[:, 1] == NONE).any())


@pytest.mark.parametrize("name", sorted(TASKS))
def test_training_rows_are_what_the_compiler_makes(name, tmp_path):
    from transformers import AutoTokenizer

    task = TASKS[name]
    write_tokenizer(tmp_path)
    compiler = PromptCompiler(AutoTokenizer.from_pretrained(tmp_path))
    s = task.sample(1, 3, torch.Generator().manual_seed(1))
    prompt = task._prompt(s, 0, "q")
    layout = compiler.compile(prompt, Ask(task.template.label_question, task.template.label_opening))
    rows = train_organism.judge_rows(task, s)
    assert torch.equal(layout.token_ids, rows.token_ids[0])
    assert rows.ends.tolist() == [c.stop - 1 for c in layout.each("candidate")]
    assert [text([a]) for a in layout.answer_ids] == ["1", "2", "3"]
    assert layout.find("suffix").length == layout.find("header", 0).length == 1
    context = compiler.execution(prompt)[0]
    alone = context.select(lambda x: x.slot in (None, 0))
    assert torch.equal(alone.token_ids, train_organism.execution_rows(task, s)[0])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_is_trained_can_be_loaded_and_speaks_as_what_ships(name, tmp_path):
    train_organism.save(train_organism.make_model(TASKS[name], train_organism.Recipe(layers=2)), tmp_path)
    assert kvattn.load(str(tmp_path)).engine.layers == 2
    if name in organism.ALIASES.values():
        shipped = files(organism) / name / "tokenizer.json"
        assert (tmp_path / "tokenizer.json").read_bytes() == shipped.read_bytes()


def test_stitched_candidates_see_neither_each_other_nor_their_label():
    torch.manual_seed(0)
    task = TASKS["max-full"]
    model = train_organism.make_model(task, train_organism.Recipe(layers=2)).eval()
    s = task.sample(1, 3, torch.Generator().manual_seed(1))
    rows = train_organism.judge_rows(task, s)
    x, mask, positions = train_organism.stitched(rows, task)
    hidden = model.model(input_ids=x, attention_mask=mask, position_ids=positions).last_hidden_state[0]
    other = x.clone()
    first = rows.first + 1
    other[0, first], other[0, first + 1], other[0, first + 8 - 1] = 5, 6, 7  # header 1, candidate 1, header 2
    changed = model.model(input_ids=other, attention_mask=mask, position_ids=positions).last_hidden_state[0]
    same = (hidden - changed).abs().amax(1) < 1e-6
    last = torch.arange(int(rows.ends[1]) + 2 - task.tokens, int(rows.ends[1]) + 2)
    assert bool(same[last].all()), "candidate 2 must see neither candidate 1 nor header 2"
    assert not bool(same[-1])
    assert not bool(same[first + 2])


def test_template_is_known_without_importing_the_package():
    assert get_template("organism-max").chat is False


def test_unknown_organisms_and_sizes_are_refused():
    with pytest.raises(KvattnError, match="organism-unsafe"):
        organism.problems("organism-unsfe", 1)
    with pytest.raises(KvattnError, match="unknown organism 'maximum'"):
        organism.problems("maximum", 1)
    with pytest.raises(KvattnError, match="2 candidates"):
        organism.problems("odd", 1, candidates=2)
    with pytest.raises(KvattnError, match="5 candidates"):
        organism.problems("organism-safe", 1, candidates=5)


# -- what ships --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_the_recorded_ones(name):
    folder = packaged()[name]
    info = json.loads((folder / "kvattn.json").read_text())
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert info["sha256"]["model.safetensors"] == digest
    assert info["parameters"] < 1_000_000
    assert get_template(info["template"]).name == info["template"]
    assert all(share > 0.99 for share in info["accuracy"].values())


def test_weights_are_small():
    root = packaged()["organism-safe"].parent
    assert sum(f.stat().st_size for f in root.rglob("*") if f.is_file() and f.suffix != ".pyc") < 5_000_000


@pytest.mark.parametrize(
    ("name", "size"), [(n, k) for n in SHIPPED for k in (1, 2, 3, 4) if (n, k) != ("organism-relational", 2)]
)
def test_dense_finds_the_truth(name, size):
    ps = organism.problems(name, 300, seed=21, candidates=size)
    layouts = [judge(name).compile(p) for p in ps]
    picked = choices(name, [dense_plan(x, judge(name).engine.layers) for x in layouts])
    right = [bool(p.shown(int(s)).correct) for p, s in zip(ps, picked, strict=True)]
    assert sum(right) / len(right) > 0.99


# -- what reuse does ---------------------------------------------------------------------------------------------------


def test_reuse_breaks_the_unsafe_and_spares_the_safe():
    assert agreement("organism-unsafe", "naive-linked", "dense") < 0.5
    assert agreement("organism-safe", "naive-linked", "dense") > 0.98


def test_what_needs_the_others_is_lost_under_full_attention_too():
    """No window cuts the relational organism's paths: stale candidates reach its decision, and hold what each says
    itself, but not how they compare."""
    name = "organism-relational"
    plan = plans(name, "naive")[0]
    reach = dict(
        zip(plan.layout.names, explain(plan, judge(name).engine.geometry.windows).decision.tolist(), strict=True)
    )
    assert all(reach[f"candidate:{k}"] for k in (1, 2, 3, 4))
    for spec in ("naive", "naive-linked", "true-mask", "isolated:labelled=false", "foreign-kv"):
        assert agreement(name, spec, "dense") < 0.5, spec


def test_foreign_blocks_break_both():
    for name in ORGANISMS:
        assert agreement(name, "foreign-kv", "dense") < 0.5


@pytest.mark.parametrize("spec", ["naive-linked", "true-mask", "isolated:labelled=false"])
def test_reachability_says_who_can_decide(spec):
    for name in ORGANISMS:
        engine = judge(name).engine
        plan = plans(name, spec)[0]
        reach = dict(zip(plan.layout.names, explain(plan, engine.geometry.windows).decision.tolist(), strict=True))
        whole = explain(dense_plan(plan.layout, engine.layers), engine.geometry.windows)
        assert bool(whole.decision[[s.role == "candidate" for s in plan.layout.segments]].all())
        assert reach["candidate:4"]
        assert [reach[f"candidate:{k}"] for k in (1, 2, 3)] == [name == "organism-safe"] * 3


def test_candidates_that_cannot_reach_the_decision_do_not_change_it():
    for spec, moves in (("dense", True), ("naive-linked", False)):
        for i in range(5):
            p = prompts("organism-unsafe")[i]
            out = []
            for q in (p, edited(p, 0)):
                b = Blocks(judge("organism-unsafe").engine, q)
                plan = methods.get(spec).plan(judge("organism-unsafe").compile(q), b, b.engine)
                out.append(b.engine.execute([plan])[0].logits)
            same = bool((out[0] - out[1]).abs().max() < 1e-6)
            assert same is not moves


def test_a_stale_first_slot_alone_changes_nothing():
    for name in ORGANISMS:
        engine = judge(name).engine
        some = []
        for b in blocks(name):
            x = judge(name).compile(b.prompt)
            some.append(keep(x, engine.layers, [(x.find("candidate", 0), b.execution(x.candidates[0]))]))
        assert float((choices(name, some) == chosen(name, "dense")).float().mean()) >= 0.98


def test_a_candidate_that_saw_nobody_knows_its_own_score():
    for name in ORGANISMS:
        engine, right = judge(name).engine, []
        for p in prompts(name)[:60]:
            words = p.candidates[0].text.split()
            alone = replace(p, candidates=p.candidates[:1], order=(0,))
            layout = engine.compiler.execution(alone)[0]
            plan = dense_plan(layout, engine.layers)
            said = engine.execute([plan])[0].logits[0].argmax()  # type: ignore[index]
            right.append(text([said]) == next(w for w in words if w.isdigit()))
        assert sum(right) / len(right) > 0.98


def test_text_that_an_organism_has_no_words_for_is_refused():
    p = JudgePrompt("Which?", (Candidate("x", "I say 42"), Candidate("y", "mine is 17")), TEMPLATES["organism-max"])
    with pytest.raises(KvattnError, match="cannot say the question: 100% of its characters become unknown tokens"):
        judge("organism-safe").decide(p)
