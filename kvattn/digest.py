"""A run reduced once to what interactive pages ask for: one DuckDB file in the cache, extended as the run grows.

A run's tables hold every head of every judgement; a page wants means. The digest is made in one pass over the parts,
each checked against its hash, and is used until a part changes. Nothing is written into the run folder.

| table | one row per |
|---|---|
| questions | question: `unit` (its number), texts and ids, `mixed` (right and wrong candidates) |
| orders | display order `o`: `order`, `distance` (Kendall's tau from the candidates' own order) |
| judgements | judgement: `unit`, `o` instead of question_id and order, the rest as in the run folder |
| pairs | judgement of a method beside dense's in the same order: slots, `agree`, `surprise`, margins, and calibrated |
| shown | judgement, query and slot: `candidate` in it, `tokens`, means over layers and heads of `mass` and `free`,
          `row_free` (what of the row falls on no sink) |
| heads | fold, method, query, layer, head, segment: sums as in the run's table `sums` |

A fold is a group of questions, for jackknife intervals.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvattn.errors import KvattnError
from kvattn.files import cache_root, write_atomically
from kvattn.store_files import committed, read_part
from kvattn.store_reader import read_manifest
from kvattn.store_schema import SCHEMAS, TABLES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

VERSION = 1
FOLDS = 24
BATCH = 32 * 2**20  # bytes of rows in memory that are reduced at a time

_LOCAL: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
}
_SUMS = ("count", "tokens_sum", "mass_sum", "free_sum", "pairs", "change_sum", "free_change_sum")
# Norms and written verdicts are large, and nothing here asks for them.
_LEFT_OUT = {"norm", "rule", "output", "answer_correct", "new_tokens"}
_HEAD_KEYS = "fold, method, query, layer, head, name"
_TOTALS = ", ".join(f"sum({c})::DOUBLE AS {c}" for c in _SUMS)

_CREATE = f"""
CREATE TABLE units (unit INTEGER, key TEXT, signature TEXT);
CREATE TABLE questions (unit INTEGER, question_id TEXT, question TEXT, answer TEXT, template TEXT,
    candidate_ids TEXT[], agents TEXT[], texts TEXT[], corrects BOOLEAN[], lengths INTEGER[], mixed BOOLEAN);
CREATE TABLE orders (o INTEGER, "order" INTEGER[], distance INTEGER);
CREATE TABLE judgements (unit INTEGER, o INTEGER, method TEXT, readout TEXT, n INTEGER, choice TEXT, slot INTEGER,
    scores DOUBLE[], coverage DOUBLE, margin DOUBLE, correct BOOLEAN, calibrated DOUBLE[], choice_calibrated TEXT,
    slot_calibrated INTEGER, correct_calibrated BOOLEAN, tokens BIGINT, tokens_computed BIGINT, layers INTEGER,
    token_layers BIGINT, probe_token_layers BIGINT, seconds DOUBLE, kv_bytes BIGINT, batch INTEGER,
    candidate_tokens INTEGER, candidate_tokens_kept INTEGER, blocks_kept INTEGER, notes TEXT[]);
CREATE TABLE pairs (unit INTEGER, o INTEGER, method TEXT, n INTEGER, slot INTEGER, slot_ref INTEGER, agree BOOLEAN,
    surprise DOUBLE, margin_ref DOUBLE, correct BOOLEAN, correct_ref BOOLEAN, slot_calibrated INTEGER,
    slot_calibrated_ref INTEGER, agree_calibrated BOOLEAN, surprise_calibrated DOUBLE, correct_calibrated BOOLEAN,
    correct_calibrated_ref BOOLEAN);
CREATE TABLE shown (unit INTEGER, o INTEGER, method TEXT, query TEXT, slot INTEGER, candidate INTEGER,
    tokens INTEGER, mass DOUBLE, free DOUBLE, row_free DOUBLE);
CREATE TABLE heads (fold INTEGER, method TEXT, query TEXT, layer INTEGER, head INTEGER, name TEXT,
    {", ".join(f"{c} DOUBLE" for c in _SUMS)});
