"""`kvattn templates`: the prompts that judges are asked with, listed, shown, and held against a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvattn import DEFAULT_JUDGE
from kvattn.cli.options import Model, loaded

if TYPE_CHECKING:
    from kvattn.questions.prompt import JudgePrompt
    from kvattn.questions.templates import Template

templates_app = typer.Typer(help="The judge's prompt (docs/templates.md).", no_args_is_help=True)
SAMPLE = ("3 x 4 = 12. The answer is 12.", "3 + 4 = 7. The answer is 7.", "Twelve dollars.", "The answer is 34.")


@templates_app.command("list")
def list_() -> None:
    """The templates known by name."""
    from kvattn.cli import terminal
    from kvattn.questions.templates import TEMPLATES

    rows = [{"name": t.name, "answers are": t.kind, "asks": f"{t.instruction} {t.label_question}".strip()}
            for t in TEMPLATES.values()]  # fmt: skip
    terminal.rows(rows)


@templates_app.command()
def show(name: Annotated[str, typer.Argument(help="A template's name, or a file.")]) -> None:
    """A template as YAML: the beginning of one of your own."""
    from kvattn.questions.template_files import find_template, to_yaml

    typer.echo(to_yaml(find_template(name)), nl=False)


@templates_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A template's file, or its name.")],
    model: Model = DEFAULT_JUDGE,
    data: Annotated[
        Path | None, typer.Option(help="A candidates file: its first question is put in (default: a sample).")
    ] = None,
    readout: Annotated[str, typer.Option(help="label, pairwise, yesno, score, or generate[:TOKENS].")] = "label",
) -> None:
    """Compile a template for a judge, and print what the judge reads, segment by segment; or why it cannot be read."""
    from kvattn.cli import terminal
    from kvattn.decision import ties
    from kvattn.questions import read_candidates
    from kvattn.questions.template_files import find_template

    template = find_template(file)
    prompt = read_candidates(data, 1, template)[0] if data else sample(template, 2 if ties(readout) else 3)
    judge = loaded(model, readout)
    layout = judge.compile(prompt)
    terminal.segments(layout, judge.engine.tokenizer)
    typer.echo(f"{len(layout)} tokens; {_read(layout, judge.engine.tokenizer, template, prompt.n)}")
    typer.echo(f"{template.id}: can be judged by {model}")


def sample(template: Template, n: int = 3) -> JudgePrompt:
    """A small question with as many candidates as the template has marks for, or n."""
    from kvattn.questions.conversation import marked
    from kvattn.questions.prompt import Candidate, JudgePrompt

    n = marked(template) if template.messages else n
    made = tuple(Candidate(f"c{i + 1}", SAMPLE[i % len(SAMPLE)]) for i in range(n))
    return JudgePrompt("A pen costs 3 dollars. How much do 4 pens cost?", made, template, id="sample")


def _read(layout, tokenizer, template: Template, n: int) -> str:
    """What the judge's decision is read from, in words."""
    if not layout.answer_ids:
        rule = f"by {template.verdict!r}" if template.verdict else "by kvattn's rules"
        return f"the judge writes its verdict, which is read {rule}"
    shown = ", ".join(repr(tokenizer.decode([i])) for i in layout.answer_ids)
    where = "at its end" if len(layout.decisions) == 1 < n else "at the end of each branch"
    decides = "a token or two decide" if layout.begun else "one token decides"
    return f"{where} {decides}: {shown}"
