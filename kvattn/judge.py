"""The face: a model, a readout, and what it decides under any method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from kvattn import methods as zoo
from kvattn import readout as readouts
from kvattn import sharing
from kvattn.blocks import Blocks
from kvattn.capture import Captured, Wanted
from kvattn.decision import Decision, SlotMass
from kvattn.engine import Engine, sink_tokens
from kvattn.errors import KvattnError
from kvattn.execution import Execution
from kvattn.layout import PromptLayout
from kvattn.methods import Method
from kvattn.orders import rotations
from kvattn.prior import Prior, prior_from
from kvattn.prompt import Candidate, JudgePrompt, get_template
from kvattn.readout import Readout
from kvattn.text import Progress, silent

if TYPE_CHECKING:
    from kvattn.comparison import Comparison


def load(
    name: str = "smollm2-135m",
    readout: str | Readout = "label",
    dtype: str = "float32",
    device: str = "cpu",
    regime: Literal["parallel", "progressive"] = "parallel",
) -> Judge:
    """The judge of that name: an alias, a folder, a .gguf file, or a Hub id with @revision.

    Raises KvattnError for an unknown name, missing weights, and models whose cache cannot be trusted."""
    from kvattn.models import load_pretrained

    model, tokenizer, info = load_pretrained(name, dtype=dtype, device=device)
    return Judge(Engine(model, tokenizer, info.to_dict()), readouts.get(readout), regime=regime)


@dataclass
class Judge:
    """A judge: an engine, a readout, and a prior once it is calibrated.

    regime: how candidates are taken to have been made, where their execution contexts are needed
    """

    engine: Engine
    readout: Readout = field(default_factory=lambda: readouts.get("label"))
    prior: Prior | None = None
    regime: Literal["parallel", "progressive"] = "parallel"

    def compile(self, prompt: JudgePrompt) -> PromptLayout:
        """The prompt's layout under this judge's readout."""
        return self.engine.compiler.compile(prompt, self.readout.ask(prompt.template))

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
    ) -> list[Decision]:
        """All methods under all orders of one question; dense first, then by method, then by order.

        orders:  display orders (default: the prompt's own)
        donor:   another question, for foreign-kv (default: a synthetic one)
        capture: record the decision rows; `wanted` asks for more than slot mass
        keep:    a list that the executions are appended to, in the order of the result
        progress: told of each method before it runs: its label, how many are done, of how many
        """
        chosen = sorted((zoo.get(m) for m in methods), key=lambda m: m.name != "dense")
        asked = [prompt.ordered(o) for o in (orders if orders is not None else [prompt.order])]
        blocks = Blocks(self.engine, prompt, self.regime, donor)
        sinks: dict[tuple[int, ...], tuple[PromptLayout, torch.Tensor]] = {}
        out = []
        for done, method in enumerate(chosen):
            progress(method.label, done, len(chosen))
            shown = [method.prompt(p) for p in asked]
            layouts = [self.compile(p) for p in shown]
            plans = [method.plan(x, blocks, self.engine) for x in layouts]
            want = [self._wanted(x, p, sinks, wanted) for x, p in zip(layouts, asked, strict=True)] if capture else None
            if capture and method.name == "dense":
                want = [replace(w, rows=True, kv=True) for w in want or []]
            runs = sharing.execute(self.engine, plans, want, keep_cache or method.learns, self.readout.room)
            for p, layout, run in zip(asked, layouts, runs, strict=True):
                if capture and method.name == "dense":
                    run.captured, found = _with_sinks(run.captured, layout)
                    sinks[p.order] = (layout, found)
                method.observe(layout, blocks, run)
                out.append(self._decision(p, method, run, sinks.get(p.order)))
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
        methods: Sequence[str | Method] = ("dense", "naive"),
        order: Sequence[int] | None = None,
        template: str = "math",
        norms: bool = False,
    ) -> Comparison:
        """One question under several methods, with decision rows and caches kept: result.plot(), .table(), .row, .kv.

        candidates: texts, or Candidate objects; ignored when `question` is a JudgePrompt
        norms:      also the length of (attention x V x W_O) by segment
        """
        from kvattn.comparison import Comparison

        if isinstance(question, JudgePrompt):
            prompt = question
        else:
            made = [c if isinstance(c, Candidate) else Candidate(f"c{i + 1}", c) for i, c in enumerate(candidates)]
            prompt = JudgePrompt(question, tuple(made), get_template(template))
        if order is not None:
            prompt = prompt.ordered(order)
        runs: list[Execution] = []
        chosen = zoo.parse(list(methods))
        decisions = self.judge(prompt, chosen, wanted=Wanted(rows=True, norms=norms), keep_cache=True, keep=runs)
        return Comparison(self.engine.tokenizer, prompt, decisions, runs)

    def _wanted(self, layout: PromptLayout, prompt: JudgePrompt, sinks: dict, wanted: Wanted | None) -> Wanted:
        base = wanted or Wanted()
        queries = base.queries or query_tokens(layout)
        found = None
        if prompt.order in sinks:
            dense_layout, tokens = sinks[prompt.order]
            found = carry(tokens, dense_layout, layout)
        return replace(base, queries=queries, sinks=found)

    def _decision(
        self, prompt: JudgePrompt, method: Method, run: Execution, sinks: tuple[PromptLayout, torch.Tensor] | None
    ) -> Decision:
        layout = run.plan.layout
        reading = self.readout.reading(self.engine, run, prompt)
        picked = None if reading.slot is None else prompt.shown(reading.slot)
        rows = slot_masses(run.captured, layout) if run.captured else []
        out = Decision(
            question_id=prompt.id,
            order=prompt.order,
            method=method.label,
            readout=self.readout.name,
            choice=picked.id if picked else None,
            slot=reading.slot,
            scores=reading.scores,
            coverage=reading.coverage,
            cost=run.cost,
            correct=picked.correct if picked else _unpicked(prompt),
            mass=rows[0] if rows else None,
            more=tuple(rows[1:]),
            notes=run.plan.notes + tuple(sorted({k.block.source for k in run.plan.kept if k.block.source})),
        )
        if (written := reading.written) is not None:
            found = carry(sinks[1], sinks[0], layout) if sinks else None
            decoded = tuple(
                replace(slot_masses(_sunk(c, layout, found), layout)[0], query=kind) for kind, c in written.rows.items()
            )
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
        calibrated = self.prior.apply(reading.scores)
        best = int(np.argmax(calibrated))
        shown = prompt.shown(best)
        return replace(
            out,
            calibrated=calibrated,
            slot_calibrated=best,
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
    return prior_from(scores, kinds.pop()[0], judge.readout.name, len(prompts))


def query_tokens(layout: PromptLayout) -> tuple[int, ...]:
    """The tokens whose rows a decision carries: the last prompt token or, for readouts with a branch per slot, the end
    of the suffix and then the end of every branch."""
    if len(layout.decisions) == 1 and layout.segments[-1].role != "branch":
        return layout.decisions
    return (layout.find("suffix").stop - 1, *layout.decisions)


def slot_masses(captured: Captured, layout: PromptLayout) -> list[SlotMass]:
    """SlotMass of every captured query. Queries are named: "last_prompt" for the first, "at_choice:K" for slot K's
    branch, "token:I" for any other prompt index."""
    standard = query_tokens(layout)
    out = []
    for i, q in enumerate(captured.queries):
        if q == standard[0]:
            name = "last_prompt"
        elif q in standard:
            name = f"at_choice:{standard.index(q)}"
        else:
            name = f"token:{q}"
        out.append(
            SlotMass(
                mass=captured.mass[i].numpy(),
                sink=captured.sink[i].numpy(),
                names=layout.names,
                lengths=layout.lengths,
                query=name,
                norm=captured.norm[i].numpy() if captured.norm is not None else None,
            )
        )
    return out


def carry(sinks: torch.Tensor, source: PromptLayout, target: PromptLayout) -> torch.Tensor:
    """Sink tokens [layers, tokens] found under one layout, at the same places of the same segments of another."""
    if source is target:
        return sinks
    out = torch.zeros(len(sinks), len(target), dtype=torch.bool)

    def key(layout: PromptLayout, s) -> tuple:
        return s.role, s.slot if s.role != "candidate" else layout.candidates[s.slot]

    places = {key(source, s): s for s in source.segments}
    for t in target.segments:
        s = places.get(key(target, t))
        if s is not None:
            n = min(s.length, t.length)
            out[:, t.start : t.start + n] = sinks[:, s.start : s.start + n]
    return out


def _with_sinks(captured: Captured | None, layout: PromptLayout) -> tuple[Captured, torch.Tensor]:
    """Dense's capture with its sink mass filled in, and the sink tokens found."""
    if captured is None or captured.rows is None or captured.value_norm is None:
        raise KvattnError("sinks are found on dense's rows and value norms, which were not captured")
    found = sink_tokens(captured.rows[0][..., : len(layout)], captured.value_norm)
    return _sunk(captured, layout, found), found


def _sunk(captured: Captured, layout: PromptLayout, found: torch.Tensor | None) -> Captured:
    """A capture with rows, its sink mass filled in from the sink tokens [layers, tokens]."""
    if found is None or captured.rows is None:
        return captured
    member = torch.nn.functional.one_hot(layout.segment_of, len(layout.segments)).float()
    return replace(captured, sink=(captured.rows[..., : len(layout)] * found[None, :, None, :]) @ member)


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
