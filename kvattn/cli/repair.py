"""`kvattn repair`: teach a judge to read reused candidates, and say whether it did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvattn import DEFAULT_JUDGE
from kvattn.cli import MOST, MOST_SEED
from kvattn.cli.options import Device, Dtype, Model, loaded
from kvattn.cli.stop import keeping
from kvattn.cli.study import Anew
from kvattn.errors import KvattnError
from kvattn.text import one_line

repair_app = typer.Typer(help="Teach a judge to read reused candidates (docs/repair.md).", no_args_is_help=True)

File = Annotated[str, typer.Argument(help="Candidates file, or an embedded set: plurality[:SEED], organism-max.")]
Readout = Annotated[str, typer.Option(help="label or yesno.")]
Limit = Annotated[int | None, typer.Option(help="The first so many questions.", min=1, max=MOST)]


@repair_app.command("train")
def train(
    file: File,
    out: Annotated[Path, typer.Option(help="The folder of the repair; the same command continues a stopped one.")],
    model: Model = DEFAULT_JUDGE,
    base: Annotated[
        str, typer.Option(help="The method whose plan is repaired.")
    ] = "links:base=naive-linked(prefix=kept)",
    reach: Annotated[
        str, typer.Option(help="Comma-separated roles on whose computed tokens the LoRA acts; none: link embeddings.")
    ] = "header,link,separator,suffix",
    teacher: Annotated[str, typer.Option(help="dense, averaged (over orders), or permuted (a placebo).")] = "dense",
    steps: Annotated[int, typer.Option(help="Training steps.", min=1, max=MOST)] = 100,
    questions: Annotated[int, typer.Option(help="Questions in a step, each in all rotations.", min=1, max=1024)] = 2,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3,
    rank: Annotated[int, typer.Option(help="Of the LoRA.", min=1, max=1024)] = 8,
    limit: Limit = 200,
    readout: Readout = "label",
    seed: Annotated[int, typer.Option(help="Of training, and of an embedded set.", min=0, max=MOST_SEED)] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Distil dense's choices into the computed tokens of a plan that keeps the candidates."""
    from kvattn import questions as data
    from kvattn.cli import terminal
    from kvattn.study import repair

    roles = tuple(r.strip() for r in reach.split(",") if r.strip() and r.strip() != "none")
    recipe = repair.Recipe(
        base.replace("+", ","), roles, teacher, steps, questions, rate, rank=rank, alpha=2.0 * rank, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    prompts = list(data.load(file, limit, seed))
    judge = loaded(model, readout, dtype, device)
    with keeping(), terminal.progress() as progress:
        repair.train(judge, prompts, recipe, out, progress, file)
    typer.echo(f"repair: {out}\nmethod: repaired:{out}")


@repair_app.command("evaluate")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A repair that kvattn repair train wrote.")],
    file: File,
    run: Annotated[Path, typer.Option(help="The run folder to judge into; the same command continues it.")],
    model: Model = DEFAULT_JUDGE,
    limit: Annotated[int, typer.Option(help="Test questions.", min=2, max=MOST)] = 100,
    heldout: Annotated[int, typer.Option(help="Further questions, which offsets are fit on.", min=2, max=MOST)] = 24,
    readout: Readout = "label",
    seed: Annotated[int, typer.Option(help="Of orders, and of an embedded set.", min=0, max=MOST_SEED)] = 1,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    anew: Anew = False,
) -> None:
    """Judge questions that no training saw under a repair and what it is judged beside, and give the verdict."""
    from kvattn import questions as data
    from kvattn.cli import terminal
    from kvattn.report import write_report
    from kvattn.study import repair

    prompts = list(data.load(file, limit + heldout, seed))
    if len(prompts) < limit + heldout:
        raise KvattnError(f"{file} holds {len(prompts)} questions, fewer than --limit and --heldout; ask for fewer")
    judge = loaded(model, readout, dtype, device)
    with keeping(), terminal.progress() as progress:
        found = repair.evaluate(judge, prompts[:limit], prompts[limit:], str(folder), run, progress, file, seed, anew)
    terminal.run(run)
    typer.echo("\n".join(map(one_line, str(found).splitlines())))
    typer.echo(f"run:    {run}\nreport: {write_report(run)}")
