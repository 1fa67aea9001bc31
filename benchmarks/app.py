"""How long the app takes to open a run of a million judgements, and to answer a filter.

    python benchmarks/app.py FOLDER [--questions 2000 --orders 50]

makes the run in FOLDER where it is not there yet (random numbers in the run folder's own tables, 10 methods), then
measures in this process what pages ask for: opening it, and every reduction with a filter it was not asked with before.
Then the pages themselves, one after the other, each opened for the first time and again, without the browser's drawing.
Prints a table: seconds, and seconds of computing, which a busy machine does not change; and the machine's load.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa

from kvattn.files import write_atomically
from kvattn.report import findings
from kvattn.stats.accuracy import of_methods
from kvattn.stats.agreement import by_permutation_distance, jcr
from kvattn.stats.picks import Scope
from kvattn.stats.slots import flow
from kvattn.study.run_folder import Run
from kvattn.study.run_folder import mass as run_mass
from kvattn.study.run_folder import picks as run_picks
from kvattn.study.run_folder.packs import pack
from kvattn.study.run_folder.schema import SCHEMA_VERSION, SCHEMAS, TABLES, content_hash, file_key, to_parquet
from kvattn.study.run_folder.summary import summaries

METHODS = ("dense", "true-mask", "isolated", "naive-linked", "last-k(budget=0.3)", "epic", "kvcomm", "pal-kv")
METHODS = (*METHODS, "foreign-kv", "null-edit")
SLOTS = 5  # 120 orders


def main() -> None:
    """Makes what is missing, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    given = parser.parse_args()
    if not (given.folder / "manifest.json").exists():
        make(given.folder, given.questions, given.orders, given.layers, given.heads)
    measure(given.folder)
    pages(given.folder)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def make(folder: Path, questions: int, orders: int, layers: int, heads: int) -> None:
    """Writes the run, a part a question and table, and packs it, as a study does."""
    names = ["prefix", "question"]
    names += [f"{r}:{s + 1}" for s in range(SLOTS) for r in ("header", "candidate", "separator")] + ["suffix"]
    for table in TABLES:
        (folder / table).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    permutations = list(itertools.permutations(range(SLOTS)))
    for q in range(questions):
        key = f"question-{q:06d}"
        shown = [permutations[i % len(permutations)] for i in range(orders)]
        tables = unit(key, shown, names, layers, heads, rng)
        for table, rows in tables.items():
            data = to_parquet(rows)
            write_atomically(folder / table / f"part-{file_key(key)}-{content_hash(data)}.parquet", data)
    manifest = {
        "schema": SCHEMA_VERSION,
        "created": "2000-01-01",
        "model": {"name": "made-up"},
        "methods": [{"name": m, "parameters": {}} for m in METHODS],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pack(Run(folder))


def unit(key: str, shown: list, names: list[str], layers: int, heads: int, rng: np.random.Generator) -> dict:
    """The tables of one question."""
    n = len(shown) * len(METHODS)
    plain = {
        "question_id": [key] * n,
        "order": np.tile(np.array(shown), (len(METHODS), 1)).tolist(),
        "method": np.repeat(METHODS, len(shown)),
    }
    right = rng.random(SLOTS) < 0.5
    mass = rng.dirichlet(np.ones(len(names)), (n, layers, heads)).astype(np.float32)
    lengths = rng.integers(1, 120, len(names))
    made = {
        "questions": question(key, right),
        "mass": plain | rows(mass, names, lengths, rng),
        "sums": sums(key, mass.reshape(len(METHODS), len(shown), *mass.shape[1:]), names, lengths),
        "judgements": plain | judgements(np.array(plain["order"]), right, layers, rng),
    }
    tables = {t: pa.table({f.name: pa.array(made[t][f.name], f.type) for f in SCHEMAS[t]}) for t in made}
    return {**tables, **summaries(tables)}


def question(key: str, right: np.ndarray) -> dict:
    """The row of a question."""
    return {
        "question_id": [key],
        "question": ["How many?"],
        "answer": ["1"],
        "template": ["math"],
        "candidate_ids": [[f"c{i}" for i in range(SLOTS)]],
        "agents": [[f"agent-{i}" for i in range(SLOTS)]],
        "texts": [[f"Step by step we find that it is {i}. " * 8 for i in range(SLOTS)]],
        "corrects": [right.tolist()],
        "lengths": [[80] * SLOTS],
    }


def judgements(order: np.ndarray, right: np.ndarray, layers: int, rng: np.random.Generator) -> dict:
    """Picks and costs, methods of one order alike. order: [judgements, slots]"""
    n = len(order)
    scores = rng.normal(0, 1, (n, SLOTS)) + np.tile(rng.normal(0, 2, (n // len(METHODS), SLOTS)), (len(METHODS), 1))
    slot = scores.argmax(1)
    choice = order[np.arange(n), slot]
    tokens = int(rng.integers(300, 700))
    picked = {"choice": [f"c{c}" for c in choice], "slot": slot, "correct": right[choice]}
    return {
        "readout": ["label"] * n,
        "n": [SLOTS] * n,
        "scores": list(scores),
        "coverage": rng.uniform(0.4, 1, n),
        "margin": np.diff(np.sort(scores)[:, -2:]).ravel(),
        "calibrated": list(scores),
        **picked,
        **{f"{name}_calibrated": value for name, value in picked.items()},
        "notes": [[]] * n,
        **{c: rng.integers(1, tokens, n) for c in ("tokens_computed", "token_layers", "candidate_tokens_kept")},
        **dict.fromkeys(("tokens", "candidate_tokens", "kv_bytes"), [tokens] * n),
        **dict.fromkeys(("layers", "probe_token_layers", "batch", "blocks_kept"), [layers] * n),
        **dict.fromkeys(("rule", "output", "answer_correct", "new_tokens"), [None] * n),
        "seconds": rng.random(n),
    }


def rows(mass: np.ndarray, names: list[str], lengths: np.ndarray, rng: np.random.Generator) -> dict:
    """Decision rows. mass: [judgements, layers, heads, segments]"""
    n = len(mass)
    sink = mass * (rng.random(len(names)) < 0.3)
    return {
        "query": ["last_prompt"] * n,
        "names": [names] * n,
        "lengths": [lengths] * n,
        "shape": [mass.shape[1:]] * n,
        **{c: list(v.reshape(n, -1)) for c, v in (("mass", mass), ("sink", sink))},
        "norm": [None] * n,
    }


def sums(key: str, mass: np.ndarray, names: list[str], lengths: np.ndarray) -> dict:
    """Sums of rows over orders. mass: [methods, orders, layers, heads, segments]"""
    m, orders = mass.shape[:2]
    exact = mass.astype(np.float64)
    logs = np.log(exact) - np.log(exact[:1])
    layer, head, segment = np.indices(mass.shape[2:]).reshape(3, -1)
    size = len(segment)
    return {
        "question_id": [key] * (m * size),
        "method": np.repeat(METHODS, size),
        "query": ["last_prompt"] * (m * size),
        "layer": np.tile(layer, m),
        "head": np.tile(head, m),
        "name": np.tile(np.array(names)[segment], m),
        **dict.fromkeys(("count", "pairs"), np.full(m * size, orders)),
        "tokens_sum": np.tile(lengths[segment] * orders, m),
        **{f"{c}_sum": exact.sum(1).ravel() for c in ("mass", "free")},
        **{f"{c}_sum": logs.sum(1).ravel() for c in ("change", "free_change")},
    }


def measure(folder: Path) -> None:
    """Times what pages ask for."""
    run = seconds("opening: names of parts, manifest", lambda: Run(folder))
    seconds("counts and methods, the table of picks read", lambda: (run_picks.size(run), run_picks.methods(run)))
    mixed, q = Scope(mixed=True), "last_prompt"
    reductions: dict[str, Callable] = {
        "Runs: consistency": lambda: jcr(run),
        "Runs: accuracy": lambda: of_methods(run),
        "Runs: cost": lambda: run_picks.cost(run),
        "Runs: health, slot mass read": lambda: findings.findings(run),
        "Heatmaps: all methods, sums read": lambda: run.mass_means(q),
        "Heatmaps: change against dense": lambda: run_mass.changes(run, q, ("method", "layer", "head")),
        "Heatmaps: one head by slot": lambda: run_mass.with_intervals(run, q, where="layer = 1 AND head = 1"),
        "Heatmaps: one row of one prompt": lambda: run.slot_mass("question-000001", (0, 1, 2, 3, 4), "naive-linked", q),
        "Dilution: by slot": lambda: run_mass.by_slot(run, q),
        "Dilution: by slot, sinks out, flips": lambda: run_mass.by_slot(run, q, "among", "out", "flipped"),
        "Dilution: by layer with bands": lambda: run_mass.with_intervals(run, q, ("method", "layer")),
        "Dilution: by distance": lambda: run_mass.by_slot(run, q, by=("distance",)),
        "Shuffle: by distance": lambda: by_permutation_distance(run),
        "Shuffle: by distance, mixed": lambda: by_permutation_distance(run, scope=mixed),
        "Shuffle: flow, mixed": lambda: flow(run, "naive-linked", mixed),
        "Shuffle: 500 flips, mixed": lambda: run_picks.flips(run, "naive-linked", mixed, 500),
        "Shuffle: mass against place": lambda: run_mass.by_place(run, q),
        "Frontier: consistency, mixed": lambda: jcr(run, scope=mixed),
    }
    for name, function in reductions.items():
        seconds(name, function)


def pages(folder: Path) -> None:
    """Times the script of every page about a run; imports are made beforehand."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "app"))
    from kvattn_app import library, shell
    from streamlit.testing.v1 import AppTest

    os.environ[library.ENVIRONMENT] = json.dumps({"folders": [str(folder)], "models": []})
    for name, (title, _) in shell.PAGES.items():
        if name != "live":
            import_module(f"kvattn_app.pages.{name}")
            for time_ in ("first", "again"):
                page = AppTest.from_function(_page, kwargs={"name": name, "title": title}, default_timeout=600)
                failed = seconds(f"Page, {time_}: {title}", page.run).exception
                if failed:
                    raise SystemExit(f"{title}: {failed[0].value}")


def _page(name: str, title: str) -> None:
    from kvattn_app import shell

    shell.draw(name, title)


def seconds(name: str, function: Callable):
    """Runs it, prints how long it took and how much computing of this process that was, returns what it gave."""
    start, computed = time.perf_counter(), time.process_time()
    out = function()
    took = (time.perf_counter() - start, time.process_time() - computed)
    print(f"| {name} | {took[0]:.2f} | {took[1]:.2f} |", flush=True)
    return out


if __name__ == "__main__":
    main()
