"""What the benchmarks share: sides that alternate in one process, intervals of ratios, peaks in fresh processes, pages.

Time: every side runs once to warm up, then all sides in turn, the first one rotating, so that whatever else the machine
does falls on all of them alike. A ratio is taken turn by turn; its median stands with the 95 % interval of the median
(sign test). Memory: one side in one fresh process, peak resident set above the loaded weights after a short warm-up on
the same path. There glibc maps every block from 1 MiB on by itself (its threshold otherwise moves with what was freed,
and what one sees is the luck of fragmentation, tens of MiB either way, not what the side holds).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

PAIRS, FEWEST, SECONDS = 15, 6, 60
MIB = 2**20
RESULTS = Path(__file__).parent / "results"
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
clock = time.perf_counter


def arguments(doc: str | None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line of every benchmark; `parser` may hold more of it."""
    parser = parser or argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="the long cells too")
    parser.add_argument("--tiny", action="store_true", help="smallest cells and three pairs: does it run at all?")
    parser.add_argument(
        "--pairs",
        type=int,
        help=f"turns a cell (default {PAIRS}, and no fewer than {FEWEST} where they take longer than {SECONDS} s; with "
        f"--full always {PAIRS}, with --tiny 3)",
    )
    parser.add_argument(
        "--processor",
        action="store_true",
        help="time this process on its processor, not the clock: where others use the machine (with OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.processor:
        global clock
        clock = time.process_time
    args.turns = Turns(args.pairs or (3 if args.tiny else PAIRS), None if args.pairs or args.full else SECONDS)
    return args


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turns:
    """How often the sides of a cell take their turn: `pairs` times, or from FEWEST on until `seconds` are over."""

    pairs: int = PAIRS
    seconds: float | None = None

    def enough(self, done: int, began: float) -> bool:
        """Whether that many turns, since then, are enough."""
        late = self.seconds is not None and clock() - began > self.seconds
        return done >= self.pairs or (late and done >= FEWEST)


def alternate(sides: Mapping[str, Callable[[], Any]], turns: Turns) -> dict[str, list[float]]:
    """Seconds by side, one a turn. A side may return seconds that it measured itself."""
    for run in sides.values():
        run()
    names = list(sides)
    times: dict[str, list[float]] = {n: [] for n in names}
    start, turn = clock(), 0
    while not turns.enough(turn, start):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            began = clock()
            own = sides[name]()
            times[name].append(own if isinstance(own, float) else clock() - began)
        turn += 1
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median of the ratios turn by turn, and its 95 % interval (sign test; the whole range below six turns)."""
    from scipy.stats import quantile_test

    each = [a / b for a, b in zip(times, base, strict=True)]
    low, high = (min(each), max(each))
    if len(each) >= 6:
        low, high = quantile_test(each, q=0, p=0.5).confidence_interval(0.95)
    return {"median": median(each), "low": float(low), "high": float(high), "pairs": len(each)}


def said(r: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f})"


# -- memory ------------------------------------------------------------------------------------------------------------


def peak_mib(reset: bool = False) -> float:
    """Peak resident set since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _proc("/proc/self/status", "VmHWM")


def resident_mib() -> float:
    """Resident set now."""
    return _proc("/proc/self/status", "VmRSS")


def available_mib() -> float:
    """What the machine has to give."""
    return _proc("/proc/meminfo", "MemAvailable")


def _proc(file: str, key: str) -> float:
    return next(int(x.split()[1]) for x in Path(file).read_text().splitlines() if x.startswith(f"{key}:")) / 1024


def peak_above(warm: Callable[[], Any], full: Callable[[], Any]) -> None:
    """In the fresh process: prints the peak of `full` above what is resident after `warm`."""
    warm()
    base = peak_mib(reset=True)
    full()
    print(json.dumps({"above_mib": peak_mib() - base}))


def memory(module: str, cell: Mapping[str, Any]) -> float:
    """MiB above the loaded weights of one cell of a benchmark, in a fresh process. Raises SystemExit where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--memory", json.dumps(cell)],
        env={**os.environ, **MAPPED},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} {cell}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])["above_mib"]


# -- the judge and its like --------------------------------------------------------------------------------------------


def engine(shape: str, layers: int = 8):
    """An engine: "smollm2", or "attention", a random Llama of so many layers with 16 query and 4 KV heads of 64 and
    little else, so that attention is what takes the time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kvattn.engine.engine import Engine
    from kvattn.models import load_pretrained

    if shape == "smollm2":
        model, tokenizer, info = load_pretrained("smollm2-135m")
        return Engine(model, tokenizer, info.to_dict())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2**17,
    )  # fmt: skip
    return Engine(LlamaForCausalLM(config).eval(), load_pretrained("smollm2-135m")[1])


def layout(vocabulary: int, tokens: int, candidates: int = 4, share: float = 0.8, seed: int = 0):
    """A judge's prompt of random tokens, candidates taking up that share of it."""
    import torch

    from kvattn.engine.layout import join

    g = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(10, vocabulary, (n,), generator=g).tolist()

    each = round(tokens * share / candidates)
    header = min(4, (tokens - each * candidates) // (2 * candidates))
    rest = tokens - (each + header) * candidates
    parts: list[tuple[str, int | None, list[int]]] = [
        ("prefix", None, ids(rest // 4)),
        ("question", None, ids(rest // 2)),
    ]
    for slot in range(candidates):
        parts += [("header", slot, ids(header)), ("candidate", slot, ids(each))]
    parts.append(("suffix", None, ids(rest - rest // 4 - rest // 2)))
    return join(parts, tuple(f"c{i}" for i in range(candidates)))


# -- the page ----------------------------------------------------------------------------------------------------------


def conditions() -> dict[str, Any]:
    """Where and with what it was measured."""
    import torch

    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_proc('/proc/meminfo', 'MemTotal') / 1024:.0f} GiB",
        "threads": torch.get_num_threads(),
        "seconds of": "the processor" if clock is time.process_time else "the clock",
        "load": round(os.getloadavg()[0], 1),
        "dtype": "float32",
        **{p: version(p) for p in ("torch", "transformers", "transformer-lens")},
    }


class Report:
    """Tables of one benchmark, printed as they come, written as NAME.md and NAME.json."""

    def __init__(self, name: str, doc: str | None, out: Path) -> None:
        self.name, self.out = name, out
        self.intro = " ".join((doc or "").split("\n\n")[0].split())
        self.tables: list[dict[str, Any]] = []
        self.before = conditions()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], data: Any = None) -> None:
        """One table: what is shown, and the numbers behind it. Prints it and writes all so far."""
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(r) for r in rows], "data": data})
        print(f"\n{self._markdown(self.tables[-1])}", flush=True)
        self.write()

    def write(self) -> None:
        """The files, as far as the tables go."""
        self.out.mkdir(parents=True, exist_ok=True)
        now = {**self.before, "load_after": round(os.getloadavg()[0], 1)}
        facts = ", ".join(f"{k} {v}" for k, v in now.items())
        text = "\n\n".join([f"# {self.name}", self.intro, f"Conditions: {facts}.", *map(self._markdown, self.tables)])
        (self.out / f"{self.name}.md").write_text(text + "\n", encoding="utf-8")
        whole = {"name": self.name, "conditions": now, "tables": self.tables}
        (self.out / f"{self.name}.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")

    @staticmethod
    def _markdown(table: Mapping[str, Any]) -> str:
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in (table["columns"], *table["rows"])]
        lines.insert(1, "|---" * len(table["columns"]) + "|")
        return f"{table['title']}\n\n" + "\n".join(lines)
