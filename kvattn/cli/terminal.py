"""What the command line prints: tables and progress, with rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from kvattn.decision import Decision
from kvattn.errors import KvattnError
from kvattn.questions.prompt import JudgePrompt
from kvattn.report.text_table import TextTable
from kvattn.text import interval, number, one_line, percent

if TYPE_CHECKING:
    from kvattn.engine.layout import PromptLayout
    from kvattn.study.run_folder.side_by_side import Comparison

console = Console(markup=False, emoji=False)  # what is printed holds names from files, which are no markup


@contextmanager
def progress() -> Iterator:
    """A callable (what, done, total) that draws a bar for each `what`; on standard error, so that pipes stay clean."""
    columns = (
        TextColumn("{task.description:<20}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            what = one_line(what)
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


class Tally:
    """Counts of decisions by method: what changed against dense, what was right, which slots were picked, and cost.
    Decisions are counted as they come and not kept."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._slots: dict[str, Counter[int | None]] = {}
        self._most = 0

    def add(self, prompt: JudgePrompt, decisions: Sequence[Decision]) -> None:
        """Counts the decisions about one question."""
        dense = {d.order: d for d in decisions if d.method == "dense"}
        for d in decisions:
            count = self._counts.setdefault(d.method, Counter())
            self._slots.setdefault(d.method, Counter())[d.slot] += 1
            self._most = max(self._most, len(d.order))
            count.update(picks=1, known=int(d.correct is not None), right=int(bool(d.correct)))
            count["share"] += d.cost.share  # type: ignore[assignment]  (token-layers, in units of dense's)
            if d.order in dense:
                count.update(pairs=1, agree=int(prompt.same_content(d.choice, dense[d.order].choice)))

    def print(self, labels: Sequence[str]) -> None:
        """A summary by method."""
        unread = any(slots[None] for slots in self._slots.values())
        rows = []
        for m in labels:
            count, slots = self._counts.get(m, Counter()), self._slots.get(m, Counter())
            places = " ".join(str(slots[s]) for s in range(self._most))
            places += f" (no verdict: {slots[None]})" if unread else ""
            same, right = _ratio(count["agree"], count["pairs"]), _ratio(count["right"], count["known"])
            rows.append([m, same, right, percent(count["share"] / max(count["picks"], 1), 0), places])
        heads = ["method", "same pick as dense", "right", "dense's token-layers", "picks by slot"]
        console.print(TextTable("decisions", heads, rows).to_rich())
        console.print(
            "Counts alone: intervals, chance lines and the content test are in a run's report (--run).", style="dim"
        )


