"""Options that several commands take, and the judge that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Alias, folder, .gguf file, or Hub id with @revision; +ADAPTER for a LoRA.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: the faster of the first two here.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="For a model larger than a device: auto, or a YAML file, by module its device or disk."),
]


def loaded(
    model: str,
    readout: str = "label",
    dtype: str = "float32",
    device: str = "cpu",
    regime: str = "parallel",
    trusted: bool = False,
    device_map: str | None = None,
) -> Any:
    """The judge that the options name."""
    from kvattn.judge.judge import load

    judge = load(model, readout, dtype, device, regime, trusted, _map(device_map))  # type: ignore[arg-type]
    if measured := judge.engine.info.get("precision"):
        typer.echo(f"dtype {measured}", err=True)
        if not measured.startswith("float32"):
            from kvattn.judge.doctor import real_prompts
            from kvattn.judge.precision import agreement

            typer.echo(f"dense against dense in float32: {agreement(judge.engine, real_prompts())}", err=True)
    return judge


def _map(said: str | None) -> Any:
    """A device map: as it is said, or what a file says."""
    from kvattn.files import read_yaml

    return read_yaml(Path(said)) if said is not None and Path(said).suffix in (".yaml", ".yml", ".json") else said
