"""Objects out of a JSON or JSONL file, one at a time, each with the line it begins on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvattn.errors import KvattnError

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


def iter_objects(path: Path) -> Iterator[tuple[Any, int]]:
    """The values in a file with their line numbers, from 1.

    A file whose first line is a whole JSON object is JSONL and is read line by line, so that what stands before a bad
    line is delivered. Anything else is one JSON document: a list of values, an object with a list "problems", or a
    single object. Raises KvattnError for a file that cannot be read, is no UTF-8, or holds no JSON.
    """
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
            file.seek(0)
            if _is_jsonl(path, first):
                yield from _lines(path, file)
            else:
                yield from _document(path, file.read())
    except OSError as e:
        raise KvattnError(f"cannot read {path}: {e.strerror or e}") from None
    except ValueError as e:  # a null byte or a lone surrogate in the path
        raise KvattnError(f"cannot read {str(path)!r}: {e}") from None


def _is_jsonl(path: Path, first: bytes) -> bool:
    text = first.decode("utf-8-sig", errors="replace").strip()
    if text.startswith("["):
        return False
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not _is_wrapper(value)


def _is_wrapper(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("problems"), list) and "question" not in value


def _lines(path: Path, file: Any) -> Iterator[tuple[Any, int]]:
    for number, raw in enumerate(file, start=1):
        text = _decode(path, raw, number).strip(" \t\r\n")
        if not text:
            continue
        value = _loads(path, text, number)
        if _is_wrapper(value):
            yield from ((item, number) for item in value["problems"])
        else:
            yield value, number


def _document(path: Path, raw: bytes) -> Iterator[tuple[Any, int]]:
    text = _decode(path, raw, 1)
    if not text.strip():
        return
    value = _loads(path, text, 1)
    start = _skip(text, 0)
    if isinstance(value, list):
        yield from _elements(text, start)
    elif _is_wrapper(value):
        yield from _elements(text, _find_problems(text, start))
    else:
        yield value, _line(text, start)


def _elements(text: str, at: int) -> Iterator[tuple[Any, int]]:
    """The elements of the list that opens at `at`; the text is known to be valid JSON."""
    at = _skip(text, at + 1)
    line, counted = _line(text, at), at
    while text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = _DECODER.raw_decode(text, at)
        yield value, line
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _find_problems(text: str, at: int) -> int:
    """Where the last list under the top-level key "problems" opens: of equal keys the last one counts in JSON."""
    found = -1
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        found = at if key == "problems" else found
        _, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _decode(path: Path, raw: bytes, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
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
