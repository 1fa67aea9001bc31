"""Repair: training that can be stopped, a folder that is refused where it does not belong, a verdict that can fail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from kvattn import methods
from kvattn.engine.blocks import Blocks
from kvattn.engine.influence import explain
from kvattn.engine.layout import ROLES
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge, load
from kvattn.methods.repaired import Repair, reach_of
from kvattn.questions.orders import rotations
from kvattn.questions.organism import problems
from kvattn.study import repair
from kvattn.study.checks import faults
from kvattn.study.repair import training
from kvattn.study.repair.teacher import Teacher, order_hash, targets
from kvattn.study.study import Study
from kvattn.text import hash_of

RECIPE = repair.Recipe("tail:base=naive", ("candidate", "suffix"), steps=12, questions=2, rate=1e-2, warmup=2, rank=2)
LINKED = replace(RECIPE, base="links:base=naive", reach=("link", "suffix"), steps=4)


def prompts(n: int = 4, seed: int = 0):
    return problems("organism-safe", n, seed)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load("organism-safe")


@pytest.fixture(scope="module")
def trained(judge: Judge, tmp_path_factory) -> Path:
    return repair.train(judge, prompts(), RECIPE, tmp_path_factory.mktemp("repair"))


def divergence(judge: Judge, method: str) -> float:
    """Mean divergence from dense, nats, in plain numpy over the judge's own decisions."""
    out = []
    for p in prompts():
        found = judge.judge(p, ["dense", method], rotations(p.order), capture=False)
        half = len(found) // 2
        for a, b in zip(found[:half], found[half:], strict=True):
            x, y = softmax(a.scores), softmax(b.scores)
            out.append(float((x * np.log(x / y)).sum()))
    return float(np.mean(out))


def test_training_brings_the_choice_closer_to_dense(judge, trained):
    assert divergence(judge, f"repaired:{trained}") < 0.7 * divergence(judge, "tail:base=naive")


def test_the_loss_is_the_divergence_that_the_judge_shows(judge, trained):
    repaired = methods.get(f"repaired:{trained}")
    own = []
    teacher = Teacher(judge, trained / "teacher.json")
    for p in prompts():
        layouts, blocks = [judge.compile(p.ordered(o)) for o in rotations(p.order)], Blocks(judge.engine, p)
        plans = [repaired.plan(x, blocks, judge.engine) for x in layouts]
        own.append(float(training.loss_of(judge.engine, plans, np.stack([teacher.says(x) for x in layouts])).detach()))
    assert np.mean(own) == pytest.approx(divergence(judge, f"repaired:{trained}"), rel=1e-3)


def test_the_card_says_what_was_done_and_the_kept_bits_are_the_base_models(judge, trained):
    card = json.loads((trained / "repair.json").read_text())
    assert card["recipe"]["base"] == "tail(base=naive)"
    assert card["weights"] == judge.engine.identity
    assert len(card["losses"]) == RECIPE.steps
    assert len(card["questions"]) == 4
    first = prompts()[0]
    blocks, base = Blocks(judge.engine, first), methods.get(RECIPE.base)
    plans = [base.plan(judge.compile(first.ordered(o)), blocks, judge.engine) for o in rotations(first.order)]
    assert training.kept_sha256(plans) == card["kept_sha256"]


