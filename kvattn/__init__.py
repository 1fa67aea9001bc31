"""kvattn: does reusing this KV cache change what the judge decides, and why?"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

__version__ = version("kvattn")
DEFAULT_JUDGE = "smollm2-135m-judge"  # who judges where nobody says who

_HOMES = {  # public name: where it lives, imported when it is first used, so that `import kvattn` stays instant
    "Judge": "judge",
    "load": "judge",
    "Engine": "engine.engine",
    "JudgePrompt": "questions.prompt",
    "Candidate": "questions.prompt",
    "KVBlock": "engine.plan",
    "KVPlan": "engine.plan",
    "Visibility": "engine.plan",
    "Wanted": "engine.capture",
    "audit": "engine.audit",
    "explain": "engine.influence",
    "KvattnError": "errors",
}
_MODULES = {"caches": "engine.caches"}
_ROOMS = ("engine", "judge", "methods", "models", "plots", "questions", "report", "stats", "study")


def __getattr__(name: str):
    """A public name, a module, or a package."""
    if name in _MODULES:
        return import_module(f"kvattn.{_MODULES[name]}")
    if name in _ROOMS:
        return import_module(f"kvattn.{name}")
    if name in _HOMES:
        return getattr(import_module(f"kvattn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kvattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES, *_ROOMS])
