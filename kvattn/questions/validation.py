"""Values out of files, checked by pydantic; what is wrong with them, in one line."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kvattn.errors import KvattnError, unknown

T = TypeVar("T")
_EXPECTED = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "an object",
    "dataclass_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "{ge:g} or more",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}


def validated(kind: type[T], value: Any, where: str) -> T:
    """The value as that kind, a dataclass or a pydantic model; bytes are JSON, and its types are taken strictly.

    Raises KvattnError that names `where`, the first wrong field, what stands there and what is expected; an unknown key
    comes first, since what is missing is often misspelt.
    """
    try:
        if isinstance(value, bytes):
            return _adapter(kind).validate_json(value, strict=True)
        return _adapter(kind).validate_python(value)
    except ValidationError as e:
        errors = e.errors(include_url=False)
    for error in errors:
        if error["type"] in ("unexpected_keyword_argument", "invalid_key"):
            raise unknown(f"key in {where}", short(error["loc"][-1]).strip("'"), [f.name for f in fields(kind)])  # type: ignore[arg-type]
    name = _name(errors[0]["loc"])
    raise KvattnError(f"{where}{name and f', field {name!r}'}: {_problem(errors[0])}")


def short(value: Any) -> str:
    """A value of a file in an error message; cut, since aliases make a short YAML file a value of any size."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    cut = reprlib.Repr()
    cut.maxlevel = 2
    return cut.repr(value)


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _name(location: Iterable[str | int]) -> str:
    return "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in location).removeprefix(".")


def _problem(error: Any) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":  # of a validator of ours
        return str(context["error"])
    expected = _EXPECTED.get(kind)
    if expected is None:
        return f"{error['msg']}, not {short(value)}"
    size = f"one of {len(value)}" if kind in ("too_short", "too_long") else short(value)
    quotes = " (put it in quotes)" if kind == "string_type" and type(value) in (int, float) else ""
    return f"must be {expected.format(**context)}, not {size}{quotes}"
