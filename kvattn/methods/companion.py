"""Another model that a method needs beside the judge: a helper that reads for it, agents that write for it."""

from __future__ import annotations

from kvattn.engine.engine import Engine


def beside(judge: Engine, name: str) -> Engine:
    """The model of that name, as `kvattn.load` takes it, in the judge's dtype on its device; loaded once, and kept with
    the judge. Raises KvattnError where it cannot be loaded."""
    if name not in judge.companions:
        from kvattn.models import load_pretrained

        dtype = str(judge.dtype).removeprefix("torch.")
        model, tokenizer, info = load_pretrained(name, device=str(judge.device), dtype=dtype)
        judge.companions[name] = Engine(model, tokenizer, info.to_dict())
    return judge.companions[name]