@pytest.mark.parametrize("recipe", [RECIPE, LINKED], ids=["tail", "links"])
def test_a_training_that_is_stopped_goes_on_to_the_same_numbers(judge, tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(training, "EVERY", 2)
    whole = Repair.load(repair.train(judge, prompts(), recipe, tmp_path / "whole"))

    def stop(what: str, done: int, of: int) -> None:
        if what == "training" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair.train(judge, prompts(), recipe, tmp_path / "parts", stop)
    assert not (tmp_path / "parts" / "repair.json").exists()
    parts = Repair.load(repair.train(judge, prompts(), recipe, tmp_path / "parts"))
    for name, x in whole.adapter.tensors().items():
        assert torch.allclose(x, parts.adapter.tensors()[name], rtol=1e-3, atol=1e-6), name  # a step of half precision
    assert (parts.adapter.links is not None) is (recipe is LINKED)


def test_as_many_judgements_as_fit_are_taught_at_once(judge, trained, tmp_path, monkeypatch):
    seen, loss_of = [], training.loss_of
    monkeypatch.setattr(training, "loss_of", lambda e, plans, p: seen.append(len(plans)) or loss_of(e, plans, p))
    repair.train(judge, prompts(), replace(RECIPE, steps=1), tmp_path / "some")
    computed = int((methods.get(RECIPE.base).plan(*planned(judge)).depth > 0).sum())
    monkeypatch.setattr(training, "TOGETHER", 3 * computed)
    other = json.loads((repair.train(judge, prompts(), RECIPE, tmp_path / "other") / "repair.json").read_text())
    assert seen[:2] == [4, 4]
    assert seen[2:6] == [3, 1, 3, 1]
    assert other["losses"] == pytest.approx(json.loads((trained / "repair.json").read_text())["losses"], abs=2e-3)


def planned(judge: Judge):
    """Layout, blocks and engine of the first question."""
    return judge.compile(prompts()[0]), Blocks(judge.engine, prompts()[0]), judge.engine


def test_another_recipe_in_the_same_folder_is_refused(judge, trained):
    with pytest.raises(KvattnError, match="holds the training of rate"):
        repair.train(judge, prompts(), replace(RECIPE, rate=0.5), trained)
    with pytest.raises(KvattnError, match="holds the training of other questions"):
        repair.train(judge, prompts(4, 7), RECIPE, trained)


def test_a_stopped_teacher_is_not_judged_again(judge, trained, monkeypatch, tmp_path):
    teacher = Teacher(judge, trained / "teacher.json")
    stored = dict(teacher.scores)
    monkeypatch.setattr(judge, "judge", None)
    teacher.learn(prompts(), lambda *_: None)
    assert teacher.scores == stored != {}
    repair.train(judge, prompts(), replace(RECIPE, steps=1), tmp_path / "one", teacher=trained / "teacher.json")
    assert not (tmp_path / "one/teacher.json").exists()


def test_the_teacher_is_told_apart_by_order(judge, trained):
    teacher, p = Teacher(judge, trained / "teacher.json"), prompts()[0]
    a, b = (judge.compile(p.ordered(o)) for o in ((0, 1, 2, 3), (1, 2, 3, 0)))
    assert order_hash(a) != order_hash(b)
    assert not np.allclose(teacher.says(a), teacher.says(b))
    with pytest.raises(KvattnError, match="never judged this prompt in this order"):
        teacher.says(judge.compile(p.ordered((1, 0, 2, 3))))


def test_averaged_and_permuted_teachers(judge, trained):
    teacher = Teacher(judge, trained / "teacher.json")
    layouts = [[judge.compile(p.ordered(o)) for o in rotations(p.order)] for p in prompts()]
    own = targets(teacher, layouts, "dense", 0)
    for p, some, mean in zip(own, layouts, targets(teacher, layouts, "averaged", 0), strict=True):
        for c in some[0].candidates:  # each candidate has one probability wherever it stands
            mine = [mean[r, x.candidates.index(c)] for r, x in enumerate(some)]
            assert mine == pytest.approx([np.mean([p[r, x.candidates.index(c)] for r, x in enumerate(some)])] * 4)
    moved = targets(teacher, layouts, "permuted", 0)
    assert sorted(x.tobytes() for x in moved) == sorted(x.tobytes() for x in own)
    assert all(not np.array_equal(a, b) for a, b in zip(moved, own, strict=True))
    with pytest.raises(KvattnError, match="needs two questions of 4 candidates"):
        targets(teacher, layouts[:1], "permuted", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reach": ("nobody",)}, "unknown role of a segment"),
        ({"teacher": "guess"}, "unknown teacher"),
        ({"steps": 0}, "a number above 0"),
        ({"rate": float("nan")}, "a number above 0"),
        ({"base": "slot-offset"}, "which learns itself"),
        ({"base": "tail:base=kvcomm"}, "learns"),
        ({"base": "nothing"}, "unknown method"),
    ],
)
def test_recipes_that_no_training_can_have(changes, said):
    with pytest.raises(KvattnError, match=said):
        replace(RECIPE, **changes)