class Gated:
    """What a gate answers: a line a judgement, which method's decision it is and why, then the sum."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._taken, self._share = 0, 0.0

    def add(self, _: JudgePrompt, decisions: Sequence[Decision]) -> None:
        """Keeps what is printed of the decisions about one question."""
        for d in decisions:
            slot, why = "-" if d.slot is None else str(d.slot + 1), d.notes[-1].removeprefix("gate: ")
            self._rows.append([d.question_id, str(d.choice), slot, d.method, why])
            self._taken += "gate: accepts" in d.notes[-1]
            self._share += d.cost.share

    def print(self, _: Sequence[str]) -> None:
        """The lines and the sum."""
        heads = ["question", "choice", "slot", "answer of", "why"]
        console.print(TextTable("gated decisions", heads, self._rows, len(heads)).to_rich())
        share = percent(self._share / max(1, len(self._rows)), 0)
        console.print(f"reuse taken in {_ratio(self._taken, len(self._rows))}; {share} of always-dense's token-layers")


def run(folder: Path) -> None:
    """The run's main tables, and what its numbers may be taken for."""
    from kvattn.report import tables
    from kvattn.report.findings import findings
    from kvattn.stats import Scope, accuracy, jcr
    from kvattn.study.run_folder import picks
    from kvattn.study.run_folder.reader import Run
    from kvattn.study.run_folder.side_by_side import measured

    it = Run(folder)
    for finding in findings(it):
        style = {"bad": "red", "warn": "yellow"}.get(finding.level, "")
        console.print(Text(one_line(f"{finding.topic}: {finding.sentence} {finding.advice}".strip()), style=style))
    for calibrated in (False, True) if picks.size(it)["calibrated"] else (False,):
        scope = Scope(calibrated)
        same = {row["method"]: row for row in jcr(it, scope=scope).to_dict("records")}
        rows = []
        for row in accuracy(it, scope=scope).to_dict("records"):
            j = same.get(row["method"], {})
            rows.append(
                [
                    str(row["method"]) if row["kind"] == "method" else f"({row['method']})",
                    interval(j.get("jcr"), j.get("low"), j.get("high")),
                    number(j.get("chance")),
                    str(j.get("pairs", "")),
                    interval(row["accuracy"], row["low"], row["high"]),
                ]
            )
        kind = "calibrated" if calibrated else "raw"
        heads = ["method", "JCR (95 %)", "chance", "n", "accuracy (95 %)"]
        console.print(TextTable(f"consistency with dense, {kind} choices", heads, rows).to_rich())
        why = picks.meaningless(it, calibrated)
        if why:
            console.print(f"The JCR above means little with {kind} choices: {why}.", style="yellow")
    if len(picks.methods(it)) < 2:
        return
    try:
        found = measured(it)
    except KvattnError as error:
        console.print(Text(one_line(str(error))), style="dim")
        return
    for table in tables.measured(found, short=True):
        console.print(table.to_rich())
    for note in tables.measured_notes(found):
        console.print(Text(one_line(note)), style="dim")


COLOURS = {"question": "cyan", "header": "yellow", "candidate": "green", "separator": "yellow", "branch": "magenta"}


def segments(layout: PromptLayout, tokenizer: Any) -> None:
    """A compiled prompt, a line a segment, coloured by its role."""
    from rich.table import Table

    table = Table("segment", "tokens", "text", box=None, show_edge=False)
    for s in layout.segments:
        said = tokenizer.decode(layout.token_ids[s.start : s.stop], clean_up_tokenization_spaces=False)
        table.add_row(s.name, str(s.length), Text(one_line(said), style=COLOURS.get(s.role, "")))
    console.print(table)


def models(listing: Sequence) -> None:
    """The table of known models."""
    heads = ["name", "prepared", "MB", "from", "note"]
    rows = [[m.name, "yes" if m.prepared else "no", f"{m.bytes / 1e6:.0f}", m.origin, m.note] for m in listing]
    console.print(TextTable("", heads, rows, len(heads)).to_rich())


def methods(registry: dict) -> None:
    """The table of known methods."""
    heads = ["name", "parameters (defaults)", "what it is", "source"]
    rows = []
    for name, cls in registry.items():
        fields = "\n".join(f"{k}={v}" for k, v in cls.fields().items())
        rows.append([name, fields, (cls.__doc__ or "").strip().split("\n")[0], cls.source])
    console.print(TextTable("", heads, rows, len(heads)).to_rich())


def comparison(c: Comparison) -> None:
    """Runs beside each other."""
    from kvattn.report import tables

    for table in tables.tables(c, short=True):
        # A table a run where there is a row a method, so that the run's name takes no column.
        for part in table.split() if table.heads[1] == "method" else [table]:
            console.print(part.to_rich())
    for note in tables.notes(c):
        console.print(Text(one_line(note)), style="dim")


def rows(records: Sequence[dict[str, Any]]) -> None:
    """A plain table of records with the same keys."""
    heads = list(records[0])
    console.print(TextTable("", heads, [[str(v) for v in r.values()] for r in records], len(heads)).to_rich())


def _ratio(part: int, whole: int) -> str:
    return f"{part}/{whole} = {part / whole:.2f}" if whole else "-"
