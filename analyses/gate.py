"""When is reuse safe, can it be told from the cheap pass, and what does telling save?

    python -m analyses.gate [--real RUN] [--questions 800] [--taught 400] [--problems 24] [--runs DIR] [--out figures]

Asks: how well do scores of cheap passes tell decisions that dense would change (AUC, AP), which thresholds are granted
with "95 % sure that at most 5 % of the accepted differ", do they keep that on fresh questions, and is anything saved
once every pass is counted? On the two model organisms, on the judge that ships, on the one that does not read, and on
the run given by --real.
Found: docs/gate.md. Overturned by: a granted gate whose flips on fresh questions are more than its bound allows, or the
same table of another judge. Runs are made where they are not there yet; a stopped one is continued.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analyses import repair
from kvattn import load
from kvattn.errors import KvattnError
from kvattn.methods import get
from kvattn.questions import labels
from kvattn.questions import load as load_data
from kvattn.questions.organism import problems
from kvattn.questions.prompt import JudgePrompt
from kvattn.study.gate import Promise, Recipe, read_examples, signals
from kvattn.study.gate import evaluate as ev
from kvattn.study.gate.examples import has_mass, learners
from kvattn.study.gate.gate import content_test, one_order, out_of_fold
from kvattn.study.run_folder import Run
from kvattn.study.study import Study
from kvattn.text import csv, interval, missing, silent

KINDS = ("logistic", "boosting", "threshold", "threshold:decision.margin")
UNSAFE = ("dense", "naive-linked", "isolated", "first-k:budget=0.84", "progressive:k=2")
SAFE = ("dense", "naive-linked", "isolated")
PROMISE = Promise(risk=0.05, confidence=0.95)


@dataclass(frozen=True)
class Setting:
    """A run and what is looked at in it; `fresh`: further questions of the same source; `others`: other sources."""

    run: Path
    recipe: Recipe
    fresh: Path | None = None
    others: tuple[Path, ...] = ()


def judged(
    folder: Path,
    name: str,
    methods: Sequence[str],
    prompts: Sequence[JudgePrompt],
    heldout: int,
    orders: str = "fixed",
    regime: Any = "parallel",
) -> Path:
    """A run of the last questions of `prompts`; the first `heldout` make its content test. A finished one is taken."""
    if (folder / "manifest.json").is_file() and len(Run(folder)) == len(prompts) - heldout:
        return folder
    study = Study(load(name, regime=regime), prompts[heldout:], methods, orders, prompts[:heldout], source=name)
    study.run(folder)
    print(f"judged {folder}", flush=True)
    return folder


def organisms(folder: Path, questions: int) -> list[Setting]:
    """Both organisms in four orders; fresh questions in one; three candidates; candidates that built on each other."""
    made: dict[str, Path] = {}
    for short, methods in (("unsafe", UNSAFE), ("safe", SAFE)):
        name, half = f"organism-{short}", questions // 2
        sets = {
            "": (problems(name, questions + 40, seed=100), 40, "rotations", "parallel"),
            "-fresh": (problems(name, half, seed=101), 0, "fixed", "parallel"),
            "-three": (problems(name, half, seed=102, candidates=3), 0, "fixed", "parallel"),
            "-progressive": (problems(name, half, seed=103), 0, "fixed", "progressive"),
        }
        for suffix, (prompts, heldout, orders, regime) in sets.items():
            path = judged(folder / (short + suffix), name, methods, prompts, heldout, orders, regime)
            made[short + suffix] = path
            if short == "safe" and suffix in ("", "-fresh") and not (path / signals.NAME).exists():
                signals.measure(load(name), Run(path), prompts[heldout:], "isolated", silent)
    firsts = "first-k(budget=0.84)"
    elsewhere = {s: tuple(made[s + x] for x in ("-three", "-progressive")) for s in ("safe", "unsafe")}
    return [
        Setting(made["unsafe"], Recipe("naive-linked"), made["unsafe-fresh"]),
        Setting(made["unsafe"], Recipe("progressive(k=2)"), made["unsafe-fresh"]),
        Setting(made["unsafe"], Recipe(firsts), made["unsafe-fresh"], elsewhere["unsafe"]),
        Setting(made["unsafe"], Recipe(firsts, ("naive-linked",)), made["unsafe-fresh"]),
        Setting(made["safe"], Recipe("naive-linked"), made["safe-fresh"], (*elsewhere["safe"], made["unsafe-fresh"])),
        Setting(made["safe"], Recipe("isolated"), made["safe-fresh"], (*elsewhere["safe"], made["unsafe-fresh"])),
        Setting(made["safe"], Recipe("isolated", ("naive-linked",)), made["safe-fresh"]),
        Setting(made["safe"], Recipe("isolated", deviation=True), made["safe-fresh"]),
        Setting(made["safe"], Recipe("isolated", votes=3)),
    ]


def real(run: Path) -> list[Setting]:
    """The judge of a real run: naive-linked and its best rival, each alone and with the other, and DG-JKR's pair."""
    found = Run(run)
    methods = set(found.judgements()["method"])
    recipes = [
        Recipe("naive-linked"),
        Recipe("last-k(budget=0.3)"),
        Recipe("naive-linked", ("last-k(budget=0.3)",)),
        Recipe("last-k(budget=0.3)", ("naive-linked",)),
        Recipe("naive-linked", ("kvcomm",)),
        Recipe("naive-linked", ("kvcomm(size=20,pool=frozen)",)),
    ]
    return [
        Setting(run, Recipe(r.reuse, r.probes, mass=has_mass(found, r.reuse)))
        for r in recipes
        if {r.reuse, *r.probes} <= methods
    ]


