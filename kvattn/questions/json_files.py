"""Objects out of a JSON or JSONL file, one at a time, each with its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError


def iter_objects(path: Path) -> Iterator[tuple[Any, str]]:
    """The values in a file with their places, counted from 1: "line 3" of JSONL, "problem 3" of a JSON document.

    A file whose first line is a whole JSON object is JSONL and is read line by line, so that what stands before a bad
    line is delivered. Anything else is one JSON document: a list of values, an object with a list "problems", or a
    single object. Raises KvattnError for a file that cannot be read, is no UTF-8, or holds no JSON.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
            file.seek(0)
            if _is_jsonl(path, first):
                for number, raw in enumerate(file, start=1):
                    if text := _decode(path, raw, number):
                        yield _loads(path, text, number), f"line {number}"
            elif first:
                value = _loads(path, _decode(path, file.read(), 1), 1)
                items = value["problems"] if _is_wrapper(value) else value if isinstance(value, list) else [value]
                yield from ((item, f"problem {i}") for i, item in enumerate(items, start=1))
    except OSError as e:
        raise KvattnError(f"cannot read {path}: {e.strerror or e}") from None
    except ValueError as e:  # a null byte or a lone surrogate in the path
        raise KvattnError(f"cannot read {str(path)!r}: {e}") from None


def _is_jsonl(path: Path, first: bytes) -> bool:
    text = first.decode("utf-8-sig", errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if text.startswith("[") or _is_wrapper(value):
        return False
    return isinstance(value, dict) or path.suffix.lower() in (".jsonl", ".ndjson")


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


def _loads(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise KvattnError(
            f"{path}, line {line + e.lineno - 1}, column {e.colno}: malformed JSON ({e.msg}); correct that line"
        ) from None
    except (ValueError, RecursionError) as e:
        raise KvattnError(f"{path}, line {line}: JSON that cannot be read ({type(e).__name__}: {e})") from None