"""

# How improbable dense held the slot that a method picks, in nats.
_SURPRISE = "ln(list_sum(list_transform({s}, lambda x: exp(x - list_max({s}))))) - ({s}[{slot} + 1] - list_max({s}))"
_CONTENT = 'list_position(q.texts, q.texts[j."order"[j.{slot} + 1] + 1])'
_PAIRS = f"""
INSERT INTO pairs WITH picked AS (
    SELECT j.*, {_CONTENT.format(slot="slot")} AS content, {_CONTENT.format(slot="slot_calibrated")} AS content_c
    FROM fresh j JOIN asked q USING (question_id))
SELECT a.unit, a.o, a.method, a.n, a.slot, d.slot, coalesce(a.content = d.content, false),
    {_SURPRISE.format(s="d.scores", slot="a.slot")}, d.margin, a.correct, d.correct,
    a.slot_calibrated, d.slot_calibrated, a.content_c = d.content_c,
    {_SURPRISE.format(s="d.calibrated", slot="a.slot_calibrated")}, a.correct_calibrated, d.correct_calibrated
FROM picked a JOIN picked d ON a.unit = d.unit AND a.o = d.o AND d.method = 'dense' WHERE a.method <> 'dense'
"""

Progress = Callable[[int, int], None]  # units done, of


class Digest:
    """The digest of a run, open for reading. `open_digest` makes or finds it."""

    def __init__(self, folder: Path, manifest: dict[str, Any], file: Path) -> None:
        import duckdb

        self.folder, self.manifest, self.file = folder, manifest, file
        self._db: Any = duckdb.connect(str(file), read_only=True, config=_LOCAL)

    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """The answer to a DuckDB query over the digest's tables. Safe to call from several threads."""
        import duckdb

        try:
            return self._db.cursor().execute(query, parameters or None).df()
        except duckdb.Error as error:
            raise KvattnError(f"{self.file}: DuckDB says: {str(error).splitlines()[0]}") from None

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def state(folder: str | Path) -> str:
    """A hash of what a run has committed, from names, sizes and times of its parts: it changes when the run does."""
    return _state(_signatures(committed(Path(folder))))


def open_digest(folder: str | Path, progress: Progress | None = None) -> Digest:
    """The digest of the run in `folder`, made or extended where need be; `progress` is told of units done and wanted.

    Raises KvattnError for a folder that is no run, a damaged part (named), and a cache that cannot be written.
    """
    import duckdb

    folder = Path(folder)
    manifest = read_manifest(folder)
    parts = committed(folder)
    signatures = _signatures(parts)
    home = cache_root() / "digests"
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    file = home / f"{name}-{_state(signatures)}.duckdb"
    if not file.is_file():
        try:
            home.mkdir(parents=True, exist_ok=True)
            _make(folder, parts, signatures, home, name, file, progress)
        except (OSError, duckdb.IOException) as error:
            reason = str(error).splitlines()[0]
            raise KvattnError(f"{home} cannot be written ({reason}); set KVATTN_CACHE to a folder that can") from None
    return Digest(folder, manifest, file)


def keep_ready(folder: str | Path) -> None:
    """Makes the digest of a run that was just written, so that the app opens it at once; never fails the command that
    wrote the run, whose own errors matter more."""
    with contextlib.suppress(KvattnError):
        open_digest(folder).close()


