"""`kvattn check`: fails where a run's verdicts drifted from a baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvattn.errors import KvattnError
from kvattn.text import one_line


def share(text: str) -> float:
    """A share as people write it: 5%, or 0.05. Raises KvattnError for anything else."""
    number, sign, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if sign else 1)
    except ValueError:
        value = float("nan")
    if rest or not 0 <= value <= 1:
        raise KvattnError(f"--max-flips {text!r:.40}: give a share such as 5% or 0.05")
    return value


def check(
    baseline: Annotated[Path, typer.Argument(help="A run folder with dense, and null-edit for the floor.")],
    run: Annotated[Path, typer.Argument(help="A run folder of the same questions, orders and readout.")],
    max_flips: Annotated[str, typer.Option(help="Verdicts that may flip beyond the null edit's: 5% or 0.05.")] = "5%",
    max_points: Annotated[
        float | None, typer.Option(help="Readout score: points that scores may move beyond the null edit's.", min=0)
    ] = None,
    method: Annotated[str | None, typer.Option(help="Whose verdicts of RUN count, if it has several.")] = None,
    reference: Annotated[str, typer.Option(help="Whose verdicts of BASELINE they are held against.")] = "dense",
    junit: Annotated[Path | None, typer.Option(help="Write the result as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write it as Markdown, for a pull request.")] = None,
) -> None:
    """Did verdicts change? Exit status 1 where more flip than allowed, beyond the null edit's noise and chance."""
    limit = share(max_flips)
    from kvattn.files import write_output
    from kvattn.report import drift as written
    from kvattn.study.drift import drift
    from kvattn.study.run_folder import Run

    found = drift(Run(baseline).sound(), Run(run).sound(), limit, method, reference, max_points)
    typer.echo(f"{'PASS' if found.passed else 'FAIL'}  {one_line(found.sentence)}")
    typer.echo(f"why   {one_line(found.why)}")
    if junit is not None:
        write_output(junit, written.junit(found))
    if markdown is not None:
        write_output(markdown, written.markdown(found).encode())
    if not found.passed:
        raise typer.Exit(1)
