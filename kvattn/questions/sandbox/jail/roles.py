"""What a sandboxed process does once it is confined: run a source, serve a candidate's function, or run tests.

A candidate and the tests that judge it are two processes. The tests call the candidate's function over a pipe, and only
values travel: numbers, texts and containers of them. So the candidate's code cannot see the tests, change what they
compare with, return an object that equals everything, or end the process that decides.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

LONGEST = 16 << 20  # bytes of a message


def source(task: dict[str, Any]) -> None:
    """Runs a Python source as a program."""
    _guarded(lambda: exec(compile(task["source"], "program.py", "exec"), {"__name__": "__main__"}))


def candidate(task: dict[str, Any]) -> None:
    """Runs a candidate's program, then answers calls of its function until the channel closes."""
    asked, answers = os.fdopen(task["asked"], "rb"), os.fdopen(task["answers"], "wb", buffering=0)

    def serve() -> None:
        namespace: dict[str, Any] = {"__name__": "candidate"}
        text = complete(task["question"], task["program"], task["entry"])
        exec(compile(text, "candidate.py", "exec"), namespace)
        while line := asked.readline(LONGEST):
            answers.write(_answer(namespace, task["entry"], line))

    _guarded(serve)


def _answer(namespace: dict[str, Any], entry: str, line: bytes) -> bytes:
    try:
        said = {"value": encode(namespace[entry](*decode(json.loads(line))))}
        text = json.dumps(said)
    except Exception as e:
        text = json.dumps({"error": type(e).__name__, "says": str(e)[:500]})
    return text.encode() + b"\n"


def tests(task: dict[str, Any]) -> None:
    """Runs tests on the function behind the channel; writes the token when all have passed and the candidate lives."""
    asked, answers = os.fdopen(task["asked"], "wb", buffering=0), os.fdopen(task["answers"], "rb")
    broken: list[str] = []

    def call(*arguments: Any) -> Any:
        try:
            asked.write(json.dumps(encode(arguments)).encode() + b"\n")
            line = answers.readline(LONGEST)
            said = json.loads(line)
            error = said.get("error")
            if error is None:
                return decode(said["value"])
        except Exception as e:  # the candidate has ended, or has written to the channel what is no answer
            broken.append(type(e).__name__)
            raise RuntimeError("the candidate's program ended or broke its channel") from None
        kind = getattr(builtins, str(error), None)
        kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
        try:
            raised = kind(said.get("says"))
        except TypeError:
            raised = RuntimeError(said.get("says"))
        raise raised

    def judge() -> None:
        namespace: dict[str, Any] = {"__name__": "tests"}
        if _compiles(task["question"]):
            exec(compile(task["question"], "question.py", "exec"), namespace)
        namespace[task["entry"]] = call
        exec(compile(task["tests"], "tests.py", "exec"), namespace)
        if not broken:
            os.write(task["verdict"], task["token"].encode())

    _guarded(judge)


def complete(question: str, program: str, entry: str) -> str:
    """The whole program: the question's imports and helpers, and the candidate's code.

    Code without the function's own definition continues the question, whose last line is the docstring."""
    lines = program.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if any(line.startswith((f"def {entry}", f"async def {entry}", f"{entry} =", f"class {entry}")) for line in lines):
        return f"{question}\n\n{program}\n" if _compiles(question) else program + "\n"
    if first[:1] not in (" ", "\t", ""):  # the first line's indentation is what chat models lose
        others = [line for line in lines[lines.index(first) + 1 :] if line.strip()]
        indented = bool(others) and all(line[:1] in (" ", "\t") for line in others)
        whole = [*lines[: lines.index(first)], f"    {first}", *lines[lines.index(first) + 1 :]]
        program = "\n".join(whole if indented else [f"    {line}" for line in lines])
    return f"{question.rstrip()}\n{program}\n"


def _compiles(text: str) -> bool:
    try:
        compile(text, "question.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def encode(value: Any) -> Any:
    """A value as JSON. Raises TypeError for what is no plain value; subclasses become the plain type."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in dict(value).items()]}
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return {container.__name__: [encode(x) for x in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": list(value)}
    raise TypeError(f"a {type(value).__name__} cannot be given to the tests; only numbers, texts and containers can")


def decode(said: Any) -> Any:
    """The value that `encode` wrote."""
    if not isinstance(said, dict):
        if isinstance(said, list):
            raise TypeError("no value")
        return said
    ((kind, inside),) = said.items()
    if kind == "dict":
        return {decode(k): decode(v) for k, v in inside}
    if kind == "complex":
        return complex(*inside)
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes}[kind](map(decode, inside))


def _guarded(work: Callable[[], None]) -> None:
    """Runs, flushes, and ends the process: 0, or 1 with a traceback."""
    code = 0
    try:
        work()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc(limit=-3)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code & 0xFF)


ROLES = {"source": source, "candidate": candidate, "tests": tests}
