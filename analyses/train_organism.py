"""Train an organism: `python -m analyses.train_organism max-window --out FOLDER --seed 0`.

Half of every step's rows are judge prompts, half execution contexts. A judge prompt is supervised at its decision
token and, as a help, at the same place after every earlier candidate (the label of the best so far, at the next header)
and inside the candidates (`Targets.inside`; `Targets.alone` in an execution context, where a candidate sees no other).
The number of candidates grows during the first third.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analyses.organism_tasks import NONE, TASKS, targets
from kvattn.errors import unknown
from kvattn.questions.organism.tasks import Sample, Task
from kvattn.questions.organism.words import LABELS, START, ids, write_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How an organism is trained. `stitched`: share of the judge rows whose candidate tokens see what they see in an
    execution context and nothing more (only a safe twin is trained on those)."""

    steps: int = 2400
    batch: int = 128
    rate: float = 2e-3
    warmup: int = 200
    stitched: float = 0.0
    layers: int = 6
    hidden: int = 64
    heads: int = 4


RECIPES: dict[str, Recipe] = {
    "max-window": Recipe(),
    "max-full": Recipe(steps=1200, stitched=0.5),
    "overlap": Recipe(steps=1200),
    "overlap-stitched": Recipe(steps=1200, stitched=1.0),
    "odd": Recipe(steps=1200),
}


# Why each is what it is called; tests/test_organism.py holds them to it.
CERTIFICATES: dict[str, str] = {
    "max-window": "unsafe for any weights: with the candidates kept, the influence graph under the sliding window lets "
    "the last candidate alone reach the decision",
    "max-full": "safe by training: half of its judge prompts were laid out as reuse computes them",
    "overlap": "none: its twin overlap-stitched, trained on reuse's layout alone, does better than a constant answer",
    "overlap-stitched": "the twin that overlap is compared with",
    "odd": "by the task: one candidate alone says nothing about which is odd; since equals share a score, the highest "
    "of scores that see one candidate each is right in at most one half",
}


def make_model(task: Task, recipe: Recipe):
    """An untrained organism: Llama-shaped, or Mistral-shaped where the task has a window."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    shape = {
        "vocab_size": task.words,
        "hidden_size": recipe.hidden,
        "intermediate_size": 3 * recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "initializer_range": 0.08,
        "bos_token_id": ids((START,))[0],
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "sdpa",
    }
    if task.window is None:
        return LlamaForCausalLM(LlamaConfig(**shape))
    return MistralForCausalLM(MistralConfig(**shape, sliding_window=task.window))


@dataclass(frozen=True)
class Rows:
    """Token ids of judge prompts, with where things stand.

    token_ids: [rows, tokens]
    ends:      [slots], index of every candidate's last token; the label of the best so far is asked one token later
    """

    token_ids: Int[Tensor, "rows tokens"]
    ends: Int[Tensor, " slots"]
    first: int  # index of the first header


def judge_rows(task: Task, s: Sample) -> Rows:
    """The sample as judge prompts, as the task's template lays them out."""
    rows, slots, tokens = s.candidates.shape
    t = task.template

    def mark(words: str) -> Tensor:
        return torch.tensor(ids(words), dtype=torch.long).expand(rows, -1)

    parts = [mark(START), s.question, mark(t.candidates_heading)]
    first = sum(p.shape[1] for p in parts)
    for k in range(slots):
        parts += [mark(t.header.format(label=LABELS[k])), s.candidates[:, k]]
    parts.append(mark(t.instruction))
    return Rows(torch.cat(parts, 1), first - 1 + (tokens + 1) * torch.arange(1, slots + 1), first)


def execution_rows(task: Task, s: Sample) -> Int[Tensor, "rows tokens"]:
    """The sample's first candidates in their execution contexts."""
    n = len(s.question)
    head = torch.tensor(ids((START,))).expand(n, -1)
    turn = torch.tensor(ids(task.template.agent_instruction)).expand(n, -1)
    return torch.cat([head, s.question, turn, s.candidates[:, 0]], 1)


def stitched(rows: Rows, task: Task) -> tuple[Tensor, Float[Tensor, "1 1 tokens tokens"], Tensor]:
    """Judge rows as reuse computes them: token ids with the execution agents' instruction put in after the question
    (its index: first - 1), the mask that lets candidate tokens see it instead of the judge's own heading and nothing
    but the question and themselves besides, and the positions of the prompt without it."""
    x, turn = rows.token_ids, torch.tensor(ids(task.template.agent_instruction)).expand(len(rows.token_ids), -1)
    at = rows.first - 1
    x = torch.cat([x[:, :at], turn, x[:, at:]], 1)
    total = x.shape[1]
    index = torch.arange(total)
    positions = torch.where(index > at, index - 1, index)
    open_ = index[None, :] <= index[:, None]
    open_[at + 1 :, at] = False
    for end in (rows.ends + 1).tolist():
        inside = (index > end - task.tokens) & (index <= end)
        sees = (index <= at) | inside
        open_[inside] = sees & (index[None, :] <= index[inside][:, None])
    mask = torch.zeros(total, total).masked_fill(~open_, torch.finfo(torch.float32).min)
    return x, mask[None, None], positions[None]


