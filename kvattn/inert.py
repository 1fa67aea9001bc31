"""Untrusted text where people look at it: one line on a terminal, and no formula in a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet takes for the beginning of a formula, full-width signs too (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


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
    """The table as CSV for people to open, its text cells and its headings as `cell` makes them. Rows end in CR LF (RFC
    4180): with LF alone the writer would leave a CR within a cell unquoted, and what follows it would begin a row."""
    shown: Any = table.copy()
    for i, kind in enumerate(shown.dtypes):
        if kind.kind not in "biufcmM":
            shown.isetitem(i, [cell(v) for v in shown.iloc[:, i]])
    return shown.rename(columns=cell).to_csv(index=False, lineterminator="\r\n")
