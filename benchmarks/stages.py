"""Where the time of one judgement goes, stage by stage: dense, reuse, reuse of all but one token, KVCOMM's correction.

    python -m benchmarks.stages [--full | --tiny]

Stages are timed by wrapping what does them, so that each stands for itself: what a stage holds of another is taken off
it. "plain" is the plain model's forward of as many tokens on a ready cache, and the rows are medians over turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks import kit
from benchmarks.reuse import Asked, suffix_forward, warm


class Stages:
    """Seconds by stage, exclusive of the stages within."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def timed(self, name: str, inner: Callable) -> Callable:
        """`inner`, counted to the stage of that name."""

        def call(*args, **kwargs):
            began = kit.clock()
            self._within.append(0.0)
            try:
                return inner(*args, **kwargs)
            finally:
                took = kit.clock() - began
                self.seconds[name] += took - self._within.pop()
                if self._within:
                    self._within[-1] += took

        return call

    @contextmanager
    def watching(self, engine) -> Iterator[None]:
        """Counts while the context lasts."""
        from kvattn.engine.cache import PromptCache, PromptLayer
        from kvattn.engine.capture import Recorder
        from kvattn.engine.queries import Pass
        from kvattn.engine.rotary import Rotary

        model = engine.model
        parts: list[tuple[Any, str, str]] = [
            (PromptCache, "__init__", "cache: copy kept"),
            (PromptLayer, "update", "cache: copy kept"),
            (Rotary, "angles", "cache: turn keys"),
            (Rotary, "turn_", "cache: turn keys"),
            (Pass, "_make", "masks"),
            (Recorder, "record", "rows"),
            (Recorder, "finish", "rows"),
            (model.get_decoder(), "forward", "decoder"),
            (model.get_output_embeddings(), "forward", "output matrix"),
            (engine, "execute", "else"),
        ]
        with ExitStack() as stack:
            for owner, attribute, name in parts:
                inner = getattr(owner, attribute)
                stack.enter_context(patch.object(owner, attribute, _method(self.timed(name, inner))))
            yield


def _method(call: Callable) -> Callable:
    return lambda *args, **kwargs: call(*args, **kwargs)


STAGES = ("cache: copy kept", "cache: turn keys", "masks", "rows", "decoder", "output matrix", "else")
PLANS = {
    "dense, row captured": ("dense", True),
    "naive-linked": ("naive-linked", False),
    "naive-linked, row captured": ("naive-linked", True),
    "all but one token kept": ("naive", False),
    "kvcomm, corrected": ("kvcomm:pool=frozen,gamma=2", False),
}


def main() -> None:
    """One table."""
    args = kit.arguments(__doc__)
    from kvattn import methods as zoo
    from kvattn.engine.capture import Wanted

    report = kit.Report("stages", __doc__, args.out)
    engine = kit.engine("smollm2")
    tokens = 320 if args.tiny else 1024
    asked = Asked.make(engine, tokens, 0.75)
    rows, data = [], {}
    for title, (name, captured) in PLANS.items():
        method = zoo.get(name)
        if method.needs_warming:
            warm(method, engine, tokens, 0.75)
        plan = asked.plan(method)
        fresh = int((plan.depth > 0).sum())
        plain, turns, whole = suffix_forward(engine, fresh, len(asked.layout)), [], []
        wanted = Wanted() if captured else None
        engine.execute([plan], wanted)
        for _ in range(args.turns.pairs):
            stages = Stages()
            with stages.watching(engine):
                engine.execute([plan], wanted)
            turns.append(stages.seconds)
            whole.append(plain())
        spent = {s: median(t[s] for t in turns) for s in STAGES}
        data[title] = {"fresh": fresh, "plain": whole, "turns": [dict(t) for t in turns]}
        cells = [f"{1000 * spent[s]:.1f}" for s in STAGES]
        rows.append([title, f"{fresh} of {len(asked.layout)}", *cells, f"{1000 * median(whole):.1f}"])
    columns = ["plan", "tokens computed", *STAGES, "plain"]
    report.table(f"Milliseconds, median of {args.turns.pairs} turns", columns, rows, data)


if __name__ == "__main__":
    main()
