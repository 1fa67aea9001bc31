"""What every analysis shares: the runs it works on, made at small scale where none are given, and one figure and one
table out of each, with a sidecar that says where they come from."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from kvattn import __version__, plots
from kvattn import questions as data
from kvattn.judge.judge import load
from kvattn.plots import method_style, save, theme
from kvattn.questions import orders
from kvattn.questions.prompt import JudgePrompt
from kvattn.stats import ContentTest
from kvattn.study.run_folder import Run
from kvattn.study.study import Study
from kvattn.text import interval, missing, plain

OUT, RUNS = Path("figures"), Path("runs/figures")
ONE_COLUMN, TWO_COLUMNS = 360, 740  # CSS pixels: 3.75 and 7.7 inches at 96 to the inch
LARGER = Path("figures/runs/gsm8k-1.5b")  # comes with the repository
METHODS = (
    "dense", "null-edit", "true-mask", "isolated", "isolated:labelled=false", "naive-linked:headers=isolated",
    "naive-linked", "naive",
    "foreign-kv", "mismatched-order", "kvcomm:size=5", "pal-kv:size=5", "last-k:budget=0.3", "first-k:budget=0.3",
    "kv-deviation:budget=0.3", "random:budget=0.3",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A run that an analysis makes for itself."""

    model: str
    source: str
    questions: int
    heldout: int
    orders: str
    methods: Sequence[str] = METHODS


STANDARD: dict[str, Made] = {
    "organism-unsafe": Made("organism-unsafe", "organism-max", 240, 24, "shuffle:2"),
    "organism-safe": Made("organism-safe", "organism-max", 240, 24, "shuffle:2"),
    "smollm2": Made("smollm2-135m", "synthetic", 12, 10, "shuffle:2"),
}


def made(name: str, spec: Made, folder: Path = RUNS) -> Path:
    """The run of that name, judged as far as it is not yet."""
    prompts = list(data.load(spec.source, limit=spec.questions + spec.heldout, seed=1))
    prompts = orders.assign(prompts, seed=1)
    study = Study(
        judge=load(spec.model),
        prompts=prompts[: spec.questions],
        heldout=prompts[spec.questions :],
        methods=spec.methods,
        orders=spec.orders,
        seed=1,
        source=spec.source,
    )
    told = teller(name)
    return study.run(folder / name, told)


