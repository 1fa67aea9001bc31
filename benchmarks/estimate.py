"""Was `kvattn study estimate` right? Predicted and actual seconds, peak memory and disk of studies, each in processes
of its own; seconds are those of the whole command, from its start to its end.

    python benchmarks/estimate.py [STUDY.yaml ...] [--out FILE.json]

Without study files: two built in, a model organism and the embedded judge.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILT_IN = {
    "organism": """
name: organism
models: organism-unsafe
data: {source: organism-max, limit: 150, heldout: 16}
orders: "shuffle:2"
methods: [dense, naive-linked, true-mask, kvcomm, "kvcomm:pool=frozen", "last-k:budget=0.5", foreign-kv]
""",
    "smollm2": """
name: smollm2
models: smollm2-135m
data: {source: synthetic, limit: 12, heldout: 4}
orders: "shuffle:2"
methods: [dense, naive-linked, true-mask, kvcomm, "last-k:budget=0.3", foreign-kv]
""",
}
ASK = "import json, sys; from kvattn.study.grid import Grid; print(json.dumps(Grid.read(sys.argv[1]).estimate()))"


def predicted(study: Path, environment: dict[str, str]) -> dict[str, float]:
    """What the estimate says of all cells together."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(study)], env=environment, capture_output=True, text=True, check=True
    )
    cells = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": sum(c["seconds"] for c in cells),
        "peak_bytes": max(c["peak_bytes"] for c in cells),
        "disk_bytes": sum(c["disk_bytes"] for c in cells),
    }


def actual(study: Path, out: Path, environment: dict[str, str]) -> dict[str, float]:
    """What `kvattn study run` takes and leaves."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "kvattn", "study", "run", str(study), "--folder", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the study {study} failed")
    return {
        "seconds": seconds,
        "peak_bytes": used.ru_maxrss * 1024,
        "disk_bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("studies", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        files = list(asked.studies)
        for name, text in {} if files else BUILT_IN.items():
            files.append(Path(scratch) / f"{name}.yaml")
            files[-1].write_text(text, encoding="utf-8")
        print(f"| {'study':12} | {'quantity':12} | {'predicted':>10} | {'actual':>10} | ratio |")
        print("|---|---|---:|---:|---:|")
        for i, file in enumerate(files):
            said, was = predicted(file, environment), actual(file, Path(scratch) / f"out{i}", environment)
            for key, scale, unit in (("seconds", 1, "s"), ("peak_bytes", 1e6, "MB"), ("disk_bytes", 1e6, "MB")):
                a, b = said[key] / scale, was[key] / scale
                print(
                    f"| {file.stem:12} | {key.split('_')[0]:12} | {a:8.1f} {unit:2}| {b:8.1f} {unit:2}| {a / b:5.2f} |"
                )
                rows.append({"study": file.stem, "quantity": key, "predicted": said[key], "actual": was[key]})
    print(f"\n{environment['OMP_NUM_THREADS']} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
