"""A run: many questions, several orders, several methods, one run folder that can be stopped and continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from kvattn import methods as zoo
from kvattn.decision import Decision, ties
from kvattn.errors import KvattnError, listed
from kvattn.judge.judge import Judge
from kvattn.judge.prior import Prior, prior_from
from kvattn.judge.readout import Generate
from kvattn.methods import Method
from kvattn.questions.candidates import data_sha256
from kvattn.questions.orders import check_scheme
from kvattn.questions.orders import orders as make_orders
from kvattn.questions.prompt import JudgePrompt
from kvattn.study import run_folder
from kvattn.study.checks import faults, refuse
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    import pyarrow as pa

Unit = tuple[int, "dict[str, pa.Table]"]


class Executor(Protocol):
    """What a study hands its questions to: judges units by `Study.unit`, and yields them as they are finished."""

    @property
    def ordered(self) -> bool:
        """Whether units come in the order asked for, each judged after the one before it was taken."""
        ...

    def units(self, study: Study, todo: Sequence[int]) -> Iterator[Unit]:
        """The units of those questions."""
        ...


class Local:
    """This process, one unit after the other."""

    ordered = True

    def units(self, study: Study, todo: Sequence[int]) -> Iterator[Unit]:
        """The units, in order."""
        return ((i, study.unit(i)) for i in todo)


@dataclass
class Study:
    """What is judged and how.

    prompts:  the questions; heldout: others, which the prior and the content test are made from (may be empty)
    orders:   an order scheme (kvattn.questions.orders)
    capture:  record the decision rows
    mine:     indices of the questions that this process judges (a shard); default: all
    skip_bad: leave out questions that the judge cannot judge, and say so in the manifest, instead of refusing them all
    extra:    further entries of the manifest, such as the places of what could not be read (unread)
    executor: who judges them: this process, or a Ray cluster (kvattn.study.ray)
    """

    judge: Judge
    prompts: Sequence[JudgePrompt]
    methods: Sequence[str | Method] = ("dense", "naive", "naive-linked")
    orders: str = "fixed"
    heldout: Sequence[JudgePrompt] = ()
    seed: int = 0
    source: str = ""
    capture: bool = True
    mine: Sequence[int] | None = None
    skip_bad: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    executor: Executor = field(default_factory=Local)

    def __post_init__(self) -> None:
        self.zoo = zoo.parse(listed(self.methods, "methods"))
        if given := [m.label for m in self.zoo if isinstance(m, zoo.GIVEN)]:
            raise KvattnError(
                f"{given[0]} judges a cache that is given, and a run is made from texts; judge with "
                "kvattn judge FILE --caches FOLDER, without --run"
            )
        check_scheme(self.orders)
        self.prompts, self.heldout = listed(self.prompts, "questions"), listed(self.heldout, "held-out questions")
        if strange := [p for p in (*self.prompts, *self.heldout) if not isinstance(p, JudgePrompt)]:
            raise KvattnError(f"{strange[0]!r:.60} is no question; give JudgePrompts (kvattn.questions.load)")
        if not self.prompts:
            raise KvattnError("no questions to judge")
        if self.mine is not None and not set(self.mine) <= set(range(len(self.prompts))):
            raise KvattnError(f"the indices of a shard's questions are from 0 to {len(self.prompts) - 1}")
        ids = [p.id for p in self.prompts]
        if len(set(ids)) != len(ids):
            raise KvattnError("question ids must be unique within a run")
        if set(ids) & {p.id for p in self.heldout}:
            raise KvattnError("held-out questions must not be among the judged ones")

    def checked(self, progress: Progress = silent) -> Study:
        """This study, all of whose questions can be judged. Raises KvattnError that lists those that cannot
        (`kvattn.study.checks`), or leaves them out."""
        bad, of = faults(self.judge, self.prompts, self.zoo, self.orders, progress)
        apart, held = faults(self.judge, self.heldout, self.zoo, "fixed", progress)
        bad |= apart
        refuse(bad, of + held, self.source or "the questions", self.skip_bad)
        if not bad:
            return self
        kept = [i for i, p in enumerate(self.prompts) if p.id not in bad]
        mine = None if self.mine is None else [new for new, old in enumerate(kept) if old in set(self.mine)]
        return replace(
            self,
            prompts=[self.prompts[i] for i in kept],
            heldout=[p for p in self.heldout if p.id not in bad],
            mine=mine,
            extra={**self.extra, "left_out": bad},
        )

    def run(self, folder: str | Path, progress: Progress = silent, anew: bool = False) -> Path:
        """Judge what the folder does not hold yet. Returns the folder.

        anew: give a run that lies there another name (FOLDER.before-1, ...), and begin again

        Raises KvattnError when a question cannot be judged, before anything is written; when the folder was begun with
        other parameters, and when another process writes to it."""
        study = self.checked(progress)
        if anew:
            run_folder.set_aside(folder)
        return study._run(folder, progress)

    def _run(self, folder: str | Path, progress: Progress) -> Path:
        way = "run with the old parameters, or begin anew, which puts this one aside (--anew)"
        with run_folder.RunWriter(folder, self.manifest(), way) as writer:
            if self.heldout:
                self._hold_out(writer, progress)
            pools = Pools(writer.folder / "pools", self.zoo)
            pools.warm(self.judge, self.heldout)
            done = [run_folder.file_key(p.id) in writer.done for p in self.prompts]
            pools.resume(self.prompts, done)
            mine = range(len(self.prompts)) if self.mine is None else self.mine
            if pools.online and (len(mine) < len(self.prompts) or not self.executor.ordered):
                raise KvattnError(f"{pools.online[0].label} learns from question to question and cannot be sharded")
            todo = [i for i in mine if not done[i]]
            finished = len(mine) - len(todo)
            progress("judging", finished, len(mine))
            for i, tables in self.executor.units(self, todo) if todo else ():
                prompt = self.prompts[i]
                if run_folder.file_key(prompt.id) in writer.done:  # judged twice, since an actor was taken for lost
                    continue
                pools.commit(prompt)
                writer.write_tables(prompt.id, tables)
                finished += 1
                progress("judging", finished, len(mine))
        return Path(folder)

    def unit(self, index: int) -> dict[str, pa.Table]:
        """All decisions on one question, as the tables of its unit."""
        prompt = self.prompts[index]
        row = run_folder.question_row(prompt, self._lengths(prompt), self.judge.readout.name)
        return run_folder.unit_tables(row, self.decisions(index))

    def decisions(self, index: int) -> list[Decision]:
        """All decisions on one question, without a folder."""
        prompt = self.prompts[index]
        return self.judge.judge(
            prompt,
            self.zoo,
            make_orders(self.orders, prompt.n, self.seed, prompt.id, prompt.order),
            donor=self.prompts[(index + 1) % len(self.prompts)] if len(self.prompts) > 1 else None,
            capture=self.capture,
        )

    def _lengths(self, prompt: JudgePrompt) -> list[int]:
        ids = self.judge.engine.compiler.candidate_ids
        return [len(ids(prompt, k)) for k in range(prompt.n)]

    def _hold_out(self, writer, progress: Progress) -> None:
        """Prior and content test from the held-out questions, judged densely in all cyclic orders: a run of its own in
        the run's folder, so that it can be stopped and looked at like any other. Both stand in the manifest."""
        manifest = run_folder.read_manifest(writer.folder)
        stored = manifest.get("calibration")
        if stored:
            self.judge.prior = Prior(**{**stored, "scores": tuple(stored["scores"])})
        if "content_test" in manifest:
            return
        apart = Study(
            self.judge, self.heldout, ["dense"], "rotations", seed=self.seed, capture=False, executor=self.executor
        )
        run = run_folder.Run(
            apart._run(writer.folder / "heldout", lambda _, i, n: progress("held-out questions", i, n))
        )
        prior, tests = held_out(run.judgements(), run.questions(), self.judge.readout.name)
        self.judge.prior = prior
        calibration = {} if prior is None else {"calibration": prior.to_json()}
        writer.update_manifest(**calibration, content_test=tests)

    def manifest(self) -> dict[str, Any]:
        """How the run is judged, JSON-able."""
        judge, engine = self.judge, self.judge.engine
        return {
            **run_folder.provenance(engine),
            "template": self.prompts[0].template.id,
            "template_text": self.prompts[0].template.to_json(),
            "readout": judge.readout.name,
            **({"max_new": judge.readout.max_new} if isinstance(judge.readout, Generate) else {}),
            "regime": judge.regime,
            "n_candidates": sorted({p.n for p in self.prompts}),
            "layers": engine.geometry.layers,
            "heads": engine.geometry.heads,
            "kv_heads": engine.geometry.kv_heads,
            "methods": [
                {"name": m.label, "class": type(m).__name__, "parameters": m.parameters, "source": m.source}
                | ({"files": m.files} if m.files else {})
                for m in self.zoo
            ],
            "learners": [m.label for m in self.zoo if m.learns and not m.frozen],  # from question to question
            "orders": {"scheme": self.orders},
            "seeds": {"orders": self.seed},
            "data": {"source": self.source, "sha256": data_sha256(self.prompts), "questions": len(self.prompts)},
            "heldout": {"sha256": data_sha256(self.heldout), "questions": len(self.heldout)},
            "capture": self.capture,
            **_production(self.prompts),
            **self.extra,
        }


