"""Files on a disk: written whole or not at all, locked, hashed, and the folder that kvattn keeps for itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from platformdirs.unix import Unix

from kvattn.errors import KvattnError

TEMPORARY = ".tmp-"
REMEMBERED = 16 * 2**20  # hashes of files above this size are remembered
_SETTLED = 2.0  # seconds: a younger file might change again within one tick of the clock that stamps it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, under a name that no other writer has; when the block ends it is synced and takes
    the place of `path`, and when an error ends it, nothing is left of it."""
    temporary = beside(path)
    try:
        yield temporary
        put(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """A new empty file in the folder of `path`, under a name that no other writer has."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(6)}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return temporary


def put(temporary: Path, path: Path) -> None:
    """Makes `path` what `temporary` is, a file or a folder, after all of it has reached the disk."""
    for part in (*temporary.rglob("*"), temporary):
        sync(part)
    os.replace(temporary, path)
    sync(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Makes `path` hold `data`, or leaves no trace. Of several writers at once, one wins whole."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_output(path: Path, data: bytes) -> Path:
    """The file that somebody named, whole, in a folder that is made for it. Raises KvattnError where that cannot be."""
    if not path.name or path.is_dir():
        raise KvattnError(f"{str(path)!r} is a folder; name the file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise KvattnError(f"{path} cannot be written ({error.strerror}); name another file") from None
    return path


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's listing, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path, waiting: Callable[[], None] | None = None) -> AcquireReturnProxy[FileLock]:
    """The lock `path`, held until the end of the `with` that it is used in, or until the process ends, however it does.

    waiting: called where another process holds it, before this one waits; without it, filelock.Timeout is raised
    """
    lock = FileLock(path, thread_local=False)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        if waiting is None:
            raise
    waiting()
    return lock.acquire()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError where it cannot be read, ValueError where it is no JSON, or holds a key
    twice, or a number that is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number, object_pairs_hook=single)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises KvattnError, with the line, where it cannot be read, is no YAML of plain values,
    or gives a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: list[Any] = []
            for at, _ in node.value:
                key = self.construct_object(at, deep=True)
                if key in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key!r} is given twice", at.start_mark)
                seen.append(key)
            return super().construct_mapping(node, deep)

    try:
        return Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as e:
        raise KvattnError(f"cannot read {path}: {e.strerror}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: no UTF-8, no such day, no number
        where = getattr(e, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        why = "not UTF-8" if isinstance(e, UnicodeDecodeError) else getattr(e, "problem", None) or e
        raise KvattnError(f"{path}{line}: no valid YAML ({why})") from e


def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that is given twice, whose first value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return made


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex. Of a large file it is remembered in the cache folder for as long as the file's place,
    size and times stay what they are."""
    stat = path.stat()
    if stat.st_size <= REMEMBERED:
        return _sha256(path)
    where = (str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    note = cache_root() / "hashes" / hashlib.sha256(repr(where).encode("utf-8", "surrogateescape")).hexdigest()
    with suppress(OSError, ValueError):
        if re.fullmatch(r"[0-9a-f]{64}", known := note.read_text("ascii")):
            return known
    settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED
    digest = _sha256(path)
    if settled:
        with suppress(OSError):  # without a note it is hashed again
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, digest.encode())
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in the place of a large one that was not fetched."""
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs")


def cache_root() -> Path:
    """Where kvattn keeps what it prepares: `KVATTN_CACHE`, else `kvattn` in the user's cache folder (XDG_CACHE_HOME, or
    ~/.cache) on every system."""
    if told := os.environ.get("KVATTN_CACHE"):
        return Path(told).expanduser().absolute()
    return Unix("kvattn").user_cache_path.absolute()


def is_full(error: Exception) -> bool:
    """Whether the error says that a disk or a quota is full; some libraries wrap it into one of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)