def test_a_repair_does_not_start_from_a_repair(trained):
    for base in (f"repaired:{trained}", f"slot-offset:base=repaired({trained})"):
        with pytest.raises(KvattnError, match=r"cannot start from .*; take another --base"):
            replace(RECIPE, base=base)


@pytest.mark.parametrize("base", ["null-edit", "mismatched-order", "pointwise"])
def test_a_base_that_shows_another_prompt_than_dense_is_refused_before_dense_is_judged(judge, tmp_path, base):
    with pytest.raises(KvattnError, match="shows the judge another prompt than dense"):
        repair.train(judge, prompts(), replace(RECIPE, base=base), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["two, parts", "rate=1", "a+b", "(b)"])
def test_a_folder_that_no_method_can_name_is_refused(judge, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvattnError, match="no method can be named after a folder"):
        repair.train(judge, prompts(), RECIPE, Path(name))
    (tmp_path / "file").write_text("")
    with pytest.raises(KvattnError, match="is no folder; name another"):
        repair.train(judge, prompts(), RECIPE, Path("file"))
    with pytest.raises(KvattnError, match="folder is given twice"):
        methods.get("repaired:a,b")


def test_a_question_of_one_candidate_teaches_nothing(judge, tmp_path):
    alone = replace(prompts()[0], candidates=prompts()[0].candidates[:1], order=(0,))
    with pytest.raises(KvattnError, match="has one candidate, and nothing to choose"):
        repair.train(judge, [*prompts(), alone], RECIPE, tmp_path)