def _production(prompts: Sequence[JudgePrompt]) -> dict[str, Any]:
    """What a production judge chose, and in which order it saw what, where that is not the candidates' own."""
    said = {p.id: p.verdict for p in prompts if p.verdict is not None}
    shown = {p.id: list(p.order) for p in prompts if p.verdict is not None and p.order != tuple(range(p.n))}
    return {**({"verdicts": said} if said else {}), **({"shown": shown} if shown else {})}


def held_out(judgements: pd.DataFrame, questions: pd.DataFrame, readout: str) -> tuple[Prior | None, dict[str, Any]]:
    """The prior, and the content test raw and calibrated, from dense judgements of held-out questions on all cyclic
    orders. The calibrated test is cross-fitted: each half is calibrated with the other half's prior.

    Written verdicts have no prior; the content test then takes the questions with a verdict in every order. Of
    judgements that may be ties, both are of which candidate scores better."""
    from kvattn import stats

    if ties(readout):
        judgements, questions = _without_ties(judgements, ties(readout)), _without_ties(questions, ties(readout))
    if len({(t, len(c)) for t, c in zip(questions["template"], questions["candidate_ids"], strict=True)}) != 1:
        raise KvattnError("held-out questions must be of one template and one number of candidates")
    if readout == "generate":
        parsed: Any = judgements["slot"].notna().groupby(judgements["question_id"]).transform("all")
        judged: Any = judgements[parsed]
        return None, {"raw": stats.content_test(judged, questions).to_dict()}
    template, ids = str(questions["template"].iloc[0]), list(questions["question_id"])
    half, n = len(ids) // 2, len(questions["candidate_ids"].iloc[0])
    scores = {i: [np.asarray(x)[:n] for x in part["scores"]] for i, part in judgements.groupby("question_id")}

    def prior(part: Sequence[str]) -> Prior:
        return prior_from([s for i in part for s in scores[i]], template, readout, len(part))

    def test(fit: Mapping[str, Prior]) -> dict[str, Any]:
        shown = judgements[["question_id", "order", "scores"]].copy()
        adjusted = [
            fit[i].apply(np.asarray(s)) if i in fit else np.asarray(s)
            for i, s in zip(shown["question_id"], shown["scores"], strict=True)
        ]
        return stats.content_test(shown.assign(slot=[int(s[:n].argmax()) for s in adjusted]), questions).to_dict()

    tests = {"raw": test({})}
    if half:
        first, second = prior(ids[:half]), prior(ids[half:])
        tests["calibrated"] = test({**dict.fromkeys(ids[:half], second), **dict.fromkeys(ids[half:], first)})
    return prior(ids), tests


