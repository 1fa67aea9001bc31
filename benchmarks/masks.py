"""What 32,768 tokens take beside the cache, in float32 and batch 1: masks with no model at all, and whole executions of
the attention-bound random Llama.

    python -m benchmarks.masks [--tiny]

Masks are made for 1,024 queries at once, once for all layers of one rule and window, and let go of before the next.
What an execution takes above its cache does not grow with layers: they run one after another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import kit
from kvattn.engine.plan import KVBlock, KVPlan, Visibility, dense_plan, keep
from kvattn.engine.queries import Pass

TOKENS, CHUNK, LAYERS, RUN = 32_768, 1024, 32, 2


def isolated(tokens: int, layers: int = LAYERS) -> KVPlan:
    """Candidates that do not see each other."""
    x = kit.layout(512, tokens)
    return dense_plan(x, layers, Visibility.isolated(x))


def masks(tokens: int) -> Callable[[], None]:
    """All masks of one execution, in the order in which layers ask for them."""

    def make() -> None:
        current = Pass([isolated(tokens)], (None,) * LAYERS, 0)
        for at in range(0, tokens, CHUNK):
            current.stand(torch.arange(at, min(at + CHUNK, tokens))[None])
            for layer in range(LAYERS):
                current.pieces(layer, torch.float32, torch.device("cpu"))

    return make


def true_mask(tokens: int) -> Callable[[], object]:
    """An execution that computes everything."""
    engine = kit.engine("attention", RUN)
    plan = isolated(tokens, RUN)
    return lambda: engine.execute([plan])


def reuse(tokens: int) -> Callable[[], object]:
    """An execution that keeps the candidates, four fifths of its tokens; their blocks are there before it begins."""
    engine = kit.engine("attention", RUN)
    x, g = kit.layout(512, tokens), engine.geometry

    def block(s) -> KVBlock:
        shape = (RUN, g.kv_heads, s.length, g.head_dim)
        return KVBlock(torch.randn(shape), torch.randn(shape), x.token_ids[s.start : s.stop], torch.arange(s.length))

    plan = keep(x, RUN, [(s, block(s)) for s in x.each("candidate")])
    return lambda: engine.execute([plan])


KINDS = {"masks alone: true-mask": masks, "executed: true-mask": true_mask, "executed: candidates kept": reuse}


def main() -> None:
    """Prints the table, and writes it."""
    args = kit.arguments(__doc__)
    if args.memory:
        kind, tokens = KINDS[args.memory["kind"]], args.memory["tokens"]
        full = kind(tokens)
        kit.peak_above(kind(512), full)
        return
    report, tokens, rows = kit.Report("masks", __doc__, args.out), 2048 if args.tiny else TOKENS, []
    cache = 2 * RUN * 4 * tokens * 64 * 4 / kit.MIB
    for kind in KINDS:
        held = 0.0 if kind.startswith("masks") else cache
        peak = kit.memory("benchmarks.masks", {"kind": kind, "tokens": tokens})
        rows.append([kind, f"{peak:.0f} MiB", f"{held:.0f} MiB", f"{peak - held:.0f} MiB"])
    report.table(f"{tokens} tokens, batch 1", ["what", "peak", "of it the cache", "above the cache"], rows)


if __name__ == "__main__":
    main()
