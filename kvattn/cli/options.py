"""Options that several commands take, and the judge that they name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Alias, folder, .gguf file, or Hub id with @revision; +ADAPTER for a LoRA.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
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

    return load(model, readout=readout, dtype=dtype, device=device, regime=regime, trusted=trusted)  # type: ignore[arg-type]
