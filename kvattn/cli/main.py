"""The command line. Heavy imports happen inside commands, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvattn import DEFAULT_JUDGE
from kvattn.cli import MOST, MOST_SEED, page, without
from kvattn.cli.audit import audit
from kvattn.cli.candidates import candidates_app
from kvattn.cli.check import check
from kvattn.cli.export import export
from kvattn.cli.gate import gate_app
from kvattn.cli.options import Device, DeviceMap, Dtype, Model, loaded
from kvattn.cli.repair import repair_app
from kvattn.cli.stop import Stopped, heard, keeping
from kvattn.cli.study import study_app
from kvattn.cli.templates import templates_app
from kvattn.errors import KvattnError
from kvattn.text import one_line

if TYPE_CHECKING:
    from kvattn.questions.prompt import JudgePrompt
    from kvattn.questions.templates import Template

# What stands wrong on a command line: typer's class, whether it brings click along or imports it.
Usage: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    help="Does reusing this KV cache change what the judge decides, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Where judges come from.", no_args_is_help=True)
methods_app = typer.Typer(help="Ways of building the judge's KV cache.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(methods_app, name="methods")
app.add_typer(templates_app, name="templates")
app.add_typer(study_app, name="study")
app.add_typer(candidates_app, name="candidates")
app.add_typer(gate_app, name="gate")
app.command()(audit)
app.command()(check)
app.command()(export)
app.add_typer(repair_app, name="repair")

DEFAULT_METHODS = "dense,naive,naive-linked"
Methods = Annotated[
    str,
    typer.Option(help="Comma-separated; parameters as last-k:budget=0.1+base=isolated(labelled=false). Or: all."),
]
Orders = Annotated[str, typer.Option(help="fixed, shuffle:K, rotations, latin, or all.")]
ReadoutName = Annotated[str, typer.Option("--readout", help="label, pairwise, yesno, score, or generate[:TOKENS].")]
Seed = Annotated[int, typer.Option(help="Of orders and data.", min=0, max=MOST_SEED)]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out questions that cannot be judged, and say which; else nothing begins."),
]
Regime = Annotated[str, typer.Option(help="How the candidates were made: parallel or progressive.")]


@app.command()
def judge(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(help="Candidates file (JSON or JSONL), or an embedded set: synthetic[:SEED], organism-max.")
    ],
    model: Model = DEFAULT_JUDGE,
    methods: Methods = DEFAULT_METHODS,
    orders: Orders = "fixed",
    readout: ReadoutName = "label",
    template: Annotated[
        str | None, typer.Option(help="The judge's prompt: a YAML file (docs/templates.md), or a name.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Judge the first so many questions.", min=1, max=MOST)] = None,
    out: Annotated[Path | None, typer.Option(help="Write decisions to X.jsonl or X.parquet.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file given by --out.")] = False,
    run: Annotated[Path | None, typer.Option(help="Write a run folder (resumable) and its report.")] = None,
    heldout: Annotated[
        int, typer.Option(help="With --run: further ones for prior and content test.", min=0, max=MOST)
    ] = 0,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="With --run: put a run that lies there aside, as RUN.before-1, and begin."),
    ] = False,
    gate: Annotated[Path | None, typer.Option(help="A fitted gate: take reuse where it accepts, else dense.")] = None,
    caches: Annotated[
        Path | None, typer.Option(help="A folder of caches (docs/caches.md): candidates' KV as others made it.")
    ] = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    regime: Regime = "parallel",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    device_map: DeviceMap = None,
) -> None:
    """Judge the questions of a file under several methods, or with a gate."""
    from kvattn import questions
    from kvattn.questions.template_files import find_template

    chosen = _methods(methods)
    if heldout and run is None:
        raise KvattnError("--heldout needs --run: prior and content test stand in a run folder")
    if anew and run is None:
        raise KvattnError("--anew is of the run folder that --run names")
    if gate is not None and (run is not None or str(context.get_parameter_source("methods")).endswith("COMMANDLINE")):
        raise KvattnError("--gate names its own methods and answers one by one: leave out --methods and --run")
    if run is not None and out is not None:
        raise KvattnError("a run folder holds its decisions as Parquet: leave out --run or --out")
    if overwrite and out is None:
        raise KvattnError("--overwrite is of the file that --out names")
    if caches is not None and (run is not None or gate is not None):
        raise KvattnError("--caches judges one by one: leave out --run and --gate (a run is made from texts)")
    asked = find_template(template) if template is not None else None
    load = partial(loaded, model, readout, dtype, device, regime, device_map=device_map)
    if run is None:
        _answers(file, limit, seed, chosen, orders, skip_bad, load, out, overwrite, gate, caches, asked)
        return
    unread = {} if skip_bad else None
    prompts = questions.load(file, None if limit is None else limit + heldout, seed, unread, asked)
    how = {"orders": orders, "seed": seed, "source": file, "skip_bad": skip_bad}
    how |= {"extra": {"unread": unread}} if unread else {}
    _study(run, prompts, heldout, load(), chosen, anew, **how)


def _answers(
    file: str, limit: int | None, seed: int, methods: list, orders: str, skip_bad: bool,
    load: Callable[[], Any], out: Path | None, overwrite: bool, gate: Path | None,
    caches: Path | None, template: Template | None,
) -> None:  # fmt: skip
    from kvattn import questions
    from kvattn.cli import terminal
    from kvattn.questions.orders import check_scheme
    from kvattn.questions.orders import orders as make_orders
    from kvattn.study.caches import Given
    from kvattn.study.checks import faults, refuse
    from kvattn.study.decisions_file import DecisionFile
    from kvattn.study.gate import Gate, decide

    check_scheme(orders)
    granted = Gate.load(gate) if gate is not None else None
    held_caches = Given(file, caches)
    sink = DecisionFile(out, overwrite, [file]) if out is not None else None
    unread = {} if skip_bad else None
    # A file is read twice, since it may be long; anything else once.
    long = not questions.is_embedded(file) and Path(file).is_file()
    held = None if long else questions.load(file, limit, seed, unread, template)

    def prompts() -> Iterable[JudgePrompt]:
        return questions.iter_candidates(file, limit, template, unread) if held is None else held

    judge = load()
    tally = terminal.Gated() if granted is not None else terminal.Tally()
    judged = 0

    def kept() -> str:
        where = f"kept in {sink.kept}" if sink is not None else "not kept, for want of --out or --run"
        return f"the {judged} questions judged before are {where}" if judged else "nothing was judged"

    try:
        with keeping(kept), terminal.progress() as report:
            bad, of = faults(judge, prompts(), methods, orders, report, held_caches if granted is None else None)
            held_caches.refuse_unused()
            refuse(bad, of, file, skip_bad)
            with sink or nullcontext():
                for prompt in prompts():
                    if prompt.id in bad:
                        continue
                    shown = make_orders(orders, prompt.n, seed, prompt.id, prompt.order)
                    if granted is not None:
                        decisions = [decide(judge, prompt.ordered(o), granted) for o in shown]
                    else:
                        given, whole = held_caches.of(prompt)
                        decisions = judge.judge(prompt, methods, shown, caches=given, whole=whole)
                    if sink is not None:
                        sink.write(decisions)
                    tally.add(prompt, decisions)
                    judged += 1
                    report("judging", judged, limit or judged)
    except (KvattnError, Stopped) as error:
        if judged:
            tally.print([m.label for m in methods])
        if judged and isinstance(error, KvattnError):
            raise KvattnError(f"{error}; {kept()}") from None
        raise
    tally.print([m.label for m in methods])
    if said := without([*(unread or ()), *bad], judged, "judged"):
        typer.echo(said)
    if out is not None:
        typer.echo(f"wrote {out}")


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="The run folder; the others lie beside it.")] = Path("runs/demo"),
    model: Model = DEFAULT_JUDGE,
    problems: Annotated[int, typer.Option(help="Questions of each sort.", min=2, max=MOST)] = 12,
    heldout: Annotated[int, typer.Option(help="Further ones for prior and content test.", min=2, max=MOST)] = 16,
    seed: Seed = 0,
) -> None:
    """Judge questions that need the candidates together, then ones that do not, under the rungs between dense and naive
    reuse; then the model organisms: two that reuse must break, one that it must spare."""
    from kvattn import models
    from kvattn.methods import LADDER
    from kvattn.questions import load

    models.prepare(model, progress=_say)
    rungs = ("dense", "null-edit", "naive", "naive-linked", "true-mask", "isolated", "last-k:budget=0.1", "pointwise")
    tiny, trained = (*LADDER, "last-k:budget=0.5"), "a tiny judge trained for one mechanism (docs/organism.md)"
    sizes = (problems, heldout)
    for judge, source, folder, methods, (count, held), said in (
        (model, "odd-one-out", "", rungs, sizes, "the candidates tell together which is right, none by itself"),
        (model, "lookup", "-lookup", rungs, sizes, "each candidate tells by itself whether it is right"),
        ("organism-unsafe", "organism-max", "-organism-unsafe", tiny, (48, 24), trained),
        ("organism-relational", "organism-odd", "-organism-relational", tiny, (48, 24), trained),
        ("organism-safe", "organism-max", "-organism-safe", tiny, (48, 24), trained),
    ):
        typer.echo(f"\n{judge} on {source} questions: {said}")
        prompts, where = load(source, count + held, seed), run.parent / f"{run.name}{folder}"
        how = {"source": f"{source}:{seed}", "orders": "latin", "seed": seed}
        _study(where, prompts, held, loaded(judge), methods, **how)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page (default: RUN/report.html).")] = None,
) -> None:
    """Write a self-contained HTML page about a run."""
    from kvattn.report import write_report

    typer.echo(f"report: {write_report(run, page(out) if out else None)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    calibrated: Annotated[bool, typer.Option(help="The choices after the prior was subtracted.")] = False,
    mixed: Annotated[bool, typer.Option(help="Only questions with right and wrong candidates.")] = False,
    bands: Annotated[int, typer.Option(help="Parts of equal depth that the layers are cut into.", min=1, max=1000)] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, every number there is.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a line a number.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Set runs beside each other: content tests, consistency, accuracy, and slot mass by relative depth."""
    import json

    from kvattn.cli import terminal
    from kvattn.report import tables
    from kvattn.stats.picks import Scope
    from kvattn.study.run_folder.side_by_side import Comparison, open_runs
    from kvattn.text import csv

    if as_json + as_csv + as_markdown > 1:
        raise KvattnError("give one of --json, --csv and --markdown")
    compared = Comparison(open_runs(runs), Scope(calibrated, mixed), bands)
    if as_json:
        typer.echo(json.dumps(compared.to_dict(), indent=1))
    elif as_csv:
        typer.echo(csv(compared.long()), nl=False)
    elif as_markdown:
        typer.echo(tables.markdown(compared), nl=False)
    else:
        terminal.comparison(compared)


