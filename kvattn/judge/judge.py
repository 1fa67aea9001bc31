"""The face: a model, a readout, and what it decides under any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kvattn import DEFAULT_JUDGE
from kvattn import methods as zoo
from kvattn.decision import Decision, together
from kvattn.engine import sharing
from kvattn.engine.admission import admit
from kvattn.engine.blocks import Blocks
from kvattn.engine.capture import Wanted
from kvattn.engine.engine import Engine
from kvattn.engine.execution import Execution
from kvattn.engine.layout import PromptLayout
from kvattn.engine.plan import KVBlock
from kvattn.errors import KvattnError, listed, unknown
from kvattn.judge import readout as readouts
from kvattn.judge.prior import Prior, prior_from
from kvattn.judge.readout import Reading, Readout, best
from kvattn.judge.rows import decision_rows, slot_masses
from kvattn.methods import Method
from kvattn.models import load_pretrained
from kvattn.models.places import DeviceMap
from kvattn.questions.orders import rotations
from kvattn.questions.prompt import REGIMES, Candidate, JudgePrompt
from kvattn.questions.templates import get_template
from kvattn.text import Enough, Progress, silent

if TYPE_CHECKING:
    from kvattn.judge.comparison import Comparison


def load(
    name: str | Path = DEFAULT_JUDGE,
    readout: str | Readout = "label",
    dtype: str = "float32",
    device: str = "cpu",
    regime: Literal["parallel", "progressive"] = "parallel",
    trusted: bool = False,
    device_map: DeviceMap | None = None,
) -> Judge:
    """The judge of that name: an alias, a folder, a .gguf file, or a Hub id with @revision.

    device_map: for a model larger than a device, in the place of `device`: "auto", or by module its device or "disk"
    trusted: whether to leave out the checks that admit a model, which take seconds the first time

    Raises KvattnError for an unknown name, missing weights, and models whose cache cannot be trusted."""
    model, tokenizer, info = load_pretrained(name, dtype=dtype, device=device, device_map=device_map)
    engine = Engine(model, tokenizer, info.to_dict())
    if not trusted:
        admit(engine)
    return Judge(engine, readouts.get(readout), regime=regime)


@dataclass
class Judge:
    """A judge: an engine, a readout, and a prior once it is calibrated.

    regime: how candidates are taken to have been made, for their execution contexts; a prompt that says otherwise is
            refused
    """

    engine: Engine
    readout: Readout = field(default_factory=lambda: readouts.get("label"))
    prior: Prior | None = None
    regime: Literal["parallel", "progressive"] = "parallel"

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise unknown("regime", self.regime, REGIMES)

    def compile(self, prompt: JudgePrompt) -> PromptLayout:
        """The prompt's layout under this judge's readout. Raises KvattnError where the context has no room for it and
        for what the judge is to write, and where the tokenizer cannot say most of a text."""
        prompt.verdicts(self.readout.name)
        self.engine.compiler.check_said(prompt)
        return self.engine.compiler.compile(prompt, self.readout.ask(prompt.template), self.readout.room)

    def decide(self, prompt: JudgePrompt, method: str | Method = "dense") -> Decision:
        """One judgement in the prompt's own order, by default dense's."""
        return self.judge(prompt, [method])[0]

    def judge(
        self,
        prompt: JudgePrompt,
        methods: Sequence[str | Method],
        orders: Sequence[Sequence[int]] | None = None,
        donor: JudgePrompt | None = None,
        capture: bool = True,
        wanted: Wanted | None = None,
        keep_cache: bool = False,
        keep: list[Execution] | None = None,
        progress: Progress = silent,
        caches: Mapping[str, KVBlock] | None = None,
        whole: KVBlock | None = None,
    ) -> list[Decision]:
        """All methods under all orders of one question; dense first, then by method, then by order.

        orders:  display orders (default: the prompt's own)
        donor:   another question, for foreign-kv (default: a synthetic one)
        capture: record the decision rows; `wanted` asks for more than slot mass
        keep:    a list that the executions are appended to, in the order of the result
        progress: told of each method before it runs: its label, how many are done, of how many; it raises `Enough` to
                  leave this one and the rest out
        caches:  by candidate id, its KV as others made it (`kvattn.caches`), in the place of an execution context
        whole:   the whole prompt's KV as others assembled it, for foreign-cache
        """
        chosen = sorted((zoo.get(m) for m in listed(methods, "methods")), key=lambda m: m.name != "dense")
        if not isinstance(prompt, JudgePrompt):
            raise KvattnError(f"{prompt!r:.60} is no question; give a JudgePrompt, or take judge.compare")
        asked = [prompt.ordered(o) for o in (listed(orders, "orders") if orders is not None else [prompt.order])]
        if not asked:
            raise KvattnError("no order to judge the question in; leave it out for its own")
        blocks = Blocks(self.engine, prompt, self.regime, donor, caches, whole)
        out = []
        for done, method in enumerate(chosen):
            try:
                progress(method.label, done, len(chosen))
            except Enough:
                if not out:
                    raise
                break
            shown = [method.prompts(p) for p in asked]
            apart = any(len(parts) > 1 for parts in shown)
            if apart and (keep is not None or isinstance(self.readout, readouts.Generate | readouts.Pairwise)):
                raise KvattnError(
                    f"{method.label} judges every candidate in a prompt of its own: it has no one row or cache to "
                    "compare, and no verdict to write; leave it out, and use the readout label, yesno or score"
                )
            layouts = [self.compile(x) for parts in shown for x in parts]
            plans = [method.plan(x, blocks, self.engine) for x in layouts]
            want = [decision_rows(p.layout, wanted) for p in plans] if capture and not apart else None
            runs = sharing.execute(self.engine, plans, want, keep_cache or method.learns, self.readout.room)
            done_runs = iter(runs)
            for p, parts in zip(asked, shown, strict=True):
                own = [next(done_runs) for _ in parts]
                for run in own:
                    method.observe(run.plan.layout, blocks, run)
                out.append(self._decision(p, method, own))
                for run in own:
                    _close(run)
            if keep is not None:
                keep.extend(runs)
        return out

    def warm(self, method: Method, prompts: Sequence[JudgePrompt]) -> None:
        """Let a method learn from held-out prompts, in their order, before it is used."""
        learner = method.learner()
        for prompt in prompts:
            self.judge(prompt, [learner], capture=False)

    def compare(
        self,
        question: str | JudgePrompt,
        candidates: Sequence[str | Candidate] = (),
        methods: Sequence[str | Method] = ("dense", "naive", "naive-linked"),
        order: Sequence[int] | None = None,
        template: str = "math",
        norms: bool = False,
        caches: Mapping[int | str, KVBlock] | None = None,
        whole: KVBlock | None = None,
        keep_cache: bool = True,
        progress: Progress = silent,
    ) -> Comparison:
        """One question under several methods, with decision rows and caches kept: result.plot(), .table(), .row, .kv.

        candidates: texts, or Candidate objects; ignored when `question` is a JudgePrompt
        norms:      also the length of (attention x V x W_O) by segment
        caches:     by candidate (its id, or its place in `candidates`), its KV as others made it (`caches.block`)
        whole:      the whole prompt's KV as others assembled it, for the method foreign-cache
        keep_cache: without it, `.kv` is not there, and the memory is free
        progress:   told of each method before it runs; it raises `Enough` to leave this one and the rest out
        """
        from kvattn.judge.comparison import Comparison

        if isinstance(question, JudgePrompt):
            prompt = question
        else:
            texts = listed(candidates, "candidates")
            made = [c if isinstance(c, Candidate) else Candidate(f"c{i + 1}", c) for i, c in enumerate(texts)]
            prompt = JudgePrompt(question, tuple(made), get_template(template))
        if order is not None:
            prompt = prompt.ordered(order)
        runs: list[Execution] = []
        chosen = zoo.parse(listed(methods, "methods"))
        given = {_candidate_id(prompt, key): block for key, block in (caches or {}).items()}
        want = Wanted(rows=True, norms=norms)
        decisions = self.judge(prompt, chosen, None, None, True, want, keep_cache, runs, progress, given, whole)
        return Comparison(self.engine, prompt, decisions, runs)

    def _decision(self, prompt: JudgePrompt, method: Method, runs: Sequence[Execution]) -> Decision:
        """The decision of one execution, or of one a slot."""
        layout, captured = runs[0].plan.layout, runs[0].captured
        cost = runs[0].cost
        reading = self.readout.reading(self.engine, runs[0], prompt)
        if len(runs) > 1:
            readings = [self.readout.reading(self.engine, r, prompt) for r in runs]
            scores = np.concatenate([r.scores for r in readings])
            reading = Reading(scores, float(np.mean([r.coverage for r in readings])), best(scores))
            cost = together([r.cost for r in runs], len(self.compile(prompt)))
        adjusted = method.adjusted(reading.scores)
        if corrected := adjusted is not reading.scores:
            reading = replace(reading, scores=adjusted, slot=best(adjusted))
        verdicts = prompt.verdicts(self.readout.name)
        order = (*prompt.order, *range(prompt.n, len(verdicts)))
        picked = None if reading.slot is None else verdicts[order[reading.slot]]
        rows = slot_masses(captured, layout) if captured else []
        out = Decision(
            question_id=prompt.id,
            order=order,
            method=method.label,
            readout=self.readout.name,
            choice=picked.id if picked else None,
            slot=reading.slot,
            scores=reading.scores,
            coverage=reading.coverage,
            cost=cost,
            correct=picked.correct if picked else _unpicked(prompt),
            mass=rows[0] if rows else None,
            more=tuple(rows[1:]),
            notes=runs[0].plan.notes + tuple(sorted({k.block.source for k in runs[0].plan.kept if k.block.source})),
        )
        if (written := reading.written) is not None:
            decoded = tuple(replace(slot_masses(c, layout)[0], query=kind) for kind, c in written.rows.items())
            return replace(
                out,
                more=out.more + decoded,
                rule=written.verdict.rule,
                output=written.output,
                answer_correct=written.correct,
                new_tokens=written.tokens,
            )
        if self.prior is None:
            return out
        calibrated = reading.scores if corrected else self.prior.apply(reading.scores)  # once is enough
        slot = best(calibrated)
        shown = verdicts[order[slot]]
        return replace(
            out,
            calibrated=calibrated,
            slot_calibrated=slot,
            choice_calibrated=shown.id,
            correct_calibrated=shown.correct,
        )


def calibrate(judge: Judge, prompts: Sequence[JudgePrompt]) -> Prior:
    """The judge's prior from held-out prompts, all of one template and number of candidates, judged densely in all
    cyclic orders."""
    kinds = {(p.template.name, p.n) for p in prompts}
    if len(kinds) != 1:
        raise KvattnError("calibration takes prompts of one template and one number of candidates")
    scores = [d.scores for p in prompts for d in judge.judge(p, ["dense"], rotations(p.order), capture=False)]
    slots = prompts[0].n
    return prior_from([s[:slots] for s in scores], kinds.pop()[0], judge.readout.name, len(prompts))


def _candidate_id(prompt: JudgePrompt, key: int | str) -> str:
    """The id of a candidate that is named by it, or by its place."""
    if isinstance(key, str):
        return key
    if not 0 <= key < prompt.n:
        raise KvattnError(f"caches: there is no candidate {key}; they count from 0 to {prompt.n - 1}")
    return prompt.candidates[key].id


def _close(run: Execution) -> None:
    """Give up the room for decoded tokens; what stays has the prompt's length."""
    n, run.state = len(run.plan.layout), None
    if run.captured is not None and run.captured.rows is not None:
        run.captured = replace(run.captured, rows=run.captured.rows[..., :n])
    if run.keys is not None and run.values is not None:
        run.keys, run.values = run.keys[:, :, :n], run.values[:, :, :n]


def _unpicked(prompt: JudgePrompt) -> bool | None:
    """No verdict is no right one, where anybody knows which candidates are right."""
    return None if all(c.correct is None for c in prompt.candidates) else False
