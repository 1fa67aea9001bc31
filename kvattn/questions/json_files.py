"""Objects out of a file, one at a time, each with its place in it: JSON Lines, JSON, Parquet; also gzipped or piped."""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kvattn.errors import KvattnError
from kvattn.files import single

T = TypeVar("T")
NAMED = 5  # faults that a message names
PIPE = Path("-")  # standard input
_BLANK = b"\xef\xbb\xbf \t\r\n"
_OTHER = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x80\x02": "a pickle, which could run code",
    b"\x80\x03": "a pickle, which could run code",
    b"\x80\x04": "a pickle, which could run code",
    b"\x80\x05": "a pickle, which could run code",
    b"ARROW1": "an Arrow file",
    b"\xff\xfe": "text in UTF-16, not in UTF-8",
    b"\xfe\xff": "text in UTF-16, not in UTF-8",
}


def each(
    path: Path,
    limit: int | None,
    make: Callable[[Any, str], T],
    unread: dict[str, str] | None = None,
    objects: Callable[[Path], Iterator[tuple[Any, str]]] | None = None,
) -> Iterator[T]:
    """What `make` makes of every value of a file and its place ("FILE, line 3"), or of the first `limit`. After a fault
    nothing more is delivered, the rest is read, and all faults are raised as one KvattnError.

    unread: where it is given, faults are put there by their place ("line 3"), and all else is delivered; they are
            raised where nothing else is left
    objects: what reads the file (default: `iter_objects`)
    """
    faults: dict[str, str] = {} if unread is None else unread
    delivered = False
    for value, place in islice((objects or iter_objects)(path), limit):
        try:
            if isinstance(value, KvattnError):
                raise value
            made = make(value, f"{path}, {place}")
        except KvattnError as error:
            faults[place] = str(error) if unread is not None or len(faults) < NAMED else ""
            continue
        if unread is not None or not faults:
            delivered = True
            yield made
    if not faults or (unread is not None and delivered):
        return
    first, *more = list(faults.values())[:NAMED]
    if not more:
        raise KvattnError(first)
    said = "; ".join(fault.removeprefix(f"{path}, ") for fault in (first, *more))
    rest = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    raise KvattnError(f"{path} has {len(faults)} faults: {said}{rest}")


def iter_objects(path: Path) -> Iterator[tuple[Any, str]]:
    """The values in a file (`-`: standard input) with their places, counted from 1: "line 3" of JSONL, "row 3" of
    Parquet, "problem 3" of a JSON document. NaN, which pandas writes for what is missing, is null.

    A file whose first line is a whole JSON object is JSONL and is read line by line; in the place of a line that holds
    no JSON stands the KvattnError that says why. Anything else is one JSON document: a list of values, an object with a
    list "problems", or a single object. Raises KvattnError for a file that cannot be read, is no UTF-8, or holds no
    JSON.
    """
    try:
        with path.open("rb") if path != PIPE else open(sys.stdin.fileno(), "rb", closefd=False) as raw:
            yield from _objects(path, raw)
    except (EOFError, zlib.error) as e:
        raise KvattnError(f"cannot read {path}: it is damaged ({str(e).splitlines()[0]})") from None
    except OSError as e:
        raise KvattnError(f"cannot read {path}: {e.strerror or e}") from None
    except ValueError as e:  # a null byte or a lone surrogate in the path
        raise KvattnError(f"cannot read {str(path)!r}: {e}") from None


def _objects(path: Path, raw: io.BufferedReader) -> Iterator[tuple[Any, str]]:
    start = raw.peek(8)
    if start.startswith(b"PAR1"):
        yield from _rows(path, raw if raw.seekable() else io.BytesIO(raw.read()))
        return
    for magic, what in _OTHER.items():
        if start.startswith(magic):
            raise KvattnError(f"{path} is {what}; give JSON Lines, JSON or Parquet, unpacked or in gzip")
    if start.startswith(b"version https://git-lfs"):
        raise KvattnError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
    with gzip.open(raw) if start.startswith(b"\x1f\x8b") else nullcontext(raw) as file:
        read = []
        if file is not raw and file.peek(2).startswith(b"\x1f\x8b"):
            raise KvattnError(f"{path} is packed by gzip twice; unpack it once")
        for line in file:
            read.append(line)
            if line.strip(_BLANK):
                break
        if not read or not read[-1].strip(_BLANK):
            return
        if _is_jsonl(path, read[-1]):
            for number, line in enumerate(chain(read, file), start=1):
                try:
                    if text := _decode(path, line, number):
                        yield _loads(path, text, number), f"line {number}"
                except KvattnError as error:
                    yield error, f"line {number}"
            return
        value = _loads(path, _decode(path, b"".join(read) + file.read(), 1), 1)
    items = value["problems"] if _is_wrapper(value) else value if isinstance(value, list) else [value]
    yield from ((item, f"problem {i}") for i, item in enumerate(items, start=1))


def _rows(path: Path, file: BinaryIO) -> Iterator[tuple[Any, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = (row for batch in pq.ParquetFile(file).iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            held = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
            yield held, f"row {number}"
    except pa.ArrowException as e:
        raise KvattnError(f"cannot read {path}: it is damaged ({str(e).splitlines()[0]})") from None


def _is_jsonl(path: Path, first: bytes) -> bool:
    text = first.decode("utf-8-sig", errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if text.startswith("[") or _is_wrapper(value):
        return False
    return isinstance(value, dict) or any(x.lower() in (".jsonl", ".ndjson") for x in path.suffixes)


def _is_wrapper(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("problems"), list) and "question" not in value


def _decode(path: Path, raw: bytes, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8").rstrip(" \t\r\n")
    except UnicodeDecodeError as e:
        line += raw.count(b"\n", 0, e.start)
        raise KvattnError(
            f"{path}, line {line}: byte 0x{raw[e.start]:02x} is no UTF-8; save the file in the UTF-8 encoding"
        ) from None


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _loads(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text, parse_constant=_constant, object_pairs_hook=single)
    except json.JSONDecodeError as e:
        raise KvattnError(
            f"{path}, line {line + e.lineno - 1}, column {e.colno}: malformed JSON ({e.msg}); correct that line"
        ) from None
    except (ValueError, RecursionError) as e:
        raise KvattnError(f"{path}, line {line}: JSON that cannot be read ({e}); correct it") from None