@app.command("app")
def open_app(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of run folders (default: runs).")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A further model to judge live with; repeatable.")] = None,
    port: Annotated[int | None, typer.Option(help="Of the local server.", min=1, max=65535)] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Open the interactive app on this machine."""
    from kvattn.cli.app import serve

    serve(runs or [Path("runs")], model or [], port, browser, dtype, device)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Alias, folder, .gguf file, or Hub id.")],
    dtype: Dtype = "float32",
    device: Device = "cpu",
    device_map: DeviceMap = None,
) -> None:
    """Can plans be trusted on this model? Every line is a measured number against a bound."""
    from kvattn.judge.doctor import examine

    engine = loaded(model, dtype=dtype, device=device, trusted=True, device_map=device_map).engine
    if engine.info.get("adapter"):
        typer.echo(f"{engine.info['base']} and an adapter: {engine.info['adapter']}")
    failed = 0
    for finding in examine(engine):
        typer.echo(str(finding))
        failed += not finding.passed
    if failed:
        raise KvattnError(f"{failed} checks failed: do not trust plans on {model}")
    typer.echo(f"{model}: all checks passed")


@models_app.command("list")
def models_list() -> None:
    """The judges known by name, and which are on this disk."""
    from kvattn import models
    from kvattn.cli import terminal

    terminal.models(models.list_models())


@models_app.command("prepare")
def models_prepare(name: Annotated[str, typer.Argument(help="Alias, .gguf file, or Hub id.")] = DEFAULT_JUDGE) -> None:
    """Fetch a judge's weights, check them, convert them once."""
    from kvattn import models

    source = models.prepare(name, progress=_say)
    typer.echo(f"{name} is prepared ({source.origin})")


