"""Text for people: foreign text made harmless (one line on a terminal, no formula in a spreadsheet), numbers and
intervals as tables show them, values as JSON has them, and how far long work has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet takes for the beginning of a formula, full-width signs too (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class Enough(Exception):
    """What a Progress raises where it is told so to have the rest left out."""


def silent(what: str, done: int, of: int) -> None:
    """A Progress that says nothing."""


def hash_of(identity: str | None) -> str | None:
    """What tells weights apart: the hash in NAME@HASH, since the same weights may go by another name."""
    return str(identity).rpartition("@")[2] if identity else None


def one_line(text: str) -> str:
    """The text with everything that is no printable character written as an escape: line ends, control characters
    (which terminals obey), bidirectional overrides, lone surrogates (which cannot be printed)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(value: Any) -> Any:
    """The value; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv(table: pd.DataFrame) -> str:
    """The table as CSV for people to open, its text cells and its headings as `cell` makes them, fractions to twelve
    digits, for what stands behind those differs between processors. Rows end in CR LF (RFC 4180): with LF alone the
    writer would leave a CR within a cell unquoted, and what follows it would begin a row."""
    shown: Any = table.copy()
    for i, kind in enumerate(shown.dtypes):
        if kind.kind not in "biucmM" and kind not in ("float32", "float16"):
            shown.isetitem(i, [_written(v) for v in shown.iloc[:, i]])
    return shown.rename(columns=cell).to_csv(index=False, lineterminator="\r\n")


def _written(value: Any) -> Any:
    """A cell of a CSV."""
    if isinstance(value, float):
        return value if value.is_integer() else float(f"{value:.12g}")
    return cell(value)


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, pandas' NA or NaT."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # NA does not say whether it differs from itself
        return True


def number(value: Any, digits: int = 2, none: str = "") -> str:
    """ "0.38"; `none` where there is no number."""
    return none if missing(value) else f"{value:.{digits}f}"


def factor(value: float) -> str:
    """Two digits of a factor, written out: "1.4", "0.012", "1,200"."""
    return f"{float(f'{value:.2g}'):,.15g}"


def percent(value: Any, digits: int = 1, none: str = "") -> str:
    """A share as "38.0%"; `none` where it is unknown."""
    return none if missing(value) else f"{value:.{digits}%}"


def between(low: Any, high: Any, digits: int = 2, as_percent: bool = False, none: str = "") -> str:
    """The ends of an interval, "0.25 to 0.52" or "25.0 to 52.0%"; `none` where they are unknown."""
    if missing(low) or missing(high):
        return none
    if as_percent:
        return f"{100 * low:.{digits}f} to {high:.{digits}%}"
    return f"{low:.{digits}f} to {high:.{digits}f}"


def interval(value: Any, low: Any, high: Any, digits: int = 2, none: str = "") -> str:
    """ "0.38 (0.25-0.52)", "0.38 (-0.10 to 0.52)", "0.38" where the interval is unknown, or `none`."""
    if missing(value) or missing(low) or missing(high):
        return number(value, digits, none)
    ends = between(low, high, digits)
    return f"{value:.{digits}f} ({ends if low < 0 else ends.replace(' to ', '-')})"


def plain(value: Any) -> Any:
    """The value as JSON has it: tuples and arrays become lists, NumPy scalars numbers, paths text, numbers that are not
    finite null. Raises TypeError for what JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"JSON takes numbers, text, lists and dicts, not {type(value).__name__}")