def _signatures(parts: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """By unit, the hash of its parts' names, sizes and times."""
    out = {}
    for key in parts["judgements"]:
        paths = [parts[table].get(key) for table in TABLES]
        stats = [None if p is None else (p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in paths]
        out[key] = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return out


def _state(signatures: Mapping[str, str]) -> str:
    return hashlib.sha256(repr((VERSION, sorted(signatures.items()))).encode()).hexdigest()[:16]


def _make(
    folder: Path,
    parts: Mapping[str, Mapping[str, Path]],
    signatures: dict[str, str],
    home: Path,
    name: str,
    file: Path,
    progress: Progress | None,
) -> None:
    import duckdb

    temporary = home / f"{file.stem}.{os.getpid()}.tmp"
    older = [p for p in home.glob(f"{name}-*.duckdb") if p != file]
    try:
        base = next((p for p in older if _is_part_of(p, signatures)), None)
        if base is not None:
            shutil.copyfile(base, temporary)
        with duckdb.connect(str(temporary), config=_LOCAL) as db:
            if base is None:
                db.execute(_CREATE)
            Build(db, folder, parts, signatures).run(progress)
        os.replace(temporary, file)
        for path in older:
            path.unlink(missing_ok=True)
        write_atomically(home / f"{name}.folder", os.fsencode(folder.resolve()))
        _forget_removed(home)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)


def _forget_removed(home: Path) -> None:
    """Removes the digests of runs that are no longer there."""
    for record in home.glob("*.folder"):
        if not Path(os.fsdecode(record.read_bytes())).is_dir():
            for path in (*home.glob(f"{record.stem}-*.duckdb"), record):
                path.unlink(missing_ok=True)


def _is_part_of(file: Path, signatures: Mapping[str, str]) -> bool:
    """Whether a digest holds nothing but units that are there unchanged."""
    import duckdb

    try:
        with duckdb.connect(str(file), read_only=True, config=_LOCAL) as db:
            return all(signatures.get(k) == s for k, s in db.execute("SELECT key, signature FROM units").fetchall())
    except duckdb.Error:
        return False


class Build:
    """One pass over the parts that a digest lacks."""

    def __init__(
        self,
        db: Any,
        folder: Path,
        parts: Mapping[str, Mapping[str, Path]],
        signatures: Mapping[str, str],
    ) -> None:
        self.db, self.folder, self.parts, self.signatures = db, folder, parts, signatures
        have = {row[0] for row in db.execute("SELECT key FROM units").fetchall()}
        self.missing = [key for key in parts["judgements"] if key not in have]
        self.first = len(have)
        self.orders: dict[tuple[int, ...], int] = {
            tuple(order): o for o, order in db.execute('SELECT o, "order" FROM orders').fetchall()
        }
        self.known_orders = len(self.orders)

    def run(self, progress: Progress | None) -> None:
        """Reduces what is missing, a batch of parts at a time."""
        done = self.first
        total = done + len(self.missing)
        for keys, tables in self._batches():
            self._add(list(range(done, done + len(keys))), keys, tables)
            done += len(keys)
            if progress is not None:
                progress(done, total)
        self._write_orders()
        self.db.execute(f"CREATE TABLE summed AS SELECT {_HEAD_KEYS}, {_TOTALS} FROM heads GROUP BY {_HEAD_KEYS}")
        self.db.execute("DROP TABLE heads; ALTER TABLE summed RENAME TO heads; CHECKPOINT")

    def _batches(self) -> Iterator[tuple[list[str], dict[str, list[pa.Table]]]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        keys: list[str] = []
        tables: dict[str, list[pa.Table]] = {t: [] for t in TABLES}
        size = 0
        for key in self.missing:
            keys.append(key)
            for table in TABLES:
                data = read_part(self.folder, table, key, self.parts)
                columns = [c for c in SCHEMAS[table].names if c not in _LEFT_OUT]
                tables[table].append(pq.ParquetFile(pa.BufferReader(data)).read(columns))
                size += tables[table][-1].nbytes
            if size >= BATCH:
                yield keys, tables
                keys, tables, size = [], {t: [] for t in TABLES}, 0
        if keys:
            yield keys, tables

    def _add(self, units: list[int], keys: list[str], tables: dict[str, list[pa.Table]]) -> None:
        import pyarrow as pa

        db = self.db
        signatures = [self.signatures[k] for k in keys]
        db.register("new_units", pa.table({"unit": pa.array(units, pa.int32()), "key": keys, "signature": signatures}))
        db.execute("INSERT INTO units SELECT unit, key, signature FROM new_units")
        for table in ("questions", "judgements", "sums"):
            numbered = [_numbered(t, u) for u, t in zip(units, tables[table], strict=True)]
            tables[table] = [pa.concat_tables(numbered)]
        fresh = tables["judgements"][0]
        fresh = fresh.append_column("o", pa.array(self._number(fresh["order"].to_pylist()), pa.int32()))
        db.register("fresh", fresh)
        db.register("asked", tables["questions"][0])
        mixed = "coalesce(list_contains(corrects, true) AND list_contains(corrects, false), false)"
        db.execute(f"INSERT INTO questions BY NAME SELECT *, {mixed} AS mixed FROM asked")
        db.execute('INSERT INTO judgements BY NAME SELECT * EXCLUDE (question_id, "order") FROM fresh')
        db.execute(_PAIRS)
        db.register("new_sums", tables["sums"][0])
        db.execute(
            f"INSERT INTO heads BY NAME SELECT unit % {FOLDS} AS fold, method, query, layer, head, name, {_TOTALS} "
            "FROM new_sums GROUP BY ALL"
        )
        shown = [t for u, m in zip(units, tables["mass"], strict=True) for t in self._shown(m, u)]
        if shown:
            db.register("new_shown", pa.concat_tables(shown))
            db.execute("INSERT INTO shown BY NAME SELECT * FROM new_shown")
        for name in ("new_units", "fresh", "asked", "new_sums", "new_shown"):
            db.unregister(name)

    def _number(self, orders: Sequence[Sequence[int]]) -> list[int]:
        return [self.orders.setdefault(tuple(order), len(self.orders)) for order in orders]

    def _write_orders(self) -> None:
        import pyarrow as pa

        new = [(order, o) for order, o in self.orders.items() if o >= self.known_orders]
        if not new:
            return
        distance = [int(np.triu(np.subtract.outer(order, order) > 0, 1).sum()) for order, _ in new]
        table = pa.table(
            {
                "o": pa.array([o for _, o in new], pa.int32()),
                "order": pa.array([list(order) for order, _ in new], pa.list_(pa.int32())),
                "distance": pa.array(distance, pa.int32()),
            }
        )
        self.db.register("new_orders", table)
        self.db.execute("INSERT INTO orders BY NAME SELECT * FROM new_orders")
        self.db.unregister("new_orders")

    def _shown(self, table: pa.Table, unit: int) -> Iterator[pa.Table]:
        """A unit's slot mass, averaged over layers and heads: a row a judgement, query and slot."""
        import pyarrow as pa

        if not len(table):
            return
        orders = table["order"].to_pylist()
        numbers = np.array(self._number(orders), dtype=np.int32)
        for rows, names, shape in _alike(table):
            part = table.take(pa.array(rows))
            mass, sink = (_means(part[c], shape) for c in ("mass", "sink"))
            free = np.maximum(mass - sink, 0.0).mean(1)
            mass = mass.mean(1)
            lengths = part["lengths"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
            order = np.array([orders[r] for r in rows], dtype=np.int32)
            row_free = free.sum(1)
            for at, name in enumerate(names):
                role, _, slot = name.partition(":")
                if role != "candidate":
                    continue
                s = int(slot)
                yield pa.table(
                    {
                        "unit": np.full(len(rows), unit, dtype=np.int32),
                        "o": numbers[rows],
                        "method": part["method"],
                        "query": part["query"],
                        "slot": np.full(len(rows), s, dtype=np.int32),
                        "candidate": order[:, s - 1],
                        "tokens": lengths[:, at].astype(np.int32),
                        "mass": mass[:, at],
                        "free": free[:, at],
                        "row_free": row_free,
                    }
                )


def _numbered(table: pa.Table, unit: int) -> pa.Table:
    import pyarrow as pa

    return table.append_column("unit", pa.array(np.full(len(table), unit, dtype=np.int32)))


def _alike(table: pa.Table) -> Iterator[tuple[np.ndarray, tuple[str, ...], tuple[int, int, int]]]:
    """The rows of a mass table in groups of the same segments and shape: row indices, names, shape."""
    groups: dict[tuple, list[int]] = {}
    for i, (names, shape) in enumerate(zip(table["names"].to_pylist(), table["shape"].to_pylist(), strict=True)):
        groups.setdefault((tuple(names), tuple(shape)), []).append(i)
    for (names, shape), rows in groups.items():
        yield np.array(rows), names, shape


def _means(column: pa.ChunkedArray, shape: tuple[int, int, int]) -> np.ndarray:
    """[rows, layers x heads, segments] of a column of flat lists."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), shape[0] * shape[1], shape[2]).astype(np.float64)
