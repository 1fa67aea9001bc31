"""Training: distil dense's choice into the computed tokens of a plan that keeps the candidates.

The gradient runs through the engine's own passes (`Engine.differentiable`), so that what is trained is what judges. The
candidates' KV is a constant, made by the base model once a question; the base model's weights never change.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from random import Random
from time import monotonic

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvattn.engine.blocks import Blocks
from kvattn.engine.engine import Engine
from kvattn.engine.gradients import differentiable
from kvattn.engine.plan import KVPlan
from kvattn.engine.reach import Adapter
from kvattn.engine.scores import branch_scores, label_scores, slot_logits
from kvattn.errors import KvattnError
from kvattn.judge.judge import Judge
from kvattn.methods.repaired import Repair, reach_of, reader_of
from kvattn.questions.candidates import data_sha256
from kvattn.questions.orders import rotations
from kvattn.questions.prompt import JudgePrompt
from kvattn.study.repair.checkpoint import Checkpoint
from kvattn.study.repair.recipe import Recipe
from kvattn.study.repair.teacher import Teacher, question_sha256, targets
from kvattn.text import Progress, silent

MOST_KEPT = 2**31  # bytes of blocks that stay in memory between steps
TOGETHER = 256  # computed tokens of judgements whose gradients are held at the same time, or one judgement
EVERY, LONGEST_S = 10, 60.0  # steps, and about how many seconds at most, between two checkpoints


@dataclass(frozen=True)
class Lesson:
    """One question: its plans under all rotations, and what is taught, [rotations, slots]."""

    plans: list[KVPlan]
    target: Float[np.ndarray, "rotations slots"]


class Lessons:
    """The lessons of all questions; their blocks are made when first asked for and kept as far as memory goes."""

    def __init__(self, judge: Judge, prompts: Sequence[JudgePrompt], recipe: Recipe, teacher: Teacher) -> None:
        self.judge, self.method = judge, recipe.method()
        self.prompts = [self.method.prompt(p) for p in prompts]
        self.layouts = [[judge.compile(p.ordered(o)) for o in rotations(p.order)] for p in self.prompts]
        self.targets = targets(teacher, self.layouts, recipe.teacher, recipe.seed)
        self._plans: dict[int, list[KVPlan]] = {}
        self._bytes = 0

    def plans(self, index: int) -> list[KVPlan]:
        """The plans of a question under all its rotations, without an adapter."""
        if index in self._plans:
            return self._plans[index]
        donor = self.prompts[(index + 1) % len(self.prompts)]
        blocks = Blocks(self.judge.engine, self.prompts[index], self.judge.regime, donor)
        plans = [self.method.plan(x, blocks, self.judge.engine) for x in self.layouts[index]]
        size = sum({id(k.block): k.block.bytes for p in plans for k in p.kept}.values())
        if self._bytes + size <= MOST_KEPT:
            self._plans[index], self._bytes = plans, self._bytes + size
        return plans

    def __getitem__(self, index: int) -> Lesson:
        return Lesson(self.plans(index), self.targets[index])

    def __len__(self) -> int:
        return len(self.prompts)


def train(
    judge: Judge,
    prompts: Sequence[JudgePrompt],
    recipe: Recipe,
    out: Path,
    progress: Progress = silent,
    source: str = "",
    teacher: Path | None = None,
) -> Path:
    """Train a repair into the folder `out`, going on where an earlier run of the same recipe stopped. Returns it.
    `teacher` is the file of what dense says, for trainings that share it; by default it lies in `out`.

    Nothing is chosen on the way: the last step's numbers are taken. Raises KvattnError where the adapter would act on
    nothing, where a judge writes its verdict or has nothing to choose, where the base shows another prompt than dense,
    and where `out` holds the training of another recipe, or no method can be named after it."""
    if len(prompts) < 2:
        raise KvattnError(f"{len(prompts)} question teaches no repair; give some hundred")
    if alone := next((p.id for p in prompts if p.n < 2), None):
        raise KvattnError(f"question {alone!r} has one candidate, and nothing to choose; leave such questions out")
    if out.exists() and not out.is_dir():
        raise KvattnError(f"{out} is no folder; name another (--out)")
    if odd := set(str(out)) & set(",+=()"):
        raise KvattnError(f"no method can be named after a folder with {min(odd)!r} in its name; name another (--out)")
    recipe.check(prompts[0])
    layout = judge.compile(prompts[0])
    if layout.reader not in (label_scores, branch_scores):
        raise KvattnError(f"a repair is taught by label or yesno; use one of these readouts, not {judge.readout.name}")
    engine = judge.engine
    engine.model.requires_grad_(False)
    point = Checkpoint(out, {**recipe.to_json(), "data": data_sha256(prompts), "weights": engine.identity})
    dense = Teacher(judge, teacher or out / "teacher.json")
    dense.learn(prompts, progress)
    lessons = Lessons(judge, prompts, recipe, dense)
    before = kept_sha256(lessons.plans(0))
    adapter = untrained(engine, lessons.plans(0)[0], recipe)
    trained = adapter.tensors()
    optimizer = torch.optim.AdamW(list(trained.values()), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    point.restore(trained, optimizer)
    losses: list[float] = point.notes.setdefault("losses", [])
    saved = monotonic()
    while point.step < recipe.steps:
        progress("training", point.step, recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, point.step)
        losses.append(_step(engine, lessons, adapter, recipe, point.step, optimizer))
        point.step += 1
        if point.step < recipe.steps and (point.step % EVERY == 0 or monotonic() - saved > LONGEST_S):
            point.save(trained, optimizer)
            saved = monotonic()
    progress("training", recipe.steps, recipe.steps)
    point.save(trained, optimizer)
    if kept_sha256(Lessons(judge, prompts[:2], recipe, dense).plans(0)) != before:
        raise RuntimeError("the candidates' keys and values changed while a repair was trained")
    record = {
        "recipe": recipe.to_json(),
        "data": {"source": source, "questions": len(prompts), "sha256": data_sha256(prompts)},
        "questions": sorted(map(question_sha256, prompts)),
        "teacher_sha256": dense.sha256,
        "kept_sha256": before,
        "losses": [round(x, 4) for x in losses],
        "versions": {p: metadata.version(p).split("+")[0] for p in ("torch", "transformers")},
    }
    return Repair(
        recipe.method().label, recipe.reach, adapter, engine.identity, reader_of(layout), record
    ).save(out)  # fmt: skip


def untrained(engine: Engine, plan: KVPlan, recipe: Recipe) -> Adapter:
    """An adapter that changes nothing yet: `up` is zero, and links have the embeddings of their ids.

    Raises KvattnError where it would act on no token of the plan."""
    g, lora, device = torch.Generator().manual_seed(recipe.seed), {}, engine.device
    links = next((s for s in plan.layout.each("link") if s.length), None)
    acts = plan.layout.mask(*recipe.reach) & (plan.depth > 0)
    if not bool(acts.any()) and links is None:
        raise KvattnError(
            f"an adapter on {', '.join(recipe.reach) or 'no role'} acts on no token that {recipe.base} computes; name "
            "other roles (--reach), or a base that computes some"
        )
    if bool(acts.any()):
        for name, module in engine.model.get_decoder().named_modules():
            if isinstance(module, nn.Linear):
                down = torch.randn(recipe.rank, module.in_features, generator=g) / math.sqrt(module.in_features)
                lora[name] = (_leaf(down, device), _leaf(torch.zeros(module.out_features, recipe.rank), device))
    start = None
    if links is not None:
        ids = plan.layout.token_ids[links.start : links.stop].to(device)
        start = _leaf(engine.model.get_input_embeddings()(ids).detach().float().clone(), device)
    return Adapter(lora, start, recipe.alpha / recipe.rank)


def _leaf(x: Tensor, device) -> Tensor:
    return x.to(device).requires_grad_()


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    fall = 0.05 + 0.475 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup if recipe.warmup else 1.0) * fall


def drawn(recipe: Recipe, step: int, questions: int) -> list[int]:
    """The questions of a step: every one once before any comes again. They follow from seed and step alone."""
    out = []
    for i in range(step * recipe.questions, (step + 1) * recipe.questions):
        epoch, place = divmod(i, questions)
        out.append(Random(f"{recipe.seed}-{epoch}").sample(range(questions), questions)[place])
    return out


def _step(
    engine: Engine, lessons: Lessons, adapter: Adapter, recipe: Recipe, step: int, optimizer: torch.optim.Optimizer
) -> float:
    """One step; the mean loss of its judgements before it, in nats."""
    optimizer.zero_grad(set_to_none=True)
    some, total = [lessons[i] for i in drawn(recipe, step, len(lessons))], 0.0
    for lesson in some:
        plans = [reach_of(p, recipe.reach, adapter) for p in lesson.plans]
        size = max(1, TOGETHER // max(int((p.depth > 0).sum()) for p in plans))
        for at in range(0, len(plans), size):
            part, target = plans[at : at + size], lesson.target[at : at + size]
            loss = loss_of(engine, part, target) * len(part) / (len(plans) * len(some))
            loss.backward()
            total += float(loss.detach())
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    return total


def loss_of(engine: Engine, plans: Sequence[KVPlan], target: Float[np.ndarray, "rotations slots"]) -> Tensor:
    """The Kullback-Leibler divergence of the plans' distributions over slots from the taught ones, nats, their mean."""
    losses = []
    for plan, logits, p in zip(plans, differentiable(engine, plans), torch.from_numpy(target), strict=True):
        said = slot_logits(logits, plan.layout.answer_ids, plan.layout.slots).log_softmax(-1)
        p = p.to(said)
        losses.append((torch.xlogy(p, p) - p * said).sum())
    return torch.stack(losses).mean()


def kept_sha256(plans: Sequence[KVPlan]) -> str:
    """Of all keys and values that the plans keep, bit by bit."""
    digest = hashlib.sha256()
    for k in (k for p in plans for k in p.kept):
        for x in (k.block.keys, k.block.values):
            digest.update(x.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
