"""The readout `generate`: decoding against the plain model, verdicts, rows of decoded tokens, and what statistics make
of a verdict that names nobody."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import engine, long_judge, plain_model

from kvattn import stats
from kvattn.engine.engine import Continued, Engine
from kvattn.errors import KvattnError
from kvattn.judge import readout
from kvattn.judge.judge import Judge
from kvattn.judge.rows import decision_rows
from kvattn.judge.verdict import write
from kvattn.questions.prompt import Candidate, JudgePrompt
from kvattn.stats.agreement import jcr
from kvattn.study import run_folder
from kvattn.study.study import Study

PROMPT = JudgePrompt(
    "What is 3 + 4?",
    (
        Candidate("a", "The answer is 8", correct=False),
        Candidate("b", "Sum them. The answer is 7", correct=True),
        Candidate("c", "3 + 4 = 6, so the answer is 6", correct=False),
    ),
    answer="7",
    id="q1",
)


class Scripted(Engine):
    """An engine that writes given text whatever its logits say; the text may depend on the number of kept tokens."""

    said: str | dict[bool, str] = ""

    def stream(self, execution, choose=None, rows=False):
        """The script, then the end of the turn."""
        text = self.said if isinstance(self.said, str) else self.said[execution.plan.is_dense]
        ids = [*self.compiler.text(text), self.tokenizer.eos_token_id]
        it = iter(ids)
        return super().stream(execution, lambda logits: next(it), rows)


def scripted(said, shape: str = "llama") -> Judge:
    """A judge that writes what it is told."""
    made = long_judge(shape)
    made.engine.__class__ = Scripted
    made.engine.said = said  # type: ignore[attr-defined]
    made.readout = readout.get("generate")
    return made


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["llama", "gemma3", "qwen2-window"])
@pytest.mark.parametrize("method", ["dense", "null-edit"])
def test_greedy_text_is_the_plain_models(shape, method):
    judge = long_judge(shape)
    judge.readout = readout.get("generate:12")
    kept = []
    got = judge.judge(PROMPT, [method], keep=kept)[-1]
    ids = kept[-1].plan.layout.token_ids[None]
    model = plain_model(shape)
    want: list[int] = []
    for _ in range(12):  # the plain model, all over again for every token
        token = int(model(torch.cat([ids, torch.tensor([want], dtype=torch.long)], 1)).logits[0, -1].argmax())
        if token == judge.engine.tokenizer.eos_token_id:
            break
        want.append(token)
    assert got.new_tokens == len(want) > 0
    assert got.output == judge.engine.tokenizer.decode(want, skip_special_tokens=True)
    assert kept[-1].state is None


@torch.inference_mode()
def test_rows_and_scores_where_the_label_is_written_are_the_plain_models():
    text = "Selected agent id: 2\nThe answer is 7"
    judge = scripted(text)
    run = judge.engine.execute(list(_plans(judge, "dense")), room=64, wanted=decision_rows(judge.compile(PROMPT)))[0]
    written = write(judge.engine, run, PROMPT, 64)
    assert (written.output, written.verdict.slot, written.verdict.rule) == (text, 1, "format")
    assert written.correct is True
    ids = torch.cat([run.plan.layout.token_ids, torch.tensor(judge.engine.compiler.text(text))])
    model = plain_model("llama", kernel="eager")
    out = model(ids[None], output_attentions=True)
    n = len(run.plan.layout)
    label = n + text.index("2")  # one character, one token
    for kind, query in (("first_generated", n), ("at_choice", label - 1)):
        got = written.rows[kind].rows[0]
        want = torch.stack([a[0, :, query] for a in out.attentions])
        assert torch.allclose(got[..., : query + 1], want[..., : query + 1], atol=1e-5), kind
        assert got[..., query + 1 :].abs().sum() == 0
    logp = torch.log_softmax(out.logits[0, label - 1].double(), -1)
    labels = [judge.engine.compiler.text(x)[0] for x in "123"]
    assert written.scores == pytest.approx(logp[labels].numpy(), abs=1e-4)
    assert written.coverage == pytest.approx(float(logp[labels].exp().sum()), abs=1e-4)


def _plans(judge, method):
    from kvattn import methods
    from kvattn.engine.blocks import Blocks

    yield methods.get(method).plan(judge.compile(PROMPT), Blocks(judge.engine, PROMPT), judge.engine)


@pytest.mark.parametrize(
    ("said", "slot", "rule", "right"),
    [
        ("Selected agent id: 3\nThe answer is 6", 2, "format", False),
        ("Selected agent id: 1\nThe answer is 7", 0, "format", True),
        ("I think that Agent 2 is correct. The answer is 7", 1, "phrase", True),
        ("7", None, None, True),
        ("", None, None, False),
        ("Agent 1 is correct. Agent 2 is correct.", None, None, False),
    ],
)
def test_a_decision_says_what_was_written_and_how_it_was_read(said, slot, rule, right):
    dense, naive = scripted(said).judge(PROMPT, ["dense", "naive"])
    for d in (dense, naive):
        assert (d.slot, d.rule, d.output, d.answer_correct) == (slot, rule, said, right)
        assert d.choice == (None if slot is None else "abc"[slot])
        assert d.correct == (slot == 1)
        assert np.isnan(d.scores).all() == (rule != "format")
        kinds = [m.query for m in (d.mass, *d.more)]
        assert kinds == ["last_prompt", *["first_generated"][: bool(said)], *["at_choice"][: rule == "format"]]
        for m in d.more:
            assert m.mass.sum(-1) == pytest.approx(1, abs=1e-4)
            assert (m.sink <= m.mass + 1e-6).all()
            assert m.lengths == d.mass.lengths
    assert dense.new_tokens == len(said)


def test_the_prompt_asks_for_the_line_and_forces_nothing():
    judge = scripted("")
    x = judge.compile(PROMPT)
    assert x.answer_ids == ()
    text = judge.engine.tokenizer.decode(x.token_ids.tolist())
    assert text.rstrip().endswith("judge")
    assert "Selected agent id: <id>\nOn the next line" in text


def test_methods_that_need_scores_refuse_and_unknown_lengths_do():
    with pytest.raises(KvattnError, match="score for every slot"):
        scripted("7").judge(PROMPT, ["hybrid"])
    for bad in ("generate:0", "generate:x", "generate:", "write"):
        with pytest.raises(KvattnError):
            readout.get(bad)
    assert readout.get("generate:9").room == 9


def _prompts(n: int):
    return [replace(PROMPT, id=f"q{i}", question=f"What is 3 + 4? ({i})") for i in range(n)]


def test_a_run_counts_verdicts_that_name_nobody_and_never_as_a_match(tmp_path):
    said = {True: "7", False: "Selected agent id: 2\n7"}  # dense names nobody
    judge = scripted(said)
    folder = Study(judge, _prompts(4), ["dense", "naive", "null-edit"], orders="rotations").run(tmp_path / "run")
    run = run_folder.Run(folder)
    judgements, questions = run.judgements(), run.questions()
    assert run.manifest["max_new"] == 64
    dense = judgements[judgements["method"] == "dense"]
    assert dense["slot"].isna().all()
    assert dense["choice"].isna().all()
    assert (dense["output"] == "7").all()
    table = stats.jcr(judgements, questions).set_index("method")
    for method in ("naive", "null-edit"):  # null-edit, too, is dense: neither names anybody, which is no match
        row = table.loc[method]
        assert (row["jcr"], row["parsed"], row["pairs"]) == (0, 0, 12)
        assert np.isnan(row["jcr_parsed"])
        assert row["chance"] == 0
    right = stats.accuracy(judgements, questions).set_index("method")
    assert right.loc["dense", "accuracy"] == 0
    assert right.loc["naive", "accuracy"] == pytest.approx(1 / 3)  # slot 2 over all rotations
    flips = stats.flip_table(judgements, questions)
    assert set(flips[flips["count"] > 0]["outcome"]) == {"joint error", "helpful"}
    picks = stats.slot_histogram(judgements, questions)
    assert picks[picks["method"] == "dense"]["count"].sum() == 0
    assert stats.slot_marginal_test(judgements, questions).empty
    same = jcr(run).set_index("method")
    assert same.loc["naive", "jcr"] == 0
    assert same.loc["naive", "chance"] == pytest.approx(0)


def test_partly_parsed_verdicts_agree_with_a_count_by_hand(tmp_path):
    judge = scripted({True: "Selected agent id: 2", False: "Selected agent id: 2"})
    original = Scripted.stream
    turn = iter(range(1000))

    def sometimes(self, execution, choose=None, rows=False):
        self.said = "no idea" if next(turn) % 3 == 0 else "Selected agent id: 2"
        return original(self, execution, choose, rows)

    judge.engine.__class__ = type("Sometimes", (Scripted,), {"stream": sometimes})
    folder = Study(judge, _prompts(5), ["dense", "naive"], orders="rotations").run(tmp_path / "run")
    run = run_folder.Run(folder)
    judgements = run.judgements()
    slots = judgements.assign(order=[tuple(o) for o in judgements["order"]]).pivot(
        index=["question_id", "order"], columns="method", values="slot"
    )
    both = slots.notna().all(axis=1)
    row = stats.jcr(judgements, run.questions()).iloc[0]
    assert 0 < both.mean() < 1
    assert row["jcr"] == pytest.approx(float((both & (slots["dense"] == slots["naive"])).mean()))
    assert (row["parsed"], row["jcr_parsed"]) == (pytest.approx(both.mean()), 1)
    assert row["chance"] == pytest.approx(slots["dense"].notna().mean() * slots["naive"].notna().mean())
    assert jcr(run)["chance"].iloc[0] == pytest.approx(row["chance"])


def test_the_content_test_of_written_verdicts_and_a_continued_run(tmp_path):
    prompts = _prompts(14)
    judge = scripted("Selected agent id: 1\n8")
    study = Study(judge, prompts[:3], ["dense", "naive"], heldout=prompts[3:])
    folder = study.run(tmp_path / "run")
    manifest = run_folder.Run(folder).manifest
    assert "calibration" not in manifest
    assert manifest["content_test"]["raw"]["reading"]["verdict"] == "does not read"  # always slot 1
    assert study.run(folder) == folder
    other = scripted("")
    other.readout = readout.get("generate:5")
    with pytest.raises(KvattnError, match="max_new"):
        Study(other, prompts[:3], ["dense", "naive"], heldout=prompts[3:]).run(folder)


def test_runs_of_before_and_after_written_verdicts_are_read_together(tmp_path):
    """Judgements parts that lack the newer columns, beside ones that have them."""
    judge = long_judge("llama")
    folder = Study(judge, _prompts(3), ["dense", "naive"]).run(tmp_path / "run")
    import pyarrow.parquet as pq

    part = sorted((folder / "judgements").glob("*.parquet"))[0]
    table = pq.read_table(part).drop_columns(["rule", "output", "answer_correct", "new_tokens"])
    data = run_folder.to_parquet(table)
    from kvattn.study.run_folder.schema import content_hash

    key = part.name.rpartition("-")[0]
    part.unlink()
    (part.parent / f"{key}-{content_hash(data)}.parquet").write_bytes(data)
    run = run_folder.Run(folder)
    assert len(run.judgements()) == 6
    assert not run.check()
    assert isinstance(stats.jcr(run.judgements(), run.questions()), pd.DataFrame)
    assert len(jcr(run)) == 1


def test_a_second_stream_begins_at_the_prompt_again():
    eng = engine()
    from tiny import layout

    from kvattn.engine.plan import dense_plan

    run = eng.execute([dense_plan(layout(3), eng.layers)], room=6)[0]
    once, again = ([step.token for step in islice(eng.stream(run), 6)] for _ in range(2))
    assert once == again == eng.generate([Continued(run, 6)])[0]


def test_the_report_of_written_verdicts_counts_what_could_not_be_read(tmp_path):
    from kvattn.cli import terminal
    from kvattn.report import write_report

    judge = scripted({True: "7", False: "Selected agent id: 2\n<b>7</b>"})
    folder = Study(judge, _prompts(4), ["dense", "naive"]).run(tmp_path / "run")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "names no candidate, or several, in 4 of 4 written verdicts" in page
    assert "no candidate named" in page
    assert "JCR of those" in page
    terminal.run(folder)
