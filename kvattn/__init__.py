"""kvattn: does reusing this KV cache change what the judge decides, and why?"""

from __future__ import annotations

__version__ = "0.1.0"


def load(name: str = "smollm2-135m", **options):
    """The judge of that name: an alias (`kvattn models list`), a folder, a .gguf file or a Hub id with @revision.

    Options are those of `kvattn.judge.load`: readout, dtype, device."""
    from kvattn.judge import load as load_judge

    return load_judge(name, **options)


def __getattr__(name: str):
    """Public names, imported when they are first used, so that `import kvattn` stays instant."""
    from importlib import import_module

    if name in ("gate", "methods", "plots", "stats"):
        return import_module(f"kvattn.{name}")
    homes = {
        "Judge": "judge",
        "Engine": "engine",
        "JudgePrompt": "prompt",
        "Candidate": "prompt",
        "KVBlock": "plan",
        "KVPlan": "plan",
        "Visibility": "plan",
        "Wanted": "capture",
        "KvattnError": "errors",
    }
    if name in homes:
        return getattr(import_module(f"kvattn.{homes[name]}"), name)
    raise AttributeError(f"module 'kvattn' has no attribute {name!r}")
