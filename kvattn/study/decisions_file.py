"""Decisions written to a file as they are made: JSONL or Parquet, by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.files import beside, put
from kvattn.text import plain


def record(d: Decision) -> dict[str, Any]:
    """A decision as one flat JSON-able row: the columns of a run's judgements, the slots' distribution, and the
    decision row's mean mass by slot (over layers and heads)."""
    from kvattn.study.run_folder.schema import judgement_row

    row = judgement_row(d)
    row["distribution"] = [float(p) for p in d.distribution]
    row["slot_mass"] = slot_mass(d)
    row["share"] = d.cost.share
    return plain(row)


def slot_mass(d: Decision) -> list[float] | None:
    """Mean mass of each slot's candidate, 0 of a tie, which has no tokens; None where nothing was captured."""
    if d.mass is None:
        return None
    mean = d.mass.mass.mean((0, 1))
    own = [float(mean[d.mass.names.index(f"candidate:{i + 1}")]) for i in range(d.mass.slots)]
    return [*own, *[0.0] * (len(d.order) - len(own))]


class DecisionFile:
    """A context manager that writes decisions. The file gets its name, and takes the place of another one, when it is
    whole; what was judged before an error or a stop is kept beside it, in NAME.part.jsonl or NAME.part.parquet, or with
    a number where that is taken.

    inputs: what the decisions are made from, which the file must not replace

    Raises KvattnError for another ending, a file that exists or is an input, and a full disk."""

    def __init__(self, path: str | Path, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
        self.path, self.rows = Path(path), 0
        if self.path.suffix not in (".jsonl", ".parquet"):
            raise KvattnError(f"--out {path}: the ending says the format; use .jsonl or .parquet")
        for given in map(Path, inputs):
            if self.path.exists() and given.exists() and self.path.samefile(given):
                raise KvattnError(f"--out {path} is what is read; give another name")
        if self.path.exists() and not overwrite:
            raise KvattnError(f"{path} exists; give another name or --overwrite")
        self._writer: Any = None
        self._temporary = self.path
        names = (self.path.with_name(f"{self.path.stem}.part{n or ''}{self.path.suffix}") for n in count())
        self.kept = next(name for name in names if not name.exists())  # where the decisions are after an error

    def __enter__(self) -> DecisionFile:
        try:
            self._temporary = beside(self.path)
            self._writer = self._open()
        except OSError as e:
            raise KvattnError(f"cannot write {self.path}: {e.strerror}") from e
        return self

    def _open(self) -> Any:
        if self.path.suffix == ".jsonl":
            return self._temporary.open("w", encoding="utf-8")
        import pyarrow as pa
        import pyarrow.parquet as pq

        from kvattn.study.run_folder.schema import SCHEMAS

        floats = pa.list_(pa.float64())
        more = [("distribution", floats), ("slot_mass", floats), ("share", pa.float64())]
        return pq.ParquetWriter(self._temporary, pa.schema([*SCHEMAS["judgements"], *(pa.field(*f) for f in more)]))

    def write(self, decisions: Sequence[Decision]) -> None:
        """Append the decisions of one question."""
        rows = [record(d) for d in decisions]
        try:
            if self.path.suffix == ".jsonl":
                self._writer.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
                self._writer.flush()
            else:
                import pyarrow as pa

                self._writer.write_table(pa.Table.from_pylist(rows, schema=self._writer.schema))
        except OSError as e:
            raise KvattnError(f"cannot write {self.path}: {e.strerror}") from e
        self.rows += len(rows)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                put(self._temporary, self.path)
            elif self.rows:
                put(self._temporary, self.kept)
        except OSError as e:
            raise KvattnError(f"cannot write {self.path}: {e.strerror}") from e
        finally:
            self._temporary.unlink(missing_ok=True)
