"""What the command line prints: tables and progress, with rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kvattn.decision import Decision
from kvattn.prompt import JudgePrompt
from kvattn.text import one_line

if TYPE_CHECKING:
    from kvattn.compare import Comparison

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


def decisions(made: Sequence[tuple[JudgePrompt, Sequence[Decision]]], labels: Sequence[str]) -> None:
    """A summary by method, and a line on what changed against dense."""
    agree, total, right, known, picks = (dict.fromkeys(labels, 0) for _ in range(5))
    share = dict.fromkeys(labels, 0.0)
    histogram: dict[str, dict[int | None, int]] = {m: {} for m in labels}
    for prompt, ds in made:
        dense = {d.order: d for d in ds if d.method == "dense"}
        for d in ds:
            picks[d.method] += 1
            share[d.method] += d.cost.share
            histogram[d.method][d.slot] = histogram[d.method].get(d.slot, 0) + 1
            if d.correct is not None:
                known[d.method] += 1
                right[d.method] += d.correct
            if d.order in dense:
                total[d.method] += 1
                agree[d.method] += prompt.same_content(d.choice, dense[d.order].choice)
    table = Table(title="decisions", title_justify="left")
    for name in ("method", "same pick as dense", "right", "dense's token-layers", "picks by slot"):
        table.add_column(name, justify="left" if name == "method" else "right")
    slots = max((len(d.order) for _, ds in made for d in ds), default=0)
    unread = any(d.slot is None for _, ds in made for d in ds)
    for m in labels:
        counts = " ".join(str(histogram[m].get(s, 0)) for s in range(slots))
        counts += f" (no verdict: {histogram[m].get(None, 0)})" if unread else ""
        table.add_row(
            m, _ratio(agree[m], total[m]), _ratio(right[m], known[m]), f"{share[m] / max(picks[m], 1):.0%}", counts
        )
    console.print(table)
    console.print(
        "Counts alone: intervals, chance lines and the content test are in a run's report (--run).", style="dim"
    )


def gated(decisions: Sequence[Decision]) -> None:
    """What a gate answered: a line a judgement, which method's decision it is and why, then the sum."""
    table = Table(title="gated decisions", title_justify="left")
    for name in ("question", "choice", "slot", "answer of", "why"):
        table.add_column(name, overflow="fold")
    for d in decisions:
        slot, why = "-" if d.slot is None else str(d.slot + 1), d.notes[-1].removeprefix("gate: ")
        table.add_row(*map(one_line, (d.question_id, str(d.choice), slot, d.method, why)))
    console.print(table)
    taken = sum("gate: accepts" in d.notes[-1] for d in decisions)
    share = sum(d.cost.share for d in decisions) / max(1, len(decisions))
    console.print(f"reuse taken in {_ratio(taken, len(decisions))}; {share:.0%} of always-dense's token-layers")


def run(folder: Path) -> None:
    """The run's main table and the content test's verdict."""
    from kvattn import stats
    from kvattn.store import Run

    it = Run(folder)
    judgements, questions = it.judgements(), it.questions()
    tests = it.manifest.get("content_test") or {}
    for kind, test in tests.items():
        console.print(one_line(f"content test ({kind}): {test['verdict']}. {test['sentence']}"))
    calibrated = it.manifest.get("calibration") is not None
    columns: list[stats.Column] = ["choice", "choice_calibrated"] if calibrated else ["choice"]
    for column in columns:
        frame = stats.jcr(judgements, questions, column=column)
        right = stats.accuracy(judgements, questions, column=column)
        kind = "calibrated" if column == "choice_calibrated" else "raw"
        verdict = tests.get(kind, {}).get("verdict")
        table = Table(title=f"consistency with dense, {kind} choices", title_justify="left")
        table.add_column("method", overflow="fold")
        for name in ("JCR (95 %)", "chance", "n", "accuracy (95 %)"):
            table.add_column(name, justify="right", no_wrap=True)
        consistent = {row["method"]: row for row in frame.to_dict("records")}
        for row in right.to_dict("records"):
            j = consistent.get(row["method"])
            table.add_row(
                one_line(str(row["method"]) if row["kind"] == "method" else f"({row['method']})"),
                f"{j['jcr']:.2f} ({j['low']:.2f}-{j['high']:.2f})" if j else "",
                f"{j['chance']:.2f}" if j else "",
                str(j["pairs"]) if j else "",
                f"{row['accuracy']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
            )
        console.print(table)
        if verdict and verdict != "passes":
            console.print(
                f"The judge did not pass the content test with {kind} choices: it has no consistency to lose, and the "
                "JCR above means little.",
                style="yellow",
            )


def models(listing: Sequence) -> None:
    """The table of known models."""
    table = Table()
    for name in ("name", "prepared", "MB", "from", "note"):
        table.add_column(name)
    for m in listing:
        table.add_row(*map(one_line, (m.name, "yes" if m.prepared else "no", f"{m.bytes / 1e6:.0f}", m.origin, m.note)))
    console.print(table)


def methods(registry: dict) -> None:
    """The table of known methods."""
    table = Table()
    for name in ("name", "parameters (defaults)", "what it is", "source"):
        table.add_column(name)
    for name, cls in registry.items():
        fields = "\n".join(f"{k}={v}" for k, v in cls.fields().items())
        table.add_row(name, fields, (cls.__doc__ or "").strip().split("\n")[0], cls.source)
    console.print(table)


def comparison(c: Comparison) -> None:
    """Runs beside each other."""
    from kvattn import compare_text

    for made in compare_text.tables(c):
        if made.heads[1] == "method":  # a table a run, so that its name takes no column
            for run in dict.fromkeys(row[0] for row in made.rows):
                part = [row[1:] for row in made.rows if row[0] == run]
                _text_table(f"{made.title}: {run}", made.heads[1:], part, made.left - 1)
        else:
            _text_table(made.title, made.heads, made.rows, made.left)
    for note in compare_text.notes(c):
        console.print(Text(one_line(note)), style="dim")


def _text_table(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], left: int) -> None:
    """A table of text; numbers and intervals are kept whole where a line is narrow, words are folded."""
    table = Table(
        title=Text(one_line(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(heads):
        longest = 0 if i < left else max((len(word) for row in cells for word in row[i].split()), default=0)
        table.add_column(name, justify="left" if i < left else "right", overflow="fold", min_width=longest)
    for row in cells:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(table)


def rows(records: Sequence[dict[str, Any]]) -> None:
    """A plain table of records with the same keys."""
    table = Table()
    for name in records[0]:
        table.add_column(name)
    for r in records:
        table.add_row(*(one_line(str(v)) for v in r.values()))
    console.print(table)


def _ratio(part: int, whole: int) -> str:
    return f"{part}/{whole} = {part / whole:.2f}" if whole else "-"
