"""Cut GSM8K's candidates into rows that no judge was run on before a study was written down, and the others.

    python -m analyses.fresh_rows gsm8k_candidates.jsonl FOLDER

Of the rows with right and wrong candidates, in the file's order: 1 to 60 and 151 to 250 were judged under reuse while
kvattn was made, 61 to 84 densely. They are no place to confirm anything. FOLDER/fresh.jsonl holds the rows never
judged, FOLDER/seen.jsonl the first two groups; behind either stand the 24 rows that were judged densely, to hold out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

SEEN, DENSE = (range(60), range(150, 250)), range(60, 84)


def cut(lines: Sequence[str]) -> dict[str, list[str]]:
    """The mixed lines of a candidates file by the name of the file that they go to."""
    mixed = [x for x in lines if len({c["correct"] for c in json.loads(x)["candidates"]}) == 2]
    seen, dense = set(chain(*SEEN)), [mixed[i] for i in DENSE]
    return {
        "fresh.jsonl": [x for i, x in enumerate(mixed) if i not in seen and i not in DENSE] + dense,
        "seen.jsonl": [mixed[i] for i in sorted(seen)] + dense,
    }


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="a candidates file, its lines in the published order")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(given)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in cut(args.file.read_text(encoding="utf-8").removesuffix("\n").split("\n")).items():
        (args.folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(f"{args.folder / name}: {len(rows) - len(DENSE)} questions, and {len(DENSE)} held out")


if __name__ == "__main__":
    main()
