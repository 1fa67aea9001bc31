"""What capturing the decision row costs: dense judgements through kvattn, the row of every layer and head summed by
segment, against the plain SDPA forward (the limit) and against what others do to get that row.

    python -m benchmarks.capture [--full | --tiny]

The careful user: SDPA prefill, then the last token in eager attention with its rows returned. transformers eager:
`output_attentions=True`. TransformerLens: `run_with_cache` of all patterns, whole or `pos_slice=-1`. nnsight: a trace
in eager attention that saves the last row of every layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from benchmarks import kit

NAMES = {
    "plain": "plain SDPA forward",
    "kvattn": "kvattn, rows captured",
    "careful": "SDPA prefill + eager row",
    "eager": "transformers, output_attentions",
    "lens": "TransformerLens, patterns",
    "lens-last": "TransformerLens, pos_slice=-1",
    "nnsight": "nnsight, last rows",
}
NEAR = ("plain", "kvattn", "careful")
PATTERNS = ("plain", "kvattn", "eager", "lens")
ALL = tuple(NAMES)
# shape, tokens, batch, sides
CELLS = [
    ("smollm2", 512, 1, ALL),
    ("smollm2", 512, 8, NEAR),
    ("smollm2", 2048, 1, NEAR),
    ("attention", 1024, 1, ALL),
    ("attention", 4096, 1, NEAR),
    ("attention", 4096, 1, PATTERNS),
]
FULL = [
    ("smollm2", 1024, 1, ALL), ("smollm2", 4096, 1, ALL), ("smollm2", 2048, 8, NEAR), ("smollm2", 4096, 8, NEAR),
    ("attention", 1024, 8, ALL), ("attention", 2048, 1, ALL), ("attention", 2048, 8, ALL), ("attention", 4096, 8, ALL),
    ("attention", 8192, 1, ALL),
]  # fmt: skip
TINY = [("smollm2", 128, 1, ALL), ("attention", 256, 2, ALL)]


class Sides:
    """The ways to the decision row on one model. Each takes the token ids [batch, tokens]."""

    def __init__(self, shape: str) -> None:
        self.engine = kit.engine(shape)
        self.model = self.engine.model
        self.vocabulary = self.model.config.vocab_size
        self._bridge = self._traced = None

    def run(self, side: str, tokens: int, batch: int) -> Callable[[], None]:
        """What is timed: one batch of judgements."""
        import torch

        made = [kit.layout(self.vocabulary, tokens, seed=i) for i in range(batch)]
        ids = torch.stack([x.token_ids for x in made])
        if side == "kvattn":
            return partial(self._kvattn, made)
        inner = {
            "plain": self._plain, "careful": self._careful, "eager": self._eager, "lens": self._lens,
            "lens-last": partial(self._lens, pos_slice=-1), "nnsight": self._nnsight,
        }[side]  # fmt: skip

        def call() -> None:
            with torch.inference_mode():
                inner(ids)

        return call

    def _kvattn(self, made) -> None:
        from kvattn.engine.capture import NAME, Wanted
        from kvattn.engine.plan import dense_plan

        self.model.set_attn_implementation(NAME)
        self.engine.execute([dense_plan(x, self.engine.layers) for x in made], Wanted())

    def _plain(self, ids) -> None:
        self.model.set_attn_implementation("sdpa")
        self.model(ids, logits_to_keep=1, use_cache=False)

    def _careful(self, ids) -> None:
        self.model.set_attn_implementation("sdpa")
        past = self.model(ids[:, :-1], logits_to_keep=1, use_cache=True).past_key_values
        self.model.set_attn_implementation("eager")
        self.model(ids[:, -1:], past_key_values=past, output_attentions=True)

    def _eager(self, ids) -> None:
        self.model.set_attn_implementation("eager")
        self.model(ids, logits_to_keep=1, use_cache=False, output_attentions=True)

    def _lens(self, ids, **options) -> None:
        from kvattn.engine.lens import lens

        self._bridge = self._bridge or lens(self.engine).bridge
        self._bridge.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_pattern"), **options)

    def _nnsight(self, ids) -> None:
        from nnsight import NNsight

        from kvattn.engine.lens import _twin

        # On a second module tree of the same weights: what nnsight wraps it instruments, for every other side too.
        model = self._traced = self._traced or NNsight(_twin(self.model))
        with model.trace(ids, logits_to_keep=1, use_cache=False, output_attentions=True):
            rows = list().save()  # noqa: C408 (nnsight gives lists their save)
            for layer in model.model.layers:
                rows.append(layer.self_attn.output[1][:, :, -1].clone())


def predicted_mib(engine, side: str, tokens: int, batch: int) -> float:
    """The patterns that a side must hold at once, [heads, tokens, tokens] in fp32: of every layer, or of one, thrice
    (scores, softmax, its output). 0 for the sides that never make them."""
    if side in NEAR:
        return 0.0
    g = engine.geometry
    held = g.layers if side in ("eager", "lens") else 0
    return (held + 3) * batch * g.heads * tokens**2 * 4 / kit.MIB


def installed(side: str) -> bool:
    """nnsight is an extra."""
    import importlib.util

    return side != "nnsight" or importlib.util.find_spec("nnsight") is not None


def measure(shape: str, tokens: int, batch: int, asked: tuple[str, ...], turns: kit.Turns, report: kit.Report) -> None:
    """One cell: a row a side."""
    sides = Sides(shape)
    room = 0.8 * kit.available_mib()
    need = {s: predicted_mib(sides.engine, s, tokens, batch) for s in asked}
    chosen = [s for s in asked if installed(s) and need[s] < room]
    times = kit.alternate({s: sides.run(s, tokens, batch) for s in chosen}, turns)
    above = {
        s: kit.memory("benchmarks.capture", {"shape": shape, "tokens": tokens, "batch": batch, "side": s})
        for s in chosen
    }
    rows, data = [], {}
    for s in asked:
        if s not in chosen:
            why = f"skipped: predicted {need[s]:.0f} MiB" if installed(s) else "skipped: not installed"
            rows.append([NAMES[s], "", "", why, ""])
            data[s] = {"skipped": why, "predicted_mib": need[s]}
            continue
        r, extra = kit.ratio(times[s], times["plain"]), above[s] - above["plain"]
        seconds = sorted(times[s])[len(times[s]) // 2]
        data[s] = {"seconds": seconds, "ratio": r, "above_mib": above[s], "extra_mib": extra, "times": times[s]}
        rows.append([NAMES[s], f"{seconds:.3f}", kit.said(r), f"{above[s]:.1f} MiB", f"{extra:+.1f} MiB"])
    if "careful" in chosen:
        data["careful_over_kvattn"] = kit.ratio(times["careful"], times["kvattn"])
    title = f"{shape}, {tokens} tokens, batch {batch}, {len(times['plain'])} pairs"
    columns = [title, "seconds (median)", "time / plain (95 %)", "memory above weights", "more than plain"]
    report.table("", columns, rows, data)


def main() -> None:
    """One table a cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", help="this cell alone, SHAPE:TOKENS:BATCH; repeatable")
    args = kit.arguments(__doc__, parser)
    if args.memory:
        cell = args.memory
        sides = Sides(cell["shape"])
        warm = sides.run(cell["side"], 64, cell["batch"])
        kit.peak_above(warm, sides.run(cell["side"], cell["tokens"], cell["batch"]))
        return
    report = kit.Report("capture", __doc__, args.out)
    for shape, tokens, batch, asked in TINY if args.tiny else CELLS + (FULL if args.full else []):
        if not args.only or f"{shape}:{tokens}:{batch}" in args.only:
            measure(shape, tokens, batch, asked, args.turns, report)


if __name__ == "__main__":
    main()
