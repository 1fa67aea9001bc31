"""How many workers can one writer serve? Costs of a unit are measured here, then up to 1,000 workers are simulated.

    python benchmarks/scale.py [--units 6] [--out figures]

Measured, one thread: judging a unit, packing and unpacking its tables (as they travel from an actor), writing them,
and what Ray takes to look over the units in flight. Simulated: `kvattn.study.ray.Ray`, with two units in flight an
actor and one process that takes a result, writes it and gives the next unit, one after the other. Not simulated: the
network, the file system of a cluster, workers of unlike speed.
"""

from __future__ import annotations

import argparse
import heapq
import pickle
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch

from kvattn.plots.export import render
from kvattn.study import run_folder
from kvattn.study.grid import Grid
from kvattn.study.ray import IN_FLIGHT
from kvattn.text import csv

STUDIES = {
    "organism-unsafe": {
        "models": "organism-unsafe",
        "data": {"source": "organism-max", "limit": 40},
        "orders": "shuffle:2",
        "methods": ["dense", "naive-linked", "true-mask", "last-k:budget=0.5", "foreign-kv"],
    },
    "smollm2-135m": {
        "models": "smollm2-135m",
        "data": {"source": "synthetic", "limit": 40},
        "orders": "shuffle:2",
        "methods": ["dense", "naive-linked", "true-mask", "last-k:budget=0.5", "foreign-kv"],
    },
}
WORKERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LOOKED_OVER = (2, 20, 200, 2000)  # references that Ray is asked about at once


@dataclass(frozen=True)
class Measured:
    """Seconds of each unit's steps, and its bytes on disk."""

    judge: list[float]
    travel: list[float]
    write: list[float]
    size: list[int]


def measure(said: dict, units: int) -> Measured:
    """The costs of the study's first units, after one that warms up."""
    found = Measured([], [], [], [])
    with tempfile.TemporaryDirectory(dir=".") as folder:
        _, study = next(iter(Grid.of(said).studies(folder)))
        with run_folder.RunWriter(Path(folder) / "run", study.manifest()) as writer:
            for i in range(units + 1):
                times = [time.perf_counter()]
                tables = study.unit(i)
                times.append(time.perf_counter())
                tables = pickle.loads(pickle.dumps(tables, protocol=5))
                times.append(time.perf_counter())
                writer.write_tables(study.prompts[i].id, tables)
                times.append(time.perf_counter())
                if i:
                    for kept, a, b in zip((found.judge, found.travel, found.write), times[:-1], times[1:], strict=True):
                        kept.append(b - a)
        name = Path(folder) / "run"
        sizes = [p.stat().st_size for p in name.glob("*/part-*")]
        found.size.append(round(sum(sizes) / (units + 1)))
    return found


def look_over() -> list[tuple[int, float]]:
    """(references, seconds) that ray.wait takes for one that is ready among so many that are not."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)

    @ray.remote
    class Busy:
        def work(self, seconds: float) -> None:
            time.sleep(seconds)

    busy, made = Busy.remote(), []
    pending = [busy.work.remote(3600.0) for _ in range(max(LOOKED_OVER))]
    ready = ray.put(None)
    for count in LOOKED_OVER:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            ray.wait([*pending[: count - 1], ready], timeout=None)
            times.append(time.perf_counter() - began)
        made.append((count, statistics.median(times)))
    ray.shutdown()
    return made


def per_reference(looked: Sequence[tuple[int, float]]) -> float:
    """Seconds a reference, from the most that were looked over."""
    count, seconds = looked[-1]
    return seconds / count


def simulate(cost: Measured, poll: float, workers: int, units: int, seed: int = 0) -> tuple[float, float, float]:
    """(units a second, busy share of the writer, busy share of the workers) of a run of so many units."""
    rng = random.Random(seed)
    given, now, busy, judged = 0, 0.0, 0.0, 0.0
    free = [0.0] * workers  # when each worker is through with what it was given
    results: list[tuple[float, int]] = []

    def give(worker: int) -> None:
        nonlocal given, judged
        seconds = rng.choice(cost.judge)
        judged += seconds
        free[worker] = max(free[worker], now) + seconds
        heapq.heappush(results, (free[worker], worker))
        given += 1

    for _ in range(IN_FLIGHT):
        for worker in range(workers):
            if given < units:
                give(worker)
    while results:
        arrived, worker = heapq.heappop(results)
        taken = poll * (len(results) + 1) + rng.choice(cost.travel) + rng.choice(cost.write)
        now = max(now, arrived) + taken
        busy += taken
        if given < units:
            give(worker)
    return units / now, busy / now, judged / (now * workers)


def main() -> None:
    """Measures, simulates, prints, draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--units", type=int, default=6, help="units that are measured")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="where figure and numbers go")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    looked = look_over()
    print("Ray looks over " + ", ".join(f"{n} units in flight in {s * 1e3:.2f} ms" for n, s in looked))
    poll, rows, fig = per_reference(looked), [], go.Figure()
    for name, said in STUDIES.items():
        cost = measure(said, asked.units)
        judge, travel, write = (statistics.mean(x) for x in (cost.judge, cost.travel, cost.write))
        print(
            f"{name}: a unit (5 methods, 2 orders) of {cost.size[0] / 1e3:.0f} kB; n = {asked.units}; means: judge "
            f"{judge:.3f} s (from {min(cost.judge):.3f} to {max(cost.judge):.3f}), travel {travel * 1e3:.1f} ms, write "
            f"{write * 1e3:.1f} ms (from {min(cost.write) * 1e3:.1f} to {max(cost.write) * 1e3:.1f}); "
            f"judging over writing and travelling: {judge / (write + travel):.0f}"
        )
        for workers in WORKERS:
            rate, writer, worked = simulate(cost, poll, workers, max(2000, 20 * workers))
            rows.append({"judge": name, "workers": workers, "units a second": rate, "ideal": workers / judge})
            rows[-1] |= {"writer busy": writer, "workers busy": worked}
        mine = [r for r in rows if r["judge"] == name]
        fig.add_scatter(x=WORKERS, y=[r["units a second"] for r in mine], name=name, mode="lines+markers")
        fig.add_scatter(
            x=WORKERS, y=[r["ideal"] for r in mine], name=f"{name}: no writer", mode="lines", line={"dash": "dot"}
        )
    fig.update_layout(
        template="plotly_white", xaxis={"type": "log", "title": "workers (simulated)"}, width=760, height=520,
        yaxis={"type": "log", "title": "units a second"}, legend={"orientation": "h", "y": -0.25}, margin={"t": 20},
    )  # fmt: skip
    table = pd.DataFrame(rows)
    print(table.round(3).to_markdown(index=False))
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "scale.csv").write_text(csv(table.round(5)), encoding="utf-8")
    (asked.out / "scale.svg").write_bytes(render(fig, "svg"))
    print(f"wrote scale.csv and scale.svg in {asked.out}")


if __name__ == "__main__":
    main()