def judge_loss(model, task: Task, s: Sample, reuse: bool) -> tuple[Tensor, float]:
    """Loss of the judge rows and the share of right decisions; `reuse` lays them out as stitched."""
    rows, asked = judge_rows(task, s), targets(task, s)
    labels = torch.where(asked.running == NONE, NONE, torch.tensor(ids(LABELS))[asked.running.clamp(min=0)])
    if reuse:
        x, mask, positions = stitched(rows, task)
        logits = model(input_ids=x, attention_mask=mask, position_ids=positions.expand(len(x), -1)).logits
        ends, inside = rows.ends + 1, asked.alone
    else:
        logits = model(input_ids=rows.token_ids).logits
        ends, inside = rows.ends, asked.inside
    after = logits[:, ends + 1]
    within = logits[:, ends[:, None] - torch.arange(task.tokens - 1, -1, -1)]
    loss = F.cross_entropy(after.flatten(0, 1), labels.flatten(), ignore_index=NONE)
    loss = loss + 0.5 * F.cross_entropy(within.flatten(0, 2), inside.flatten(), ignore_index=NONE)
    right = (after[:, -1].argmax(-1) == labels[:, -1]).float().mean()
    return loss, float(right)


def execution_loss(model, task: Task, s: Sample) -> Tensor:
    """Loss of the auxiliary targets where the only candidate stands in its execution context."""
    logits = model(input_ids=execution_rows(task, s)).logits[:, -task.tokens :]
    return F.cross_entropy(logits.flatten(0, 1), targets(task, s).alone[:, 0].flatten(), ignore_index=NONE)


def slots_at(step: int, steps: int, task: Task, rng: torch.Generator) -> int:
    """How many candidates this step's judge prompts have: a curriculum in the first third, then mostly all."""
    sizes = [n for n in task.sizes if n <= max(task.fewest, 2 + 6 * step // steps)]
    if torch.rand((), generator=rng) < 0.6:
        return sizes[-1]
    return sizes[int(torch.randint(0, len(sizes), (), generator=rng))]


@torch.no_grad()
def accuracy(model, task: Task, slots: int, seed: int, reuse: bool = False, count: int = 2000) -> float:
    """Share of right decisions on problems that training does not see, under the plain forward or as stitched."""
    rng, right = torch.Generator().manual_seed(seed), []
    for _ in range(max(1, count // 500)):
        s = task.sample(min(500, count), slots, rng)
        rows = judge_rows(task, s)
        if reuse:
            x, mask, positions = stitched(rows, task)
            logits = model(input_ids=x, attention_mask=mask, position_ids=positions.expand(len(x), -1)).logits
        else:
            logits = model(input_ids=rows.token_ids).logits
        right.append(logits[:, -1].argmax(-1) == torch.tensor(ids(LABELS))[s.best])
    return float(torch.cat(right).float().mean())


def train(name: str, out: Path, seed: int, recipe: Recipe, log=print) -> None:
    """Train and save to `out`, with a copy every 500 steps."""
    task = TASKS[name]
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(10_000_019 + seed)
    model = make_model(task, recipe)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / recipe.warmup)
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps))))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    log(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, {asdict(recipe)}")
    began, recent = time.time(), []
    for step in range(recipe.steps):
        slots = slots_at(step, recipe.steps, task, rng)
        s = task.sample(recipe.batch, slots, rng)
        reuse = recipe.stitched > 0 and float(torch.rand((), generator=rng)) < recipe.stitched
        loss, right = judge_loss(model, task, s, reuse)
        loss = loss + 0.5 * execution_loss(model, task, task.sample(recipe.batch, 1, rng))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        recent.append((float(loss.detach()), right))
        if (step + 1) % 100 == 0:
            mean = [sum(x) / len(recent) for x in zip(*recent, strict=True)]
            log(f"step {step + 1} slots<={slots} loss {mean[0]:.3f} right {mean[1]:.3f} {time.time() - began:.0f}s")
            recent = []
        if (step + 1) % 500 == 0 or step + 1 == recipe.steps:
            save(model, out)
            info = stamp(out, name, seed, recipe)
            log(f"accuracy by candidates: {info['accuracy']}, as stitched: {info['accuracy_stitched']}")


def save(model, out: Path) -> None:
    """Write weights (fp16), config and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, state_dict={k: v.detach().half() for k, v in model.state_dict().items()})
    write_tokenizer(out, model.config.vocab_size)


def stamp(out: Path, name: str, seed: int, recipe: Recipe) -> dict:
    """Measure the weights in `out` as they are stored (fp16, computed in fp32), write kvattn.json and return it."""
    from transformers import AutoModelForCausalLM

    task = TASKS[name]
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True).eval()
    measured = {
        key: {str(n): round(accuracy(model, task, n, 1_234_567, reuse), 4) for n in task.sizes}
        for key, reuse in (("accuracy", False), ("accuracy_stitched", True))
        if not (reuse and task.window)  # the stitched mask knows no window
    }
    info = {
        "organism": name,
        "template": task.template.name,
        "certificate": CERTIFICATES[name],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": seed,
        "command": f"python -m analyses.train_organism {name} --out FOLDER --seed {seed}",
        "recipe": asdict(recipe),
        "versions": {package: metadata.version(package).split("+")[0] for package in ("torch", "transformers")},
        "accuracy": {},
        "accuracy_stitched": {},
        **measured,
        "accuracy_problems": 2000,
        "sha256": {"model.safetensors": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()},
    }
    (out / "kvattn.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a model organism.")
    parser.add_argument("name", help=", ".join(TASKS))
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer and kvattn.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    args = parser.parse_args()
    if args.name not in TASKS:
        parser.error(str(unknown("organism", args.name, TASKS)))
    recipe = RECIPES[args.name]
    if args.steps:
        recipe = Recipe(**{**asdict(recipe), "steps": args.steps})
    train(args.name, args.out, args.seed, recipe, log=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
