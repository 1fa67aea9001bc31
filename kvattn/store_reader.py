"""Reading a run folder: its tables as DataFrames, reduced in DuckDB where they are large."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvattn.decision import SlotMass
from kvattn.errors import KvattnError
from kvattn.files import read_json
from kvattn.store_files import committed, damage
from kvattn.store_schema import SCHEMA_VERSION, SCHEMAS, TABLES

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run folder, read: what was committed when it was opened. Tables come as pandas DataFrames, through DuckDB.

    The parts of a table are checked against their hashes when the table is first asked for. Raises KvattnError for a
    folder that is no run, has another schema, or holds a damaged part (named).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._parts = committed(self.folder)
        self._ready: set[str] = set()
        self._db: Any = None

    def __len__(self) -> int:
        """Number of committed units."""
        return len(self._parts["judgements"])

    def judgements(self) -> pd.DataFrame:
        """One row per (question_id, order, method), in a fixed order."""
        return self.sql('SELECT * FROM judgements ORDER BY question_id, "order", method')

    def questions(self) -> pd.DataFrame:
        """One row per question, with its candidates' ids, agents, texts and correctness."""
        return self.sql("SELECT * FROM questions ORDER BY question_id")

    def sums(self) -> pd.DataFrame:
        """Sums of slot mass by (question_id, method, query, layer, head, name); `mass_means` reduces them."""
        return self.sql("SELECT * FROM sums ORDER BY question_id, method, query, layer, head, name")

    def mass(
        self,
        question_id: str | None = None,
        order: Sequence[int] | None = None,
        method: str | None = None,
        query: str | None = None,
    ) -> pd.DataFrame:
        """Slot mass, one row per (question_id, order, method, query), of the judgements that match what is given."""
        wanted = {"question_id": question_id, '"order"': order, "method": method, "query": query}
        conditions = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        values = [[int(i) for i in v] if name == '"order"' else v for name, v in wanted.items() if v is not None]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return self.sql(f'SELECT * FROM mass {where} ORDER BY question_id, "order", method, query', values)

    def slot_mass(
        self, question_id: str, order: Sequence[int], method: str, query: str = "last_prompt"
    ) -> SlotMass | None:
        """The slot mass of one judgement, or None when it was not captured."""
        rows = self.mass(question_id, order, method, query)
        if rows.empty:
            return None
        row = rows.iloc[0]
        shape = tuple(int(x) for x in row["shape"])
        arrays = {name: np.asarray(row[name], dtype=np.float32).reshape(shape) for name in ("mass", "sink")}
        norm = row["norm"]
        return SlotMass(
            mass=arrays["mass"],
            sink=arrays["sink"],
            names=tuple(row["names"]),
            lengths=tuple(int(x) for x in row["lengths"]),
            query=str(row["query"]),
            norm=np.asarray(norm, dtype=np.float32).reshape(shape) if isinstance(norm, np.ndarray) else None,
        )

    def mass_means(
        self, query: str = "last_prompt", by: Sequence[str] = ("method", "layer", "head", "name")
    ) -> pd.DataFrame:
        """Means of slot mass over judgements (and over what `by` leaves out), reduced in DuckDB.

        by: columns of the sums table; it must hold "method" and "name"

        Columns beside `by`: count, tokens (length of the segment), mass and free (share of the row; without sink
        tokens), pairs, change and free_change (mean over pairs of log mass less dense's log mass; NaN without pairs).
        """
        known = ("question_id", "method", "layer", "head", "name")
        if not {"method", "name"} <= set(by) <= set(known):
            raise KvattnError(f"mass_means: `by` takes {', '.join(known)}, method and name among them; got {list(by)}")
        columns = ", ".join(by)
        means = ", ".join(
            f"CASE WHEN sum({n}) > 0 THEN sum({name}_sum) / sum({n}) END AS {name}"
            for name, n in [
                *((name, "count") for name in ("tokens", "mass", "free")),
                *((name, "pairs") for name in ("change", "free_change")),
            ]
        )
        return self.sql(
            f"SELECT {columns}, sum(count)::BIGINT AS count, sum(pairs)::BIGINT AS pairs, {means} FROM sums "
            f"WHERE query = ? GROUP BY {columns} ORDER BY {columns}",
            [query],
        )

    def queries(self) -> list[str]:
        """The query tokens whose rows were captured, e.g. ["last_prompt"]."""
        return [str(q) for q in self.sql("SELECT DISTINCT query FROM sums ORDER BY query")["query"]]

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        """The answer to a DuckDB query over the views judgements, questions, mass and sums.

        `order` is a word of SQL: write "order" in double quotes.
        """
        import duckdb

        for table in TABLES:
            if re.search(rf"\b{table}\b", query):
                self._prepare(table)
        try:
            return _unmasked(self._connection().cursor().execute(query, list(parameters)).df())
        except duckdb.Error as error:
            raise KvattnError(f"{self.folder}: DuckDB says: {str(error).splitlines()[0]}") from None

    def check(self) -> list[str]:
        """What is damaged, one line per part; an empty list when every part's content matches its name."""
        return damage(self.folder, TABLES)

    def _connection(self) -> Any:
        import duckdb

        if self._db is None:
            # Extensions are never fetched: Parquet is built in, and a run is read without a network.
            self._db = duckdb.connect(
                config={
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                    "python_enable_replacements": False,
                }
            )
        return self._db

    def _prepare(self, table: str) -> None:
        if table in self._ready:
            return
        damaged = damage(self.folder, (table,), self._parts)
        if damaged:
            raise KvattnError(damaged[0])
        db = self._connection()
        paths = [str(p) for p in self._parts[table].values()]
        if paths:
            files = ", ".join("'" + p.replace("'", "''") + "'" for p in paths)
            # A folder name may hold *, ? or [, which read_parquet would take for patterns.
            # Judgements of older runs lack the columns of written verdicts.
            union = ", union_by_name = true" if table == "judgements" else ""
            db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{_unglob(files)}]{union})")
        else:
            db.register("nothing", SCHEMAS[table].empty_table())
            db.execute(f"CREATE TABLE {table} AS SELECT * FROM nothing")
        self._ready.add(table)


