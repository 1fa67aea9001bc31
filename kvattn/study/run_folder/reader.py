"""Reading a run folder: its tables as DataFrames, reduced in DuckDB where they are large."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvattn.decision import SlotMass, deciding_query
from kvattn.errors import KvattnError
from kvattn.files import read_json
from kvattn.study.run_folder import older
from kvattn.study.run_folder.packs import checked, packs, state_of
from kvattn.study.run_folder.parts import committed, damage
from kvattn.study.run_folder.schema import SCHEMAS, TABLES, file_key, slot_mass_of
from kvattn.study.run_folder.summary import SUMMARIES, summarise

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from kvattn.stats.frames import Question

FOLDS = 24
SUMS = ("count", "tokens_sum", "mass_sum", "free_sum", "pairs", "change_sum", "free_change_sum")
# A sum with an unknown term is unknown.
TOTALS = ", ".join(f"CASE WHEN count({c}) = count(*) THEN sum({c}) END::DOUBLE AS {c}" for c in SUMS)

# Where a choice was made by scores that are not finite.
_NO_NUMBERS = {
    "judgements": "len(list_filter(scores, lambda s: NOT isfinite(s))) > 0",
    "picks": "isnan(coverage) OR isnan(margin_ref) OR isnan(surprise)",
}

_HEADS = f"""
CREATE TABLE heads AS SELECT fold, method, query, layer, head, name, {TOTALS} FROM sums JOIN (
    SELECT question_id, (row_number() OVER (ORDER BY question_id) - 1) % {FOLDS} AS fold
    FROM (SELECT DISTINCT question_id FROM sums)) USING (question_id)
