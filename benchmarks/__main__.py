"""All benchmarks one after another, each in a process of its own: `python -m benchmarks`, or `make bench`.

Writes every benchmark's own pages and all of them together, all.md and all.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks import kit

NAMES = ("start", "capture", "reuse", "orders", "studies", "growth", "stages", "paper")


def main() -> None:
    """Runs them, then joins what they wrote."""
    args = kit.arguments(__doc__)
    for name in NAMES:
        began = time.perf_counter()
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=True)
        print(f"== {name}: {time.perf_counter() - began:.0f} s", flush=True)
    pages = [(args.out / f"{name}.md").read_text(encoding="utf-8") for name in NAMES]
    (args.out / "all.md").write_text("\n".join(pages), encoding="utf-8")
    whole = [json.loads((args.out / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES]
    (args.out / "all.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
