"""Cut a candidates file whose agents took several temperatures in turn into a file for each of them.

    kvattn candidates generate fresh.jsonl --out own.jsonl --agents 8 --temperature 0.2 --temperature 0.7
    python -m analyses.own_rows own.jsonl FOLDER

FOLDER/own-0.2.jsonl holds what agents 1, 3, 5 and 7 wrote, FOLDER/own-0.7.jsonl the others; the temperatures stand in
own.jsonl.manifest.json. The agents were parallel: else some read what those of another temperature wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def cut(lines: Sequence[str], turns: int) -> list[list[str]]:
    """The lines with the candidates of each turn alone."""
    rows = [json.loads(x) for x in lines]
    parts = [[{**r, "candidates": r["candidates"][i::turns]} for r in rows] for i in range(turns)]
    return [[json.dumps(r, ensure_ascii=False) for r in part] for part in parts]


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="a candidates file of `kvattn candidates generate`")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(given)
    told = json.loads(args.file.with_name(f"{args.file.name}.manifest.json").read_text(encoding="utf-8"))
    heats = told["agents"]["temperature"]
    if not isinstance(heats, list) or len(set(heats)) < len(heats):
        raise SystemExit(f"{args.file}: give a file whose agents took different temperatures in turn, not {heats}")
    if told["agents"]["regime"] != "parallel":
        raise SystemExit(f"{args.file}: its agents read each other; give a file of parallel ones")
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = args.file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for heat, part in zip(heats, cut(lines, len(heats)), strict=True):
        path = args.folder / f"{args.file.stem}-{heat}.jsonl"
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
        rows = [json.loads(x)["candidates"] for x in part]
        right = [[c.get("correct") for c in row] for row in rows]
        both, none = sum({True, False} <= set(r) for r in right), sum(not any(r) for r in right)
        equal = sum(len({c["text"] for c in row}) < len(row) for row in rows)
        tokens = sum(len(c["token_ids"]) for row in rows for c in row) / len(rows)
        print(
            f"{path}: {len(part)} questions, right {sum(r.count(True) for r in right)} of {sum(map(len, rows))}, right "
            f"and wrong in {both}, none right in {none}, equal texts in {equal}; {tokens:.0f} tokens a question"
        )


if __name__ == "__main__":
    main()
