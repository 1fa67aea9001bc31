"""What statistics read of a run, each table in one file, so that a run of a million judgements opens at once.

`packed/TABLE-STATE-HASH.parquet` holds what the parts of a state of the run hold, reduced where a table is a reduction,
and is written when a writer that filled a large run is closed. Whoever opens the run in that state reads it; in any
other, and where it was never written, the parts are read. It may be deleted: nothing stands in it alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError
from kvattn.files import TEMPORARY, write_atomically
from kvattn.study.run_folder.schema import content_hash, to_parquet

FOLDER = "packed"
FROM = 200  # units: a smaller run is read as fast from its parts
# In which order: rows of one method lie together, and what belongs to a question lies as it was written.
PACKED = {
    "questions": "question_id",
    "picks": "calibrated, method, question_id",
    "slots": "query, method, question_id",
    "heads": "ALL",
}
_PACK = re.compile(r"(?P<table>[a-z]+)-(?P<state>[0-9a-f]{16})-(?P<hash>[0-9a-f]{16})\.parquet")


def state_of(parts: Mapping[str, Path]) -> str:
    """A hash of what a run holds: of the names of its judgements' parts, which hold the hashes of their contents."""
    return hashlib.sha256("\n".join(sorted(p.name for p in parts.values())).encode()).hexdigest()[:16]


def packs(folder: Path, state: str) -> dict[str, Path]:
    """By table, the packed file of a run in that state."""
    found = {}
    for path in (folder / FOLDER).glob("*.parquet"):
        match = _PACK.fullmatch(path.name)
        if match and match["state"] == state:
            found[match["table"]] = path
    return found


def checked(path: Path) -> Path:
    """The packed file. Raises KvattnError where its content is not that which its name tells."""
    match = _PACK.fullmatch(path.name)
    try:
        if match and content_hash(path.read_bytes()) == match["hash"]:
            return path
        problem = "is damaged: its content does not match the hash in its name"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise KvattnError(f"{path} {problem}; delete it: all that it holds stands in the run's parts")


def pack(run: Any) -> None:
    """Writes the packed files of a `Run` that lack, and removes those of other states. Raises OSError."""
    folder, state = run.folder / FOLDER, state_of(run.parts["judgements"])
    folder.mkdir(exist_ok=True)
    for table in PACKED.keys() - packs(run.folder, state).keys():
        data = to_parquet(run.relation(table, PACKED[table]))
        write_atomically(folder / f"{table}-{state}-{content_hash(data)}.parquet", data)
    kept = packs(run.folder, state).values()
    for path in folder.iterdir():
        if path not in kept and (path.name.startswith(TEMPORARY) or _PACK.fullmatch(path.name)):
            path.unlink()
