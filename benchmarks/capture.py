"""What capturing the decision row costs: a dense judgement through kvattn, with every layer's and head's row summed by
segment, against the same forward without it and against the careful user's way (SDPA prefill, then one eager row).

    python benchmarks/capture.py [--model smollm2-135m] [--tokens 2048] [--pairs 15] [--out FILE.json]

Time: the three sides in turn within one process, medians and ratios to the plain forward pair by pair. Memory: each
side in a fresh process, peak resident set above what the loaded weights and one short warm-up forward took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

SIDES = ("plain", "kvattn", "careful")


def sides(model_name: str, tokens: int):
    """By name, a function that runs one judgement of that many random tokens, and one of few for warming up."""
    import torch

    from kvattn.capture import NAME, Wanted
    from kvattn.engine import Engine
    from kvattn.layout import join
    from kvattn.models import load_pretrained
    from kvattn.plan import dense_plan

    model, tokenizer, info = load_pretrained(model_name)
    engine = Engine(model, tokenizer, info.to_dict())
    generator = torch.Generator().manual_seed(0)

    def layout(n: int):
        ids = torch.randint(10, model.config.vocab_size, (n,), generator=generator).tolist()
        cut = [0, n // 20, n // 10, n // 4, n // 2, 3 * n // 4, n - n // 20, n]
        roles = [("prefix", None), ("question", None), *(("candidate", i) for i in range(4)), ("suffix", None)]
        return join([(r, s, ids[a:b]) for (r, s), a, b in zip(roles, cut, cut[1:], strict=False)], ("a", "b", "c", "d"))

    def run(side: str, x) -> None:
        ids = x.token_ids[None]
        if side == "kvattn":
            engine.execute([dense_plan(x, engine.layers)], Wanted())
            return
        with torch.inference_mode():
            model.set_attn_implementation("sdpa")
            if side == "plain":
                model(ids, logits_to_keep=1, use_cache=False)
            else:
                past = model(ids[:, :-1], logits_to_keep=1, use_cache=True).past_key_values
                model.set_attn_implementation("eager")
                model(ids[:, -1:], past_key_values=past, output_attentions=True)
            model.set_attn_implementation(NAME)

    long, short = layout(tokens), layout(64)
    return {s: (lambda s=s: run(s, long), lambda s=s: run(s, short)) for s in SIDES}


def peak_kib(reset: bool = False) -> int:
    """Peak resident set since the last reset, in KiB (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def worker(args) -> None:
    """One side in this process: prints its peak memory above the warmed-up model, in KiB."""
    full, short = sides(args.model, args.tokens)[args.worker]
    short()
    base = peak_kib(reset=True)
    full()
    print(json.dumps({"above_kib": peak_kib() - base}))


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    memory = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--model", args.model, "--tokens", str(args.tokens), "--worker", side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        memory[side] = json.loads(done.stdout.splitlines()[-1])["above_kib"] / 1024
    runs = sides(args.model, args.tokens)
    for full, _ in runs.values():
        full()
    times: dict[str, list[float]] = {s: [] for s in SIDES}
    for i in range(args.pairs):
        for side in SIDES[i % 3 :] + SIDES[: i % 3]:
            began = time.perf_counter()
            runs[side][0]()
            times[side].append(time.perf_counter() - began)
    import torch

    ratios = {s: sorted(a / b for a, b in zip(times[s], times["plain"], strict=True)) for s in SIDES}
    report = {
        "model": args.model, "tokens": args.tokens, "pairs": args.pairs, "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
        "median_seconds": {s: median(t) for s, t in times.items()},
        "ratio_to_plain": {s: {"median": median(r), "low": r[len(r) // 10], "high": r[-1 - len(r) // 10]}
                           for s, r in ratios.items()},
        "memory_above_weights_mib": memory,
    }  # fmt: skip
    print(f"| {args.model}, {args.tokens} tokens | seconds (median) | time / plain (10-90 %) | memory above weights |")
    print("|---|---|---|---|")
    names = {"plain": "plain SDPA forward", "kvattn": "kvattn, rows captured", "careful": "SDPA prefill + eager row"}
    for s in SIDES:
        r = report["ratio_to_plain"][s]
        spread = f"{r['median']:.3f} ({r['low']:.3f}-{r['high']:.3f})"
        print(f"| {names[s]} | {report['median_seconds'][s]:.2f} | {spread} | {memory[s]:.0f} MiB |")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
