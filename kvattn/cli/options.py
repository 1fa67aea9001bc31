"""Options that several commands take, and the judge that they name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Alias, folder, .gguf file, or Hub id with @revision; +ADAPTER for a LoRA.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the faster of the first two here.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


def loaded(
    model: str,
    readout: str = "label",
    dtype: str = "float32",
    device: str = "cpu",
    regime: str = "parallel",
    trusted: bool = False,
) -> Any:
    """The judge that the options name."""
    from kvattn.judge.judge import load

    judge = load(model, readout=readout, dtype=dtype, device=device, regime=regime, trusted=trusted)  # type: ignore[arg-type]
    if measured := judge.engine.info.get("precision"):
        typer.echo(f"dtype {measured}", err=True)
        if not measured.startswith("float32"):
            from kvattn.judge.doctor import real_prompts
            from kvattn.judge.precision import agreement

            typer.echo(f"dense against dense in float32: {agreement(judge.engine, real_prompts())}", err=True)
    return judge