GROUP BY ALL
"""


class Run:
    """A run folder, read: what was committed when it was opened. Tables come as pandas DataFrames, through DuckDB.

    The parts of a table are checked against their hashes when the table is first asked for. May be read from several
    threads. Raises KvattnError for a folder that is no run, has another schema, or holds a damaged part (named).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.parts = committed(self.folder)
        self._packs = packs(self.folder, state_of(self.parts["judgements"]))
        self._ready: set[str] = set()
        self._sound: set[str] = set()
        self._lock = threading.RLock()
        self.known: dict[Any, Any] = {}  # what was reduced out of it (`kvattn.stats.picks.once`)

    def __len__(self) -> int:
        """Number of committed units."""
        return len(self.parts["judgements"])

    @property
    def state(self) -> str:
        """Which folder this is, and a hash of what it holds (`kvattn.study.run_folder.packs.state_of`)."""
        return f"{self.folder.resolve()} {state_of(self.parts['judgements'])}"

    def judgements(self, methods: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per (question_id, order, method), in a fixed order; of some methods alone where they are given."""
        some, given = ("", ()) if methods is None else ("WHERE list_contains(?, method)", [list(methods)])
        return self.sql(f'SELECT * FROM judgements {some} ORDER BY question_id, "order", method', given)

    def questions(self) -> pd.DataFrame:
        """One row per question, with its candidates' ids, agents, texts and correctness."""
        return self.sql("SELECT * FROM questions ORDER BY question_id")

    @property
    def asked(self) -> Mapping[str, Question]:
        """The questions by id, ready for lookups."""
        return self._asked

    @cached_property
    def _asked(self) -> dict[str, Question]:
        from kvattn.stats.frames import read_questions

        return read_questions(self.questions())

    def picks(self) -> pd.DataFrame:
        """Every judgement beside dense's, for raw and calibrated choices (`kvattn.stats.picks`)."""
        return self.sql('SELECT * FROM picks ORDER BY question_id, "order", method, calibrated')

    def slots(self) -> pd.DataFrame:
        """Slot mass, mean over layers and heads, a row a slot of a judgement (`kvattn.study.run_folder.summary`)."""
        return self.sql('SELECT * FROM slots ORDER BY question_id, "order", method, query, slot')

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
        """Slot mass, one row per (question_id, order, method, query), of the judgements that match what is given. Of
        one question its own part alone is read."""
        wanted = {
            "question_id": question_id,
            '"order"': None if order is None else [int(i) for i in order],
            "method": method,
            "query": query,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in given)}" if given else ""
        table = "mass"
        if question_id is not None:
            named = file_key(question_id)  # what a study calls a question's unit
            key = named if named in self.parts["mass"] else self._keys.get(question_id)
            if key not in self.parts["mass"]:
                return SCHEMAS["mass"].empty_table().to_pandas()
            unit = {key: self.parts["mass"][key]}
            self._check(("mass",), unit)
            table = older.relation(_files(unit), self.manifest)
        return self.sql(
            f'SELECT * FROM {table} {where} ORDER BY question_id, "order", method, query', list(given.values())
        )

    def slot_mass(
        self, question_id: str, order: Sequence[int], method: str, query: str | None = None
    ) -> SlotMass | None:
        """The slot mass of one judgement, by default its decision row's, or None when it was not captured."""
        rows: Any = self.mass(question_id, order, method, query or self.deciding)
        return None if rows.empty else slot_mass_of(rows.iloc[0].to_dict())

    def mass_means(
        self, query: str | None = None, by: Sequence[str] = ("method", "layer", "head", "name"), where: str = "true"
    ) -> pd.DataFrame:
        """Means of slot mass over judgements (and over what `by` leaves out), reduced in DuckDB; by default those of
        the decision row.

        by:    columns of the sums table, or "fold"; it must hold "method" and "name"
        where: an SQL condition over the same columns

        Columns beside `by`: count, tokens (length of the segment), mass and free (share of the row; without sink
        tokens, NaN where nobody looked for them), pairs, change and free_change (mean over pairs of log mass less
        dense's log mass; NaN without pairs).
        """
        known = ("fold", "question_id", "method", "layer", "head", "name")
        if not {"method", "name"} <= set(by) <= set(known):
            raise KvattnError(f"mass_means: `by` takes {', '.join(known)}, method and name among them; got {list(by)}")
        columns = ", ".join(by)
        table: Any = self.sql(
            f"SELECT {columns}, {TOTALS} FROM {'sums' if 'question_id' in by else 'heads'} "
            f"WHERE query = ? AND {where} GROUP BY {columns} ORDER BY {columns}",
            [query or self.deciding],
        )
        return to_means(table, by)

    @property
    def deciding(self) -> str:
        """The query of the decision row (`kvattn.decision.deciding_query`)."""
        return deciding_query(self.manifest.get("readout"))

    def queries(self) -> list[str]:
        """The query tokens whose rows were captured, e.g. ["last_prompt"], the one that decides first."""
        found = [str(q) for q in self.sql("SELECT DISTINCT query FROM slots ORDER BY query")["query"]]
        return sorted(found, key=lambda q: q != self.deciding)

    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """The answer to a DuckDB query over judgements, questions, mass, sums, picks, slots, and heads (sums by fold,
        method, query, layer, head and name; a fold is a group of questions).

        `order` is a word of SQL: write "order" in double quotes.
        """
        import duckdb

        while True:
            try:
                return _unmasked(self._db.cursor().execute(query, parameters or None).df())
            except duckdb.Error as error:
                if self._taken():
                    continue
                reason = str(error).splitlines()[0]
                missing = re.search(r"Table with name (\w+) does not exist", reason)
                if missing is None or not self._prepare(missing[1]):
                    raise KvattnError(f"{self.folder}: DuckDB says: {reason}") from None

    def relation(self, table: str, order: str) -> pa.Table:
        """A whole table that `sql` knows, as Arrow, sorted by those columns."""
        self.sql(f"SELECT 1 FROM {table} LIMIT 0")
        return self._db.cursor().sql(f"FROM {table} ORDER BY {order}").to_arrow_table()

    def check(self) -> list[str]:
        """What is damaged, one line per part; an empty list when every part's content matches its name."""
        lines = damage(self.folder, TABLES, self.parts)
        if not lines:
            self._sound.update(TABLES)
        return lines

    def sound(self) -> Run:
        """This run, every part of it checked. Raises KvattnError that names the first damaged one."""
        lines = self.check()
        if lines:
            raise KvattnError(lines[0])
        return self

    @cached_property
    def _db(self) -> Any:
        import duckdb

        from kvattn.stats.picks import LOCAL

        return duckdb.connect(config=LOCAL)

    @cached_property
    def _keys(self) -> dict[str, str]:
        """By question, the key of the unit that holds it."""
        paths = {str(path): key for key, path in self.parts["questions"].items()}
        if not paths:
            return {}
        self._check(("questions",))
        source = _files(self.parts["questions"], "filename = true")
        rows: Any = self.sql(f"SELECT question_id, filename FROM {source}")
        return {str(q): paths[f] for q, f in zip(rows["question_id"], rows["filename"], strict=True)}

    def _check(self, tables: Sequence[str], unit: Mapping[str, Path] | None = None) -> None:
        """Raises KvattnError for damage of tables, or of one unit's part of a table."""
        tables = [t for t in tables if t not in self._sound]
        units = {t: self.parts[t] if unit is None else unit for t in tables}
        marks = self.parts["judgements"] if unit is None else {k: self.parts["judgements"][k] for k in unit}
        damaged = damage(self.folder, tables, {**units, "judgements": marks})
        if damaged:
            raise KvattnError(damaged[0])
        if unit is None:
            self._sound.update(tables)

    def _prepare(self, table: str) -> bool:
        """Makes a relation that a query names; False where there is none of that name."""
        with self._lock:
            if table in (*TABLES, "heads") and table not in self._ready:
                if table in self._packs:
                    packed = _files({table: checked(self._packs[table])})
                    self._db.execute(f"CREATE VIEW {table} AS SELECT * FROM {packed}")
                    self._ready.add(table)
                    return True
                if table in SUMMARIES:
                    self._summaries(table)
                elif table == "heads":
                    self._prepare("sums")
                    self._db.execute(_HEADS)
                else:
                    self._check((table,))
                    self._view(self._db, table, self.parts[table])
                if table in _NO_NUMBERS:
                    self._check_scores(table)
                self._ready.add(table)
            return table in self._ready

    def _taken(self) -> bool:
        """Whether a writer took packed files away since the run was opened; their tables are made from the parts then,
        which stay."""
        with self._lock:
            taken = [table for table, path in self._packs.items() if not path.exists()]
            for table in taken:
                del self._packs[table]
                self._ready.discard(table)
                self._db.execute(f"DROP VIEW IF EXISTS {table}")
            return bool(taken)

    def _check_scores(self, table: str) -> None:
        """Raises KvattnError for a choice by scores that are not finite, as an older kvattn wrote them."""
        found = self._db.execute(
            f"SELECT question_id, method FROM {table} WHERE readout <> 'generate' AND ({_NO_NUMBERS[table]}) LIMIT 1"
        ).fetchone()
        if found is not None:
            self._db.execute(f"DROP {'VIEW' if table == 'judgements' else 'TABLE'} {table}")
            raise KvattnError(
                f"{self.folder}: the scores of {found[1]!r} for question {found[0]!r} are not finite, so that its "
                "choices say nothing; judge anew with sound weights, or in another dtype"
            )

    def _summaries(self, table: str) -> None:
        """Makes the table of a summary: read where it was written, reduced anew for units of an older kvattn."""
        import duckdb

        from kvattn.stats.picks import LOCAL

        self._check((table,))
        there = self.parts[table]
        lacking = {k: v for k, v in self.parts["judgements"].items() if k not in there}
        if there:
            self._db.execute(f"CREATE TABLE {table} AS SELECT * FROM {older.relation(_files(there), self.manifest)}")
        if there and not lacking:
            return
        tables = ("judgements", "mass") if table == "slots" else ("judgements",)
        self._check(tables)
        with duckdb.connect(config=LOCAL) as db:
            for name in tables:
                self._view(db, name, {k: v for k, v in self.parts[name].items() if k in lacking})
            summarise(db, self.asked.values(), slots=table == "slots")
            self._db.register("reduced", db.sql(f"SELECT * FROM {table}").to_arrow_table())
        verb = f"INSERT INTO {table} BY NAME" if there else f"CREATE TABLE {table} AS"
        self._db.execute(f"{verb} SELECT * FROM reduced")
        self._db.unregister("reduced")

    def _view(self, db: Any, table: str, parts: Mapping[str, Path]) -> None:
        if parts:
            # Judgements of older runs lack the columns of written verdicts.
            source = _files(parts, "union_by_name = true" if table == "judgements" else "")
            source = source if table == "questions" else older.relation(source, self.manifest)
            db.execute(f"CREATE VIEW {table} AS SELECT * FROM {source}")
        else:
            db.register("nothing", SCHEMAS[table].empty_table())
            db.execute(f"CREATE TABLE {table} AS SELECT * FROM nothing")


