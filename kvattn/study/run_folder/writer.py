"""The run folder: one writer that can be stopped at any moment, and any number of readers.

A unit is one question with all its orders and methods. Its parts are written under temporary names, synced and renamed,
the judgements part last: a unit without that part never happened. A part's name ends with the hash of its content, so
damage shows.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.files import TEMPORARY, is_full, take_lock, write_atomically
from kvattn.study.run_folder import packs
from kvattn.study.run_folder.parts import committed, damage, parts_of
from kvattn.study.run_folder.reader import Run, read_manifest
from kvattn.study.run_folder.schema import (
    SCHEMA_VERSION,
    TABLES,
    content_hash,
    file_key,
    to_parquet,
    unit_tables,
)
from kvattn.text import plain

if TYPE_CHECKING:
    import pyarrow as pa

    from kvattn.engine.engine import Engine

# What may differ between the sessions that fill one run: everything else in the manifest says how it was judged.
_NOT_COMPARED = {
    *("schema", "kvattn", "created", "versions", "sessions", "late"),
    *("content_test", "calibration", "sinks", "learners", "left_out", "unread"),
    *("device", "kernel", "threads"),
}


class RunWriter:
    """Creates or continues a run folder and is its only writer; a context manager.

    folder:   created if need be; one that holds other things than a run is refused
    manifest: how the run is judged. A folder that was begun with other parameters is refused, naming them. `schema` and
              `created` are filled in; each later session is added to `sessions` with its time, versions and device
    way:      the further ways out of that refusal, for its message

    Raises KvattnError when another process holds the folder, when its schema is another one, and when a finished unit
    is damaged.
    """

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], way: str = "") -> None:
        self.folder, self._way = Path(folder), way
        self._lock: FileLock | None = None
        given = _plain(manifest)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_strangers()
            self._lock = _take_lock(self.folder)
            self._open_manifest(given)
            for table in TABLES:
                (self.folder / table).mkdir(exist_ok=True)
            self._clean()
            damaged = damage(self.folder, TABLES)
            if damaged:
                raise KvattnError(damaged[0])
            self._done = set(committed(self.folder)["judgements"])
        except OSError as error:
            self.close()
            raise _disk_error(error, self.folder, 0) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and len(self._done) >= packs.FROM:
                packs.pack(Run(self.folder))
        except OSError as error:
            raise _disk_error(error, self.folder, len(self._done)) from error
        finally:
            self.close()

    def close(self) -> None:
        """Gives the folder back; safe to call twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def done(self) -> frozenset[str]:
        """The units that are in the folder for good, each as `file_key(key)` of the key it was written under."""
        return frozenset(self._done)

    def write_unit(self, key: str, question: Mapping[str, Any], decisions: Sequence[Decision]) -> None:
        """Commits one unit: all of it, or nothing.

        key:       any string, usually the question id
        question:  a row of the questions table (see `question_row`)
        decisions: at least one

        Raises KvattnError when there is no room (nothing that was committed is lost), when the unit is already there,
        and for decisions that do not belong to the question.
        """
        if not decisions:
            raise KvattnError(f"unit {key!r} has no decisions; nothing was written")
        self.write_tables(key, unit_tables(question, decisions))

    def write_tables(self, key: str, tables: Mapping[str, pa.Table]) -> None:
        """The same of a unit whose tables are made already (`unit_tables`)."""
        if self._lock is None or not self._lock.is_locked:  # a fork does not hold its parent's lock
            raise KvattnError(f"the writer of {self.folder} is closed; open a new one")
        name = file_key(key)
        if name in self._done:
            raise KvattnError(f"unit {key!r} is already in {self.folder}; a finished unit is never written again")
        written: list[Path] = []
        try:
            for table in TABLES:
                data = to_parquet(tables[table])
                path = self.folder / table / f"part-{name}-{content_hash(data)}.parquet"
                written.append(path)
                write_atomically(path, data)
        except BaseException as error:
            for path in written:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _disk_error(error, self.folder, len(self._done)) from error
            raise
        self._done.add(name)

    def update_manifest(self, **fields: Any) -> None:
        """Sets fields that are known only later (content_test, calibration, sinks, ...), in one atomic step.

        Raises KvattnError for a field that says how the run is judged.
        """
        late = set(self.manifest.get("late", []))
        fixed = [name for name in fields if name in self.manifest and name not in _NOT_COMPARED | late]
        if fixed:
            raise KvattnError(f"{fixed[0]!r} is a parameter of {self.folder} and cannot change; name another folder")
        self._write_manifest({**self.manifest, **_plain(fields), "late": sorted({*late, *fields})})

    def _open_manifest(self, given: dict[str, Any]) -> None:
        path = self.folder / "manifest.json"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        session = {"started": now, **{k: given.get(k) for k in ("kvattn", "versions", "device", "kernel", "threads")}}
        if not path.exists():
            sessions = [*given.get("sessions", []), session]  # a merged run has those of its shards
            self._write_manifest({"created": now, **given, "schema": SCHEMA_VERSION, "sessions": sessions})
            return
        stored = read_manifest(self.folder)
        if stored["schema"] != SCHEMA_VERSION:
            raise KvattnError(
                f"{self.folder} has schema {stored['schema']}, this kvattn writes {SCHEMA_VERSION}; it can be "
                "read, but not gone on with: judge into another folder"
            )
        differing = differences(given, stored)
        judged = any(committed(f)["judgements"] for f in (self.folder, self.folder / "heldout"))
        if differing and not judged and not (self.folder / "pools").exists():
            self._write_manifest({"created": now, **given, "schema": SCHEMA_VERSION, "sessions": [session]})
            return
        if differing:
            more = f" (and {len(differing) - 6} more)" if len(differing) > 6 else ""
            raise KvattnError(
                f"{self.folder} was begun with other parameters: {'; '.join(differing[:6])}{more}; "
                f"name another folder, {self._way or 'or run with the old parameters'}"
            )
        self._write_manifest({**stored, "sessions": [*stored.get("sessions", []), session]})

    def _refuse_strangers(self) -> None:
        if not (self.folder / "manifest.json").exists():
            names = {p.name for p in self.folder.iterdir()} - {*TABLES, ".lock", "manifest.json"}
            if strangers := sorted(name for name in names if not name.startswith(TEMPORARY)):
                raise KvattnError(f"{self.folder} is no run folder and holds {strangers[0]!r}; name an empty one")

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        text = json.dumps(manifest, indent=1, ensure_ascii=True, allow_nan=False)
        try:
            write_atomically(self.folder / "manifest.json", text.encode())
        except OSError as error:
            raise _disk_error(error, self.folder, len(getattr(self, "_done", ()))) from error
        self.manifest = manifest

    def _clean(self) -> None:
        """Removes what interrupted writers left: temporary files, and parts of units that were never committed."""
        units = parts_of(self.folder, "judgements")
        own = self.folder.glob(f"{TEMPORARY}manifest.json*")  # reports and gates are written there without the lock
        left = chain(own, *((self.folder / table).glob(f"{TEMPORARY}*") for table in (*TABLES, "pools")))
        parts = (x for table in TABLES for x in parts_of(self.folder, table).items())
        for path in [*left, *(path for key, paths in parts if key not in units for path in paths)]:
            path.unlink(missing_ok=True)