@methods_app.command("list")
def methods_list() -> None:
    """Every method with its parameters, their defaults and its source."""
    from kvattn import methods as zoo
    from kvattn.cli import terminal

    terminal.methods(zoo.registry() | {m.name: m for m in (*zoo.TRAINED, *zoo.HELPED)})


def _methods(text: str) -> list:
    from kvattn import methods as zoo

    if text != "all":
        return zoo.parse(text)
    return [m for m in map(zoo.get, zoo.registry()) if not m.needs_warming]  # those that need nothing before


def _study(
    run: Path, prompts: list, heldout: int, judge: Any, methods: Sequence, anew: bool = False, **how: Any
) -> None:
    from kvattn.cli import terminal
    from kvattn.report import write_report
    from kvattn.study.study import Study

    if heldout and len(prompts) <= heldout:
        raise KvattnError(f"{len(prompts)} questions cannot spare {heldout} held-out ones")
    cut = len(prompts) - heldout
    study = Study(judge, prompts[:cut], methods, heldout=prompts[cut:], **how)
    with keeping(), terminal.progress() as progress:
        study.run(run, progress, anew)
    terminal.run(run)
    typer.echo(f"run:    {run}\nreport: {write_report(run)}")


def _say(what: str, done: int, of: int) -> None:
    typer.echo(f"  {one_line(what)}", err=True)


def main() -> None:
    """Run the command line; bad input, and files that cannot be read or written, end in one line on standard error and
    exit status 2; SIGINT and SIGTERM in one line and the status that shells give them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with heard():
            sys.exit(app(standalone_mode=False) or 0)
    except Usage as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            sys.exit(0)  # the help has been printed
        of = f"; see {e.ctx.command_path} --help" if getattr(e, "ctx", None) else ""
        _fail(KvattnError(" ".join(e.format_message().split()).rstrip(".") + of), 2)
    except KvattnError as e:
        _fail(e, 2)
    except Stopped as e:
        _fail(e, 128 + e.number)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as e:
        where = f" {e.filename}" if e.filename else ""
        _fail(KvattnError(f"the disk or the system refused{where}: {e.strerror or e}; mend that and run it again"), 2)


def _fail(error: BaseException, status: int) -> None:
    print(f"kvattn: {error}", file=sys.stderr)
    sys.exit(status)