def _unmasked(frame: Any) -> Any:
    """The frame with None for what is NULL within lists: DuckDB masks it, and a masked cell passes for False or 0."""
    for name in frame.columns:
        if frame[name].dtype == np.dtype(object) and any(isinstance(cell, np.ma.MaskedArray) for cell in frame[name]):
            frame[name] = [
                np.array(cell.tolist(), dtype=object) if isinstance(cell, np.ma.MaskedArray) else cell
                for cell in frame[name]
            ]
    return frame


def find_runs(folder: str | Path) -> list[Path]:
    """The run folders in `folder` (itself included), the youngest first by the time they were created."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found: list[tuple[str, Path]] = []
    for path in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        with contextlib.suppress(KvattnError):
            found.append((str(read_manifest(path).get("created", "")), path))
    return [path for _, path in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _each(kind: type, test: Callable[[Any], bool] = lambda _: True) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(x, kind) and test(x) for x in value)


# What kvattn itself reads out of a manifest, and what it has to be where it is there.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "late": _each(str),
    "sessions": _each(dict),
    "methods": _each(dict, lambda m: isinstance(m.get("name", ""), str)),
    "n_candidates": _each(int),
    **dict.fromkeys(
        ("model", "calibration", "content_test", "data", "heldout", "orders"), lambda value: isinstance(value, dict)
    ),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises KvattnError where there is none, or one of another schema."""
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise KvattnError(f"{folder} is no run folder: it has no manifest.json") from None
    except (OSError, ValueError) as error:
        raise KvattnError(f"{path} cannot be read ({error}); restore it from a copy") from None
    if not isinstance(manifest, dict):
        raise KvattnError(f"{path} is no manifest; restore it from a copy")
    if manifest.get("schema") != SCHEMA_VERSION:
        raise KvattnError(
            f"{folder} has schema {manifest.get('schema')!r}, this kvattn reads and writes {SCHEMA_VERSION}; "
            "use the kvattn that wrote it, or judge again into another folder"
        )
    for key, fits in _SHAPES.items():
        if manifest.get(key) is not None and not fits(manifest[key]):
            raise KvattnError(f"{path} is damaged at {key!r}; restore it from a copy")
    return manifest


def _unglob(files: str) -> str:
    return re.sub(r"[*?\[]", lambda m: f"[{m[0]}]", files)
