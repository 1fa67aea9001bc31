"""A run as a folder that the Hub takes for a data set: Parquet, and a card whose header names the configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from kvattn import __version__
from kvattn.errors import KvattnError
from kvattn.files import write_output
from kvattn.report.text_table import TextTable, inert
from kvattn.stats import jcr
from kvattn.study.run_folder import Run, picks, to_parquet
from kvattn.study.run_folder.schema import SCHEMAS
from kvattn.text import interval, number

CONFIGS = ("judgements", "questions")
SPLIT = "test"


def write_hub(run: Run, folder: Path) -> Path:
    """Writes README.md and data/ into a new folder, or an empty one; returns it. Captured attention stays in the run
    folder. Raises KvattnError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KvattnError(f"{folder} exists; name a new folder")
    for name, table in zip(CONFIGS, (run.judgements(), run.questions()), strict=True):
        kept = [c for c in SCHEMAS[name].names if c in table.columns]
        schema = pa.schema([SCHEMAS[name].field(c) for c in kept])
        rows = pa.Table.from_pandas(table[kept], schema=schema, preserve_index=False)
        write_output(folder / "data" / f"{name}.parquet", to_parquet(rows))
    write_output(folder / "README.md", _card(run).encode())
    return folder


def _card(run: Run) -> str:
    import yaml

    files = [
        {
            "config_name": name,
            "data_files": [{"split": SPLIT, "path": f"data/{name}.parquet"}],
            **({"default": True} if name == CONFIGS[0] else {}),
        }
        for name in CONFIGS
    ]
    head: Any = {"configs": files, "tags": ["llm-as-a-judge", "kv-cache", "kvattn"]}
    m, size = run.manifest, picks.size(run)
    model = m.get("model") or {}
    facts = [
        ("judge", model.get("id") or model.get("name")),
        ("template, readout", f"{m.get('template')}, {m.get('readout')}"),
        ("questions, judgements", f"{size['questions']}, {size['judgements']}"),
        ("made with", f"kvattn {m.get('kvattn', __version__)}"),
    ]
    said = TextTable("The run", ("", ""), [(a, str(b)) for a, b in facts], 2)
    lead = "What an LLM judge decides when its KV cache is put together in other ways."
    parts = [f"# {inert(run.folder.name)}", lead, _table(said)]
    if len(picks.methods(run)) > 1 and "dense" in picks.methods(run):
        rows = [
            (str(r["method"]), interval(r["jcr"], r["low"], r["high"]), number(r["chance"]), str(int(r["pairs"])))
            for r in jcr(run).to_dict("records")
        ]
        heads = ("method", "JCR (95 %)", "chance", "pairs")
        parts.append(_table(TextTable("Picks that are dense's", heads, rows)))
    columns = "`judgements` has a row a question, order and method, `questions` the texts."
    parts.append(f"{columns} What the columns hold: docs/run-folder.md of kvattn.")
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n\n".join(parts) + "\n"


def _table(table: TextTable) -> str:
    rows = [[inert(cell) for cell in row] for row in table.rows]
    return TextTable(table.title, table.heads, rows, table.left).to_markdown()
