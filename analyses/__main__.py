"""Figures and tables: `python -m analyses [RUN ...]`, or `make figures`. Runs that are not given are made.

Analyses that rest on hours of the judge that ships are not among them: docs/findings.md has the command of each."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from analyses import kit

NAMES = (
    "silent_flip", "attention_collapse", "ladder", "shuffle_stress", "masking", "anchor_quality", "candidate_count",
    "frontier", "head_readout", "heads", "models", "noise_floor", "tails",
)  # fmt: skip


def main() -> None:
    """One analysis after another, on the same runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=NAMES, help="this analysis alone; repeatable")
    args = kit.arguments(__doc__, parser=parser)
    runs: list[Path] = args.runs or kit.standard()
    for name in args.only or NAMES:
        began = time.perf_counter()
        print(f"\n== {name}", flush=True)
        importlib.import_module(f"analyses.{name}").main([*map(str, runs), "--out", str(args.out)])
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
