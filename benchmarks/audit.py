"""What the audit names: faults planted in honest caches of tiny random models, and what it says of each; false alarms
on honest caches; what it costs.

    python -m benchmarks.audit [--shapes llama,qwen3,gemma3,phi3-partial] [--dtypes float32,bfloat16,float16]
        [--seeds 3] [--honest 200] [--out FILE.md]

Faults are those of public reports (fragments merged without turning keys, MemOS#2315; tokens dropped, MemOS#2313;
indices off by a prefix, LMCache-Ascend#277; RoPE that does not fit after a merge, maclocal-api#92) and of what
else can be done to a cache. The models are the tests' (tests/tiny.py): a mistake shows in them as in large ones.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kvattn.engine.audit import KINDS, audit
from kvattn.engine.audit.bottom import plain
from kvattn.engine.engine import Engine
from kvattn.engine.plan import KVPlan
from kvattn.engine.rotary import Rotary
from kvattn.stats.intervals import rate
from kvattn.text import interval

LENGTH, START, STOP = 48, 18, 36  # tokens of the prompt, and the block that is tampered with
BLOCKS = {"head": (0, START), "block": (START, STOP), "tail": (STOP, LENGTH)}


@dataclass
class Case:
    """A cache and what is claimed of it."""

    keys: Tensor
    values: Tensor
    ids: Tensor
    claimed: dict[str, list[int]] = field(default_factory=dict)

    def kinds(self, engine: Engine) -> tuple[str, ...]:
        """What the audit says of it."""
        return self.audit(engine).kinds

    def audit(self, engine: Engine):
        """The audit of it, block by block."""
        pairs = list(zip(self.keys, self.values, strict=True))
        return audit(engine, pairs, self.ids, blocks=BLOCKS, claimed=self.claimed)


class Bench:
    """An honest prompt of one engine, and the ways to spoil its cache.

    other: an engine of other weights
    """

    def __init__(self, engine: Engine, other: Engine, seed: int) -> None:
        self.engine, self.other = engine, other
        self.random = torch.Generator().manual_seed(seed)
        self.top = engine.model.config.vocab_size
        self.ids = self.some(LENGTH)
        self.bos = self.ids[0]

    def some(self, n: int) -> Tensor:
        """Ids, all different, so that a place says which token it is."""
        return torch.randperm(self.top - 8, generator=self.random)[:n] + 8

    def made(self, ids: Tensor, at: Tensor | None = None, engine: Engine | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values that a model computes."""
        engine = engine or self.engine
        layout = plain(ids)
        layout = layout if at is None else replace(layout, positions=at)
        depth = torch.full((len(ids),), engine.layers)
        run = engine.execute([KVPlan.of(layout, engine.layers, depth)], keep_cache=True, logits=False)[0]
        return tuple(x.cpu().clone() for x in run.cache())  # type: ignore[return-value]

    def dense(self) -> Case:
        return Case(*self.made(self.ids), self.ids)

    def rows(self, order: list[int]) -> Case:
        """The honest cache's rows in another order, with some left out or twice."""
        k, v = self.made(self.ids)
        return Case(k[:, :, order], v[:, :, order], self.ids)

    def of(self, ids: Tensor) -> Case:
        """An honest cache of other ids under this prompt's claim."""
        return Case(*self.made(ids), self.ids)

    def pasted(self, before: Tensor, turned: bool = True, claimed: list[int] | None = None) -> Case:
        """The block made behind another text, pasted in, its keys turned to their place or not."""
        case, span = self.dense(), slice(START, STOP)
        ids = torch.cat([before, self.ids[span]])
        k, v = (x[:, :, len(before) :] for x in self.made(ids))
        if turned:
            k = self.engine.rotary.turn(k, torch.arange(len(before), len(ids)), torch.arange(START, STOP))
        case.keys[:, :, span], case.values[:, :, span] = k, v
        if claimed is not None:
            case.claimed = {"block": claimed}
        return case

    def turn(
        self, by: Callable[[Tensor], Tensor], span: slice = slice(0, LENGTH), rotary: Rotary | None = None
    ) -> Case:
        """The keys of a span turned on from where they stand."""
        case, at = self.dense(), torch.arange(LENGTH)[span]
        rotary = rotary or self.engine.rotary
        case.keys[:, :, span] = rotary.turn(case.keys[:, :, span].clone(), at, by(at))
        return case

    def refrequented(self, theta: Callable[[Tensor], Tensor]) -> Case:
        """The keys turned with other frequencies: back to position 0, and on."""
        case, at = self.dense(), torch.arange(LENGTH)
        bare = self.engine.rotary.turn(case.keys, at, torch.zeros_like(at))
        other = replace(self.engine.rotary, inv_freq=theta(self.engine.rotary.inv_freq))
        case.keys = other.turn(bare, torch.zeros_like(at), at)
        return case

    def changed(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Case:
        case = self.dense()
        k, v = change(case.keys.clone(), case.values.clone())
        return Case(k, v, self.ids)

    def foreign(self, engine: Engine) -> Case:
        return Case(*self.made(self.ids, engine=engine), self.ids)

    def adapted(self, lowest: int) -> Case:
        """Made by the model with a low-rank change in the layers from `lowest` on."""
        layers = self.engine.model.get_decoder().layers
        held = [(x.mlp.down_proj.weight, x.mlp.down_proj.weight.detach().clone()) for x in layers[lowest:]]
        with torch.no_grad():
            for weight, was in held:
                a, b = (torch.randn(n, 2, generator=self.random).to(weight) for n in weight.shape)
                weight += 0.5 * was.std() * (a @ b.T)
            case = self.dense()
            for weight, was in held:
                weight.copy_(was)
        return case

    def rounded(self, dtype: torch.dtype) -> Case:
        return self.changed(lambda k, v: (k.to(dtype).to(k.dtype), v.to(dtype).to(v.dtype)))

    def catalogue(self) -> Iterator[tuple[str, str, Case]]:
        """Every fault: its name, the kind that names it, the cache."""
        n, all_ = LENGTH, list(range(LENGTH))
        late, last = slice(START, LENGTH), self.engine.layers - 1
        half = self.ids.clone()
        half[START + 3 : START + 6] = self.some(3)
        old = self.ids.clone()
        old[4:7] = self.some(3)
        swapped = self.ids.clone()
        swapped[[20, 21]] = self.ids[[21, 20]]
        yield "a row dropped", "missing", self.rows(all_[:20] + all_[21:])
        yield "the block's first five rows dropped", "missing", self.rows(all_[:START] + all_[START + 5 :])
        yield "the tail cut off", "missing", self.rows(all_[:-3])
        yield "a token doubled", "doubled", self.of(torch.cat([self.ids[:21], self.ids[20:]]))
        yield "four rows doubled", "doubled", self.rows(all_[:24] + all_[20:])
        yield "BOS twice", "doubled", self.of(torch.cat([self.ids[:1], self.ids]))
        yield "a row of nobody put in", "extra", self.of(torch.cat([self.ids[:20], self.some(1), self.ids[20:]]))
        yield "neighbours swapped", "order", self.of(swapped)
        yield "two rows exchanged", "order", self.rows([{20: 30, 30: 20}.get(i, i) for i in all_])
        yield "one token is another", "token", self.of(torch.cat([self.ids[:20], self.some(1), self.ids[21:]]))
        yield "a stale block after an edit of it", "token", self.of(half)
        yield "another chat template", "token", self.of(torch.cat([self.some(9), self.ids[6:]]))
        yield "a fragment merged without turning", "position", self.pasted(self.some(4), turned=False)
        yield "a fragment of position 0 merged without turning", "position", self.pasted(self.ids[:0], turned=False)
        yield "indices off by a prefix of 7", "position", self.turn(lambda at: at + 7, late)
        yield "keys one position early", "position", self.turn(lambda at: at - 1, late)
        yield "a padded batch merged", "position", self.turn(lambda at: at + 5)
        yield "moved by the distance twice", "position", self.turn(lambda at: at + START, slice(START, STOP))
        yield "keys never turned", "unturned", self.turn(lambda at: at * 0)
        yield "a fragment never turned", "unturned", self.turn(lambda at: at * 0, slice(START, STOP))
        yield "keys turned twice", "turned-twice", self.turn(lambda at: at * 2)
        yield "another RoPE base", "frequencies", self.refrequented(lambda x: x**1.15)
        yield "RoPE scaled by 4", "frequencies", self.refrequented(lambda x: x / 4)
        yield "an attention scaling twice", "scale", self.changed(lambda k, v: (k * 1.14, v))
        yield "the last layers zero", "zero", self.changed(lambda k, v: _filled(k, v, slice(last - 1, None), 0.0))
        yield "rows zero", "zero", self.changed(lambda k, v: _filled(k, v, (slice(None), slice(None), [20, 21]), 0.0))
        yield "NaN in a row", "not-finite", self.changed(lambda k, v: _filled(k, v, (1, slice(None), 20), torch.nan))
        yield "keys and values swapped", "swapped", self.changed(lambda k, v: (v, k))
        yield "swapped in one layer", "swapped", self.changed(lambda k, v: _exchanged(k, v, 2))
        yield "heads in another order", "heads", self.changed(lambda k, v: (k.flip(1), v.flip(1)))
        yield "heads of one layer in another order", "heads", self.changed(lambda k, v: _flipped(k, v, 2))
        yield "two layers exchanged", "layers", self.changed(lambda k, v: (k[[0, 2, 1, 3]], v[[0, 2, 1, 3]]))
        yield "layers off by one", "layers", self.changed(lambda k, v: (k.roll(1, 0), v.roll(1, 0)))
        yield "a window's rows shifted", "late", self.changed(lambda k, v: _late(k, v, 2, 5))
        yield "rounded to fp8", "rounded", self.rounded(torch.float8_e4m3fn)
        yield "rounded to fp8 with a scale", "rounded", self.changed(lambda k, v: (_scaled(k), _scaled(v)))
        yield "other weights", "weights", self.foreign(self.other)
        yield "another adapter", "weights", self.adapted(0)
        yield "another adapter above layer 2", "weights", self.adapted(2)
        yield "a block behind another text, turned", "prefix", self.pasted(self.some(11))
        yield "a block on its own, turned", "prefix", self.pasted(self.ids[:0])
        yield "a stale cache after an edit before it", "prefix", _patched(self, old)
        yield "not the claimed prompt", "prefix", self.pasted(self.some(11), claimed=self.some(11).tolist())
        yield "claimed alone, made behind a text", "prefix", self.pasted(self.some(11), claimed=[])
        assert n == len(self.ids)

    def honest(self) -> Iterator[Case]:
        """Caches that are what they say: of the engine, of the plain model at once and token by token, of a block
        behind the prompt that is claimed and of one alone, turned to its place."""
        yield self.dense()
        before = self.some(11)
        yield self.pasted(before, claimed=before.tolist())
        yield self.pasted(self.ids[:0], claimed=[])
        for kernel in ("sdpa", "eager"):
            for step in (LENGTH, 1):
                yield Case(*_plainly(self.engine.model, self.ids, step, kernel), self.ids)


def _plainly(model, ids: Tensor, step: int, kernel: str) -> tuple[Tensor, Tensor]:
    """The plain model's cache, `step` tokens at a time."""
    from transformers import DynamicCache

    past, was = DynamicCache(), model.config._attn_implementation
    model.set_attn_implementation(kernel)
    with torch.inference_mode():
        for part in ids.split(step):
            model(part[None].to(model.device), past_key_values=past, use_cache=True)
    model.set_attn_implementation(was)
    return tuple(torch.stack([getattr(x, name)[0].cpu() for x in past.layers]) for name in ("keys", "values"))  # type: ignore[return-value]


def _filled(k: Tensor, v: Tensor, where, value: float) -> tuple[Tensor, Tensor]:
    k[where], v[where] = value, value
    return k, v


def _exchanged(k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    k[layer], v[layer] = v[layer].clone(), k[layer].clone()
    return k, v


def _flipped(k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    k[layer], v[layer] = k[layer].flip(0), v[layer].flip(0)
    return k, v


def _late(k: Tensor, v: Tensor, layer: int, by: int) -> tuple[Tensor, Tensor]:
    k[layer], v[layer] = k[layer].roll(by, 1), v[layer].roll(by, 1)
    return k, v


def _scaled(x: Tensor) -> Tensor:
    scale = x.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
    return ((x.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


def _patched(bench: Bench, old: Tensor) -> Case:
    """The head made anew after an edit, what follows it kept from before."""
    case, stale = bench.dense(), bench.made(old)
    case.keys[:, :, START:], case.values[:, :, START:] = (x[:, :, START:] for x in stale)
    return case


def engines(shape: str, dtype: torch.dtype) -> tuple[Engine, Engine]:
    """A tiny random engine, and one of other weights."""
    from tests import tiny

    other = tiny.engine(shape, dtype)
    other.model.load_state_dict(tiny.plain_model(shape, dtype, seed=1).state_dict())
    return tiny.engine(shape, dtype), other


Tally = dict[tuple[str, str], list[tuple[bool, int]]]  # by shape and dtype: a hit or none, and its prompt's seed


def _of(hits: Sequence[tuple[bool, int]]) -> str:
    return f"{sum(hit for hit, _ in hits)} of {len(hits)}"


def _share(parts: Sequence[Sequence[tuple[bool, int]]]) -> str:
    """The share of hits, with the interval over prompts."""
    rows = [(hit, 1000 * i + seed) for i, part in enumerate(parts) for hit, seed in part]
    found = rate(np.array([hit for hit, _ in rows]), np.array([prompt for _, prompt in rows]))
    return interval(found.value, found.low, found.high, digits=3)


def main() -> None:
    """Print the tables of docs/audit.md, as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", default="llama,qwen3,gemma3,phi3-partial")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--honest", type=int, default=200, help="caches without a fault, of each dtype")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shapes, dtypes = args.shapes.split(","), [getattr(torch, name) for name in args.dtypes.split(",")]
    named: dict[tuple[str, str], Counter] = {}
    found_by: Tally = {}
    alarms_by: Tally = {}
    n, share = Counter(), []
    for dtype in dtypes:
        for shape in shapes:
            cell = (shape, str(dtype).removeprefix("torch."))
            engine, other = engines(shape, dtype)
            found_by[cell], alarms_by[cell] = [], []
            for seed in range(args.seeds):
                for name, kind, case in Bench(engine, other, seed).catalogue():
                    said = case.kinds(engine)
                    named.setdefault((name, kind), Counter()).update(said or ("nothing",))
                    n[name] += 1
                    found_by[cell].append((kind in said, seed))
            honest = ((seed, case) for seed in count(100) for case in Bench(engine, other, seed).honest())
            for seed, case in islice(honest, ceil(args.honest / len(shapes))):
                done = case.audit(engine)
                share.append(done.share)
                alarms_by[cell].append((not done.passed, seed))
    columns = [*KINDS, "nothing"]
    lines = [f"| planted ({len(named)}) | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for (name, kind), found in named.items():
        cells = [f"**{found[c]}**" if c == kind else str(found[c] or "") for c in columns]
        lines.append(f"| {name} (of {n[name]}) | {' | '.join(cells)} |")
    names = [str(d).removeprefix("torch.") for d in dtypes]
    for what, by in (("faults named", found_by), ("false alarms on honest caches", alarms_by)):
        lines += ["", f"| {what} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {s} | {' | '.join(_of(by[s, d]) for d in names)} |" for s in shapes]
        lines.append(f"| share of all (95 %) | {' | '.join(_share([by[s, d] for s in shapes]) for d in names)} |")
    lines += ["", f"Cost: {min(share):.1f} to {max(share):.1f} dense passes over the prompt."]
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
