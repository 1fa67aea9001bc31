"""`kvattn export`: a run's results in the forms of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kvattn.errors import unknown

FORMS = ("inspect", "hub")


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[str, typer.Option(help="inspect: a log of inspect_ai for each method; hub: a data set folder.")],
) -> None:
    """Write a run for inspect_ai, or as a data set that the Hub and `datasets` load."""
    if to not in FORMS:
        raise unknown("form", to, FORMS)
    from kvattn.files import write_output
    from kvattn.study.run_folder import Run, picks

    found = Run(run).sound()
    if to == "hub":
        from kvattn.report.hub import write_hub

        typer.echo(f"{write_hub(found, out)}: {len(found)} questions")
        return
    from kvattn.report.inspect_log import inspect_log

    for method in picks.methods(found):
        path = out / f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', method).strip('_')}.json"
        typer.echo(str(write_output(path, inspect_log(found, method))))
