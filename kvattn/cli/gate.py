"""`kvattn gate`: fit a gate on a run, report how well reuse can be told safe from unsafe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvattn.cli import MOST, MOST_SEED, json_of, page
from kvattn.errors import KvattnError
from kvattn.text import interval

gate_app = typer.Typer(help="When is reuse safe? A gate with a guarantee (docs/gate.md).", no_args_is_help=True)

RunFolder = Annotated[Path, typer.Argument(help="A run folder that holds dense and the cheap methods.")]
Reuse = Annotated[str, typer.Option(help="The method whose decisions are accepted or not.")]
Probes = Annotated[
    str, typer.Option(help="Comma-separated further cheap methods to compare it with; parameters as last-k:budget=0.3.")
]
Votes = Annotated[int, typer.Option(help="Rotations of the order under which the reuse pass is run again.", min=0)]
Mass = Annotated[bool, typer.Option("--mass/--no-mass", help="Look at the slot mass of the reuse pass.")]
Deviation = Annotated[bool, typer.Option("--deviation", help="Look at K/V deviation, measured by kvattn gate signals.")]
Risk = Annotated[float, typer.Option(help="Largest share of flips among the accepted decisions.")]
Confidence = Annotated[float, typer.Option(help="How sure to be of it.")]
Seed = Annotated[int, typer.Option(help="Of the split into fitting and calibration questions.", min=0, max=MOST_SEED)]


@gate_app.command()
def fit(
    run: RunFolder,
    reuse: Reuse = "naive-linked",
    probes: Probes = "",
    votes: Votes = 0,
    mass: Mass = True,
    deviation: Deviation = False,
    kind: Annotated[str, typer.Option(help="logistic, boosting, threshold[:FEATURE] or dg-jkr.")] = "logistic",
    risk: Risk = 0.05,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write the gate (default: RUN/gate.json).")] = None,
    despite_content_test: Annotated[bool, typer.Option(help="Fit although the judge failed the content test.")] = False,
) -> None:
    """Fit a gate on one half of a run's questions and grant it a threshold on the other half; refuse where that cannot
    be done."""
    from kvattn.study.gate import Promise, fit_run
    from kvattn.study.gate.examples import ceiling, read_examples
    from kvattn.study.run_folder import Run

    recipe, promise, opened = _recipe(reuse, probes, votes, mass, deviation), Promise(risk, confidence), Run(run)
    path = json_of(out or run / "gate.json", "kvattn-gate")
    examples = read_examples(opened, recipe)
    most = ceiling(examples, risk)
    if most.cost >= 1:
        raise KvattnError(f"{most.sentence}: even an oracle saves nothing; take a cheaper pass, or one that flips less")
    typer.echo(f"ceiling: {most.sentence}")
    gate = fit_run(opened, recipe, promise, kind, seed, despite_content_test, examples)
    c = gate.certificate
    gate.save(path)
    typer.echo(
        f"fitted {kind} on {gate.fitted['questions']} questions; of {c.questions} calibration questions, one order "
        f"each, {c.accepted} are accepted and {c.flips} of those flip:\nwith {c.confidence:.0%} confidence at most "
        f"{c.bound:.1%} of accepted decisions differ from dense\ngate: {path}"
    )


@gate_app.command()
def report(
    run: RunFolder,
    reuse: Reuse = "naive-linked",
    probes: Probes = "",
    votes: Votes = 0,
    mass: Mass = True,
    deviation: Deviation = False,
    kinds: Annotated[
        str, typer.Option(help="Comma-separated; the first is taken apart by feature and carried over to --transfer.")
    ] = "logistic,boosting,threshold,threshold:decision.margin",
    risk: Risk = 0.05,
    confidence: Confidence = 0.95,
    transfer: Annotated[list[Path] | None, typer.Option(help="Another run to use the gate on; repeatable.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="The page (default: RUN/gate-report.html; .json beside it).")] = None,
) -> None:
    """Write a page about how well gates tell safe from unsafe reuse on a run, what they save, and which are granted."""
    from kvattn.cli import terminal
    from kvattn.report import gate as gate_page
    from kvattn.study.gate import Promise
    from kvattn.study.gate.evaluate import evaluate
    from kvattn.study.run_folder import Run

    recipe = _recipe(reuse, probes, votes, mass, deviation)
    asked = [k.strip() for k in kinds.split(",") if k.strip()]
    if not asked:
        raise KvattnError("--kinds names no gate")
    if out is not None:
        json_of(page(out).with_suffix(".json"), "kvattn-gate-report")
    promise = Promise(risk, confidence)
    found = evaluate(Run(run), recipe, asked, promise, [Run(t) for t in transfer or []], seed)
    terminal.rows([_row(kind, entry) for kind, entry in found["gates"].items()])
    for entry in found["transfer"]:
        typer.echo(f"on {entry['run']}: {_discrimination(entry)}; {_used(entry['gate'])}")
    _, head, said = gate_page.verdict(found)
    typer.echo(f"{head} {said}")
    written, data = gate_page.write(found, run, out)
    typer.echo(f"report: {written}\ndata:   {data}")


@gate_app.command()
def signals(
    run: RunFolder,
    file: Annotated[str, typer.Argument(help="The candidates file or embedded set that the run judged.")],
    model: Annotated[str, typer.Option(help="The run's judge.")],
    reuse: Reuse = "naive-linked",
    seed: Annotated[int, typer.Option(help="Of an embedded set.", min=0, max=MOST_SEED)] = 0,
    limit: Annotated[int | None, typer.Option(help="Questions of an embedded set.", min=1, max=MOST)] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Measure how far kept keys and values are from a shallow fresh pass, for every judgement of a run."""
    from kvattn import questions as data
    from kvattn.cli import terminal
    from kvattn.judge.judge import load
    from kvattn.study.gate import signals as measured
    from kvattn.study.run_folder import Run

    opened = Run(run)
    m = opened.manifest
    judge = load(model, str(m["readout"]), str(m["dtype"]), device, m.get("regime", "parallel"))
    if (m.get("model") or {}).get("hashes") != judge.engine.info.get("hashes"):
        raise KvattnError(f"{model} is not the judge of {run} ({(m.get('model') or {}).get('name')}); name that one")
    label = _recipe(reuse, "", 0, False, True).reuse
    with terminal.progress() as progress:
        path = measured.measure(judge, opened, list(data.load(file, limit, seed)), label, progress)
    typer.echo(f"signals: {path}")


