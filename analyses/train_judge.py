"""Train the judge that ships: `python -m analyses.train_judge --out FOLDER [--seed 0]`.

A LoRA adapter on all linear layers of SmolLM2-135M. Each step judges a few prompts under the label or the yes/no
readout, as the judge compiles them. First the judge learns to bind a label to what is said (lookup), then to count who
says what (plurality).

What is left out of training and of every choice on the way, for `analyses.judge` to test: the other relational kinds,
six and more candidates, other seeds, other instructions, and any question of a data set.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from random import Random

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
from kvattn.questions.relational import KINDS, relational
from kvattn.questions.synthetic import synthetic

BASE = "smollm2-135m"
TRAINED_KINDS = {"lookup": 1, "plurality": 1}  # how often
LADDER = ("off-topic", "garbled", "slip")
SIZES = range(2, 6)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """How the adapter is trained.

    lookup: steps at the start on lookup alone; tokens: of a step's prompts together, behind their prefix, at most
    yesno:  share of the steps of the last third under the yes/no readout
    shares: how often a step's prompts are short relational ones, the same behind long texts, ladder problems
    """

    steps: int = 220
    lookup: int = 90
    tokens: int = 1000
    yesno: float = 0.3
    rate: float = 1.2e-3
    warmup: int = 10
    rank: int = 8
    alpha: int = 16
    shares: tuple[float, float, float] = (0.8, 0.12, 0.08)


Series = Iterator[JudgePrompt]


def series(seed: int, lookup_only: bool = False) -> dict[str, Series]:
    """Endless prompts of each sort, in random orders."""
    r = Random(f"series-{seed}-{lookup_only}")

    def short() -> Series:
        for i in count():
            kind = "lookup" if lookup_only else r.choices(list(TRAINED_KINDS), list(TRAINED_KINDS.values()))[0]
            n = r.choice([x for x in SIZES if x in KINDS[kind].sizes])
            drawn = [relational(1, seed * 1_000_003 + 7 * i + k, n, [kind])[0] for k in range(r.choice([1, 3, 5]))]
            yield min(drawn, key=lambda p: sum(len(c.text) for c in p.candidates))

    def dressed() -> Series:
        for i, p in enumerate(short()):
            others = synthetic(p.n, seed * 1_000_003 + 11 * i, 2)
            bodies = [x.candidates[0].text.rpartition(" The answer is")[0] for x in others]
            yield replace(
                p, candidates=tuple(replace(c, text=f"{b} {c.text}") for c, b in zip(p.candidates, bodies, strict=True))
            )

    def ladder() -> Series:
        for i in count():
            p = synthetic(1, seed * 1_000_003 + 13 * i, r.choice(SIZES), ladder=[r.choice(LADDER)])[0]
            yield p.ordered(r.sample(range(p.n), p.n))

    return {"short": short(), "dressed": dressed(), "ladder": ladder()}


@dataclass(frozen=True)
class Row:
    """One prompt under one readout.

    layout: as the judge compiles it; mask: [tokens, tokens], what each token sees; right: [slots]
    kind:   of a relational question, "" for others
    """

    layout: PromptLayout
    mask: Bool[Tensor, "tokens tokens"]
    right: Bool[Tensor, " slots"]
    kind: str

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
    return Row(layout, mask, right, getattr(prompt, "kind", ""))


def batches(compiler: PromptCompiler, prompts: Series, readout: str, tokens: int) -> Iterator[list[Row]]:
    """Rows of one sort under one readout, as many prompts as fit, one at least; neighbours in length go together.

    A prompt stands there in all its rotations, so that no step teaches a slot. Under yes/no every slot is asked about
    anyway."""
    while True:
        pool = [
            [row(compiler, p.ordered(o), readout) for o in (rotations(p.order) if readout == "label" else [p.order])]
            for p in islice(prompts, 12)
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

    causal, start = model.get_base_model(), rows[0].layout.segments[0].stop
    width = max(x.fresh for x in rows)
    ids, positions = torch.zeros(2, len(rows), width, dtype=torch.long)
    mask = torch.eye(start + width, dtype=torch.bool)[start:].repeat(len(rows), 1, 1, 1)
    for i, x in enumerate(rows):
        n = x.fresh
        ids[i, :n], positions[i, :n] = x.layout.token_ids[start:], x.layout.positions[start:]
        mask[i, 0, :n, : len(x.layout)] = x.mask[start:]
    cache = DynamicCache(config=causal.config)
    causal.model(input_ids=rows[0].layout.token_ids[None, :start], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows))
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    hidden = causal.model(
        input_ids=ids, attention_mask=additive, position_ids=positions, past_key_values=cache, use_cache=True
    )
    losses, right = [], []
    for x, states in zip(rows, hidden.last_hidden_state, strict=True):
        said = causal.lm_head(states[[d - start for d in x.layout.decisions]]).log_softmax(-1)[
            :, list(x.layout.answer_ids)
        ]
        if len(x.layout.decisions) == 1:
            scores = said[0]
            losses.append(-scores[x.right].logsumexp(0))
        else:
            scores = said[:, 0] - said[:, 1]
            losses.append(F.nll_loss(said, (~x.right).long()) - scores.log_softmax(0)[x.right].logsumexp(0))
        right.append(bool(x.right[scores.argmax()]))
    return torch.stack(losses).mean(), right


def train(out: Path, seed: int, recipe: Recipe, log: Callable[[str], None]) -> None:
    """Train and save to `out`, with a copy every 20 steps."""
    from peft import LoraConfig, get_peft_model

    from kvattn.models import load_pretrained

    torch.manual_seed(seed)
    base, tokenizer, info = load_pretrained(BASE, dtype="float32")
    compiler = PromptCompiler(tokenizer)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=LINEAR, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    log(f"{sum(p.numel() for p in weights)} numbers on {info.name}, {asdict(recipe)}")

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / recipe.steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    r = Random(f"sorts-{seed}")
    early, late = (
        {
            (sort, readout): batches(compiler, prompts, readout, recipe.tokens)
            for readout in ("label", "yesno")
            for sort, prompts in series(seed + which, lookup_only=which == 0).items()
        }
        for which in (0, 1)
    )
    sorts = ["short", "dressed", "ladder"]
    began, seen, losses = time.time(), defaultdict(list), []
    for step in range(recipe.steps):
        at_start = step < recipe.lookup
        sort = "short" if at_start else r.choices(sorts, recipe.shares)[0]
        readout = "yesno" if 3 * step > 2 * recipe.steps and r.random() < recipe.yesno else "label"
        rows = next((early if at_start else late)[sort, readout])
        loss, right = loss_of(model, rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        for x, hit in zip(rows, right, strict=True):
            seen[f"{sort} {x.kind} {readout}"].append(hit)
        if (step + 1) % 20 == 0:
            told = ", ".join(f"{s} {sum(hits) / len(hits):.2f}" for s, hits in sorted(seen.items()))
            log(f"step {step + 1}, {time.time() - began:.0f} s; loss {sum(losses) / len(losses):.2f}; right: {told}")
            seen, losses = defaultdict(list), []
        if (step + 1) % 20 == 0 or step + 1 == recipe.steps:
            save(model, out, seed, step + 1, recipe)


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
        "recipe": asdict(recipe),
        "kinds": TRAINED_KINDS,
        "ladder": LADDER,
        "versions": {p: metadata.version(p).split("+")[0] for p in ("torch", "transformers", "peft")},
        "sha256": {"adapter_model.safetensors": sha256(file)},
    }
    (out / "kvattn.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the judge that ships.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--rate", type=float, default=Recipe.rate)
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, tokens=args.tokens, rate=args.rate)
    train(args.out, args.seed, recipe, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
