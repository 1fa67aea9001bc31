"""Train the judge that ships: `python -m analyses.train_judge --out FOLDER [--seed 0]`.

A LoRA adapter on all linear layers of SmolLM2-135M. Each step judges a few prompts of one lesson, as the judge compiles
them. Lessons come one after the other: the next begins when the newest is known, and those before it are repeated, the
less known the oftener. First the judge learns to bind a label to what is said (lookup), then to count who says what,
then what needs pairs of candidates. At the end all lessons are mixed, some hidden behind long texts, while the learning
rate falls.

What is left out of training and of every choice on the way, for `analyses.judge` to test: the relational kinds that are
in no lesson, six and more candidates, other seeds, other instructions, and any question of a data set.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from kvattn.engine.compiler import PromptCompiler
from kvattn.engine.layout import PromptLayout
from kvattn.files import sha256
from kvattn.judge.readout import READOUTS
from kvattn.questions.orders import rotations
from kvattn.questions.prompt import JudgePrompt
from kvattn.questions.relational import KINDS, behind_work, relational
from kvattn.questions.synthetic import synthetic
from kvattn.study.repair.checkpoint import Checkpoint

BASE = "smollm2-135m"
LADDER = ("off-topic", "garbled", "slip")
SIZES = range(2, 6)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Lesson(NamedTuple):
    """One sort of prompts under one readout. kind: relational, or "ladder"; dressed: behind long solution texts."""

    kind: str
    readout: str = "label"
    dressed: bool = False

    def __str__(self) -> str:
        return " ".join(["dressed"] * self.dressed + [self.kind] + ["yes/no"] * (self.readout == "yesno"))


LESSONS = (
    Lesson("lookup"),
    Lesson("plurality"),
    Lesson("odd-one-out"),
    Lesson("lookup", "yesno"),
    Lesson("plurality", "yesno"),
    Lesson("link"),
    Lesson("contradiction"),
    Lesson("named"),
)
MIXED = (Lesson("lookup", dressed=True), Lesson("plurality", dressed=True), Lesson("ladder"), Lesson("ladder", "yesno"))
"""What is asked at the end, beside the lessons."""
EVERY = 20  # steps from one save to the next
TRAINED_KINDS = tuple(dict.fromkeys(x.kind for x in LESSONS))


@dataclass(frozen=True)
class Recipe:
    """How the adapter is trained.

    known:    share of the last 60 prompts of a lesson to be right before the next begins
    patience: steps of a lesson at most
    newest:   share of the steps that the newest lesson has
    floor:    weight of a lesson that is wholly known among those repeated or mixed; each has its misses beside it
    settle:   steps of all lessons mixed, while the rate falls
    tokens:   of a step's prompts together, behind their prefix, at most
    """

    known: float = 0.9
    patience: int = 100
    newest: float = 0.6
    floor: float = 0.2
    settle: int = 300
    tokens: int = 2000
    rate: float = 6e-4
    warmup: int = 10
    rank: int = 8
    alpha: int = 16


Series = Iterator[JudgePrompt]


def prompts(lesson: Lesson, seed: int) -> Series:
    """Endless prompts of a lesson, in random orders."""
    r = Random(f"lesson-{seed}-{lesson.kind}-{lesson.dressed}-{lesson.readout}")
    while True:
        at = r.randrange(2**40)
        if lesson.kind == "ladder":
            p = synthetic(1, at, r.choice(SIZES), ladder=[r.choice(LADDER)])[0]
            yield p.ordered(r.sample(range(p.n), p.n))
            continue
        n = r.choice([x for x in SIZES if x in KINDS[lesson.kind].sizes])
        drawn = relational(r.choice([1, 3, 5]), at, n, [lesson.kind])
        p = min(drawn, key=lambda p: sum(len(c.text) for c in p.candidates))
        if lesson.dressed:
            p = behind_work(p, at)
        yield p


@dataclass(frozen=True)
class Row:
    """One prompt under one readout.

    layout: as the judge compiles it; mask: [tokens, tokens], what each token sees; right: [slots]
    """

    layout: PromptLayout
    mask: Bool[Tensor, "tokens tokens"]
    right: Bool[Tensor, " slots"]

    @property
    def fresh(self) -> int:
        """Its tokens behind the prefix that all prompts share."""
        return len(self.layout) - self.layout.segments[0].stop


def row(compiler: PromptCompiler, prompt: JudgePrompt, readout: str) -> Row:
    """The prompt as `Row`. Branches do not see each other."""
    layout = compiler.compile(prompt, READOUTS[readout].ask(prompt.template))
    mask = torch.ones(len(layout), len(layout), dtype=torch.bool).tril()
    branches = [s for s in layout.segments if s.role == "branch"]
    for b in branches[1:]:
        mask[b.start : b.stop, branches[0].start : b.start] = False
    right = torch.tensor([bool(prompt.shown(s).correct) for s in range(prompt.n)])
    return Row(layout, mask, right)


def batches(compiler: PromptCompiler, lesson: Lesson, seed: int, tokens: int) -> Iterator[list[Row]]:
    """Rows of a lesson, as many prompts as fit, one at least; neighbours in length go together.

    A prompt stands there in all its rotations, so that no step teaches a slot. Under yes/no every slot is asked about
    anyway."""
    drawn = prompts(lesson, seed)
    while True:
        pool = [
            [
                row(compiler, p.ordered(o), lesson.readout)
                for o in (rotations(p.order) if lesson.readout == "label" else [p.order])
            ]
            for p in islice(drawn, 12)
        ]
        pool.sort(key=lambda rows: max(x.fresh for x in rows))
        parts: list[list[Row]] = [[]]
        for rows in pool:
            if parts[-1] and (len(parts[-1]) + len(rows)) * max(x.fresh for x in rows) > tokens:
                parts.append([])
            parts[-1] += rows
        Random(len(parts)).shuffle(parts)
        yield from parts


def loss_of(model, rows: Sequence[Row]) -> tuple[Tensor, list[bool]]:
    """The loss, and whether each row's choice is right. The prefix, the same for all rows, is computed once.

    A label's loss is that of the right labels together. Under yes/no it is every branch's own and, since the judge
    takes the slot with the largest margin, that of the right slots together by their margins."""
    from transformers import DynamicCache

    causal, start, device = model.get_base_model(), rows[0].layout.segments[0].stop, model.device
    width = max(x.fresh for x in rows)
    ids, positions = torch.zeros(2, len(rows), width, dtype=torch.long)
    mask = torch.eye(start + width, dtype=torch.bool)[start:].repeat(len(rows), 1, 1, 1)
    for i, x in enumerate(rows):
        n = x.fresh
        ids[i, :n], positions[i, :n] = x.layout.token_ids[start:], x.layout.positions[start:]
        mask[i, 0, :n, : len(x.layout)] = x.mask[start:]
    cache = DynamicCache(config=causal.config)
    causal.model(input_ids=rows[0].layout.token_ids[None, :start].to(device), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows))
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = causal.model(
        input_ids=ids.to(device),
        attention_mask=additive.to(device),
        position_ids=positions.to(device),
        past_key_values=cache,
        use_cache=True,
    )
    deciding = [states[[d - start for d in x.layout.decisions]] for x, states in zip(rows, hidden[0], strict=True)]
    logits = causal.lm_head(torch.cat(deciding)).cpu().split([len(d) for d in deciding])
    losses, right = [], []
    for x, of_row in zip(rows, logits, strict=True):
        said = of_row.log_softmax(-1)[:, list(x.layout.answer_ids)]
        if len(x.layout.decisions) == 1:
            scores = said[0]
            losses.append(-scores[x.right].logsumexp(0))
        else:
            scores = said[:, 0] - said[:, 1]
            losses.append(F.nll_loss(said, (~x.right).long()) - scores.log_softmax(0)[x.right].logsumexp(0))
        right.append(bool(x.right[scores.argmax()]))
    return torch.stack(losses).mean(), right


class Course:
    """Which lesson comes next, and when. It walks alike from the same seed and the same hits, and goes on from its
    notes.

    at:      the newest lesson's place; behind the last one all are mixed
    since:   steps since it began; settled: steps of all mixed
    recent:  whether the last prompts of each lesson were right
    drawn:   batches of each lesson so far
    """

    def __init__(self, seed: int, recipe: Recipe) -> None:
        self.recipe, self.random = recipe, Random(f"lessons-{seed}")
        self.at, self.since, self.settled = 0, 0, 0
        self.recent = {x: deque[bool](maxlen=60) for x in LESSONS + MIXED}
        self.drawn = dict.fromkeys(LESSONS + MIXED, 0)

    def next(self) -> Lesson:
        """The lesson of the next step."""
        if self.at == len(LESSONS):
            lesson = self._weak(LESSONS + MIXED)
            self.settled += 1
        else:
            newest = self.at == 0 or self.random.random() < self.recipe.newest
            lesson = LESSONS[self.at] if newest else self._weak(LESSONS[: self.at])
            self.since += 1
        self.drawn[lesson] += 1
        return lesson

    def _weak(self, lessons: Sequence[Lesson]) -> Lesson:
        """One of the lessons, the more often missed the likelier; all missed where none was asked."""
        missed = [1 - sum(hits) / len(hits) if (hits := self.recent[x]) else 1.0 for x in lessons]
        return self.random.choices(lessons, [self.recipe.floor + m for m in missed])[0]

    def hits(self, lesson: Lesson, right: Sequence[bool]) -> str | None:
        """Take in which prompts of a step were right; what to tell where a lesson ends with it."""
        self.recent[lesson].extend(right)
        if self.at == len(LESSONS):
            return None
        newest = LESSONS[self.at]
        recent = self.recent[newest]
        known = len(recent) == recent.maxlen and sum(recent) >= self.recipe.known * len(recent)
        if not known and self.since < self.recipe.patience:
            return None
        told = f"{newest}: {'known' if known else 'not known'} after {self.since} steps"
        self.at, self.since = self.at + 1, 0
        return told

    def notes(self) -> dict:
        """Where it stands, JSON-able."""
        plain = {name: getattr(self, name) for name in ("at", "since", "settled")}
        drawn = {str(x): n for x, n in self.drawn.items()}
        recent = {str(x): list(hits) for x, hits in self.recent.items()}
        return plain | {"recent": recent, "drawn": drawn, "random": self.random.getstate()}

    def go_on(self, notes: dict) -> None:
        """Stand where the notes say."""
        self.at, self.since, self.settled = (notes[name] for name in ("at", "since", "settled"))
        for x, hits in self.recent.items():
            hits.extend(notes["recent"][str(x)])
        self.drawn = {x: notes["drawn"][str(x)] for x in self.drawn}
        version, state, gauss = notes["random"]
        self.random.setstate((version, tuple(state), gauss))


def train(out: Path, seed: int, recipe: Recipe, log: Callable[[str], None], device: str = "cpu") -> None:
    """Train and save to `out`. It is saved on the way as it stands, and the same call goes on from there."""
    from peft import LoraConfig, get_peft_model

    from kvattn.models import load_pretrained

    torch.manual_seed(seed)
    base, tokenizer, info = load_pretrained(BASE, dtype="float32", device=device)
    compiler = PromptCompiler(tokenizer)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = list(trained.values())
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    log(f"{sum(p.numel() for p in weights)} numbers on {info.name}, {asdict(recipe)}")
    point, course = Checkpoint(out, {"base": BASE, "seed": seed} | asdict(recipe)), Course(seed, recipe)
    if point.step:
        point.restore(trained, optimizer)
        course.go_on(point.notes)
        log(f"step {point.step}: going on")
    drawn = {x: islice(batches(compiler, x, seed, recipe.tokens), n, None) for x, n in course.drawn.items()}
    began, seen, losses = time.time(), defaultdict(list), []
    while course.settled < recipe.settle:
        lesson = course.next()
        falling = 0.05 + 0.475 * (1 + math.cos(math.pi * course.settled / recipe.settle))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1.0, (point.step + 1) / recipe.warmup) * falling
        loss, right = loss_of(model, next(drawn[lesson]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        point.step += 1
        losses.append(float(loss.detach()))
        seen[lesson].extend(right)
        ended = course.hits(lesson, right)
        if ended:
            log(f"step {point.step}, {ended}")
        if point.step % EVERY == 0:
            told = ", ".join(f"{x} {sum(hits) / len(hits):.2f}" for x, hits in seen.items())
            log(f"step {point.step}, {time.time() - began:.0f} s; loss {sum(losses) / len(losses):.2f}; right: {told}")
            seen, losses = defaultdict(list), []
        if point.step % EVERY == 0 or course.settled == recipe.settle:
            point.notes = course.notes()
            point.save(trained, optimizer)
            save(model, out, seed, point.step, recipe)


def save(model, out: Path, seed: int, steps: int, recipe: Recipe) -> None:
    """The adapter in PEFT's format, in fp16, with its recipe."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(out, safe_serialization=True)
    file = out / "adapter_model.safetensors"
    save_file({k: v.half() for k, v in load_file(file).items()}, file, {"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": BASE}, indent=2) + "\n")
    record = {
        "base": BASE,
        "command": f"python -m analyses.train_judge --out FOLDER --seed {seed}",
        "seed": seed,
        "steps": steps,
        "device": model.device.type,
        "recipe": asdict(recipe),
        "lessons": [str(x) for x in LESSONS + MIXED],
        "versions": {p: metadata.version(p).split("+")[0] for p in ("torch", "transformers", "peft")},
        "sha256": {"adapter_model.safetensors": sha256(file)},
    }
    (out / "kvattn.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the judge that ships.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    train(args.out, args.seed, recipe, lambda text: print(text, flush=True), args.device)


if __name__ == "__main__":
    main()