def _recipe(reuse: str, probes: str, votes: int, mass: bool, deviation: bool) -> Any:
    from kvattn import methods as zoo
    from kvattn.study.gate import Recipe

    return Recipe(
        reuse=zoo.parse(reuse)[0].label,
        probes=tuple(m.label for m in zoo.parse(probes)) if probes.strip() else (),
        votes=votes,
        mass=mass,
        deviation=deviation,
    )


def _row(kind: str, entry: dict[str, Any]) -> dict[str, str]:
    c = entry["certificate"]
    return {
        "gate": kind,
        "AUC (95 %)": _interval(entry["discrimination"], "auc"),
        "AP (95 %)": _interval(entry["discrimination"], "ap"),
        "AP by chance": f"{entry['discrimination']['ap_chance']:.2f}",
        "guarantee": "refused" if c is None else f"accepts {c['accepted']} of {c['questions']}, {c['flips']} flips",
    }


def _interval(d: dict[str, Any], name: str) -> str:
    return interval(d[name], d[f"{name}_low"], d[f"{name}_high"], none="-")


def _discrimination(entry: dict[str, Any]) -> str:
    return f"AUC {_interval(entry, 'auc')}, AP {_interval(entry, 'ap')} against {entry['ap_chance']:.2f} by chance"


def _used(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "no gate was granted that could be used there"
    counts = f"accepts {gate['accepted']} of {gate['rows']} questions, {gate['flips']} flips"
    return f"{counts}, cost {gate['cost']:.0%} of dense"