def to_means(sums: Any, by: Sequence[str]) -> Any:
    """Means from sums of slot mass, as `Run.mass_means` gives them."""
    count, pairs = (sums[c].where(sums[c] > 0) for c in ("count", "pairs"))
    return sums[list(by)].assign(
        count=sums["count"].astype(int),
        pairs=sums["pairs"].astype(int),
        **{c: sums[f"{c}_sum"] / count for c in ("tokens", "mass", "free")},
        **{c: sums[f"{c}_sum"] / pairs for c in ("change", "free_change")},
    )


def _files(parts: Mapping[str, Path], options: str = "") -> str:
    """The DuckDB relation of some parts. A folder name may hold *, ? or [, which it would take for patterns."""
    quoted = ["'" + _unglob(str(p)).replace("'", "''") + "'" for p in parts.values()]
    return f"read_parquet([{', '.join(quoted)}]{', ' * bool(options)}{options})"


def _unmasked(frame: Any) -> Any:
    """The frame with None for what is NULL within lists: DuckDB masks it, and a masked cell passes for False or 0."""
    for name in frame.columns:
        if frame[name].dtype == np.dtype(object) and any(isinstance(cell, np.ma.MaskedArray) for cell in frame[name]):
            frame[name] = [
                np.array(cell.tolist(), dtype=object) if isinstance(cell, np.ma.MaskedArray) else cell
                for cell in frame[name]
            ]
    return frame


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


def left_out(manifest: Mapping[str, Any]) -> list[str]:
    """The questions of a run that could not be judged, and the places of those that could not be read."""
    told = (manifest.get(key) for key in ("left_out", "unread"))
    return [str(name) for names in told if isinstance(names, dict | list) for name in names]


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
    if manifest.get("schema") not in older.READ:
        raise KvattnError(
            f"{folder} has schema {manifest.get('schema')!r}, this kvattn reads {' and '.join(map(str, older.READ))}; "
            "use the kvattn that wrote it, or judge again into another folder"
        )
    for key, fits in _SHAPES.items():
        if manifest.get(key) is not None and not fits(manifest[key]):
            raise KvattnError(f"{path} is damaged at {key!r}; restore it from a copy")
    return older.manifest(manifest)


def _unglob(path: str) -> str:
    return re.sub(r"[*?\[]", lambda m: f"[{m[0]}]", path)
