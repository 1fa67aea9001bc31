"""A table of text, for terminal and Markdown; a report's tables are `page.table`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvattn.text import one_line


@dataclass(frozen=True)
class TextTable:
    """A titled table of cells; headings may repeat. The first `left` columns hold words, the others numbers."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown under the title in bold."""
        rule = ["---" if i < self.left else "---:" for i in range(len(self.heads))]
        lines = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in (self.heads, rule, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines)

    def to_rich(self) -> Any:
        """For a terminal: numbers and intervals are kept whole where a line is narrow, words are folded."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        title = Text(one_line(self.title)) if self.title else None
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, name in enumerate(self.heads):
            longest = 0 if i < self.left else max((len(w) for row in self.rows for w in row[i].split()), default=0)
            table.add_column(name, justify="left" if i < self.left else "right", overflow="fold", min_width=longest)
        for row in self.rows:
            table.add_row(*(Text("\n".join(map(one_line, cell.split("\n")))) for cell in row))
        return table

    def split(self) -> Iterator[TextTable]:
        """A table for each word of the first column, which goes into the title."""
        for word in dict.fromkeys(row[0] for row in self.rows):
            part = [row[1:] for row in self.rows if row[0] == word]
            yield TextTable(f"{self.title}: {word}", self.heads[1:], part, self.left - 1)


def markdown_cell(cell: str) -> str:
    """A cell that cannot end its cell or its line, nor be taken for markup."""
    return " ".join(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def inert(text: str) -> str:
    """Foreign text that Markdown shows as it is; a rule of a table stays one."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#&!" else c for c in one_line(text)) if text != "---" else text
