"""Folders of prepared models: built beside their place, renamed into it, and believed only when their record fits."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from kvattn.errors import KvattnError
from kvattn.files import cache_root, is_full, put, read_json, sha256, take_lock
from kvattn.text import Progress, silent

RECORD = "prepared.json"
RECORDS = (RECORD, "kvattn.json")  # the second is what older folders have
MARGIN = 16 * 2**20  # bytes of room beside the weights: tokenizer, configuration, record
FORMAT = 1  # raised when the conversion changes: folders of another format are prepared anew


def models_root() -> Path:
    """The folder that holds one folder per prepared model."""
    return cache_root() / "models"


def read_record(folder: Path) -> dict | None:
    """The folder's record (format, source, files with their size and SHA-256), or None where there is no such thing."""
    for name in RECORDS:
        with suppress(OSError, ValueError):
            record = read_json(folder / name)
            if isinstance(record, dict) and isinstance(record.get("files"), dict):
                return record
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder, or None for a whole one: every file is compared with the record."""
    record = read_record(folder)
    if record is None:
        return f"it has no readable {RECORD}"
    if record.get("format") != FORMAT:
        return "another version of kvattn prepared it"
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, not {expected['bytes']}"
        if sha256(path) != expected["sha256"]:
            return f"the content of {name} has changed"
    return None


def build(folder: Path, fill: Callable[[Path], dict], room: int, progress: Progress = silent) -> Path:
    """`folder`, whole: as it is if it is whole already, else filled by `fill`.

    `fill(unfinished)` writes the files into an empty folder beside and returns the `source` part of the record. The
    result appears under its name in one rename after everything has reached the disk; a process that is killed leaves
    a `.partial` folder, which the next build removes. Of several processes one builds, the others wait.

    room: bytes that building takes at most. Raises KvattnError when the disk has less, or runs full.
    """
    root = folder.parent
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        waiting = partial(progress, "another process is preparing this model; waiting for it", 0, 1)
        with take_lock(root / f".{folder.name}.lock", waiting):
            if damage(folder) is None:
                return folder
            _sweep(folder)
            check_room(root, room)
            unfinished = _beside(folder)
            try:
                _write_record(unfinished, fill(unfinished))
                if folder.exists():  # a damaged one steps aside, since a full folder is never replaced
                    folder.rename(_beside(folder) / folder.name)
                put(unfinished, folder)
            finally:
                _sweep(folder)
    return folder


def check_room(root: Path, room: int) -> None:
    """Raises KvattnError when the disk of `root` has less than `room` bytes free."""
    free = shutil.disk_usage(root).free
    if free < room:
        raise KvattnError(
            f"no room in {root}: {_size(room)} are needed, {_size(free)} are free; "
            "free some, or set KVATTN_CACHE to a folder on another disk"
        )


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turns a full or a forbidden disk into one line; every other error passes."""
    try:
        yield
    except KvattnError:
        raise
    except Exception as error:
        if is_full(error):
            raise KvattnError(
                f"no room in {root}: the disk ran full; free some, or set KVATTN_CACHE to a folder on another disk"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise KvattnError(
                f"cannot write to {root} ({error.strerror}); set KVATTN_CACHE to a folder you may write to"
            ) from error
        raise


def _beside(folder: Path) -> Path:
    """A new empty folder on the same disk, readable like any other (mkdtemp's are for their owner alone)."""
    path = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    path.chmod(0o755)
    return path


def _sweep(folder: Path) -> None:
    """Removes what builds of the folder left beside it."""
    for path in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _write_record(folder: Path, source: dict) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes files for their owner alone
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    record = {"format": FORMAT, "source": source, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