def reading(folder: Path, questions: int) -> list[Setting]:
    """The judge that ships, on questions of plurality: reuse alone, tails that were taught (`analyses.repair`), and
    those beside reuse alone; half as many fresh questions. Fixed before any of them was judged."""
    name = "smollm2-135m-judge"
    repaired = get(f"repaired:{repair.taught(name, 'tails, seeing')}").label
    runs = [
        judged(folder / run, name, ("dense", "naive", repaired), repair.untaught(name, count, seed), heldout, orders)
        for run, seed, count, heldout, orders in (
            ("judge", 41, questions + 24, 24, "shuffle:1"),
            ("judge-fresh", 42, questions // 2, 0, "shuffle:1"),
        )
    ]
    return [Setting(runs[0], r, runs[1]) for r in (Recipe("naive"), Recipe(repaired), Recipe(repaired, ("naive",)))]


def rows(setting: Setting) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """The setting's rows of the three tables: gates, families of features, transfer."""
    run, recipe = Run(setting.run), setting.recipe
    examples = read_examples(run, recipe)
    looked = " + ".join(
        ["decision, texts" + (", mass" if recipe.mass else ""), *recipe.probes]
        + ([f"{recipe.votes} votes"] if recipe.votes else [])
        + (["K/V deviation"] if recipe.deviation else [])
    )
    about = {"run": run.folder.name, "reuse": recipe.reuse, "looks at": looked}
    online = learners(run, (recipe.reuse, *recipe.probes))
    gates, families, carried = [], [], []
    for kind in [*KINDS, *(["dg-jkr"] if recipe.probes else [])]:
        scores = out_of_fold(kind, examples.x, examples.safe, examples.question)
        row = {**about, "gate": kind, **ev.discrimination(examples, scores)}
        row |= {
            "safe": float(examples.safe.mean()),
            "passes": float(((examples.reuse + examples.extra) / examples.dense).mean()),
        }
        row |= {"does_not_read": content_test(run) == "does not read"}
        why = f"{online[0]} learns from question to question" if online else None
        tried = {"certificate": None, "refused": why} if why else ev.trial(examples, PROMISE, kind)
        certificate = tried["certificate"] or {}
        row |= {f"granted_{k}": certificate.get(k) for k in ("questions", "accepted", "flips", "bound")}
        row |= {"refused": tried["refused"]}
        if kind == "dg-jkr":
            row |= {f"dgjkr_{k}": v for k, v in ev.rule(examples, scores >= 1).items()}
        if setting.fresh is not None:
            used = ev.transfer(examples, read_examples(Run(setting.fresh), recipe), kind, PROMISE)["gate"]
            row |= {f"fresh_{k}": v for k, v in (used or {}).items()}
        gates.append(row)
        if kind == KINDS[0]:
            families += [{**about, **a} for a in ev.ablation(examples, scores, kind)]
    for other in setting.others:
        target = one_order(read_examples(Run(other), recipe))
        for kind in KINDS[:2]:
            t = ev.transfer(examples, target, kind, PROMISE)
            used = t.pop("gate") or {}
            carried.append({**about, "to": other.name, "gate": kind, **t, **{f"used_{k}": v for k, v in used.items()}})
    print(f"done {about}", flush=True)
    return gates, families, carried


def _span(r: dict[str, Any], name: str, digits: int = 2) -> str:
    low, high = r[f"{name}_low"], r[f"{name}_high"]
    return "-" if missing(low) else interval(r[name], low, high, digits)


def _named(method: str) -> str:
    """A method's label, a repair by its folder's name alone."""
    name, parameters = labels.read(method)
    return f"repaired:{Path(parameters[0]).name}" if name == "repaired" else method


def _granted(r: dict[str, Any]) -> str:
    if pd.isna(r["granted_accepted"]):
        return "refused"
    return f"{int(r['granted_accepted'])} of {int(r['granted_questions'])}, {int(r['granted_flips'])} flips"


def _fresh(r: dict[str, Any]) -> tuple[str, str, str]:
    if pd.isna(r.get("fresh_accepted")):
        return "-", "-", "-"
    jcr = f"{_span(r, 'fresh_jcr', 3)} / {r['fresh_random_jcr']:.3f}"
    return (
        f"{int(r['fresh_accepted'])} of {int(r['fresh_rows'])}, {int(r['fresh_flips'])} flips",
        jcr,
        f"{r['fresh_cost']:.2f}",
    )


def markdown(gates: pd.DataFrame, carried: pd.DataFrame) -> str:
    """The tables as text."""
    lines = [
        "| run | reuse | looks at | gate | n | safe | AUC (95 %) | AP (95 %) | passes | granted at 5 %, 95 % "
        "| on fresh questions | JCR / random gate | cost |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in gates.to_dict("records"):
        named = r["run"] + (" (does not read)" if r["does_not_read"] else "")
        cells = [
            named,
            _named(r["reuse"]),
            r["looks at"],
            r["gate"],
            f"{r['questions']} x {r['rows'] // r['questions']}",
        ]
        cells += [f"{r['safe']:.2f}", _span(r, "auc"), _span(r, "ap"), f"{r['passes']:.2f}", _granted(r), *_fresh(r)]
        lines.append(f"| {' | '.join(cells)} |")
    agreeing = gates[gates["gate"] == "dg-jkr"]
    lines += [
        "",
        "| DG-JKR | second pass | n | accepted, flips | JCR (95 %) | random gate | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in agreeing.to_dict("records"):
        counts = f"{int(r['dgjkr_accepted'])} of {int(r['dgjkr_rows'])}, {int(r['dgjkr_flips'])}"
        cells = [f"{r['run']}: {_named(r['reuse'])}", r["looks at"].rpartition(" + ")[2], str(r["questions"]), counts]
        cells += [_span(r, "dgjkr_jcr", 3), f"{r['dgjkr_random_jcr']:.3f}", f"{r['dgjkr_cost']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if len(carried):
        lines += [
            "",
            "| fitted on | reuse | used on | gate | AUC (95 %) | accepted, flips | bound of the risk | cost |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for r in carried.to_dict("records"):
        none = pd.isna(r.get("used_accepted"))
        used = "-" if none else f"{int(r['used_accepted'])} of {int(r['used_rows'])}, {int(r['used_flips'])}"
        cells = [r["run"], r["reuse"], r["to"], r["gate"], _span(r, "auc"), used]
        cells += ["-", "-"] if none else [f"{r['used_risk_bound']:.2f}", f"{r['used_cost']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Judge, fit, evaluate, write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--real", type=Path, default=Path("figures/runs/gsm8k-1.5b"))
    parser.add_argument("--questions", type=int, default=800, help="of each organism")
    parser.add_argument("--taught", type=int, default=400, help="questions of the judge that ships; 0: leave it out")
    parser.add_argument("--problems", type=int, default=24, help="of the one that does not read; 0: leave it out")
    parser.add_argument("--runs", type=Path, default=Path("runs/gate"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args()
    settings = organisms(args.runs, args.questions) + real(args.real)
    settings += reading(args.runs, args.taught) if args.taught else []
    if args.problems:
        prompts = load_data("synthetic:5", args.problems + 12)
        embedded = judged(args.runs / "smollm2-135m", "smollm2-135m", ("dense", "naive-linked"), prompts, 12)
        settings.append(Setting(embedded, Recipe("naive-linked")))
    tables: tuple[list, list, list] = ([], [], [])
    for setting in settings:
        try:
            for table, more in zip(tables, rows(setting), strict=True):
                table.extend(more)
        except KvattnError as error:
            raise KvattnError(f"{setting.run}, {setting.recipe.reuse}: {error}") from error
    gates, families, carried = (pd.DataFrame(t) for t in tables)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, table in (("gate", gates), ("gate_families", families), ("gate_transfer", carried)):
        (args.out / f"{name}.csv").write_text(csv(table.round(5)), encoding="utf-8")
    text = markdown(gates, carried)
    (args.out / "gate.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
