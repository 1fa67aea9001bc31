"""`kvattn study`: grids of runs from a YAML file, estimated, run, looked at, merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kvattn.cli.stop import keeping
from kvattn.errors import KvattnError, whole

study_app = typer.Typer(help="Grids of runs from a YAML file (docs/study.md).", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The study's YAML file.")]
Folder = Annotated[Path | None, typer.Option(help="Where its run folders are (default: runs/NAME).")]
DataFiles = Annotated[
    list[str] | None,
    typer.Option("--data", help="SOURCE=FILE: read a source that the study names from a file; repeatable."),
]
RunsCode = Annotated[
    bool, typer.Option("--allow-code-execution", help="Run agents' programs, in a sandbox, to verify them.")
]

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out questions that cannot be read, answered or judged; say which.")
]
Anew = Annotated[bool, typer.Option("--anew", help="Put runs that lie there aside (RUN.before-1), and begin again.")]


@study_app.command("run")
def run(
    file: File,
    folder: Folder = None,
    shard: Annotated[str, typer.Option(help="K/N: judge every N-th question only; merge afterwards.")] = "1/1",
    data: DataFiles = None,
    allow_code_execution: RunsCode = False,
    skip_bad: SkipBad = False,
    anew: Anew = False,
    executor: Annotated[str, typer.Option(help="local, or ray: actors of a Ray cluster (docs/scale.md).")] = "local",
    workers: Annotated[int | None, typer.Option(help="Ray: actors (default: as many as there is room for).")] = None,
    worker_cpus: Annotated[int, typer.Option(help="Ray: CPUs, and so threads, of an actor.")] = 1,
    worker_gpus: Annotated[float, typer.Option(help="Ray: GPUs of an actor; a fraction lets several share one.")] = 0.0,
    address: Annotated[str | None, typer.Option(help="Ray: the cluster's; auto, or none for this machine.")] = None,
) -> None:
    """Judge what is not judged yet, letting agents answer first where the study has them; the same command continues a
    stopped study."""
    from kvattn.cli import terminal
    from kvattn.study import ray

    grid = replace(_grid(file, data), shard=_shard(shard), skip_bad=skip_bad)
    grid = replace(grid, allow_code_execution=allow_code_execution)
    spread = ray.get(executor, workers, worker_cpus, worker_gpus, address)
    with keeping(), spread as judging, terminal.progress() as progress:
        paths = replace(grid, executor=judging).run(folder or Path("runs") / grid.name, progress, anew)
    for path in paths:
        typer.echo(str(path))


study_app.command("resume", help="The same as run: continue a stopped study.")(run)


@study_app.command("status")
def status(file: File, folder: Folder = None, data: DataFiles = None) -> None:
    """Finished and wanted questions of every cell, and damaged parts."""
    from kvattn.cli import terminal

    grid = _grid(file, data)
    rows = grid.status(folder or Path("runs") / grid.name)
    terminal.rows([{**r, "damaged": len(r["damaged"])} for r in rows])
    for line in (x for r in rows for x in r["damaged"]):
        typer.echo(line, err=True)


@study_app.command("estimate")
def estimate(file: File, data: DataFiles = None, skip_bad: SkipBad = False) -> None:
    """Seconds, disk and memory of every cell, from its first question; nothing is written."""
    from kvattn.cli import terminal

    rows = replace(_grid(file, data), skip_bad=skip_bad).estimate()
    total = {"cell": "all", "peak_bytes": max(r["peak_bytes"] for r in rows)}
    total |= {k: sum(r[k] for r in rows) for k in ("questions", "left_out", "judgements", "seconds", "disk_bytes")}
    terminal.rows([
        {
            "cell": r["cell"], "questions": r["questions"], "left out": r["left_out"], "judgements": r["judgements"],
            "minutes": f"{r['seconds'] / 60:.1f}", "disk MB": f"{r['disk_bytes'] / 1e6:.1f}",
            "peak memory GB": f"{r['peak_bytes'] / 1e9:.1f}",
        }
        for r in (*rows, total)
    ])  # fmt: skip


@study_app.command("merge")
def merge(
    into: Annotated[Path, typer.Argument(help="The new run folder.")],
    shards: Annotated[list[Path], typer.Argument(help="Run folders of the shards.")],
    rows: Annotated[bool, typer.Option(help="Keep slot mass, most of a run's bytes.")] = True,
) -> None:
    """One run folder out of the shards of one cell; of one run alone, a copy of it."""
    from kvattn.study import grid

    typer.echo(str(grid.merge(shards, into, rows)))


def _grid(file: Path, data: list[str] | None):
    from kvattn.study.grid import Grid

    grid, files = Grid.read(file), {}
    for said in data or []:
        name, given, path = said.partition("=")
        if not (given and path and name in {d.source for d in grid.data}):
            known = ", ".join(sorted({d.source for d in grid.data}))
            raise KvattnError(f"--data {said!r}: give SOURCE=FILE, where SOURCE is one of the study's: {known}")
        files[name] = path
    return replace(grid, files=files)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    k, n = (whole(x, f"--shard {text!r:.60}, of K/N: {name}", 1) for name, x in (("K", part), ("N", parts)))
    if k > n:
        raise KvattnError(f"--shard {text!r}: give K/N with K from 1 to N")
    return k, n