def set_aside(folder: str | Path) -> Path | None:
    """Gives a run folder another name beside, and returns it; None where there is no run. Raises KvattnError while
    another process writes to it."""
    path = Path(folder).resolve() if Path(folder).name in ("", "..") else Path(folder)
    if not (path / "manifest.json").exists():
        return None
    aside = next(x for n in count(1) if not (x := path.with_name(f"{path.name}.before-{n}")).exists())
    try:
        lock = _take_lock(path)
        try:
            path.rename(aside)
        finally:
            lock.release()
    except OSError as error:
        raise _disk_error(error, path, 0) from error
    return aside


def _take_lock(folder: Path) -> FileLock:
    """The folder's lock. Raises KvattnError naming the process that holds it."""
    path = folder / ".lock"
    try:
        lock = take_lock(path).lock
    except Timeout:
        holder = path.read_text(errors="replace").strip()[:32]
        who = f"process {holder}" if holder else "another process"
        raise KvattnError(f"{folder} is being written by {who}; wait for it, or name another folder") from None
    path.write_text(f"{os.getpid()}\n")
    return lock


def _disk_error(error: OSError, folder: Path, finished: int) -> KvattnError:
    if is_full(error):
        return KvattnError(
            f"no room on disk for {folder} ({error.strerror}); the {finished} finished questions are safe: "
            "make room and run the same command again"
        )
    return KvattnError(f"{folder} cannot be written ({error.strerror or error}); name a folder that can be")


def provenance(engine: Engine) -> dict[str, Any]:
    """Which weights compute, by which code, on what: the part of a manifest that all that is computed has."""
    import torch

    kernels = [
        k for k in ("flash", "mem_efficient", "math", "cudnn") if getattr(torch.backends.cuda, f"{k}_sdp_enabled")()
    ]
    return {
        "kvattn": version("kvattn"),
        "model": {k: v for k, v in engine.info.items() if k != "folder"}
        | {"active": round(engine.meter.weights * engine.layers)},
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": ", ".join(dict.fromkeys(map(str, engine.geometry.devices))),
        "kernel": f"sdpa ({', '.join(kernels)}), float32 products {torch.get_float32_matmul_precision()}",
        "threads": torch.get_num_threads(),
        "versions": {
            **{p: version(p) for p in ("torch", "transformers", "numpy")},
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        },
    }


def differences(given: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where two manifests differ in how the run is judged, as "key (stored there, given here)". What a hash tells is
    compared by the hash: the same weights and questions may have another name, and lie in another folder."""
    skip = _NOT_COMPARED | set(stored.get("late", []))
    a, b = (_leaves({k: _content(k, v) for k, v in m.items() if k not in skip}) for m in (stored, given))
    missing = object()
    return [
        f"{key} ({_short(a.get(key, 'absent'))} there, {_short(b.get(key, 'absent'))} here)"
        for key in sorted({*a, *b})
        if a.get(key, missing) != b.get(key, missing)
    ]


def _content(key: str, value: Any) -> Any:
    """An entry of a manifest, without the names of what its hashes tell; an identity is NAME@HASH."""
    if key == "identity" and value:
        return value.rpartition("@")[2]
    if isinstance(value, dict) and value.get("hashes"):
        return {"hashes": value["hashes"]}
    return {k: v for k, v in value.items() if k != "source"} if isinstance(value, dict) and "sha256" in value else value


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict's leaves by dotted path; lists are leaves, but for lists of dicts."""
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        value = {v.get("name", i) if isinstance(v, dict) else i: v for i, v in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _leaves(item, f"{prefix}.{key}".lstrip(".")).items()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return plain(manifest)
    except TypeError as error:
        raise KvattnError(f"a run's manifest: {error}") from None
