"""Another model that a method needs beside the judge: a helper that reads for it, agents that write for it."""

from __future__ import annotations

from kvattn.engine.engine import Engine

Loaded = dict[tuple[str, str], Engine]  # by device and dtype


def beside(judge: Engine, name: str, loaded: Loaded) -> Engine:
    """The model of that name, as `kvattn.load` takes it, in the judge's dtype on its device; loaded at its first use.
    Raises KvattnError where it cannot be loaded."""
    key = (str(judge.device), str(judge.dtype).removeprefix("torch."))
    if key not in loaded:
        from kvattn.models import load_pretrained

        model, tokenizer, info = load_pretrained(name, device=key[0], dtype=key[1])
        loaded[key] = Engine(model, tokenizer, info.to_dict())
    return loaded[key]
