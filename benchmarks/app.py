"""How long the app takes to open a run of a million judgements, and to answer a filter.

    python benchmarks/app.py FOLDER [--questions 2000 --orders 50]

makes the run in FOLDER where it is not there yet (random numbers in the run folder's own tables, 10 methods), then
measures in this process what pages ask for: opening it, and every reduction with a filter it was not asked with before;
the first that asks for slot mass reads its table. Prints a table.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
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
from kvattn.study.run_folder.schema import SCHEMA_VERSION, SCHEMAS, TABLES, content_hash, file_key, to_parquet
from kvattn.study.run_folder.summary import summaries

METHODS = (
    "dense",
    "true-mask",
    "isolated",
    "naive-linked",
    "last-k(budget=0.3)",
    "epic",
    "kvcomm",
    "pal-kv",
    "foreign-kv",
)
METHODS = (*METHODS, "null-edit")
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


def make(folder: Path, questions: int, orders: int, layers: int, heads: int) -> None:
    """Writes the run, a part a question and table as a study does."""
    import json

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


def unit(key: str, shown: list, names: list[str], layers: int, heads: int, rng: np.random.Generator) -> dict:
    """The tables of one question."""
    n, m = len(shown) * len(METHODS), len(METHODS)
    scores = rng.normal(0, 1, (n, SLOTS))
    scores += np.tile(rng.normal(0, 2, (len(shown), SLOTS)), (m, 1))
    slot = scores.argmax(1)
    order = np.tile(np.array(shown), (m, 1))
    choice = order[np.arange(n), slot]
    right = rng.random(SLOTS) < 0.5
    method = np.repeat(METHODS, len(shown))
    tokens = int(rng.integers(300, 700))
    plain = {"question_id": [key] * n, "order": order.tolist(), "method": method}
    picks = {
        **plain,
        "readout": ["label"] * n,
        "n": [SLOTS] * n,
        "choice": [f"c{c}" for c in choice],
        "slot": slot,
        "scores": list(scores),
        "coverage": rng.uniform(0.4, 1, n),
        "margin": np.diff(np.sort(scores)[:, -2:]).ravel(),
        "correct": right[choice],
        "calibrated": list(scores),
        "choice_calibrated": [f"c{c}" for c in choice],
        "slot_calibrated": slot,
        "correct_calibrated": right[choice],
        "notes": [[]] * n,
        **{c: rng.integers(1, tokens, n) for c in ("tokens_computed", "token_layers", "candidate_tokens_kept")},
        **dict.fromkeys(("tokens", "candidate_tokens", "kv_bytes"), [tokens] * n),
        **dict.fromkeys(("layers", "probe_token_layers", "batch", "blocks_kept"), [layers] * n),
        "seconds": rng.random(n),
    }
    shape = (n, layers, heads, len(names))
    mass = rng.dirichlet(np.ones(len(names)), shape[:3]).astype(np.float32)
    sink = mass * (rng.random(len(names)) < 0.3)
    flat = {c: list(v.reshape(n, -1)) for c, v in (("mass", mass), ("sink", sink))}
    lengths = rng.integers(1, 120, len(names))
    rows = {
        **plain,
        "query": ["last_prompt"] * n,
        "names": [names] * n,
        "lengths": [lengths] * n,
        "shape": [shape[1:]] * n,
        **flat,
        "norm": [None] * n,
    }
    by_method = mass.reshape(m, len(shown), *shape[1:]).astype(np.float64)
    logs = np.log(by_method) - np.log(by_method[:1])
    size = layers * heads * len(names)
    layer, head, segment = np.indices(shape[1:]).reshape(3, -1)
    sums = {
        "question_id": [key] * (m * size),
        "method": np.repeat(METHODS, size),
        "query": ["last_prompt"] * (m * size),
        "layer": np.tile(layer, m),
        "head": np.tile(head, m),
        "name": np.tile(np.array(names)[segment], m),
        **dict.fromkeys(("count", "pairs"), np.full(m * size, len(shown))),
        "tokens_sum": np.tile(lengths[segment] * len(shown), m),
        **{f"{c}_sum": by_method.sum(1).ravel() for c in ("mass", "free")},
        **{f"{c}_sum": logs.sum(1).ravel() for c in ("change", "free_change")},
    }
    question = {
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
    unwritten = dict.fromkeys(("rule", "output", "answer_correct", "new_tokens"), [None] * n)
    made: dict = {"questions": question, "mass": rows, "sums": sums, "judgements": {**picks, **unwritten}}
    tables = {t: pa.table({f.name: pa.array(made[t][f.name], f.type) for f in SCHEMAS[t]}) for t in made}
    return {**tables, **summaries(tables)}


def measure(folder: Path) -> None:
    """Times what pages ask for."""
    run = seconds("opening: names of parts, manifest", lambda: Run(folder))
    print(seconds("counts and methods, the table of picks read", lambda: (run_picks.size(run), run_picks.methods(run))))
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


def seconds(name: str, function: Callable):
    """Runs it, prints how long it took, returns what it gave."""
    start = time.perf_counter()
    out = function()
    print(f"| {name} | {time.perf_counter() - start:.2f} |", flush=True)
    return out


if __name__ == "__main__":
    main()
