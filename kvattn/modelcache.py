"""Folders of prepared models: built beside their place, renamed into it, and believed only when their record fits."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvattn.errors import KvattnError

RECORD = "kvattn.json"
FORMAT = 1  # raised when the conversion changes: folders of another format are prepared anew
SMALL = 16 * 2**20  # files up to this size are hashed each time a folder is checked, larger ones are measured

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """A Progress that says nothing."""


def cache_root() -> Path:
    """Where kvattn keeps what it prepares: `KVATTN_CACHE`, else `kvattn` in the user's cache folder."""
    if told := os.environ.get("KVATTN_CACHE"):
        return Path(told).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "kvattn"


def models_root() -> Path:
    """The folder that holds one folder per prepared model."""
    return cache_root() / "models"


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict | None:
    """The folder's record (format, source, files with their size and SHA-256), or None where there is no such thing."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def damage(folder: Path) -> str | None:
    """What is wrong with a prepared folder, or None for a whole one.

    Sizes of all files are compared with the record, hashes of those up to SMALL.
    """
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
        if size <= SMALL and sha256(path) != expected["sha256"]:
            return f"the content of {name} has changed"
    return None


def build(folder: Path, fill: Callable[[Path], dict], room: int, progress: Progress = silent) -> Path:
    """`folder`, whole: as it is if it is whole already, else filled by `fill`.

    `fill(partial)` writes the files into an empty folder beside and returns the `source` part of the record. The
    result appears under its name in one rename after everything has reached the disk; a process that is killed leaves
    a `.partial` folder, which the next build removes. Of several processes one builds, the others wait.

    room: bytes that building takes at most. Raises KvattnError when the disk has less, or runs full.
    """
    root = folder.parent
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{folder.name}.lock", progress):
            if damage(folder) is None:
                return folder
            for left in root.glob(f".{folder.name}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            check_room(root, room)
            partial = _beside(folder)
            try:
                source = fill(partial)
                _write_record(partial, source)
                _sync(partial)
                _put(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
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


def is_full(error: Exception) -> bool:
    """Whether the error says that a disk or a quota is full; some libraries wrap it into one of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


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


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Holds an flock, which ends with its process however that ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing this model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _beside(folder: Path) -> Path:
    """A new empty folder on the same disk, readable like any other (mkdtemp's are for their owner alone)."""
    path = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    path.chmod(0o755)
    return path


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


def _sync(folder: Path) -> None:
    """Forces the folder's files and its listing to the disk: a rename must not overtake what it makes visible."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`; a damaged predecessor steps aside first, since a full folder is never replaced."""
    if folder.exists():
        old = _beside(folder)
        folder.rename(old / folder.name)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
