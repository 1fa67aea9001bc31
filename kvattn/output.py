"""Decisions written to a file as they are made: JSONL or Parquet, by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.files import beside, put
from kvattn.text import plain


def record(d: Decision) -> dict[str, Any]:
    """A decision as one flat JSON-able row: the columns of a run's judgements, the slots' distribution, and the
    decision row's mean mass by slot (over layers and heads)."""
    from kvattn.store_schema import judgement_row

    row = judgement_row(d)
    row["distribution"] = [float(p) for p in d.distribution]
    row["slot_mass"] = slot_mass(d)
    row["share"] = d.cost.share
    return plain(row)


def slot_mass(d: Decision) -> list[float] | None:
    """Mean mass of each slot's candidate, or None where nothing was captured."""
    if d.mass is None:
        return None
    mean = d.mass.mass.mean((0, 1))
    return [float(mean[d.mass.names.index(f"candidate:{i + 1}")]) for i in range(len(d.order))]


class DecisionFile:
    """A context manager that appends decisions. JSONL lines are flushed question by question; a Parquet file appears
    when it is closed, also after an error, with all that was judged until then.

    Raises KvattnError for another ending, a file that exists, and a full disk."""

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".jsonl", ".parquet"):
            raise KvattnError(f"--out {path}: the ending says the format; use .jsonl or .parquet")
        if self.path.exists() and not overwrite:
            raise KvattnError(f"{path} exists; give another name or --overwrite")
        self._parquet, self._handle = None, None
        self._part = self.path

    def __enter__(self) -> DecisionFile:
        try:
            if self.path.suffix == ".jsonl":
                self._handle = self.path.open("w", encoding="utf-8")
        except OSError as e:
            raise KvattnError(f"cannot write {self.path}: {e.strerror}") from e
        return self

    def write(self, decisions: Sequence[Decision]) -> None:
        """Append the decisions of one question."""
        rows = [record(d) for d in decisions]
        try:
            if self._handle is not None:
                self._handle.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
                self._handle.flush()
            else:
                self._write_parquet(rows)
        except OSError as e:
            raise KvattnError(f"cannot write {self.path}: {e.strerror}; what was written before is kept") from e

    def _write_parquet(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from kvattn.store_schema import SCHEMAS

        schema = SCHEMAS["judgements"]
        for name, kind in (
            ("distribution", pa.list_(pa.float64())),
            ("slot_mass", pa.list_(pa.float64())),
            ("share", pa.float64()),
        ):
            schema = schema.append(pa.field(name, kind))
        if self._parquet is None:
            self._part = beside(self.path)
            self._parquet = pq.ParquetWriter(self._part, schema)
        self._parquet.write_table(pa.Table.from_pylist(rows, schema=schema))

    def __exit__(self, *_) -> None:
        if self._handle is not None:
            self._handle.close()
        if self._parquet is not None:
            self._parquet.close()
            put(self._part, self.path)