def _without_ties(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The table of judgements or questions without the last entries of all that is by slot or candidate."""
    listed = [c for c in ("order", "candidate_ids", "agents", "texts", "corrects", "lengths") if c in table]
    return table.assign(**{c: [x if x is None else x[:-count] for x in table[c]] for c in listed})


class Pools:
    """What learning methods know, kept beside the run so that a continued run equals an uninterrupted one.

    A frozen pool is warmed once and saved. An online pool is a stream: its state after each question is saved before
    that question is committed, so it must be judged in the order of the questions."""

    def __init__(self, folder: Path, chosen: Sequence[Method]) -> None:
        self.folder = folder
        self.frozen = [m for m in chosen if m.learns and m.frozen]
        self.online = [m for m in chosen if m.learns and not m.frozen]

    def warm(self, judge: Judge, heldout: Sequence[JudgePrompt]) -> None:
        """Fill frozen pools from the held-out questions, or read them back."""
        for m in self.frozen:
            name = run_folder.file_key(m.label)
            if (self.folder / f"{name}.json").exists():
                m.restore(self.folder, name)
                continue
            if m.needs_warming:
                if not heldout:
                    raise KvattnError(f"method {m.label!r} has to be warmed: give held-out questions")
                judge.warm(m, heldout)
            m.save(self.folder, name)  # what it came with, too: a continued run must not fit another

    def resume(self, prompts: Sequence[JudgePrompt], done: Sequence[bool]) -> None:
        """Bring online pools to where the last committed question left them."""
        count = sum(done)
        if not self.online or not count:
            return
        if not all(done[:count]):
            raise KvattnError(
                f"{self.online[0].label} learns from question to question, but the finished ones are not the first "
                f"{count}; start a new run, or use pool=frozen where it has one"
            )
        for m in self.online:
            m.restore(self.folder, self._name(m, prompts[count - 1]))

    def commit(self, prompt: JudgePrompt) -> None:
        """Save what online pools know after this question."""
        for m in self.online:
            m.save(self.folder, self._name(m, prompt))

    @staticmethod
    def _name(method: Method, prompt: JudgePrompt) -> str:
        return f"{run_folder.file_key(method.label)}-{run_folder.file_key(prompt.id)}"
