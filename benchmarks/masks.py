"""What masks take at 32,768 tokens: the peak of making every chunk's mask of a plan, in float32, with no model at all.

    python -m benchmarks.masks

They are made for 1,024 queries at once, once for all layers of one rule and window, and let go of before the next.
"""

from __future__ import annotations

import torch

from benchmarks import kit
from kvattn.engine.cache import Pass
from kvattn.engine.plan import KVPlan, Visibility, dense_plan

TOKENS, CHUNK, LAYERS = 32_768, 1024, 32


def plan(tokens: int) -> KVPlan:
    """Candidates that do not see each other."""
    x = kit.layout(512, tokens)
    return dense_plan(x, LAYERS, Visibility.isolated(x))


def make(tokens: int) -> None:
    """All masks of one execution, in the order in which layers ask for them."""
    current = Pass([plan(tokens)], (None,) * LAYERS, 0)
    for at in range(0, tokens, CHUNK):
        current.stand(torch.arange(at, min(at + CHUNK, tokens))[None])
        for layer in range(LAYERS):
            current.mask(layer, current.end, torch.float32, torch.device("cpu"))


def main() -> None:
    """Prints the table, and writes it."""
    args = kit.arguments(__doc__)
    if args.memory:
        kit.peak_above(lambda: make(512), lambda: make(TOKENS))
        return
    report = kit.Report("masks", __doc__, args.out)
    peak = kit.memory("benchmarks.masks", {"tokens": TOKENS})
    report.table(f"{TOKENS} tokens, batch 1", ["plan", "masks at their peak"], [["true-mask", f"{peak:.0f} MiB"]])


if __name__ == "__main__":
    main()
