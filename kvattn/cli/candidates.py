"""`kvattn candidates`: execution agents answer problems, frozen to a candidates file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvattn.cli import MOST, MOST_SEED, refuse_input, without
from kvattn.cli.options import Dtype
from kvattn.cli.stop import keeping

candidates_app = typer.Typer(help="Candidates files (docs/candidates-file.md).", no_args_is_help=True)


@candidates_app.callback()
def candidates() -> None:
    """Candidates files (docs/candidates-file.md)."""


@candidates_app.command()
def export(
    file: Annotated[str, typer.Argument(help="A candidates file, or a log that --template takes apart.")],
    template: Annotated[str, typer.Option(help="The conversation that questions are put into (docs/templates.md).")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write: a data set of inspect_ai (json_dataset).")],
    limit: Annotated[int | None, typer.Option(help="The first so many questions.", min=1, max=MOST)] = None,
) -> None:
    """Write questions as samples of inspect_ai: the judge's conversation, and the labels of right candidates."""
    import json

    from kvattn.files import write_output
    from kvattn.questions import iter_candidates
    from kvattn.questions.inspect_logs import sample_of
    from kvattn.questions.template_files import find_template

    refuse_input(out, file, template)
    made = [sample_of(p) for p in iter_candidates(file, limit, find_template(template))]
    write_output(out, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in made).encode())
    typer.echo(f"{out}: {len(made)} samples")


@candidates_app.command()
def generate(
    problems: Annotated[
        str, typer.Argument(help="gsm8k, mmlu or humaneval (NAME:SPLIT), synthetic[:SEED], or a file of problems.")
    ],
    out: Annotated[Path, typer.Option(help="The candidates file to write (.jsonl).")],
    model: Annotated[str, typer.Option(help="Alias, folder, .gguf file, or Hub id with @revision.")] = "smollm2-135m",
    agents: Annotated[int, typer.Option(help="Candidates a question.", min=1, max=16)] = 4,
    regime: Annotated[
        str, typer.Option(help="parallel (each agent alone), or progressive (it sees the answers before its own).")
    ] = "parallel",
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Of sampling (default: 0.2); 0 takes the likeliest token. Given twice: for agents in turn."),
    ] = None,
    max_new: Annotated[int, typer.Option(help="Tokens an answer may have.", min=1, max=MOST)] = 512,
    limit: Annotated[int | None, typer.Option(help="Answer the first so many problems.", min=1, max=MOST)] = None,
    together: Annotated[
        int, typer.Option(help="Problems answered side by side; quicker, and needs memory for all.", min=1, max=MOST)
    ] = 1,
    template: Annotated[
        str | None, typer.Option(help="In whose words agents are asked: a YAML file (docs/templates.md), or a name.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling, and of an embedded set.", min=0, max=MOST_SEED)] = 0,
    verify: Annotated[bool, typer.Option(help="Say of every candidate whether it is right.")] = True,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run candidate programs, in a sandbox, to verify them.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out problems that cannot be read or answered, and say which.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Put a file that lies there aside (with .before-1 in its name), and begin.")
    ] = False,
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Let execution agents answer problems; the same command continues a stopped file."""
    import json

    from kvattn.cli import terminal
    from kvattn.judge.agents import Agents
    from kvattn.judge.judge import load
    from kvattn.questions import load_problems
    from kvattn.questions.template_files import find_template
    from kvattn.study.candidates_file import Generation

    heat = tuple(temperature or [0.2])
    how = Agents(agents, regime, heat if len(heat) > 1 else heat[0], max_new, seed)  # type: ignore[arg-type]
    refuse_input(out, problems)
    words = find_template(template) if template is not None else None
    unread = {} if skip_bad else None
    found = load_problems(problems, limit, seed, unread)
    engine = load(model, dtype=dtype, device=device).engine
    may = (verify, allow_code_execution, skip_bad)
    asked = Generation(engine, found, how, problems, *may, unread or {}, words, together).checked()
    with keeping(), terminal.progress() as progress:
        path = asked.write(out, progress, "always" if anew else "never")
    made = json.loads(path.with_name(f"{path.name}.manifest.json").read_text(encoding="utf-8"))["made"]
    typer.echo(f"{path}: {len(asked.problems)} questions, {made['candidates']} candidates of {made['tokens']} tokens")
    if said := without(asked.left_out, len(asked.problems)):
        typer.echo(said)
    if made["known_right_or_wrong"]:
        typer.echo(
            f"right: {made['right']} of {made['known_right_or_wrong']}; questions with right and wrong ones: "
            f"{made['mixed_questions']}"
        )
    if made["cut_off"]:
        where = f"at {max_new} tokens (--max-new) or where the context ends"
        typer.echo(f"cut off {where}: {made['cut_off']} of {made['candidates']}")
