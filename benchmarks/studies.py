"""Studies end to end: questions a minute, what a study does outside the model, and memory over a thousand questions.

    python -m benchmarks.studies [--full | --tiny]

Inside the model: the decoder's forward (capture's rows among it) and the output matrix. Outside: prompts, plans, cache
assembly, masks, decisions, statistics kept with them, files written and synced.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks import kit

METHODS = ("dense", "naive-linked", "true-mask", "last-k", "kvcomm:pool=frozen")


class Clock:
    """Seconds inside a model's decoder and output matrix."""

    def __init__(self, model) -> None:
        self.seconds = 0.0
        self.modules = (model.get_decoder(), model.get_output_embeddings())

    @contextmanager
    def running(self):
        """Counts while the context lasts."""
        before = [m.forward for m in self.modules]

        def timed(forward):
            def call(*args, **kwargs):
                began = time.perf_counter()
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.seconds += time.perf_counter() - began

            return call

        for m, forward in zip(self.modules, before, strict=True):
            m.forward = timed(forward)
        try:
            yield self
        finally:
            for m in self.modules:
                del m.forward


def study(engine, questions: int, orders: str, heldout: int = 4):
    """A study of synthetic problems (of the organism's own task for an organism)."""
    from kvattn.judge import readout
    from kvattn.judge.judge import Judge
    from kvattn.questions import synthetic
    from kvattn.questions.organism import problems
    from kvattn.study.study import Study

    organism = "organism" in engine.info["name"]
    prompts = problems(engine.info["name"], questions + heldout, seed=3) if organism else synthetic(questions + heldout)
    judge = Judge(engine, readout.get("label"))
    return Study(judge, prompts[heldout:], METHODS, orders=orders, heldout=prompts[:heldout])


def overhead(engine, questions: int, orders: str, pairs: int) -> list:
    """Whole runs, again and again: questions a minute and the share of time outside the model."""
    rates, shares = [], []
    for _ in range(pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            made = study(engine, questions, orders)
            clock = Clock(engine.model)
            began = time.perf_counter()
            with clock.running():
                made.run(Path(folder) / "run")
            seconds = time.perf_counter() - began
        rates.append(60 * questions / seconds)
        shares.append(1 - clock.seconds / seconds)
    return [rates[1:], shares[1:]]


def growth(engine, questions: int) -> list[tuple[int, float]]:
    """(questions judged, MiB resident) along one run."""
    seen: list[tuple[int, float]] = []

    def look(what: str, done: int, total: int) -> None:
        if what == "judging" and (done % max(1, total // 20) == 0 or done == 1):
            seen.append((done, kit.resident_mib()))

    with tempfile.TemporaryDirectory() as folder:
        study(engine, questions, "fixed").run(Path(folder) / "run", look)
    return seen


def main() -> None:
    """Both tables."""
    import numpy as np

    from kvattn.engine.engine import Engine
    from kvattn.models import load_pretrained

    args = kit.arguments(__doc__)
    report = kit.Report("studies", __doc__, args.out)
    runs, pairs, many = (4, 3, 200) if args.tiny else (4, kit.PAIRS if args.full else 5, 1000)
    organism = Engine(*_loaded(load_pretrained("organism-unsafe")))
    seen = growth(organism, many)
    settled = [(n, m) for n, m in seen if n > many // 5]
    slope = float(np.polyfit([n for n, _ in settled], [m for _, m in settled], 1)[0]) * 1000
    columns = ["questions judged", *(str(n) for n, _ in seen[:: max(1, len(seen) // 6)])]
    row = ["MiB resident", *(f"{m:.0f}" for _, m in seen[:: max(1, len(seen) // 6)])]
    report.table(f"organism-unsafe, {many} questions: {slope:+.1f} MiB a thousand", columns, [row], {"seen": seen})

    engine = kit.engine("smollm2")
    rows, data = [], {}
    for orders in ("fixed", "shuffle:2"):
        rates, shares = overhead(engine, runs, orders, pairs)
        data[orders] = {"questions_per_minute": rates, "outside": shares}
        spread = [f"{np.median(x):{f}} ({min(x):{f}} to {max(x):{f}})" for x, f in ((rates, ".1f"), (shares, ".1%"))]
        rows.append([orders, *spread])
    title = f"smollm2, {runs} synthetic questions and 4 held out, {len(METHODS)} methods, {pairs} runs: median (range)"
    report.table(title, ["orders", "questions a minute", "time outside the model"], rows, data)


def _loaded(found):
    model, tokenizer, info = found
    return model, tokenizer, info.to_dict()


if __name__ == "__main__":
    main()