def test_slow_steps_are_kept_after_a_minute(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LONGEST_S", -1.0)

    def stop(what: str, done: int, of: int) -> None:
        if what == "training" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair.train(judge, prompts(), RECIPE, tmp_path, stop)
    assert (tmp_path / "training.safetensors").exists()


def test_an_adapter_that_would_act_on_nothing_is_refused(judge, tmp_path):
    with pytest.raises(KvattnError, match="acts on no token"):
        repair.train(judge, prompts(), replace(RECIPE, base="naive", reach=("candidate",)), tmp_path)


def test_a_repair_of_another_judge_or_readout_is_refused(judge, trained, tmp_path):
    for what, other in (("readout", "branch_scores"), ("weights", "other@1")):
        folder = replace(Repair.load(trained), **{what: other}).save(tmp_path / what)
        said = f"trained for the {what} '{ {'branch_scores': 'yesno'}.get(other, other) }'"
        with pytest.raises(KvattnError, match=said):
            judge.judge(prompts()[0], [f"repaired:{folder}"])
        with pytest.raises(KvattnError, match=said):
            repair.evaluate(judge, prompts(4, 10), prompts(4, 20), str(folder), tmp_path / "run")
        with pytest.raises(KvattnError, match=said):
            Study(judge, prompts(4, 10), ["dense", f"slot-offset:base=repaired({folder})"]).run(tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_the_same_weights_go_by_any_name(judge, trained, tmp_path, monkeypatch):
    folder = tmp_path / "repair"
    shutil.copytree(trained, folder)
    offset = methods.get(f"slot-offset:base=repaired({folder})")
    judge.warm(offset, prompts(4, seed=3))
    monkeypatch.setattr(judge.engine, "identity", f"renamed@{hash_of(judge.engine.identity)}")
    assert repair.train(judge, prompts(), RECIPE, folder) == folder
    assert len(judge.judge(prompts()[0], [f"repaired:{folder}", offset])) == 2
    monkeypatch.setattr(judge.engine, "identity", "renamed@1")
    with pytest.raises(KvattnError, match="holds the training of weights"):
        repair.train(judge, prompts(), RECIPE, folder)
    with pytest.raises(KvattnError, match=r"its offsets were fit for weights|trained for the weights"):
        judge.judge(prompts()[0], [offset])


def test_a_study_compiles_what_methods_share_once(judge, monkeypatch):
    asked = []
    monkeypatch.setattr(Judge, "compile", lambda self, p, real=Judge.compile: asked.append(p) or real(self, p))
    faults(judge, prompts(), [methods.get(m) for m in ("dense", "naive", "isolated", "tail")])
    assert len(asked) == len(prompts())


def test_a_training_that_diverged_is_no_repair(trained, tmp_path):
    found = Repair.load(trained)
    next(iter(found.adapter.tensors().values())).data[0] = 1e6  # finite in float32 alone
    with pytest.raises(KvattnError, match=r"the training diverged: .* a lower rate"):
        found.save(tmp_path / "r")
    assert not (tmp_path / "r").exists()


HARMS = {
    "format": {"format": "other"},
    "role": {"roles": ["nobody"]},
    "scale": {"scale": None},
    "questions": {"questions": 5},
    "base": {"base": "nothing"},
}


@pytest.mark.parametrize("harm", ["missing", "bytes", "lacking", *HARMS])
def test_a_damaged_repair_is_refused_when_it_is_named(trained, tmp_path, harm):
    folder = Repair.load(trained).save(tmp_path / "r")
    card = json.loads((folder / "repair.json").read_text())
    if harm == "missing":
        (folder / "repair.safetensors").unlink()
    elif harm == "bytes":
        (folder / "repair.safetensors").write_bytes(b"x" * 100)
    else:
        card = {k: v for k, v in card.items() if k != "scale"} if harm == "lacking" else card | HARMS[harm]
        (folder / "repair.json").write_text(json.dumps(card))
    said = {"lacking": "repair.json lacks 'scale'", "base": f"repair.json of the repair {folder}: unknown method"}
    with pytest.raises(KvattnError, match=said.get(harm, f"cannot read the repair {folder}")):
        methods.get(f"repaired:{folder}")
    with pytest.raises(KvattnError, match="needs a repair"):
        methods.get("repaired")


def test_a_card_that_was_edited_is_another_method(trained, tmp_path):
    folder = Repair.load(trained).save(tmp_path / "r")
    before = methods.get(f"repaired:{folder}").files
    card = json.loads((folder / "repair.json").read_text())
    (folder / "repair.json").write_text(json.dumps(card | {"roles": ["suffix"]}))
    assert methods.get(f"repaired:{folder}").files != before


def test_it_is_a_method_like_any_other(judge, trained, tmp_path):
    found = judge.judge(prompts()[0], ["dense", f"repaired:{trained}", f"repaired(folder={trained})"])
    assert found[1].method == f"repaired(folder={trained})"
    assert found[1].mass is not None
    assert found[1].cost.token_layers == judge.judge(prompts()[0], ["tail:base=naive"])[0].cost.token_layers
    study = Study(judge, prompts(), ["dense", f"slot-offset:base=repaired({trained})"], heldout=prompts(2, 9))
    assert study.run(tmp_path / "run")


def test_evaluation_refuses_questions_that_trained_it(judge, trained, tmp_path):
    with pytest.raises(KvattnError, match="trained the repair"):
        repair.evaluate(judge, prompts()[:2], prompts(2, 20), str(trained), tmp_path / "run")
    found = repair.evaluate(judge, prompts(4, 10), prompts(4, 20), str(trained), tmp_path / "run")
    assert found.judgements == 4
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "exact McNemar" in manifest["repair"]["primary"]
    with pytest.raises(KvattnError, match=r"\(--anew\)"):
        repair.evaluate(judge, prompts(2, 10), prompts(4, 20), str(trained), tmp_path / "run")
    found = repair.evaluate(judge, prompts(2, 10), prompts(4, 20), str(trained), tmp_path / "run", anew=True)
    assert found.judgements == 2
    assert (tmp_path / "run.before-1").is_dir()


@pytest.mark.parametrize(
    ("base", "all_reach"),
    [("naive", False), ("naive-linked", False), ("links", False), ("links:count=6", False), ("tail", True)],
)
def test_what_the_window_cuts_off_no_repair_can_reach(base: str, all_reach: bool) -> None:
    """For any weights, an adapter's among them: the certificate of the organism that reuse must break. Seeing tails are
    each within the next one's window, and carry what they saw on."""
    judge = load("organism-unsafe")
    prompt = problems("organism-unsafe", 1, 0)[0]
    plan = methods.get(base).plan(judge.compile(prompt), Blocks(judge.engine, prompt), judge.engine)
    plan = reach_of(plan, ROLES, training.untrained(judge.engine, plan, replace(RECIPE, reach=ROLES)))
    graph = explain(plan, judge.engine.geometry.windows)
    heard = [n for n, there in zip(graph.names, graph.decision, strict=True) if there and n.startswith("candidate")]
    assert heard == ([f"candidate:{i}" for i in range(1, 5)] if all_reach else ["candidate:4"])
    assert graph.adapted


@pytest.mark.slow
def test_placebo_and_foreign_cache_teach_nothing(judge, tmp_path):
    """Trained alike on other questions' distributions, or over another question's KV, a repair keeps no more than reuse
    does; on its own it gains."""
    taught, tested = prompts(60), prompts(60, 9)
    arms = {
        "own": {},
        "placebo": {"teacher": "permuted"},
        "foreign": {"base": "links:base=foreign-kv", "reach": ("link", "suffix")},
    }
    specs = ["naive"]
    for name, changes in arms.items():
        recipe = replace(RECIPE, **{"steps": 80, "questions": 4, "rate": 2e-3, "warmup": 10, "rank": 8, **changes})
        specs.append(f"repaired:{repair.train(judge, taught, recipe, tmp_path / name)}")
    found = [judge.judge(p, ["dense", *specs], capture=False) for p in tested]
    naive, own, placebo, foreign = (np.mean([d[0].choice == d[i].choice for d in found]) for i in (1, 2, 3, 4))
    assert max(placebo, foreign) < naive + 0.1
    assert own > naive + 0.1


def table(n: int, **share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judgements of n questions in which a method agrees with dense (slot 0) on its first `share` of them."""
    rows = [
        {"question_id": f"q{i}", "order": (0, 1), "method": m, "slot": int(i >= s * n), "choice": f"c{int(i >= s * n)}",
         "scores": [0.0, 1.0], "correct": None, "readout": "label"}
        for m, s in {"dense": 1.0, **share}.items() for i in range(n)
    ]  # fmt: skip
    asked = [{"question_id": f"q{i}", "candidate_ids": ["c0", "c1"], "texts": ["a", "b"]} for i in range(n)]
    return pd.DataFrame(rows), pd.DataFrame(asked)


def test_the_verdict_counts_what_only_one_of_them_gets():
    found = repair.verdict(*table(40, **{"null-edit": 1.0, "slot-offset": 0.5, "mine": 0.75}), "mine")
    assert (found.gained, found.lost, found.jcr, found.jcr_baseline) == (10, 0, 0.75, 0.5)
    assert found.p == pytest.approx(2 * 0.5**10)
    assert found.gain.low > 0
    assert not found.at_floor
    assert "10 gained, 0 lost of 40" in str(found)
    assert repair.verdict(*table(400, **{"null-edit": 1.0, "slot-offset": 0.5, "mine": 1.0}), "mine").at_floor
    same = repair.verdict(*table(40, **{"null-edit": 1.0, "slot-offset": 0.5, "mine": 0.5}), "mine")
    assert same.p == 1.0
    with pytest.raises(KvattnError, match="slot-offset was not judged"):
        repair.verdict(*table(40, **{"null-edit": 1.0, "mine": 0.5}), "mine")


def test_a_study_does_not_go_on_with_a_repair_that_was_trained_anew_in_its_folder(judge, trained, tmp_path):
    folder = tmp_path / "repair"
    shutil.copytree(trained, folder)
    named = [f"slot-offset:base=repaired:{folder}", f"repaired:{folder}"]
    assert all(methods.get(m).files for m in named)

    def study() -> Study:
        return Study(judge, prompts(2, seed=9), ["dense", f"repaired:{folder}"], "fixed", capture=False)

    study().run(tmp_path / "run")
    study().run(tmp_path / "run")
    shutil.rmtree(folder)
    repair.train(judge, prompts(), replace(RECIPE, steps=2), folder)
    with pytest.raises(KvattnError, match="methods"):
        study().run(tmp_path / "run")


def test_offsets_out_of_another_file_are_another_method(judge, tmp_path):
    method = methods.get("slot-offset")
    judge.warm(method, prompts(4, seed=3))
    method.save(tmp_path, "a")
    file = tmp_path / "a.json"
    before = methods.get(f"slot-offset:offsets={file}").files
    file.write_text(file.read_text() + "\n")
    after = methods.get(f"slot-offset:offsets={file}").files
    assert list(before) == list(after) == [str(file)]
    assert before != after