def teller(name: str) -> Callable[[str, int, int], None]:
    """Progress on standard error, a line for every tenth."""

    def tell(what: str, done: int, of: int) -> None:
        if done == of or done % max(1, of // 10) == 0:
            print(f"  {name}: {what} {done} of {of}", file=sys.stderr, flush=True)

    return tell


def standard(folder: Path = RUNS) -> list[Path]:
    """The runs that analyses take when none are given: two organisms and the embedded judge, made here, and the larger
    run that comes with the repository."""
    runs = [made(name, spec, folder) for name, spec in STANDARD.items()]
    return [*runs, LARGER] if LARGER.is_dir() else runs


@dataclass(frozen=True)
class Held:
    """A run and its tables, read once. `title` is what figures call it."""

    folder: Path

    @cached_property
    def run(self) -> Run:
        """The run."""
        return Run(self.folder)

    @cached_property
    def judgements(self) -> pd.DataFrame:
        """All judgements."""
        return self.run.judgements()

    @cached_property
    def questions(self) -> pd.DataFrame:
        """All questions."""
        return self.run.questions()

    @property
    def parts(self) -> tuple[Held, ...]:
        """The runs that it is made of: itself."""
        return (self,)

    @property
    def title(self) -> str:
        """Name of the run's folder."""
        return self.folder.name

    @property
    def tests(self) -> tuple[ContentTest | None, ContentTest | None]:
        """The content tests of raw and of calibrated choices."""
        return ContentTest.stored(self.run.manifest), ContentTest.stored(self.run.manifest, calibrated=True)

    @property
    def calibrated(self) -> bool:
        """Whether the choices that count are the calibrated ones: where they alone pass the content test."""
        raw, calibrated = self.tests
        return calibrated is not None and calibrated.verdict == "reads" and (raw is None or raw.verdict != "reads")

    @property
    def column(self) -> Any:
        """The column of the choices that count."""
        return "choice_calibrated" if self.calibrated else "choice"

    @property
    def reads(self) -> bool | None:
        """Whether the judge reads by its content test, raw or calibrated; None where it cannot be told. One that does
        not has no consistency to lose."""
        verdicts = {test.verdict for test in self.tests if test}
        return True if "reads" in verdicts else False if verdicts == {"does not read"} else None

    @property
    def hash(self) -> str:
        """SHA-256 of the question, order, method and choice of every judgement: no times, so that it is the same
        wherever the same is picked."""
        rows = self.judgements[["question_id", "order", "method", "readout", "choice"]].itertuples(index=False)
        picks = sorted(json.dumps([*map(plain, row)]) for row in rows)
        return hashlib.sha256("\n".join(picks).encode()).hexdigest()

    def means(self) -> pd.DataFrame | None:
        """Mean mass by method, layer, head and segment (`Run.mass_means`); None where the run has no rows."""
        return self.run.mass_means() if self.run.queries() else None


def asked(sources: Sequence[str], limit: int, seed: int = 0) -> dict[str, list[JudgePrompt]]:
    """The questions of every source by the name that a table gives it. Raises SystemExit where two have one name."""
    names = [Path(source).stem for source in sources]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise SystemExit(f"--data: two sets are called {twice}, and their rows could not be told apart; rename a file")
    return {n: list(data.load(s, limit=limit, seed=seed)) for n, s in zip(names, sources, strict=True)}


def arguments(
    doc: str | None, given: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """The command line of an analysis: RUN ... or --also RUN, --out; without runs the standard ones are made.

    given: the arguments (default: the process's)
    """
    parser = parser or argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="run folders (default: the standard ones, made here)")
    parser.add_argument("--also", action="append", type=Path, default=[], help="a run beside the standard ones")
    args = parsed(parser, given)
    if args.also and args.runs:
        parser.error("--also adds to the standard runs; where runs are given, give it among them")
    if args.also:
        args.runs = [*standard(), *args.also]
    return args


def parsed(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with --out, and as `said` the other words of the command line, absolute paths cut to their names:
    what a figure's sidecar tells."""
    parser.add_argument("--out", type=Path, default=OUT, help="where figures and tables go")
    words = list(sys.argv[1:] if given is None else given)
    args = parser.parse_args(words)
    other = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    other.add_argument("--out")
    args.said = [_portable(word) for word in other.parse_known_args(words)[1]]
    return args


def _portable(word: str) -> str:
    return re.sub(r"(?<![^=+])/[^+]*/(?=[^/+])", "", word)


def held(runs: Sequence[Path]) -> list[Held]:
    """The given runs, or the standard ones."""
    return [Held(r) for r in (runs or standard())]


def publish(
    name: str,
    fig: go.Figure,
    table: pd.DataFrame,
    args: argparse.Namespace,
    runs: Iterable[Held] = (),
    numbers: pd.DataFrame | None = None,
    caption: str = "",
) -> None:
    """Write the figure (HTML; SVG, PDF, PNG where a Chrome is found), the table (CSV, Markdown, LaTeX) and a sidecar.

    table:   ready to read: what is printed and stands in the Markdown and LaTeX tables
    args:    the command line (`parsed`): where to write, and what the sidecar names as the command
    numbers: what the figure shows, in full precision, for the CSV (default: the table)
    """
    out: Path = args.out
    fig.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
    stem = out / name
    written, trouble = save(fig, stem, data=table if numbers is None else numbers)
    table = pd.DataFrame({str(c): [_cell(v) for v in table[c]] for c in table.columns})
    text = table.to_markdown(index=False, disable_numparse=True)
    stem.with_name(f"{name}.md").write_text(f"{caption}\n\n{text}\n" if caption else f"{text}\n", encoding="utf-8")
    latex = table.style.hide(axis="index").format(escape="latex").to_latex(hrules=True)
    heads = {c: c.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&") for c in map(str, table.columns)}
    for head, escaped in heads.items():
        latex = latex.replace(head, escaped, 1) if head != escaped else latex
    stem.with_name(f"{name}.tex").write_text(latex, encoding="utf-8")
    said = {
        "figure": name,
        "command": shlex.join(["python", "-m", f"analyses.{name}", *args.said]),
        "kvattn": __version__,
        "runs": [
            {
                "name": r.title,
                "picks_sha256": r.hash,
                "model": _portable(str(r.run.manifest["model"].get("name"))),
                "questions": len(r.run),
            }
            for run in runs
            for r in run.parts
        ],
        "caption": caption,
    }
    stem.with_name(f"{name}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(text)
    print(f"\nwrote {', '.join(sorted({p.name for p in written}))}, {name}.md, {name}.tex, {name}.json in {out}")
    if trouble:
        print(trouble)


@dataclass(frozen=True)
class Series:
    """A column of a forest plot: drawn with NAME_low and NAME_high as whiskers where they are there.

    symbol: plotly's name of the marker
    """

    name: str
    label: str
    symbol: str = "circle"


def forest(
    frame: pd.DataFrame,
    series: Sequence[Series],
    panel: str = "run",
    row: str = "method",
    tick: str | None = "chance",
    tick_label: str = "JCR by chance",
    span: tuple[float, float] = (-0.04, 1.06),
    rows: Sequence[str] = (),
) -> go.Figure:
    """A panel for every value of `panel`, a line for every value of `row`, in the order of `rows` and then of their
    first appearance; one mark a series, with its interval, the series side by side within a line; `tick` as a red
    stroke."""
    head = pd.DataFrame({"panel": frame[panel], "row": frame[row]})
    colours = [method_style(str(m)).colour for m in frame[row]]
    marks = [
        head.assign(
            series=s.label,
            symbol=s.symbol,
            colour=colours,
            legend=theme.NEUTRAL,
            value=frame[s.name],
            **{end: frame.get(f"{s.name}_{end}", float("nan")) for end in ("low", "high")},
        )
        for s in series
    ]
    ticks = None if tick is None else head.assign(value=frame[tick])
    fig = plots.forest(pd.concat(marks), ticks, rows, tick_label)
    fig.update_xaxes(range=list(span), tickvals=[-1, 0, 1] if span[0] < -0.5 else [0, 0.5, 1])
    count, longest = frame[row].nunique(), int(frame[row].str.len().max())
    theme.dress(fig, "", height=110 + 26 * count, width=TWO_COLUMNS, margin_l=24 + 7 * longest)
    room = max(8, int((TWO_COLUMNS - 24 - 7 * longest) / frame[panel].nunique() / 6.5))  # letters over a panel
    titles = [wrap(a.text, room) for a in fig.layout.annotations]
    for a, lines in zip(fig.layout.annotations, titles, strict=True):
        a.text = "<br>".join(lines)
    fig.update_annotations(font_size=12)
    top = 15 + 15 * max(map(len, titles), default=1)
    return fig.update_layout(
        legend={"orientation": "h", "y": 0, "yref": "container", "x": 0}, margin_t=top, margin_b=64
    )


def _cell(value: Any) -> str:
    """A value as a table shows it: nothing where there is none, two digits for a fraction."""
    if missing(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.2f}"
    return str(value)


Cell = str | Callable[[Mapping[str, Any]], Any]  # a column, or what a row shows


def ci(name: str) -> Callable[[Mapping[str, Any]], str]:
    """A cell with the value of a column and the interval beside it, NAME_low to NAME_high."""
    return lambda row: interval(*(row.get(f"{name}{end}", float("nan")) for end in ("", "_low", "_high")))


def shown(frame: pd.DataFrame, cells: Mapping[str, Cell]) -> pd.DataFrame:
    """The table to read: a row for each of `frame`'s, a column for each of `cells`."""
    rows = frame.to_dict("records")
    return pd.DataFrame(
        [{name: r.get(cell) if isinstance(cell, str) else cell(r) for name, cell in cells.items()} for r in rows],
        columns=list(cells),
    )


def warned(caption: str, runs: Iterable[Held]) -> str:
    """The caption, with the runs whose judge does not read its candidates named."""
    failing = [r.title for r in runs if r.reads is False]
    return (
        f"{caption} By their content tests these do not read, so that their JCR means nothing: {', '.join(failing)}."
        if failing
        else caption
    )
